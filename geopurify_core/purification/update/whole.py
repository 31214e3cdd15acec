"""Pooling of the whole map: F' = A^T F (equation 4), a block of channels at a time.

Besides F' it gives what the next update needs to know how far a row has moved: a *sketch*, the product of F' with a
fixed random matrix. Pooling is linear, so the sketch of the purified features is the pooled sketch of the raw ones, and
32 columns are pooled in a fifteenth of the time that 512 take. See ``partial.py`` for what it is good for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from geopurify_core.jit import HAVE_NUMBA
from geopurify_core.purification.kinds import to_numpy
from geopurify_core.purification.pooling.packed import PackedAffinity
from geopurify_core.purification.pooling.pool import pool, pool_and_length, pooled_length

COLUMNS_AT_ONCE = 32  # one hop over 32 columns costs hardly more than over one: neighbours and weights dominate
SKETCH_COLUMNS = COLUMNS_AT_ONCE - 1  # the observation weight is the 32nd
CHANNEL_BLOCK, _DEVICE_BLOCK = 64, 512
_ROWS_AT_ONCE = 16_384
_SKETCH_SEED = 20_260

Floats = NDArray[np.float32]
Halves = NDArray[np.float16]


@lru_cache(maxsize=4)
def sketch_matrix(channels: int) -> Floats:
    """(S, C) independent standard normal numbers, always the same for the same C.

    For any row d the sum of squares of its S products is |d|² times a chi-squared number of S = 31 degrees of freedom.
    """
    matrix = np.random.default_rng(_SKETCH_SEED).standard_normal((SKETCH_COLUMNS, channels), dtype=np.float32)
    matrix.setflags(write=False)
    return matrix


def raw_scores(features: Halves, vectors: Floats, order: NDArray[np.integer]) -> Floats:
    """(N, n) float32 products of features (rows in ``order``) with vectors (n, C), C-contiguous for pooling."""
    if HAVE_NUMBA:
        from geopurify_core.querying.products import dots

        return np.ascontiguousarray(dots(features, vectors)[:, order].T)
    out = np.empty((len(order), len(vectors)), dtype=np.float32)
    for low in range(0, len(order), _ROWS_AT_ONCE):
        part = order[low : low + _ROWS_AT_ONCE]
        np.matmul(features[part].astype(np.float32), vectors.T, out=out[low : low + len(part)])
    return out


def pool_columns(columns: Floats, affinity: PackedAffinity, steps: int, device: str) -> Floats:
    """``pool`` of (N, n) float32 columns on ``device``, back as an array."""
    if device == "cpu":
        return np.asarray(pool(columns, affinity, steps), dtype=np.float32)
    result: Floats = pool(torch.from_numpy(columns).to(device), affinity, steps).cpu().numpy()
    return result


def pool_features(
    features: Halves,
    order: NDArray[np.integer],
    affinity: PackedAffinity,
    steps: int,
    device: str,
    *,
    keep: bool,
    tick: Callable[[float], None],
) -> tuple[Halves | None, Floats]:
    """F' of every row, and its length.

    Args:
        features: (N, C) float16 raw features, rows in the snapshot's order.
        order: (N,) snapshot row of each row in key order.
        affinity: In key order.
        steps: T.
        device: "cpu" or a torch device.
        keep: Whether to return F' or only its length.
        tick: Told the share done after each block of channels; may raise to stop.

    Returns:
        (N, C) float16 F' or None, and (N,) float32 |F'| of the unrounded F', in key order.
    """
    rows, channels = len(order), features.shape[1]
    pooled = np.empty((rows, channels), dtype=np.float16) if keep else None
    squared = np.zeros(rows, dtype=np.float64)
    width = CHANNEL_BLOCK if device == "cpu" else _DEVICE_BLOCK
    for low in range(0, channels, width):
        part = slice(low, min(low + width, channels))
        block: Any = features[:, part][order]
        block = block if device == "cpu" else torch.from_numpy(block).to(device)
        if pooled is None:
            length = pooled_length(block, affinity, steps)
        else:
            block, length = pool_and_length(block, affinity, steps)
            pooled[:, part] = to_numpy(block)
        squared += np.square(to_numpy(length), dtype=np.float64)
        tick(part.stop / channels)
    return pooled, np.sqrt(squared).astype(np.float32)
