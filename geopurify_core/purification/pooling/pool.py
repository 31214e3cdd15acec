"""Geometry-Guided Pooling: every voxel becomes the weighted mean of its neighbours, T times (equation 4).

F ← A F is linear. Channels are therefore pooled in blocks, which bounds the memory, and texts can be pooled instead of
features: (Aᵀ F) t = Aᵀ (F t), n columns instead of 512.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopurify_core.errors import PurificationError
from geopurify_core.jit import HAVE_NUMBA, read_only, run_chunks
from geopurify_core.purification.affinity.build import Affinity
from geopurify_core.purification.affinity.neighbors import check_rows
from geopurify_core.purification.kinds import is_tensor, like, to_numpy
from geopurify_core.purification.pooling.engines import engine_for, rows_of_step
from geopurify_core.purification.pooling.packed import PackedAffinity

if HAVE_NUMBA:
    from geopurify_core.purification.pooling.kernels import count_unusual

Progress = Callable[[float], None]
Cancelled = Callable[[], bool]

_ROWS_AT_ONCE = 8192
_EXPONENT = {np.dtype(np.float16): np.uint16(0x7C00), np.dtype(np.float32): np.uint32(0x7F800000)}


def pool(
    features: Any,
    affinity: Affinity | PackedAffinity,
    steps: int,
    *,
    engine: str = "auto",
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> Any:
    """F ← A F, ``steps`` times.

    Args:
        features: (V, C) float16, bfloat16, float32 or float64, numpy or torch, rows as in ``affinity``.
        affinity: V rows. Where they have no neighbours (a single voxel), features stay as they are.
        steps: T ≥ 0: 18 in the paper, 19 in its code; 0 gives a copy.
        engine: ``auto``, ``numba`` (float16 and float32 on the CPU) or ``torch``.
        progress: Called with the share done, 0 to 1, after each step of each block of channels.
        cancelled: Asked before each of them; pooling ends with PurificationError once it says True.

    Returns:
        (V, C), kind and dtype as given. The arithmetic is float32 (float64 for float64) from the first step to the
        last, and rounded once. Beside the result this takes two blocks (V, 64) of it, and what
        :class:`PackedAffinity` holds.

    Raises:
        PurificationError: Shapes that do not fit, values that are not finite, negative steps, cancelled.
    """
    return _pooled(_Work(features, affinity, steps, engine, progress, cancelled), measure=False)[0]


def pooled_length(
    features: Any,
    affinity: Affinity | PackedAffinity,
    steps: int,
    *,
    engine: str = "auto",
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> Any:
    """(V,) float32 |F'|, the exact lengths of the pooled features, of which never more than two blocks exist.

    As slow as pooling the features; arguments as for :func:`pool`.
    """
    return _pooled(_Work(features, affinity, steps, engine, progress, cancelled), keep=False)[1]


def pool_and_length(
    features: Any,
    affinity: Affinity | PackedAffinity,
    steps: int,
    *,
    engine: str = "auto",
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> tuple[Any, Any]:
    """:func:`pool` and :func:`pooled_length` (before F' is rounded to its dtype) for the price of the first."""
    return _pooled(_Work(features, affinity, steps, engine, progress, cancelled))


def pool_scores(
    features: Any,
    vectors: Any,
    affinity: Affinity | PackedAffinity,
    steps: int,
    *,
    engine: str = "auto",
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> Any:
    """What ``vectors @ pool(features, …).T`` would be, by pooling one column for each vector.

    Args:
        features: (V, C), as for :func:`pool`; never copied as a whole.
        vectors: (n, C) float, one for each text. 16 cost as much as one, and each further 16 the same again.
        affinity, steps, engine, progress, cancelled: As for :func:`pool`.

    Returns:
        (n, V) float32, same kind as ``features``; divided by :func:`pooled_length` these are cosines (unit vectors).
    """
    work = _Work(features, affinity, steps, engine, progress, cancelled)
    texts = _check_vectors(vectors, features.shape[1])
    blocks = work.plan(len(texts))
    shape = (len(texts), len(features))
    out = features.new_empty(shape).float() if is_tensor(features) else np.empty(shape, dtype=np.float32)
    for low, high in blocks:
        block = work.after_all_steps(work.engine.load_products(features, texts[low:high]))
        work.engine.store_columns(block, out, low, high)
    return out


def pool_rows(features: Any, affinity: Affinity | PackedAffinity, rows: Any, *, engine: str = "auto") -> Any:
    """Some rows of a single step; compiled, they equal those of ``pool(features, affinity, 1)`` to the last bit.

    Args:
        features: (V, C) float32; only the rows that the wanted ones listen to are read.
        affinity: V rows.
        rows: (n,) row numbers, best in an order in which neighbours follow each other.
        engine: As for :func:`pool`.

    Returns:
        (n, C) float32, same kind as ``features``. Nothing is checked for NaN here.
    """
    packed = affinity if isinstance(affinity, PackedAffinity) else PackedAffinity(affinity)
    _check_shape(features, packed)
    wanted = check_rows(to_numpy(rows), len(packed)).astype(np.int32)
    if not packed.affinity.neighbors.shape[1]:
        return features[wanted]
    on_cpu = not is_tensor(features) or features.device.type == "cpu"
    if engine == "torch" or not HAVE_NUMBA or not on_cpu:
        return _torch_rows(features, packed, wanted)
    return like(rows_of_step(np.asarray(to_numpy(features), dtype=np.float32), packed, wanted), features)


class _Work:
    """One pooling: checked input, the engine, and block after block through all steps, with progress and a way out."""

    def __init__(
        self,
        features: Any,
        affinity: Affinity | PackedAffinity,
        steps: int,
        engine: str,
        progress: Progress | None,
        cancelled: Cancelled | None,
    ) -> None:
        packed = affinity if isinstance(affinity, PackedAffinity) else PackedAffinity(affinity)
        _check_shape(features, packed)
        if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or steps < 0:
            raise PurificationError("steps", steps, "Give a whole number of steps, at least 0.")
        _check_finite(features)
        self.features, self.engine = features, engine_for(features, packed, engine)
        self._steps = int(steps) if packed.affinity.neighbors.shape[1] else 0
        self._progress, self._cancelled = progress, cancelled
        self._done = self._total = 0

    def plan(self, channels: int) -> list[tuple[int, int]]:
        """Channels [low, high) of each block that will be pooled."""
        width = self.engine.block_channels
        blocks = [(low, min(low + width, channels)) for low in range(0, channels, width)]
        self._done, self._total = 0, self._steps * len(blocks)
        return blocks

    def after_all_steps(self, block: Any) -> Any:
        """The block pooled, as the engine holds it."""
        for _ in range(self._steps):
            if self._cancelled is not None and self._cancelled():
                raise PurificationError("pooling", "cancelled", "Ask again when there is time for it.")
            block = self.engine.step(block)
            self._done += 1
            if self._progress is not None:
                self._progress(self._done / self._total)
        return block


def _pooled(work: _Work, *, keep: bool = True, measure: bool = True) -> tuple[Any, Any]:
    """Pooled features and their lengths, each only if wanted."""
    features, engine = work.features, work.engine
    out, total = (_empty_like(features) if keep else None), engine.no_squares()
    for low, high in work.plan(features.shape[1]):
        block = work.after_all_steps(engine.load(features, low, high))
        if measure:
            engine.add_squares(block, total)
        if keep:
            engine.store(block, out, low, high)
    return out, like(engine.lengths(total), features) if measure else None


def _empty_like(features: Any) -> Any:
    if is_tensor(features):
        return features.new_empty(features.shape)
    return np.empty(features.shape, dtype=features.dtype)


def _torch_rows(features: Any, packed: PackedAffinity, rows: NDArray[np.int32]) -> Any:
    import torch
    from torch.nn.functional import embedding_bag

    source = (features if is_tensor(features) else torch.from_numpy(np.ascontiguousarray(features))).float()
    nearest, weights = (torch.from_numpy(part[rows]).to(source.device) for part in packed.parts())
    result = embedding_bag(nearest, source, per_sample_weights=weights, mode="sum")
    return result if is_tensor(features) else result.numpy()


def _check_shape(features: Any, packed: PackedAffinity) -> None:
    if not hasattr(features, "shape"):
        raise PurificationError("features", type(features).__name__, "Give a numpy array or a torch tensor.")
    shape = tuple(features.shape)
    if len(shape) != 2 or shape[0] != len(packed):
        raise PurificationError("features", shape, f"Give ({len(packed)}, C), one row for each voxel.")
    kind = str(features.dtype).removeprefix("torch.")
    if not kind.startswith(("float", "bfloat")):
        raise PurificationError("features", kind, "Give floating-point features, in the byte order of this machine.")


def _check_finite(features: Any) -> None:
    if is_tensor(features) and (features.device.type != "cpu" or str(features.dtype) == "torch.bfloat16"):
        unusual = int(features.numel() - features.isfinite().sum())
    else:
        unusual = _count_unusual(to_numpy(features))
    if unusual:
        raise PurificationError("features", f"{unusual} values are NaN or infinite", "Give finite features.")


def _count_unusual(values: NDArray[Any]) -> int:
    if not HAVE_NUMBA or values.dtype not in _EXPONENT:
        return int(values.size - np.isfinite(values).sum())
    exponent = _EXPONENT[values.dtype]
    bits = read_only(values).view(exponent.dtype)
    return int(sum(run_chunks(count_unusual, len(bits), bits, exponent, min_chunk=_ROWS_AT_ONCE)))


def _check_vectors(vectors: Any, channels: int) -> NDArray[np.float32]:
    values = np.asarray(to_numpy(vectors), dtype=np.float32)
    if values.ndim != 2 or values.shape[1] != channels:
        raise PurificationError("vectors", values.shape, f"Give (n, {channels}), one row for each text.")
    if not np.isfinite(values).all():
        raise PurificationError("vectors", "NaN or infinity", "Give finite vectors.")
    return values
