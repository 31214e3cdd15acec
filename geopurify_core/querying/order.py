"""Sorting by counting digits, and order statistics without a sort: what a query asks of 10⁵ numbers at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopurify_core.jit import compiled

_BITS = 11
_BINS = 4096
_SMALL = 256


def radix_argsort(keys: NDArray[np.uint64], bits: int) -> NDArray[np.int32]:
    """(N,) int32 stable ascending order of keys (N,) below 2^bits."""
    return np.asarray(_radix(np.ascontiguousarray(keys), np.int64(-(-max(bits, 1) // _BITS))), dtype=np.int32)


def descending_order(values: NDArray[np.float32]) -> NDArray[np.int32]:
    """(N,) int32: what ``np.argsort(-values, kind="stable")`` gives for finite float32 values."""
    bits = (np.asarray(values, dtype=np.float32) + np.float32(0.0)).view(np.uint32)  # + 0: there is only one zero
    ascending = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return radix_argsort((~ascending).astype(np.uint64), 32)


@compiled()
def _radix(keys: Any, passes: Any) -> Any:
    n, mask = len(keys), np.uint64((1 << 11) - 1)
    order, other = np.arange(n).astype(np.int32), np.empty(n, dtype=np.int32)
    for p in range(passes):
        shift, starts = np.uint64(11 * p), np.zeros((1 << 11) + 1, dtype=np.int64)
        for i in range(n):
            starts[np.int64((keys[i] >> shift) & mask) + 1] += 1
        for d in range(1 << 11):
            starts[d + 1] += starts[d]
        for i in range(n):
            digit = np.int64((keys[order[i]] >> shift) & mask)
            other[starts[digit]] = order[i]
            starts[digit] += 1
        order, other = other, order
    return order


def trimmed_range(points: NDArray[np.float64], percent: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """``np.percentile(points, [percent, 100 - percent], axis=0)`` of points (n, d), to the last bit."""
    n = len(points)
    at = np.array([percent / 100.0, (100.0 - percent) / 100.0]) * (n - 1)
    ranks = np.floor(at).astype(np.int64)
    wanted = np.minimum(np.stack([ranks, ranks + 1], axis=1).ravel(), n - 1)
    a, b, c, d = np.stack([_ranked(column, wanted) for column in np.ascontiguousarray(points.T)], axis=1)
    low_share, high_share = at - ranks
    return _between(a, b, low_share), _between(c, d, high_share)


def _between(a: NDArray[np.float64], b: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """From a to b, counted from the nearer end, as numpy does."""
    return np.asarray(b - (b - a) * (1.0 - share) if share >= 0.5 else a + (b - a) * share)


@compiled()
def _ranked(values: Any, ranks: Any) -> Any:
    """The values of these ascending ranks: only the bins that hold one are sorted."""
    out = np.empty(len(ranks), dtype=values.dtype)
    low, high = values.min(), values.max()
    scale = (_BINS - 1) / (high - low) if high > low else 0.0
    if len(values) <= _SMALL or not np.isfinite(scale):
        ordered = np.sort(values)
        for i in range(len(ranks)):
            out[i] = ordered[ranks[i]]
        return out
    below = np.zeros(_BINS + 1, dtype=np.int64)
    for value in values:
        below[np.int64((value - low) * scale) + 1] += 1
    for b in range(_BINS):
        below[b + 1] += below[b]
    done = -1
    held = np.empty(0, dtype=values.dtype)
    for i in range(len(ranks)):
        b = np.searchsorted(below, ranks[i], side="right") - 1
        if b != done:
            held, count, done = np.empty(below[b + 1] - below[b], dtype=values.dtype), 0, b
            for value in values:
                if np.int64((value - low) * scale) == b:
                    held[count] = value
                    count += 1
            held.sort()
        out[i] = held[ranks[i] - below[b]]
    return out
