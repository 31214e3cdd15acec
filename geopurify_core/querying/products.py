"""Dot products of half-precision rows at memory speed.

Many CPUs multiply fp16 matrices one number at a time, and converting the whole matrix to fp32 first moves five times
the bytes. Here each row is widened in registers and multiplied with several vectors at once, and a block of rows meets
all vectors while it is in cache, so the matrix is read from memory exactly once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopurify_core.jit import compiled, run_chunks
from geopurify_core.mapping.half import widen

_VECTORS_AT_ONCE = 4
_ROWS_AT_ONCE = 256
_MIN_CHUNK = 2048


@compiled(reassociate=True)
def _dots(start: int, stop: int, bits: Any, vectors: Any, out: Any) -> None:
    """out (n, N) = vectors (n, C) · rows (N, C)ᵀ for rows start..stop, n a multiple of 4."""
    for first in range(start, stop, _ROWS_AT_ONCE):
        last = min(stop, first + _ROWS_AT_ONCE)
        for v in range(0, vectors.shape[0], _VECTORS_AT_ONCE):
            for row in range(first, last):
                a = b = c = d = np.float32(0.0)
                for k in range(bits.shape[1]):
                    x = widen(bits[row, k])  # type: ignore[no-untyped-call]
                    a += x * vectors[v, k]
                    b += x * vectors[v + 1, k]
                    c += x * vectors[v + 2, k]
                    d += x * vectors[v + 3, k]
                out[v, row] = a
                out[v + 1, row] = b
                out[v + 2, row] = c
                out[v + 3, row] = d


@compiled(reassociate=True)
def _mean_and_square(start: int, stop: int, bits: Any, mean: Any, out_mean: Any, out_square: Any) -> None:
    for row in range(start, stop):
        a = b = np.float32(0.0)
        for k in range(bits.shape[1]):
            x = widen(bits[row, k])  # type: ignore[no-untyped-call]
            a += x * mean[k]
            b += x * x
        out_mean[row] = a
        out_square[row] = b


def dots(features: NDArray[np.float16], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, N) float32: vectors (n, C) float32 times features (N, C) float16, in fp32 arithmetic."""
    n, channels = vectors.shape
    padded = np.zeros((-(-n // _VECTORS_AT_ONCE) * _VECTORS_AT_ONCE, channels), dtype=np.float32)
    padded[:n] = vectors
    out = np.empty((len(padded), len(features)), dtype=np.float32)
    bits = np.ascontiguousarray(features).view(np.uint16)
    run_chunks(_dots, len(features), bits, padded, out, min_chunk=_MIN_CHUNK)
    return out[:n]


def mean_dot_and_length(
    features: NDArray[np.float16], mean: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(row · mean, |row|) of features (N, C) float16, each (N,) float32, in one pass over memory."""
    projection, square = np.empty(len(features), dtype=np.float32), np.empty(len(features), dtype=np.float32)
    bits, mean = np.ascontiguousarray(features).view(np.uint16), np.ascontiguousarray(mean, dtype=np.float32)
    run_chunks(_mean_and_square, len(features), bits, mean, projection, square, min_chunk=_MIN_CHUNK)
    return projection, np.sqrt(square)
