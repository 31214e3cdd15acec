"""Which voxels touch, the connected pieces they form, and the tree a score field falls into as its threshold rises.

All of it is 26-connected: voxels that share a face, an edge or a corner belong together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geopurify_core.jit import compiled
from geopurify_core.querying.order import descending_order, radix_argsort


@dataclass(frozen=True)
class VoxelGraph:
    """Who touches whom: the neighbours of voxel i are ``rows[start[i]:stop[i]]``, in order of their coordinates.

    Attributes:
        start, stop: (N,) int64.
        rows: (E,) int32, at most 26 for each voxel; on surfaces about ten.
    """

    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    rows: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.start)


def voxel_graph(coords: NDArray[np.int32]) -> VoxelGraph:
    """The neighbours of distinct voxels (N, 3), within ±2²⁰ of each other.

    One sort, and then nine pointers that walk along the sorted voxels, one for each neighbouring column: every step
    reads memory in order, where a hash table would jump 26 times for each voxel.
    """
    if not len(coords):
        nothing = np.zeros(0, dtype=np.int64)
        return VoxelGraph(nothing, nothing, np.zeros(0, dtype=np.int32))
    low = coords.min(axis=0).astype(np.int64)
    span = coords.max(axis=0).astype(np.int64) - low + 3  # a free layer on each side, so that no column wraps round
    key = ((coords[:, 0] - low[0] + 1) * span[1] + (coords[:, 1] - low[1] + 1)) * span[2] + (coords[:, 2] - low[2] + 1)
    order = radix_argsort(key.view(np.uint64), int(np.prod(span.astype(object))).bit_length())
    columns = np.array([dx * span[1] * span[2] + dy * span[2] for dx in (-1, 0, 1) for dy in (-1, 0, 1)])
    start, stop, rows = _merge_columns(key[order], order, columns)
    return VoxelGraph(start, stop, rows)


@compiled()
def _merge_columns(keys, order, columns):  # type: ignore[no-untyped-def]
    n = len(keys)
    start, stop = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.int64)
    rows = np.empty(26 * n, dtype=np.int32)  # pages never written cost nothing
    at, end = np.zeros(9, dtype=np.int64), 0
    for i in range(n):
        start[order[i]] = end
        for c in range(9):
            wanted = keys[i] + columns[c]
            k = at[c]
            while k < n and keys[k] < wanted - 1:
                k += 1
            at[c] = k
            while k < n and keys[k] <= wanted + 1:
                if k != i:
                    rows[end] = order[k]
                    end += 1
                k += 1
        stop[order[i]] = end
    return start, stop, rows[:end].copy()


def connected_components(coords: NDArray[np.int32]) -> NDArray[np.int32]:
    """(N,) int32 labels of the 26-connected pieces of distinct voxels (N, 3), numbered by their first row."""
    return pieces_of(voxel_graph(coords), np.arange(len(coords), dtype=np.int32))


def pieces_of(graph: VoxelGraph, members: NDArray[np.integer]) -> NDArray[np.int32]:
    """(n,) int32 labels of the connected pieces that some of a graph's voxels form, numbered by first appearance."""
    members = members.astype(np.int32)
    return np.asarray(_flood_members(graph.start, graph.stop, graph.rows, members), dtype=np.int32)


@compiled()
def _flood_members(start, stop, rows, members):  # type: ignore[no-untyped-def]
    n = len(members)
    place = np.full(len(start), -1, dtype=np.int32)
    for i in range(n):
        place[members[i]] = i
    labels, queue, count = np.full(n, -1, dtype=np.int32), np.empty(n, dtype=np.int32), 0
    for seed in range(n):
        if labels[seed] >= 0:
            continue
        labels[seed], queue[0], head, tail = count, seed, 0, 1
        while head < tail:
            row = members[queue[head]]
            head += 1
            for e in range(start[row], stop[row]):
                other = place[rows[e]]
                if other >= 0 and labels[other] < 0:
                    labels[other] = count
                    queue[tail] = other
                    tail += 1
        count += 1
    return labels


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
    coords: NDArray[np.int32],
    scores: NDArray[np.float32],
    floor: float,
    min_voxels: int,
    min_rise: float,
    graph: VoxelGraph | None = None,
) -> ScoreTree:
    """The tree of a score field on distinct voxels.

    Args:
        coords: (N, 3) int32.
        scores: (N,) float32, all ≥ ``floor``.
        floor: The lowest threshold.
        min_voxels: Peaks with fewer voxels are part of whatever they touch.
        min_rise: So are peaks that rise less than this above the saddle to their neighbour.
        graph: Who touches whom among them; found out if not given.

    This is the condensed component tree of density clustering (excess of mass: Müller & Sawitzki 1991; condensing as in
    HDBSCAN, Campello et al. 2013) with the score in the role of density.
    """
    graph = voxel_graph(coords) if graph is None else graph
    order = descending_order(scores)
    parent, level, mass, extent, count, node = _grow_tree(
        graph.start, graph.stop, graph.rows, coords, scores, order, np.float32(floor), min_voxels, np.float32(min_rise)
    )
    return ScoreTree(parent, level, mass, extent, count, node)


@compiled(inline=True)
def _root(root_of, item):  # type: ignore[no-untyped-def]
    while root_of[item] != item:
        root_of[item] = root_of[root_of[item]]
        item = root_of[item]
    return item


@compiled()
def _touching_roots(around, root_of, out):  # type: ignore[no-untyped-def]
    """Distinct roots of the flooded pieces among these voxels, written to ``out``; returns how many."""
    found, last = 0, np.int32(-1)
    for other in around:
        if root_of[other] < 0:
            continue
        root = _root(root_of, other)
        if root == last:  # most often they all belong to one piece
            continue
        last, known = root, False
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
def _grow_tree(start, stop, rows, coords, scores, order, floor, min_voxels, min_rise):  # type: ignore[no-untyped-def]
    """Flood from the top down. Every piece carries a node; nodes of pieces too small to count become aliases."""
    n, most = len(start), len(order)
    root_of, node = np.full(n, -1, dtype=np.int32), np.full(n, -1, dtype=np.int32)
    size, peak, total = np.empty(n, dtype=np.int32), np.empty(n, dtype=np.float32), np.empty(n, dtype=np.float64)
    box, cap, node_of = np.empty((n, 6), np.int32), np.empty(n, np.float32), np.empty(n, dtype=np.int32)
    box[:, :3], box[:, 3:] = coords, coords
    parent, alias = np.full(most, -1, dtype=np.int32), np.arange(most).astype(np.int32)
    level, mass = np.full(most, floor, np.float32), np.zeros(most)
    extent, counts = np.zeros(most, dtype=np.int32), np.zeros(most, dtype=np.int32)
    count, roots = np.int32(0), np.empty(26, dtype=np.int32)
    for row in order:
        s = scores[row]
        found = _touching_roots(rows[start[row] : stop[row]], root_of, roots)
        root_of[row], size[row], peak[row], total[row] = row, 1, s, s
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
    for row in order:
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
        if node[row] >= 0:
            node[row] = final[node[row]]
    return parent[:kept], level[:kept], mass[:kept], extent[:kept], counts[:kept], node
