"""The compiled loops that merge observations of one voxel and one cell, because reading features is what costs."""
# mypy: ignore-errors

from __future__ import annotations

import numpy as np

from geopurify_core.jit import compiled
from geopurify_core.mapping.hash import slot_of

RECENT_PAIRS = 8


@compiled()
def merge_part(start, stop, order, keys, cells, weights, confidence, least_confidence, rgb, normals):
    """Observations ``order[start:stop]`` → distinct voxels and distinct (voxel, cell) pairs, in order of appearance.

    Observations of one cell must lie together. Returns (voxel keys (U,), sums (U, 7) float64 of weight, colour and
    normal, and for each pair its voxel, cell and feature weight (P,)).
    """
    total = stop - start
    voxel_key, newest_pair = np.empty(total, dtype=np.int64), np.full(total, -1, dtype=np.int32)
    pair_key, pair_voxel = np.empty(total, dtype=np.int64), np.empty(total, dtype=np.int32)
    pair_cell, pair_sums = np.empty(total, dtype=np.int32), np.empty((total, 8), dtype=np.float64)
    slots = np.zeros(2 * total + 1, dtype=np.int32)
    voxels = pairs = first_of_cell = 0
    last_cell = -1
    for n in range(start, stop):
        i = order[n]
        key, cell, weight = keys[i], cells[i], float(weights[i])
        if key < 0:
            continue
        if cell != last_cell:
            last_cell, first_of_cell = cell, pairs
        pair = _recent(pair_key, key, max(first_of_cell, pairs - RECENT_PAIRS), pairs)
        if pair < 0:
            voxel = _voxel_of(slots, voxel_key, key, voxels)
            voxels = max(voxels, voxel + 1)
            pair = newest_pair[voxel]
            if pair < first_of_cell:
                pair = pairs
                pairs += 1
                newest_pair[voxel], pair_voxel[pair], pair_key[pair], pair_cell[pair] = pair, voxel, key, cell
                for k in range(7):  # element by element: numba makes an array object of every slice
                    pair_sums[pair, k] = 0.0
        pair_sums[pair, 0] += weight
        for k in range(3):
            pair_sums[pair, 1 + k] += weight * rgb[i, k]
            pair_sums[pair, 4 + k] += weight * normals[k, i]
    sums = np.zeros((voxels, 7), dtype=np.float64)
    feature_weight = np.empty(pairs, dtype=np.float32)
    for pair in range(pairs):
        trust = float(confidence[pair_cell[pair]])
        feature_weight[pair] = pair_sums[pair, 0] * trust if trust >= least_confidence else 0.0
        for k in range(7):
            sums[pair_voxel[pair], k] += pair_sums[pair, k]
    return voxel_key[:voxels].copy(), sums, pair_voxel[:pairs].copy(), pair_cell[:pairs].copy(), feature_weight


@compiled(inline=True)
def _recent(pair_key, key, low, high):
    """The latest pair among [low, high) of this key, or -1: most pixels fall where one of their neighbours just did."""
    at = high - 1
    while at >= low and pair_key[at] != key:
        at -= 1
    return at if at >= low else -1


@compiled(inline=True)
def _voxel_of(slots, voxel_key, key, voxels):
    """Number of ``key`` among the ``voxels`` so far; a new one is entered as number ``voxels``."""
    at = slot_of(key, len(slots))
    while slots[at] != 0 and voxel_key[slots[at] - 1] != key:
        at = at + 1 if at + 1 < len(slots) else 0
    if slots[at] == 0:
        slots[at] = voxels + 1
        voxel_key[voxels] = key
    return slots[at] - 1


@compiled()
def join_voxels(keys, sums):
    """Voxels of several parts → distinct keys, added sums, and for each voxel its number among the distinct ones."""
    distinct = np.empty(len(keys), dtype=np.int64)
    total = np.empty(sums.shape, dtype=np.float64)
    number = np.empty(len(keys), dtype=np.int32)
    slots = np.zeros(2 * len(keys) + 1, dtype=np.int32)
    voxels = 0
    for i in range(len(keys)):
        voxel = _voxel_of(slots, distinct, keys[i], voxels)
        number[i] = voxel
        known = voxel < voxels
        voxels = max(voxels, voxel + 1)
        for k in range(7):
            total[voxel, k] = sums[i, k] + (total[voxel, k] if known else 0.0)
    return distinct[:voxels].copy(), total[:voxels].copy(), number


@compiled()
def group_pairs(number, pair_voxel, pair_cell, pair_weight, voxels):
    """Counting sort of the pairs that weigh anything by voxel; stable, so that sums always run in the same order.

    Returns (first pair of each voxel (voxels + 1,), cells, weights).
    """
    first = np.zeros(voxels + 1, dtype=np.int32)
    for pair in range(len(pair_voxel)):
        first[number[pair_voxel[pair]] + 1] += pair_weight[pair] > 0
    for voxel in range(voxels):
        first[voxel + 1] += first[voxel]
    cells = np.empty(first[voxels], dtype=np.int32)
    weights = np.empty(first[voxels], dtype=np.float32)
    cursor = first[:-1].copy()
    for pair in range(len(pair_voxel)):
        if pair_weight[pair] <= 0:
            continue
        voxel = number[pair_voxel[pair]]
        at = cursor[voxel]
        cursor[voxel] += 1
        cells[at] = pair_cell[pair]
        weights[at] = pair_weight[pair]
    return first, cells, weights
