"""K nearest voxels by looking into the vertical columns around each, nearest columns first. Compiled.

Voxels sorted by key lie in memory column by column, so a column is one short run, found by one look into a grid. A
histogram of squared distances says at any time how far the K-th nearest can be at most; columns beyond are not entered.
"""
# mypy: ignore-errors

from __future__ import annotations

import numpy as np

from geopurify_core.jit import compiled


@compiled()
def column_starts(cell, first):
    """first[c] = number of voxels in cells below c, for ascending cells (V,) of voxels; ``first`` has one more."""
    at = 0
    for c in range(len(first)):
        while at < len(cell) and cell[at] < c:
            at += 1
        first[c] = at


@compiled()
def nearest(start, stop, places, cell, z, first, step, step_square, root, k, most, found, complete):
    """The K nearest of ``places[start:stop]`` into ``found``; ``complete`` says where the stencil reached far enough.

    Args:
        places: (n,) voxels to look from, places in key order.
        cell: (V,) grid cell of each voxel's column.
        z: (V,) height of each voxel.
        first: (cells + 1,) first voxel of each cell.
        step: (S,) to the cell of each column of the stencil, nearest first; ``step_square`` the squared distances.
        root: (limit + 1,) integer square roots; limit, the squared radius of the stencil, is the farthest looked for.
        k: How many.
        most: How many voxels the stencil can hold.
        found: (n, k) int32, nearest first, then in key order.
        complete: (n,) bool.
    """
    limit = len(root) - 1
    count = np.zeros(limit + 1, dtype=np.int32)
    square, near, ordered = np.empty(most, np.int32), np.empty(most, np.int32), np.empty(most, np.int32)
    for i in range(start, stop):
        own = places[i]
        height, base = z[own], cell[own]
        bound, within, held = limit, 0, 0
        for s in range(len(step)):
            across = step_square[s]
            if across > bound:
                break
            at, end = first[base + step[s]], first[base + step[s] + 1]
            if at == end:
                continue
            reach = root[bound - across]
            at = _first_from(z, at, end, height - reach)
            while at < end and z[at] <= height + reach:
                distance = across + (z[at] - height) * (z[at] - height)
                if distance > 0:
                    square[held], near[held] = distance, at
                    count[distance] += 1
                    held += 1
                    within += 1
                at += 1
            while within - count[bound] >= k:
                within -= count[bound]
                bound -= 1
        complete[i] = within >= k
        if complete[i]:
            _order(square, near, held, bound, count, ordered)
            for j in range(k):
                found[i, j] = ordered[j]
        count[:] = 0


@compiled(inline=True)
def _first_from(z, low, high, wanted):
    """First place in [low, high) whose height is not below ``wanted``."""
    while high - low > 8:
        middle = (low + high) >> 1
        if z[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    while low < high and z[low] < wanted:
        low += 1
    return low


@compiled(inline=True)
def _order(square, near, held, bound, count, ordered):
    """Candidates up to ``bound`` by distance, then by place: a counting sort, then each distance by insertion."""
    at = 0
    for distance in range(bound + 1):
        number = count[distance]
        count[distance] = at
        at += number
    for c in range(held):
        distance = square[c]
        if distance <= bound:
            place = count[distance]
            ordered[place] = near[c]
            count[distance] = place + 1
    low = 0
    for distance in range(bound + 1):
        high = count[distance]
        for c in range(low + 1, high):
            value, at = ordered[c], c
            while at > low and ordered[at - 1] > value:
                ordered[at] = ordered[at - 1]
                at -= 1
            ordered[at] = value
        low = high
