"""A cloud as cells of a few centimetres and the graph of those that touch: what everything else here works on.

Maps of voxels and dense scans come out alike, and work is bounded by the surface there is, not by how densely it was
scanned. All sums are sums of integers, so that nothing depends on the order of the points.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geopurify_core.errors import DatasetError
from geopurify_core.mapping.keys import NO_KEY, pack_keys
from training.teachers.base import PointCloud

_QUANTUM = 4096  # of offsets in cells and components of normals, when they are summed as integers


@dataclass(frozen=True)
class Cells:
    """C occupied cells and the E pairs of them that touch: by face, edge or corner, or across a gap of one cell.

    Attributes:
        coords: (C, 3) int64, from the lowest corner of the cloud on; rows in key order.
        centers_m: (C, 3) float32 mean position of a cell's points, metres from that corner.
        colour: (C, 3) float32, CIELAB / 100.
        normals: (C, 3) float32 unit means; zero where the cloud knows none.
        edges: (E, 2) int32, first < second, sorted.
        index: (N,) int32, the cell of each point.
        size_m: Edge of a cell.
    """

    coords: NDArray[np.int64]
    centers_m: NDArray[np.float32]
    colour: NDArray[np.float32]
    normals: NDArray[np.float32]
    edges: NDArray[np.int32]
    index: NDArray[np.int32]
    size_m: float

    def __len__(self) -> int:
        return len(self.coords)


def cells_of(cloud: PointCloud, size_m: float, reach: int = 1) -> Cells:
    """The cells of a cloud. Those up to ``reach`` apart along every axis touch.

    Raises:
        DatasetError: No points, positions that are not finite, arrays of different lengths, or an extent of more than
            2^20 cells.
    """
    points = _checked(cloud)
    # A map's points are centres of voxels as large as a cell: half a cell keeps rounding from splitting them unevenly.
    scaled = (points - points.min(axis=0)) / size_m + 0.5
    keys = pack_keys(np.floor(scaled).astype(np.int64))
    if (keys == NO_KEY).any():
        raise DatasetError("points_m", float(np.ptp(points, axis=0).max()), "Cut off outliers: the cloud is too large.")
    unique, index = np.unique(keys, return_inverse=True)
    index = index.reshape(-1)
    count = np.bincount(index, minlength=len(unique)).astype(np.float64)
    low = np.floor(scaled).astype(np.int64)
    coords = np.stack([_sums(index, low[:, axis], len(unique)) for axis in range(3)], axis=1) / count[:, None]
    places: NDArray[np.int64] = np.rint(coords).astype(np.int64)
    offset = _means(index, scaled - 0.5, count)
    normals = np.nan_to_num(cloud.normals.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0).clip(-1, 1)
    return Cells(
        places,
        (offset * size_m).astype(np.float32),
        lab(_means(index, cloud.rgb.astype(np.float64), count) / 255),
        unit(_means(index, normals, count)),
        _touching(places, unique, reach),
        index.astype(np.int32),
        size_m,
    )


def _checked(cloud: PointCloud) -> NDArray[np.float64]:
    shapes = {name: np.shape(getattr(cloud, name)) for name in ("points_m", "rgb", "normals")}
    if not len(cloud):
        raise DatasetError("points_m", 0, "Leave empty scenes out: there is nothing to describe.")
    if len(set(shapes.values())) != 1 or shapes["points_m"][1:] != (3,):
        raise DatasetError("cloud", shapes, "Give points, colours and normals (N, 3).")
    points = cloud.points_m.astype(np.float64)
    if not np.isfinite(points).all():
        bad = int((~np.isfinite(points)).any(axis=1).sum())
        raise DatasetError("points_m", f"{bad} points not finite", "Remove them from the cloud.")
    return points


def _sums(index: NDArray[np.int64], values: NDArray[np.generic], count: int) -> NDArray[np.float64]:
    return np.asarray(np.bincount(index, weights=values.astype(np.float64), minlength=count), dtype=np.float64)


def _means(index: NDArray[np.int64], values: NDArray[np.float64], count: NDArray[np.float64]) -> NDArray[np.float64]:
    whole = np.rint(values * _QUANTUM)
    sums = np.stack([_sums(index, whole[:, axis], len(count)) for axis in range(3)], axis=1)
    return np.asarray(sums / (count[:, None] * _QUANTUM))


def _touching(coords: NDArray[np.int64], keys: NDArray[np.int64], reach: int) -> NDArray[np.int32]:
    steps = range(-reach, reach + 1)
    parts = []
    for step in itertools.product(steps, repeat=3):
        if step <= (0, 0, 0):  # its opposite finds the same pairs
            continue
        wanted = pack_keys(coords + np.array(step))
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        first = np.flatnonzero(keys[at] == wanted)
        parts.append(np.stack([first, at[first]], axis=1))
    edges = np.concatenate(parts)
    return np.ascontiguousarray(edges[np.lexsort((edges[:, 1], edges[:, 0]))], dtype=np.int32)


def unit(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """Rows made unit; those that are (almost) zero stay zero."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(np.where(length > 1e-3, vectors / np.maximum(length, 1e-3), 0), dtype=np.float32)


def lab(rgb: NDArray[np.floating]) -> NDArray[np.float32]:
    """(n, 3) CIELAB / 100 of sRGB in [0, 1], white point D65: distances there are as eyes see them."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((np.maximum(rgb, 0.04045) + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = (linear @ to_xyz.T / (0.9505, 1.0, 1.089)).T
    fx, fy, fz = (np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116) for t in (x, y, z))
    return np.stack([1.16 * fy - 0.16, 5 * (fx - fy), 2 * (fy - fz)], axis=1).astype(np.float32)
