"""The K nearest voxels of every voxel, exactly, in an order that depends on nothing but the coordinates.

Distances are squared integers, so ties are frequent. They go to the lower packed key (x, then y, then z), hence
neither the order of the rows nor which of them are asked for changes anybody's neighbours.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopurify_core.errors import PurificationError
from geopurify_core.jit import HAVE_NUMBA
from geopurify_core.mapping.keys import COORD_LIMIT, NO_KEY, pack_keys
from geopurify_core.purification.affinity.columns import columns_for
from geopurify_core.purification.kinds import like, to_numpy

MAX_NEIGHBORS = 4096
_SPARE = 24  # neighbours asked for beyond K: enough to see the whole tie at the K-th distance, most of the time
_CHUNK = 1 << 14


def nearest_neighbors(coords: Any, k: int) -> Any:
    """The K nearest voxels of each voxel, itself excluded.

    Args:
        coords: (V, 3) integers within [-2^20, 2^20), no voxel twice, rows in any order; numpy or torch.
        k: How many, 1 to 4096.

    Returns:
        (V, min(k, V-1)) int32 row numbers, nearest first, ties by the neighbour's packed key; same kind as ``coords``.

    Raises:
        PurificationError: Coordinates are not integers, out of reach or twice, or ``k`` is out of range.
    """
    search = NeighborSearch(coords)
    return like(search.neighbors(k), coords)


def nearest_neighbors_of(coords: Any, rows: Any, k: int) -> Any:
    """Rows ``rows`` (n,) of :func:`nearest_neighbors`, equal to the last bit, without computing the others."""
    search = NeighborSearch(coords)
    return like(search.neighbors(k, to_numpy(rows)), coords)


def neighbor_reach(coords: Any, neighbors: Any, rows: Any = None) -> Any:
    """(n,) int64 squared distance, in voxels, to the last neighbour of each row; -1 where a row has none.

    A new voxel can enter the neighbours of a row only if it is no farther than this (at the same distance its key
    decides); while a row has fewer than K neighbours, any new voxel enters.

    Args:
        coords: (V, 3) integers.
        neighbors: (n, k) as :func:`nearest_neighbors` gave them.
        rows: (n,) which voxels these are the neighbours of; all of them by default.
    """
    points, nearest = to_numpy(coords).astype(np.int64), to_numpy(neighbors)
    own = points if rows is None else points[to_numpy(rows)]
    if not nearest.shape[1]:
        return like(np.full(len(own), -1, dtype=np.int64), coords)
    return like(((points[nearest[:, -1]] - own) ** 2).sum(axis=1), coords)


def check_coords(coords: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(V, 3) int64 coordinates and their (V,) keys, or PurificationError."""
    points = to_numpy(coords)
    if points.ndim != 2 or points.shape[1] != 3 or points.dtype.kind not in "iu":
        raise PurificationError("coords", f"{points.dtype}{points.shape}", "Give (V, 3) integer voxel coordinates.")
    keys = pack_keys(points)
    outside = keys == NO_KEY
    if outside.any():
        worst = points[int(outside.argmax())].tolist()
        raise PurificationError("coords", worst, f"Keep every coordinate within ±{COORD_LIMIT} voxels.")
    return points.astype(np.int64), keys


class NeighborSearch:
    """Voxels made ready to be searched; worth keeping where several sets of rows are asked for.

    Args:
        coords: (V, 3) integers, as for :func:`nearest_neighbors`.
    """

    def __init__(self, coords: Any) -> None:
        points, keys = check_coords(coords)
        self._order = np.argsort(keys, kind="stable")  # key order → given rows
        self._keys = keys[self._order]
        self._points = np.ascontiguousarray(points[self._order])
        twice = np.flatnonzero(self._keys[1:] == self._keys[:-1])
        if len(twice):
            raise PurificationError(
                "coords", self._points[twice[0]].tolist(), f"Merge voxels given more than once ({len(twice)} here)."
            )

    def __len__(self) -> int:
        return len(self._keys)

    def neighbors(self, k: int, rows: NDArray[np.integer] | None = None) -> NDArray[np.int32]:
        """(n, min(k, V-1)) int32 neighbours of these rows (all by default), as :func:`nearest_neighbors`."""
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= MAX_NEIGHBORS:
            raise PurificationError("k", k, f"Ask for 1 to {MAX_NEIGHBORS} neighbours.")
        places = np.arange(len(self)) if rows is None else self._rank[check_rows(rows, len(self))]
        count = max(min(int(k), len(self) - 1), 0)
        found = np.empty((len(places), count), dtype=np.int32)
        if count:
            columns = columns_for(self._points, count) if HAVE_NUMBA else None
            complete = columns.search(places, found) if columns is not None else np.zeros(len(places), dtype=bool)
            self._search_tree(places, np.flatnonzero(~complete), found)
        found = self._order.astype(np.int32)[found]
        if rows is not None:
            return found
        result = np.empty_like(found)
        result[self._order] = found
        return result

    @cached_property
    def _rank(self) -> NDArray[np.int64]:
        """Given rows → key order."""
        rank = np.empty_like(self._order)
        rank[self._order] = np.arange(len(self))
        return rank

    @cached_property
    def _tree(self) -> Any:
        from scipy.spatial import cKDTree

        return cKDTree(self._points.astype(np.float64))

    def _search_tree(self, places: NDArray[np.int64], wanted: NDArray[np.int64], found: NDArray[np.int32]) -> None:
        """found[wanted] by k-d tree: more than K are asked for until the K-th distance is complete."""
        for start in range(0, len(wanted), _CHUNK):
            waiting = wanted[start : start + _CHUNK]
            asked = found.shape[1] + 1 + _SPARE
            while len(waiting):
                asked = min(asked, len(self))
                own = places[waiting]
                _, near = self._tree.query(self._points[own].astype(np.float64), k=asked, workers=-1)
                complete = self._take_nearest(own, near.reshape(len(own), asked), waiting, found)
                waiting, asked = waiting[~complete], 2 * asked

    def _take_nearest(
        self, own: NDArray[np.int64], near: NDArray[np.int64], at: NDArray[np.int64], found: NDArray[np.int32]
    ) -> NDArray[np.bool_]:
        """Order candidates by distance, then key; keep the rows whose K-th distance has been seen to its end."""
        square = ((self._points[near] - self._points[own][:, None]) ** 2).sum(axis=2)
        order = np.lexsort((near, square), axis=1)[:, 1:]  # the voxel itself comes first, at distance 0
        near, square = np.take_along_axis(near, order, axis=1), np.take_along_axis(square, order, axis=1)
        count = found.shape[1]
        complete: NDArray[np.bool_] = (square[:, -1] > square[:, count - 1]) | (near.shape[1] == len(self) - 1)
        found[at[complete]] = near[complete, :count]
        return complete


def check_rows(rows: NDArray[np.integer], total: int) -> NDArray[np.int64]:
    """Row numbers as int64, or PurificationError where one lies outside [0, total)."""
    rows = np.asarray(rows)
    if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
        raise PurificationError("rows", f"{rows.dtype}{rows.shape}", "Give (n,) integer row numbers.")
    if rows.size and not (rows.min() >= 0 and rows.max() < total):
        raise PurificationError("rows", int(rows.max()), f"Give rows from 0 to {total - 1}.")
    return rows.astype(np.int64)
