"""Normals of a scan's points: from the mesh where there is one, else from the plane through each point's neighbours."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from geopurify_core.purification.student.normals import mesh_vertex_normals
from geopurify_core.scans.mesh import Mesh

NEIGHBOURS = 16
_CHUNK = 50_000
# Below this gap between the two smallest variances, as a share of the largest, the neighbours span no plane.
_MIN_PLANARITY = 0.05
_NO_SIDE = 1e-3


def scan_normals(mesh: Mesh, cameras_m: NDArray[np.floating] | None = None) -> NDArray[np.float32]:
    """(N, 3) float32 unit normals, zero where nothing can be said.

    Vertices of a mesh get the area-weighted mean of their faces' normals, as the released code does; clouds, and
    vertices without a face, the direction in which their neighbours vary least.

    Args:
        mesh: The scan.
        cameras_m: (K, 3) camera centres, metres: planes face the nearest one. Without any they face up.
    """
    normals = np.zeros((len(mesh), 3), dtype=np.float32)
    if len(mesh.faces):
        normals = mesh_vertex_normals(mesh.points_m, mesh.faces)
    rows = np.flatnonzero(~normals.any(axis=1))
    if len(rows):
        normals[rows] = plane_normals(mesh.points_m, rows, cameras_m)
    return normals


def plane_normals(
    points_m: NDArray[np.floating],
    rows: NDArray[np.integer] | None = None,
    cameras_m: NDArray[np.floating] | None = None,
    neighbours: int = NEIGHBOURS,
) -> NDArray[np.float32]:
    """(n, 3) float32 normals of the planes through the points nearest each of ``rows`` (by default all points).

    Args:
        points_m: (N, 3) positions, metres.
        rows: Whose normals.
        cameras_m: (K, 3) camera centres. A plane faces the one nearest to its point; without cameras it faces up (an
            upright one +y, else +x), as normals of maps do.
        neighbours: Points in each plane, the point itself included.
    """
    points = np.asarray(points_m, dtype=np.float64)
    rows = np.arange(len(points)) if rows is None else np.asarray(rows)
    normals = np.zeros((len(rows), 3), dtype=np.float32)
    if len(points) < 3:
        return normals
    tree = cKDTree(points)
    for start in range(0, len(rows), _CHUNK):
        chunk = rows[start : start + _CHUNK]
        _, near = tree.query(points[chunk], min(neighbours, len(points)))
        normals[start : start + len(chunk)] = _least_variance(points[near])
    away = np.zeros_like(normals) if cameras_m is None or len(cameras_m) == 0 else _towards(points[rows], cameras_m)
    return _facing(normals, away)


def _least_variance(groups: NDArray[np.float64]) -> NDArray[np.float32]:
    """(n, 3) smallest principal axis of each group (n, k, 3); zero where the group is a line, a blob or a point."""
    centred = groups - groups.mean(axis=1, keepdims=True)
    variance, axes = np.linalg.eigh(np.einsum("nki,nkj->nij", centred, centred))
    flat = variance[:, 1] - variance[:, 0] > _MIN_PLANARITY * np.maximum(variance[:, 2], 1e-12)
    return np.where(flat[:, None], axes[:, :, 0], 0.0).astype(np.float32)


def _towards(points: NDArray[np.float64], cameras_m: NDArray[np.floating]) -> NDArray[np.float32]:
    cameras = np.asarray(cameras_m, dtype=np.float64)
    _, nearest = cKDTree(cameras).query(points)
    return np.asarray(cameras[nearest] - points, dtype=np.float32)


def _facing(normals: NDArray[np.float32], away: NDArray[np.float32]) -> NDArray[np.float32]:
    """The normals, each turned to the side its ``away`` vector points to, or up where that says nothing."""
    along = np.einsum("ij,ij->i", normals, away)
    for axis in (2, 1, 0):
        along = np.where(np.abs(along) > _NO_SIDE, along, normals[:, axis])
    return np.where(along[:, None] < 0, -normals, normals).astype(np.float32)
