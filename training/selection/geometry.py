"""Geometry in place of classes: a way to choose among scenes of one's own building without a label.

This is ours, not GeoPurify's. Algorithm 1 wants scenes with many kinds of things in balanced shares. Nobody has
labelled one's own building, so a "kind" is here a sort of surface: how the points lie together within about 10 cm and
within about 25 cm (a plane, an edge or rod, a blob), how steep that is, and how high above the floor. Occupied sorts
take the place of classes: their number is the richness, their entropy the complexity, K-Means gets their histogram.

The density of points must not count, so they are first averaged over cells of 4 cm; one cell in eight is looked at. A
larger scene may show more sorts, as it may show more classes.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from geopurify_core.errors import DatasetError

_SLOPE_COS = (0.35, 0.85)  # |n_z| of walls below, of floors and tops above, of what leans between
_HEIGHTS_M = (0.15, 0.6, 1.1, 1.8)  # floor; seats; tables; counters and shelves; above
_SHAPES = 3


@dataclass(frozen=True)
class GeometrySettings:
    """How surfaces are sorted.

    Attributes:
        cell_m: Points are averaged over cells of this edge, metres.
        every: One cell in so many is looked at.
        near, far: Neighbouring cells of the two neighbourhoods; on a surface about 10 and 25 cm around.
        least: A sort with fewer cells is noise and counts as absent.
    """

    cell_m: float = 0.04
    every: int = 8
    near: int = 20
    far: int = 120
    least: int = 10


def geometry_histogram(
    points_m: NDArray[np.floating], scene: str, settings: GeometrySettings | None = None
) -> NDArray[np.int64]:
    """(135,) cells of each sort of surface: 3 shapes near × 3 far × 3 slopes × 5 heights.

    Args:
        points_m: (N, 3), metres, z up; not finite ones are left out.
        scene: Its name: seeds the sample, and is named in errors.
        settings: How surfaces are sorted.

    Raises:
        DatasetError: Too few points to say anything, or an extent that cannot be metres.
    """
    settings = settings or GeometrySettings()
    cells = _cells(np.asarray(points_m, dtype=np.float64), scene, settings)
    tree = cKDTree(cells)
    rng = np.random.default_rng(zlib.crc32(scene.encode()))
    rows = np.sort(rng.permutation(len(cells))[: max(settings.far, len(cells) // settings.every)])
    neighbours = tree.query(cells[rows], min(settings.far, len(cells)))[1]
    near, _ = _shape(cells, neighbours[:, : settings.near])
    far, steepness = _shape(cells, neighbours)
    height = cells[rows, 2] - np.percentile(cells[:, 2], 1)
    place = np.digitize(steepness, _SLOPE_COS) * (len(_HEIGHTS_M) + 1) + np.digitize(height, _HEIGHTS_M)
    sort = (near * _SHAPES + far) * (len(_SLOPE_COS) + 1) * (len(_HEIGHTS_M) + 1) + place
    counts = np.bincount(sort, minlength=_SHAPES**2 * (len(_SLOPE_COS) + 1) * (len(_HEIGHTS_M) + 1)).astype(np.int64)
    counts[counts < settings.least] = 0
    return counts


def _cells(points_m: NDArray[np.float64], scene: str, settings: GeometrySettings) -> NDArray[np.float64]:
    """(M, 3) means of the points of each occupied cell."""
    points_m = points_m[np.isfinite(points_m).all(axis=1)]
    if len(points_m) < settings.far:
        raise DatasetError(scene, f"{len(points_m)} points", "Too few to say anything; leave the scene out.")
    keys = np.floor((points_m - points_m.min(axis=0)) / settings.cell_m)
    if keys.max() >= 1 << 20:
        raise DatasetError(scene, f"{np.ptp(points_m, axis=0).max():g} m", "No scene is so large; give metres.")
    x, y, z = keys.astype(np.int64).T
    _, cell, count = np.unique(x << 40 | y << 20 | z, return_inverse=True, return_counts=True)
    if len(count) < settings.far:
        raise DatasetError(scene, f"{len(count)} cells", "Too small to say anything, or not in metres; leave it out.")
    sums = np.stack([np.bincount(cell.ravel(), column, len(count)) for column in points_m.T], axis=1)
    means: NDArray[np.float64] = sums / count[:, None]
    return means


def _shape(cells: NDArray[np.float64], neighbours: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Of the neighbourhood of each of R cells: 0 rod, 1 plane, 2 blob, whichever is most; and |n_z| of its plane.

    The three are (λ1-λ2)/λ1, (λ2-λ3)/λ1 and λ3/λ1 of the covariance's standard deviations λ1 ≥ λ2 ≥ λ3; together 1.
    """
    shape, steepness = np.empty(len(neighbours), np.intp), np.empty(len(neighbours))
    for start in range(0, len(neighbours), 4096):  # 4096 × 120 × 3 float64 are 12 MB
        part = slice(start, start + 4096)
        around = cells[neighbours[part]]
        around -= around.mean(axis=1, keepdims=True)
        variance, axes = np.linalg.eigh(np.einsum("rki,rkj->rij", around, around))
        small, middle, large = np.sqrt(np.maximum(variance, 0)).T
        shape[part] = np.argmax([large - middle, middle - small, small], axis=0)
        steepness[part] = np.abs(axes[:, 2, 0])
    return shape, steepness
