"""Small patches of even colour and direction: graph-based segmentation after Felzenszwalb and Huttenlocher (2004)."""
# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from geopurify_core.jit import compiled, read_only


def edge_cost(
    edges: NDArray[np.int32],
    normals: NDArray[np.float32],
    colour: NDArray[np.float32],
    colour_weight: float,
    normal_weight: float,
) -> NDArray[np.float32]:
    """(E,) how unlike two touching cells are; normals count without their sign."""
    first, second = edges.T
    cosine = np.abs(np.einsum("ij,ij->i", normals[first], normals[second]))
    known = (np.abs(normals).sum(axis=1) > 0)[edges].all(axis=1)
    bend = np.where(known, 1 - np.minimum(cosine, 1), 0.3)
    step = np.square(colour[first] - colour[second]).sum(axis=1)
    return np.sqrt(normal_weight * bend + colour_weight * step).astype(np.float32)


def patches_of(cost: NDArray[np.float32], edges: NDArray[np.int32], count: int, k: float, smallest: int):
    """(C,) int32 patch of each cell, numbered in the order of their first cells.

    Args:
        cost: (E,) of the edges.
        edges: (E, 2), sorted: ties of equal cost are broken by it.
        count: C.
        k: Scale of observation: the larger, the larger the patches.
        smallest: Smaller patches join the neighbour they are likest.
    """
    order = np.argsort(np.rint(cost * 65536).astype(np.int64), kind="stable")
    parent = np.arange(count, dtype=np.int64)
    _grow(read_only(edges[order].astype(np.int64)), read_only(cost[order]), parent, k, smallest)
    _, first, patch = np.unique(parent, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int32)
    rank[np.argsort(first)] = np.arange(len(first), dtype=np.int32)
    return rank[patch.reshape(-1)]


@compiled(inline=True)
def _root(parent, node):
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@compiled()
def _grow(edges, cost, parent, k, smallest):
    """Leaves the root of each cell's patch in ``parent``."""
    size = np.ones(len(parent), dtype=np.int64)
    limit = np.full(len(parent), k, dtype=np.float64)
    for sweep in range(2):
        for e in range(len(edges)):
            a, b = _root(parent, edges[e, 0]), _root(parent, edges[e, 1])
            if a == b:
                continue
            join = cost[e] <= min(limit[a], limit[b]) if sweep == 0 else min(size[a], size[b]) < smallest
            if join:
                if b < a:
                    a, b = b, a
                parent[b] = a
                size[a] += size[b]
                limit[a] = cost[e] + k / size[a]
    for i in range(len(parent)):
        parent[i] = _root(parent, i)
