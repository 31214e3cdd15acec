"""Geometry-Guided Pooling: every voxel becomes the weighted mean of its neighbours, T times (equation 4).

F ← A F is linear. Channels are therefore pooled in blocks, which bounds the memory, and texts may be pooled instead of
features: (Aᵀ F) t = Aᵀ (F t).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from geopurify_core.errors import PurificationError
from geopurify_core.purification.affinity import Affinity
from geopurify_core.purification.kinds import is_tensor, to_numpy

Progress = Callable[[float], None]
Cancelled = Callable[[], bool]

_BLOCK = 64


def pool(
    features: Any,
    affinity: Affinity,
    steps: int,
    *,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> Any:
    """F ← A F, ``steps`` times.

    Args:
        features: (V, C) float16, bfloat16, float32 or float64, numpy or torch, rows as in ``affinity``.
        affinity: V rows. Where rows have no neighbours (a single voxel), features stay as they are.
        steps: T ≥ 0: 18 in the paper, 19 in its code; 0 gives a copy.
        progress: Called with the share done, 0 to 1, after each block of channels.
        cancelled: Asked after each step; pooling ends with PurificationError once it says True.

    Returns:
        (V, C), kind and dtype as given. The arithmetic is float32 (float64 for float64) from the first step to the
        last, and rounded once. Beside the result this takes two float32 blocks of (V, 64).

    Raises:
        PurificationError: Shapes that do not fit, values that are not finite, negative steps, cancelled.
    """
    _check(features, affinity, steps)
    out = features.clone() if is_tensor(features) else np.array(features)
    for low in range(0, features.shape[1], _BLOCK):
        part = slice(low, low + _BLOCK)
        out[:, part] = _pool_block(features[:, part], affinity, steps, cancelled)
        if progress is not None:
            progress(min(1.0, (low + _BLOCK) / features.shape[1]))
    return out


def pool_scores(
    features: Any,
    vectors: Any,
    affinity: Affinity,
    steps: int,
    *,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> Any:
    """(n, V) float32: what pooled features times ``vectors`` (n, C) would be, by pooling n columns instead of C."""
    if is_tensor(features):
        scores = features.float() @ vectors.float().T
        return pool(scores, affinity, steps, progress=progress, cancelled=cancelled).T.contiguous()
    scores = features.astype(np.float32) @ np.asarray(vectors, dtype=np.float32).T
    return np.ascontiguousarray(pool(scores, affinity, steps, progress=progress, cancelled=cancelled).T)


def pooled_length(
    features: Any,
    affinity: Affinity,
    steps: int,
    *,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> Any:
    """(V,) float32 |F'|, the lengths of the pooled features, without ever holding all of them."""
    _check(features, affinity, steps)
    square: Any = 0.0
    for low in range(0, features.shape[1], _BLOCK):
        block = _pool_block(features[:, low : low + _BLOCK], affinity, steps, cancelled)
        square = square + (block * block).sum(1)
        if progress is not None:
            progress(min(1.0, (low + _BLOCK) / features.shape[1]))
    return square**0.5


def _pool_block(block: Any, affinity: Affinity, steps: int, cancelled: Cancelled | None) -> Any:
    import torch
    import torch.nn.functional as functional

    tensor = block if is_tensor(block) else torch.from_numpy(np.ascontiguousarray(block))
    current = tensor.to(torch.float64 if tensor.dtype == torch.float64 else torch.float32).contiguous()
    nearest, weights = (
        part.to(current.device) if is_tensor(part) else torch.from_numpy(to_numpy(part)).to(current.device)
        for part in (affinity.neighbors, affinity.weights)
    )
    weights = weights.to(current.dtype)
    for _ in range(steps if nearest.shape[1] else 0):
        if cancelled is not None and cancelled():
            raise PurificationError("pooling", "cancelled", "Ask again when there is time.")
        current = functional.embedding_bag(nearest, current, per_sample_weights=weights, mode="sum")
    return current if is_tensor(block) else current.numpy()


def _check(features: Any, affinity: Affinity, steps: int) -> None:
    shape = tuple(features.shape)
    if len(shape) != 2 or shape[0] != len(affinity):
        raise PurificationError("features", shape, f"Give ({len(affinity)}, C), one row for each voxel.")
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or steps < 0:
        raise PurificationError("steps", steps, "Give a number of steps of at least 0.")
    values = to_numpy(features)
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise PurificationError("features", f"{bad} values are NaN or infinite", "Give finite features.")
