"""The compiled loops: rows out of a tensor, rows back into one, and matching of sorted keys."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopurify_core.jit import compiled


@compiled()
def gather_rows(source: NDArray[Any], rows: NDArray[np.int32], start: int, stop: int, out: NDArray[Any]) -> None:
    """out[p - start] = source[rows[p]] for p in [start, stop)."""
    width = source.shape[1]
    for p in range(start, stop):
        row = rows[p]
        for c in range(width):
            out[p - start, c] = source[row, c]


@compiled()
def add_rows(target: NDArray[Any], rows: NDArray[np.int32], start: int, stop: int, values: NDArray[Any]) -> None:
    """target[rows[p]] += values[p - start] for p in [start, stop); each row at most once."""
    width = target.shape[1]
    for p in range(start, stop):
        row = rows[p]
        for c in range(width):
            target[row, c] += values[p - start, c]


@compiled()
def match_keys(keys: NDArray[np.int64], delta: int, out: NDArray[np.int32], found: NDArray[np.int32]) -> int:
    """Positions (out, found) with keys[found] = keys[out] + delta, both ascending; returns how many."""
    count, candidate, num = 0, 0, len(keys)
    for position in range(num):
        wanted = keys[position] + delta
        while candidate < num and keys[candidate] < wanted:
            candidate += 1
        if candidate == num:
            break
        if keys[candidate] == wanted:
            out[count] = position
            found[count] = candidate
            count += 1
    return count
