"""Connected pieces of a sparse voxel grid, and the tree of pieces a score field falls into as its threshold rises.

Both are 26-connected: voxels that share a face, an edge or a corner belong together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopurify_core.jit import compiled

_HALF_RANGE = 1 << 20
_EMPTY = np.int64(-1)


@compiled()
def _slot(key: Any, mask: Any) -> Any:
    mixed = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    return np.int64(mixed >> np.uint64(24)) & mask


@compiled()
def _build_table(keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Open-addressing table of packed voxel keys, at most half full: (slot keys, slot rows)."""
    capacity = np.int64(16)
    while capacity < 2 * len(keys):
        capacity *= 2
    slot_keys = np.full(capacity, _EMPTY, dtype=np.int64)
    slot_rows = np.empty(capacity, dtype=np.int32)
    for row in range(len(keys)):
        at = _slot(keys[row], capacity - 1)
        while slot_keys[at] != _EMPTY:
            at = (at + 1) & (capacity - 1)
        slot_keys[at] = keys[row]
        slot_rows[at] = row
    return slot_keys, slot_rows


@compiled()
def _find(parent: Any, item: Any) -> Any:
    while parent[item] != item:
        parent[item] = parent[parent[item]]
        item = parent[item]
    return item


@compiled()
def _lookup(slot_keys: Any, slot_rows: Any, key: Any) -> Any:
    mask = np.int64(len(slot_keys) - 1)
    at = _slot(key, mask)
    while slot_keys[at] != _EMPTY:
        if slot_keys[at] == key:
            return slot_rows[at]
        at = (at + 1) & mask
    return np.int32(-1)


@compiled()
def _label(keys: NDArray[np.int64], deltas: NDArray[np.int64]) -> NDArray[np.int32]:
    slot_keys, slot_rows = _build_table(keys)
    parent = np.arange(len(keys)).astype(np.int32)
    for row in range(len(keys)):
        for delta in deltas:
            other = _lookup(slot_keys, slot_rows, keys[row] + delta)
            if other >= 0:
                a, b = _find(parent, np.int32(row)), _find(parent, other)
                if a != b:
                    parent[max(a, b)] = min(a, b)
    labels = np.empty(len(keys), dtype=np.int32)
    count = 0
    for row in range(len(keys)):
        root = _find(parent, np.int32(row))
        if root == row:
            labels[row] = count
            count += 1
        else:
            labels[row] = labels[root]
    return labels


def pack(coords: NDArray[np.int32]) -> NDArray[np.int64]:
    """(N,) int64 keys of voxel coordinates (N, 3), 21 bits per axis; key(c + d) = key(c) + delta(d)."""
    c = coords.astype(np.int64) + _HALF_RANGE
    return np.asarray((c[:, 0] << 42) | (c[:, 1] << 21) | c[:, 2])


def _deltas(half: bool) -> NDArray[np.int64]:
    """Key differences to the 26 neighbours, or to the 13 that come first."""
    offsets = np.stack(np.meshgrid(*[np.arange(-1, 2)] * 3, indexing="ij"), axis=-1).reshape(-1, 3).astype(np.int64)
    deltas = (offsets[:, 0] << 42) + (offsets[:, 1] << 21) + offsets[:, 2]
    return deltas[:13] if half else np.delete(deltas, 13)


def connected_components(coords: NDArray[np.int32]) -> NDArray[np.int32]:
    """(N,) int32 labels of the 26-connected pieces of distinct voxels (N, 3), numbered by their first row."""
    return np.asarray(_label(pack(coords), _deltas(half=True)))


@dataclass(frozen=True)
class ScoreTree:
    """Peaks of a score field and how they merge as the threshold sinks.

    Node k is a connected piece of the field above ``level[k]``; it has two or more children where it falls apart into
    pieces that are each big and distinct enough, and none where it is a single peak.

    Attributes:
        parent: (K,) int32; −1 for a root. Children come before their parents.
        level: (K,) float32, the threshold below which the node has merged into its parent (or the floor).
        mass: (K,) float64, excess of mass: sum over its voxels of how far they rise above ``level`` before it splits.
        extent: (K,) int32, the longest side of its bounding box, voxels.
        count: (K,) int32, how many voxels it has at ``level``.
        node: (N,) int32, the smallest node that holds each voxel; −1 for voxels in none.
    """

    parent: NDArray[np.int32]
    level: NDArray[np.float32]
    mass: NDArray[np.float64]
    extent: NDArray[np.int32]
    count: NDArray[np.int32]
    node: NDArray[np.int32]


def score_tree(
    coords: NDArray[np.int32], scores: NDArray[np.float32], floor: float, min_voxels: int, min_rise: float
) -> ScoreTree:
    """The tree of a score field on distinct voxels.

    Args:
        coords: (N, 3) int32.
        scores: (N,) float32, all ≥ ``floor``.
        floor: The lowest threshold.
        min_voxels: Peaks with fewer voxels are part of whatever they touch.
        min_rise: So are peaks that rise less than this above the saddle to their neighbour.

    This is the condensed component tree of density clustering (excess of mass: Müller & Sawitzki 1991; condensing as in
    HDBSCAN, Campello et al. 2013) with the score in the role of density.
    """
    order = np.argsort(-scores, kind="stable").astype(np.int32)
    parent, level, mass, extent, count, node = _grow_tree(
        pack(coords), coords, scores, order, _deltas(half=False), np.float32(floor), min_voxels, np.float32(min_rise)
    )
    return ScoreTree(parent, level, mass, extent, count, node)


@compiled()
def _touching_roots(key, deltas, slot_keys, slot_rows, root_of, out):  # type: ignore[no-untyped-def]
    """Distinct roots of the flooded pieces around a voxel, written to ``out``; returns how many."""
    found = 0
    for delta in deltas:
        other = _lookup(slot_keys, slot_rows, key + delta)
        if other < 0 or root_of[other] < 0:
            continue
        root = _find(root_of, other)
        known = False
        for i in range(found):
            known = known or out[i] == root
        if not known:
            out[found] = root
            found += 1
    return found


@compiled()
def _absorb(a, b, root_of, size, peak, total, box):  # type: ignore[no-untyped-def]
    """Hang piece ``b`` under piece ``a``."""
    root_of[b] = a
    size[a] += size[b]
    peak[a] = max(peak[a], peak[b])
    total[a] += total[b]
    for axis in range(3):
        box[a, axis] = min(box[a, axis], box[b, axis])
        box[a, axis + 3] = max(box[a, axis + 3], box[b, axis + 3])


@compiled()
def _close(k, threshold, root, size, total, box, level, mass, extent, counts):  # type: ignore[no-untyped-def]
    """Node ``k`` ends at this threshold, as the piece ``root`` is now."""
    level[k] = threshold
    mass[k] = total[root] - size[root] * threshold
    counts[k] = size[root]
    extent[k] = 1 + max(box[root, 3] - box[root, 0], box[root, 4] - box[root, 1], box[root, 5] - box[root, 2])


@compiled()
def _grow_tree(keys, coords, scores, order, deltas, floor, min_voxels, min_rise):  # type: ignore[no-untyped-def]
    """Flood from the top down. Every piece carries a node; nodes of pieces too small to count become aliases."""
    n = len(keys)
    slot_keys, slot_rows = _build_table(keys)
    root_of = np.full(n, -1, dtype=np.int32)
    size, peak, total = np.ones(n, dtype=np.int32), scores.copy(), scores.astype(np.float64)
    box = np.empty((n, 6), dtype=np.int32)
    box[:, :3], box[:, 3:] = coords, coords
    cap, node_of = np.full(n, np.inf, dtype=np.float32), np.empty(n, dtype=np.int32)
    most = 2 * n + 1
    parent, alias = np.full(most, -1, dtype=np.int32), np.arange(most).astype(np.int32)
    level, mass = np.full(most, floor, np.float32), np.zeros(most)
    extent, counts = np.zeros(most, dtype=np.int32), np.zeros(most, dtype=np.int32)
    node = np.empty(n, dtype=np.int32)
    count, roots = np.int32(0), np.empty(26, dtype=np.int32)
    for row in order:
        s = scores[row]
        found = _touching_roots(keys[row], deltas, slot_keys, slot_rows, root_of, roots)
        root_of[row] = row
        ripe, first, first_is_ripe = 0, -1, False
        for i in range(found):
            r = roots[i]
            is_ripe = size[r] >= min_voxels and peak[r] - s >= min_rise
            ripe += is_ripe
            if first < 0 or (is_ripe and not first_is_ripe) or (is_ripe == first_is_ripe and peak[r] > peak[first]):
                first, first_is_ripe = r, is_ripe
        if found == 0 or ripe >= 2:
            k, count, limit = count, count + 1, np.float32(np.inf if found == 0 else s)
        else:
            k, limit = node_of[first], cap[first]
        keep = row
        for i in range(found):
            r = roots[i]
            if ripe >= 2 and size[r] >= min_voxels and peak[r] - s >= min_rise:
                _close(node_of[r], s, r, size, total, box, level, mass, extent, counts)
                parent[node_of[r]] = k
            else:
                alias[node_of[r]] = k
            total[r] = min(total[r], size[r] * np.float64(limit))
            a, b = (r, keep) if size[r] >= size[keep] else (keep, r)
            _absorb(a, b, root_of, size, peak, total, box)
            keep = a
        node_of[keep], cap[keep], node[row] = k, limit, k
    for row in range(n):
        if root_of[row] == row:
            _close(node_of[row], floor, row, size, total, box, level, mass, extent, counts)
            if size[row] < min_voxels:
                alias[node_of[row]] = -1
    return _renumber(count, alias, parent, level, mass, extent, counts, node)


@compiled()
def _renumber(count, alias, parent, level, mass, extent, counts, node):  # type: ignore[no-untyped-def]
    """Follow the aliases, and number the nodes that remain; later nodes lie lower, so children come first."""
    final, kept = np.full(count, -1, dtype=np.int32), 0
    for k in range(count):
        if alias[k] == k:
            final[k] = kept
            parent[kept], level[kept], mass[kept] = parent[k], level[k], mass[k]
            extent[kept], counts[kept] = extent[k], counts[k]
            kept += 1
    for k in range(count):
        target = k
        while target >= 0 and alias[target] != target:
            target = alias[target]
        final[k] = final[target] if target >= 0 else -1
    for i in range(kept):
        if parent[i] >= 0:
            parent[i] = final[parent[i]]
    for row in range(len(node)):
        node[row] = final[node[row]]
    return parent[:kept], level[:kept], mass[:kept], extent[:kept], counts[:kept], node
