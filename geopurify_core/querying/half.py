"""Dot products of half-precision rows at memory speed.

CPUs multiply fp16 matrices one number at a time; converting the whole matrix to fp32 first writes and reads it twice. Here
each row is widened in registers (LLVM's ``fpext half``, one F16C instruction for 8 numbers) and multiplied with several
vectors at once, so the matrix is read exactly once from memory.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

_VECTORS_AT_ONCE = 4
_ROWS_AT_ONCE = 256


@intrinsic  # type: ignore[misc]
def _widen(typing_context: Any, bits: Any) -> Any:
    """float32 of the half-precision number with these 16 bits."""
    del typing_context

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), codegen


@numba.njit(parallel=True, fastmath=True, cache=True, nogil=True)  # type: ignore[misc]
def _dots(bits: NDArray[np.uint16], vectors: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """out (n, N) = vectors (n, C) · rows (N, C)ᵀ, n a multiple of 4; a block of rows meets all vectors while in cache."""
    rows = bits.shape[0]
    for block in numba.prange((rows + _ROWS_AT_ONCE - 1) // _ROWS_AT_ONCE):
        last = min(rows, (block + 1) * _ROWS_AT_ONCE)
        for v in range(0, vectors.shape[0], _VECTORS_AT_ONCE):
            for row in range(block * _ROWS_AT_ONCE, last):
                a = b = c = d = np.float32(0.0)
                for k in range(bits.shape[1]):
                    x = _widen(bits[row, k])
                    a += x * vectors[v, k]
                    b += x * vectors[v + 1, k]
                    c += x * vectors[v + 2, k]
                    d += x * vectors[v + 3, k]
                out[v, row] = a
                out[v + 1, row] = b
                out[v + 2, row] = c
                out[v + 3, row] = d


@numba.njit(parallel=True, fastmath=True, cache=True, nogil=True)  # type: ignore[misc]
def _mean_and_square(
    bits: NDArray[np.uint16],
    mean: NDArray[np.float32],
    out_mean: NDArray[np.float32],
    out_square: NDArray[np.float32],
) -> None:
    for row in numba.prange(bits.shape[0]):
        a = b = np.float32(0.0)
        for k in range(bits.shape[1]):
            x = _widen(bits[row, k])
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
    _dots(np.ascontiguousarray(features).view(np.uint16), padded, out)
    return out[:n]


def mean_dot_and_length(
    features: NDArray[np.float16], mean: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(row · mean, |row|) of features (N, C) float16, each (N,) float32, in one pass over memory."""
    projection, square = np.empty(len(features), dtype=np.float32), np.empty(len(features), dtype=np.float32)
    _mean_and_square(np.ascontiguousarray(features).view(np.uint16), np.ascontiguousarray(mean), projection, square)
    return projection, np.sqrt(square)
