"""How far a change reaches along the voxels that are there.

A 3³ convolution on voxels carries a change from a voxel to its occupied neighbours among the 26 around it and no
further, so after n layers it has reached the voxels n such hops away. Across empty space nothing is carried.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from geopurify_core.mapping.keys import NO_KEY, pack_keys

_STEP_X, _STEP_Y = 1 << 42, 1 << 21
# (dx, dy) of the nine columns of three voxels along z: keys of a column are consecutive numbers.
_COLUMNS = np.array([dx * _STEP_X + dy * _STEP_Y for dx in (-1, 0, 1) for dy in (-1, 0, 1)], dtype=np.int64)
_AROUND = np.stack(np.meshgrid(*[(-1, 0, 1)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)


def rings(keys: NDArray[np.int64], changed: NDArray[np.bool_], limit: int, near_gone: NDArray[np.int64]) -> NDArray[
    np.uint16
]:  # fmt: skip
    """Hops from the nearest change.

    Args:
        keys: (N,) keys of the voxels there are, ascending.
        changed: (N,) bool, the voxels in ring 0.
        limit: Rings beyond it are not told apart; at most 65 534.
        near_gone: (n,) rows in ring 1 whatever is beside them: the neighbours of voxels that are gone.

    Returns:
        (N,) uint16 hops, ``limit + 1`` where there are more. At the rim of the coordinates (±2^20) a voxel may count
        as nearer than it is.
    """
    ring = np.full(len(keys), limit + 1, dtype=np.uint16)
    ring[near_gone] = min(1, limit + 1)
    ring[changed] = 0
    frontier = np.flatnonzero(changed)
    for hop in range(1, limit + 1):
        reached = _neighbours(keys, frontier)
        reached = reached[ring[reached] > hop]
        ring[reached] = hop
        frontier = np.unique(np.concatenate([reached, near_gone[ring[near_gone] == 1]]) if hop == 1 else reached)
        if not len(frontier):
            break
    return ring


def occupied_around(keys: NDArray[np.int64], coords: NDArray[np.int32]) -> NDArray[np.int64]:
    """Rows of the voxels among the 26 around each of ``coords`` (n, 3), each row once, ascending."""
    around = pack_keys(coords[:, None, :].astype(np.int64) + _AROUND).reshape(-1)
    around = np.unique(around)
    around = around[around != NO_KEY]
    if not len(keys) or not len(around):
        return np.zeros(0, dtype=np.int64)
    at = np.minimum(np.searchsorted(keys, around), len(keys) - 1)
    rows: NDArray[np.int64] = at[keys[at] == around]
    return rows


def _neighbours(keys: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of all voxels among the 26 around ``rows``; some more than once."""
    found = []
    last = len(keys) - 1
    for column in _COLUMNS:
        first = keys[rows] + (column - 1)
        at = np.searchsorted(keys, first)
        for _ in range(3):
            place = np.minimum(at, last)
            hit = (at <= last) & (keys[place] <= first + 2)
            found.append(place[hit])
            at = at + 1
    return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)
