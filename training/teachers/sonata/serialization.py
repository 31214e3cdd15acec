"""Space-filling curves: every point of a grid gets a number, so that near numbers are near in space.

Sonata sorts points along four curves and lets a block attend within stretches of one of them. ``z`` interleaves the
bits of the coordinates, x highest; ``hilbert`` is Hilbert's curve after Skilling (AIP Conf. Proc. 707, 2004), which,
unlike z, has no jumps; ``-trans`` is the same curve with x and y exchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from geopurify_core.errors import DatasetError, InvalidConfigError

ORDERS = ("z", "z-trans", "hilbert", "hilbert-trans")
MAX_DEPTH = 16  # bits of a coordinate; the reference refuses more. At 2 cm a cube of 1.3 km.


@dataclass(frozen=True)
class Serialization:
    """N points along O curves.

    Attributes:
        code: (O, N) int64 place of each point on each curve.
        order: (O, N) int64 rows of the points from the curve's beginning to its end.
        inverse: (O, N) int64 rank of each point; ``inverse[k][order[k]] == arange(N)``.
        depth: Bits of a coordinate that the codes are made of.
    """

    code: Tensor
    order: Tensor
    inverse: Tensor
    depth: int


def serialize(grid: Tensor, orders: Sequence[str] = ORDERS, permutation: Tensor | None = None) -> Serialization:
    """Put points on curves.

    Args:
        grid: (N, 3) integer coordinates from 0 on, N ≥ 1, each once.
        orders: Names of the curves.
        permutation: (O,) permutation of the rows, or None for the given order: row k of the result is the curve
            ``orders[permutation[k]]``.

    Raises:
        DatasetError: Negative coordinates, or coordinates of more than 16 bits.
        InvalidConfigError: An unknown curve.
    """
    depth = depth_of(grid)
    code = torch.stack([encode(grid, depth, name) for name in orders])
    if permutation is not None:
        code = code[permutation.to(code.device)]
    order = torch.argsort(code, dim=1)
    rank = torch.arange(code.shape[1], device=code.device).expand_as(order)
    return Serialization(code, order, torch.empty_like(order).scatter_(1, order, rank), depth)


def depth_of(grid: Tensor) -> int:
    """Bits of the greatest coordinate plus one, as in the reference. Raises DatasetError beyond 16, or below 0."""
    low, high = int(grid.min()), int(grid.max())
    depth = (high + 1).bit_length()
    if low < 0 or depth > MAX_DEPTH:
        remedy = f"Cells must lie in [0, {2**MAX_DEPTH - 2}] on each axis; cut the scan into parts, or remove outliers."
        raise DatasetError("grid coordinates", (low, high), remedy)
    return depth


def encode(grid: Tensor, depth: int, order: str = "z") -> Tensor:
    """(N,) int64 places of (N, 3) coordinates below ``2**depth``. Raises InvalidConfigError for an unknown curve."""
    if order not in ORDERS:
        raise InvalidConfigError("order", order, f"Choose from {', '.join(ORDERS)}.")
    x, y, z = grid.to(torch.int64).unbind(1)
    if order.endswith("-trans"):
        x, y = y, x
    return _interleave(x, y, z) if order.startswith("z") else _hilbert(x, y, z, depth)


def _hilbert(x: Tensor, y: Tensor, z: Tensor, depth: int) -> Tensor:
    """From the coarsest bit on, what lies below it is mirrored or has axes exchanged; then the Gray code is undone."""
    axes = [axis.to(torch.int32, copy=True) for axis in (x, y, z)]
    first = axes[0]
    for bit in range(depth - 1, 0, -1):
        below = (1 << bit) - 1
        for axis in axes:
            is_set = -((axis >> bit) & 1)  # all ones where it is, 0 elsewhere
            exchange = (first ^ axis) & ~is_set & below
            axis ^= exchange
            first ^= (is_set & below) | exchange
    code = _interleave(*(axis.to(torch.int64) for axis in axes))
    shift = 1
    while shift < 3 * depth:
        code ^= code >> shift
        shift *= 2
    return code


def _interleave(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Bit i of x at 3i + 2, of y at 3i + 1, of z at 3i."""
    return (_spread(x) << 2) | (_spread(y) << 1) | _spread(z)


def _spread(value: Tensor) -> Tensor:
    """Two zeros between neighbouring bits of numbers below 2^16, by halving the distance they are moved."""
    for shift, mask in ((16, 0xFF0000FF), (8, 0xF00F00F00F), (4, 0xC30C30C30C3), (2, 0x249249249249)):
        value = (value | (value << shift)) & mask
    return value
