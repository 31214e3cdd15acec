"""Surface normals: those a map lacks, from the voxels around, and those of a mesh.

A map knows a normal wherever depth around a pixel was smooth. Elsewhere (image borders, depth edges, point clouds
without normals) it is filled in here: the mean of the known ones within three voxels, nearer ones counting much more;
where they contradict each other or there are none, the direction in which the voxels within three voxels vary least.
Moments are integers and known normals are added in the order of their offsets, so a row depends on the voxels within
``FILL_RADIUS`` of it and on nothing else: not on the order of the rows, not on the rest of the map. Incremental
purification relies on that.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopurify_core.errors import PurificationError
from geopurify_core.jit import HAVE_NUMBA, compiled, run_chunks
from geopurify_core.mapping.keys import pack_keys

FILL_RADIUS = 3  # voxels, Euclidean
_MIN_KNOWN_LENGTH = 0.5
# Below this gap between the two smallest variances, as a share of the largest, no plane is to be seen: a line of
# voxels, a solid corner.
_MIN_PLANARITY = 0.1
# The mean of unit vectors is shorter than this where they contradict each other.
_MIN_AGREEMENT = 0.5
_NO_SIDE = 1e-3
_MIN_CHUNK = 4096


def known_normals(normals: NDArray[np.floating]) -> NDArray[np.bool_]:
    """(V,) whether each of (V, 3) normals is one; unknown are those of no length, or not finite."""
    squared = np.einsum("ij,ij->i", normals, normals, dtype=np.float32)
    known: NDArray[np.bool_] = np.isfinite(squared) & (squared > _MIN_KNOWN_LENGTH**2)
    return known


def fill_normals(
    coords: NDArray[np.integer], normals: NDArray[np.floating], rows: NDArray[np.integer] | None = None
) -> NDArray[np.float32]:
    """Unit normals of the voxels: the known ones made exactly unit, the others filled in.

    Known normals of maps, hidden and filled in again, came out closest with the mean of their neighbours weighted by
    1 / distance⁴; the plane through the voxels is farther off. Where neither says anything (no known normal, no plane)
    a normal stays zero. Where there is a plane but no known normal to tell its sides apart, it faces up (+z; if it is
    upright +y, then +x): maps of point clouds know no cameras.

    Args:
        coords: (V, 3) integer voxel coordinates, each once, within ±2^20.
        normals: (V, 3) in the map frame, towards the cameras; zero where unknown.
        rows: (n,) which rows to return, in this order; by default all.

    Returns:
        (n, 3) float32, unit length or zero. Row i depends only on the voxels within ``FILL_RADIUS`` of it.
    """
    wanted = np.arange(len(coords)) if rows is None else np.asarray(rows, dtype=np.int64)
    result = np.array(normals[wanted], dtype=np.float32)
    known = known_normals(result)
    result[known] = _unit(result[known])
    missing = np.flatnonzero(~known)
    if len(missing):
        result[missing] = _estimated(coords, normals, wanted[missing])
    return result


def _estimated(
    coords: NDArray[np.integer], normals: NDArray[np.floating], rows: NDArray[np.int64]
) -> NDArray[np.float32]:
    keys = pack_keys(coords)
    order = np.argsort(keys, kind="stable")
    sorted_keys = keys[order]
    sorted_coords = np.ascontiguousarray(coords[order], dtype=np.int64)
    sorted_normals = np.ascontiguousarray(normals[order], dtype=np.float32)
    sorted_normals[~known_normals(sorted_normals)] = 0
    moments, sums = _neighbourhoods(
        sorted_keys, sorted_coords, sorted_normals, np.searchsorted(sorted_keys, keys[rows])
    )
    sides, weights = sums[:, :3], sums[:, 3]
    agreed = (weights > 0) & (np.linalg.norm(sides, axis=1) >= _MIN_AGREEMENT * weights)
    variance, axes = np.linalg.eigh(_covariances(moments))
    flat = variance[:, 1] - variance[:, 0] > _MIN_PLANARITY * np.maximum(variance[:, 2], 1e-12)
    estimated = flat & ~agreed
    return _unit(np.where(estimated[:, None], _oriented(axes[:, :, 0], sides), sides)).astype(np.float32)


def _covariances(moments: NDArray[np.int64]) -> NDArray[np.float64]:
    """(n, 3, 3) covariances, times the squared counts, of integer sums [1, x, y, z, xx, yy, zz, xy, xz, yz]."""
    count, first = moments[:, 0], moments[:, 1:4]
    x, y, z = first.T
    xx, yy, zz, xy, xz, yz = (count * moments[:, 4:].T) - np.array([x * x, y * y, z * z, x * y, x * z, y * z])
    matrices = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]], dtype=np.float64)
    return np.ascontiguousarray(matrices.transpose(2, 0, 1))


def _oriented(axes: NDArray[np.float64], sides: NDArray[np.float64]) -> NDArray[np.float64]:
    """``axes`` (n, 3), each turned to the half space of its side vector, or upwards where that says nothing."""
    along = np.einsum("ij,ij->i", axes, sides)
    for axis in (2, 1, 0):
        along = np.where(np.abs(along) > _NO_SIDE, along, axes[:, axis])
    return np.where(along[:, None] < 0, -axes, axes)


def _unit(vectors: NDArray[Any]) -> NDArray[Any]:
    length = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, None]
    unit: NDArray[Any] = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > _NO_SIDE)
    return unit


# -- who is near -----------------------------------------------------------------------------------------------------


def _columns() -> NDArray[np.int64]:
    """(m, 3) of the ball's columns along z: dx, dy, and the largest |dz|."""
    r = FILL_RADIUS
    found = [
        (dx, dy, int(np.sqrt(r * r - dx * dx - dy * dy)))
        for dx in range(-r, r + 1)
        for dy in range(-r, r + 1)
        if dx * dx + dy * dy <= r * r
    ]
    return np.array(found, dtype=np.int64)


_COLUMNS = _columns()


def _neighbourhoods(
    keys: NDArray[np.int64], coords: NDArray[np.int64], normals: NDArray[np.float32], rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Integer moments (n, 10) of the offsets to all voxels in the ball around each row, itself included; and the sum of
    their known normals, weighted by 1 / distance⁴, with the sum of these weights (n, 4). Everything is in key order."""
    by_key = np.argsort(rows, kind="stable")
    rows_in_order = rows[by_key]
    moments = np.zeros((len(rows), 10), dtype=np.int64)
    sums = np.zeros((len(rows), 4))
    gather = _gather if HAVE_NUMBA else _gather_numpy

    def chunk(start: int, stop: int) -> None:
        gather(keys, coords, normals, rows_in_order[start:stop], _COLUMNS, moments[start:stop], sums[start:stop])

    run_chunks(chunk, len(rows), min_chunk=_MIN_CHUNK)
    back = np.empty_like(by_key)
    back[by_key] = np.arange(len(by_key))
    return moments[back], sums[back]


@compiled()
def _gather(keys, coords, normals, rows, columns, moments, sums):  # type: ignore[no-untyped-def]
    """One sweep for each column of the ball: as rows go up in key order, so does the place where its column starts."""
    total = len(keys)
    starts = np.zeros(len(columns), dtype=np.int64)
    for c in range(len(columns)):
        dx, dy, reach = columns[c, 0], columns[c, 1], columns[c, 2]
        starts[c] = np.searchsorted(keys, keys[rows[0]] + (dx << 42) + (dy << 21) - reach)
    for i in range(len(rows)):
        row = rows[i]
        for c in range(len(columns)):
            dx, dy, reach = columns[c, 0], columns[c, 1], columns[c, 2]
            first = keys[row] + (dx << 42) + (dy << 21) - reach
            at = starts[c]
            while at < total and keys[at] < first:
                at += 1
            starts[c] = at
            while at < total and 0 <= keys[at] - first <= 2 * reach:  # as a sum it could overflow
                dz = coords[at, 2] - coords[row, 2]
                # Keys carry from one axis into the next at the end of the range, coordinates do not.
                if coords[at, 0] - coords[row, 0] == dx and coords[at, 1] - coords[row, 1] == dy:
                    moments[i, 0] += 1
                    moments[i, 1] += dx
                    moments[i, 2] += dy
                    moments[i, 3] += dz
                    moments[i, 4] += dx * dx
                    moments[i, 5] += dy * dy
                    moments[i, 6] += dz * dz
                    moments[i, 7] += dx * dy
                    moments[i, 8] += dx * dz
                    moments[i, 9] += dy * dz
                    if at != row and (normals[at, 0] != 0 or normals[at, 1] != 0 or normals[at, 2] != 0):
                        weight = 1.0 / (dx * dx + dy * dy + dz * dz) ** 2
                        for k in range(3):
                            sums[i, k] += weight * normals[at, k]
                        sums[i, 3] += weight
                at += 1


def _gather_numpy(
    keys: NDArray[np.int64], coords: NDArray[np.int64], normals: NDArray[np.float32], rows: NDArray[np.int64],
    columns: NDArray[np.int64], moments: NDArray[np.int64], sums: NDArray[np.float64],
) -> None:  # fmt: skip
    """The same, one offset after the other: for where numba is absent, and its tests."""
    for dx, dy, reach in columns:
        first = keys[rows] + (dx << 42) + (dy << 21) - reach
        at = np.searchsorted(keys, first)
        for _ in range(2 * reach + 1):
            near = np.minimum(at, len(keys) - 1)
            offset = coords[near] - coords[rows]
            hit = np.flatnonzero(
                (at < len(keys)) & (offset[:, 0] == dx) & (offset[:, 1] == dy) & (np.abs(offset[:, 2]) <= reach)
            )
            x, y, z = offset[hit].T
            moments[hit] += np.stack([np.ones_like(x), x, y, z, x * x, y * y, z * z, x * y, x * z, y * z], axis=1)
            other = hit[(offset[hit] != 0).any(axis=1) & (normals[near[hit]] != 0).any(axis=1)]
            weight = 1.0 / (offset[other] ** 2).sum(axis=1) ** 2
            sums[other, :3] += weight[:, None] * normals[near[other]]
            sums[other, 3] += weight
            at += (keys[near] >= first) & (keys[near] - first <= 2 * reach)


# -- meshes ----------------------------------------------------------------------------------------------------------


def mesh_vertex_normals(vertices: NDArray[np.floating], faces: NDArray[np.integer]) -> NDArray[np.float32]:
    """Unit normals of a triangle mesh's vertices: the faces' normals, weighted by area.

    Args:
        vertices: (N, 3) positions, any unit.
        faces: (F, 3) integer vertex indices, counter-clockwise seen from outside.

    Returns:
        (N, 3) float32; zero for a vertex without a face of some area (no face, or only degenerate or not finite ones).

    Raises:
        PurificationError: The arrays have other shapes, or a face names a vertex that does not exist.

    Source: what the released code does for ScanNet's meshes (``models/scene/mapping_util.py``).
    """
    vertices = np.asarray(vertices, dtype=np.float64)
    faces = np.asarray(faces)
    if vertices.ndim != 2 or vertices.shape[1] != 3:
        raise PurificationError("mesh.vertices", vertices.shape, "Give (N, 3) positions.")
    if faces.ndim != 2 or faces.shape[1] != 3 or not np.issubdtype(faces.dtype, np.integer):
        raise PurificationError("mesh.faces", f"{faces.dtype}{faces.shape}", "Give (F, 3) integer vertex indices.")
    if len(faces) and (faces.min() < 0 or faces.max() >= len(vertices)):
        raise PurificationError("mesh.faces", int(faces.max()), f"Indices must lie in [0, {len(vertices)}).")
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    with np.errstate(invalid="ignore", over="ignore"):
        doubled_area_normal = np.cross(b - a, c - a)
    doubled_area_normal[~np.isfinite(doubled_area_normal).all(axis=1)] = 0
    corners = faces.reshape(-1)
    sums = np.stack(
        [np.bincount(corners, np.repeat(doubled_area_normal[:, k], 3), minlength=len(vertices)) for k in range(3)],
        axis=1,
    )
    length = np.linalg.norm(sums, axis=1, keepdims=True)
    unit = np.divide(sums, length, out=np.zeros(sums.shape), where=length > 0)
    return np.asarray(unit, dtype=np.float32)
