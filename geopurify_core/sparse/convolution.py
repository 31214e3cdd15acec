"""Sparse convolution as gather, matrix product, scatter.

On the CPU one block of output rows after another is finished by one thread, its sums staying in that core's cache; on
CUDA one offset after another runs over all rows. Both add the pairs of a row in offset order (the centre first), so a
row depends on its own neighbourhood alone: computing only some rows of a map gives the same bits wherever the matrix
product gives a row the same bits in every product, which MKL does here for 16 rows or more (shorter ones are padded).
Narrow layers in single precision skip gather and scatter on the CPU (``direct.py``), and give the same bits anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from geopurify_core import jit
from geopurify_core.sparse.kernel_map import KernelMap
from geopurify_core.sparse.kernels import add_rows, gather_rows
from geopurify_core.sparse.product import multiply
from geopurify_core.sparse.workers import share_blocks

if jit.HAVE_NUMBA:
    from geopurify_core.sparse import direct

_BLOCK_ROWS = 1024  # measured: 90 % of the plain product at 512 channels, 80 % at 64; flat between 512 and 4096
_CUDA_PAIRS = 1 << 16
_PAD = 16


def convolve(features: Tensor, kernel: Tensor, kernel_map: KernelMap, block_rows: int | None = None) -> Tensor:
    """out[o] = sum over pairs (i, o) of offset k of features[i] @ kernel[k]; differentiable once.

    Args:
        features: (num_in, in) rows.
        kernel: (volume, in, out) weights of the same dtype.
        kernel_map: The pairs.
        block_rows: Rows worked on at a time, which bounds the memory beside input and output; default: measured best.

    Returns:
        (num_out, out) rows.
    """
    out: Tensor = _Convolution.apply(features, kernel, kernel_map, block_rows)  # type: ignore[no-untyped-call]
    return out


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, kernel: Tensor, kernel_map: KernelMap, block_rows: int | None) -> Tensor:
        ctx.save_for_backward(features, kernel)
        ctx.kernel_map, ctx.block_rows = kernel_map, block_rows
        return row_sums(features, kernel, kernel_map, block_rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        features, kernel = ctx.saved_tensors
        of_features = of_kernel = None
        if ctx.needs_input_grad[0]:
            back = kernel.transpose(1, 2)
            of_features = row_sums(gradient, back, ctx.kernel_map.transposed(), ctx.block_rows)
        if ctx.needs_input_grad[1]:
            of_kernel = kernel_gradient(features, gradient, ctx.kernel_map, ctx.block_rows)
        return of_features, of_kernel, None, None


def row_sums(features: Tensor, kernel: Tensor, kernel_map: KernelMap, block_rows: int | None = None) -> Tensor:
    """The sum of :func:`convolve` without autograd."""
    features, kernel = features.detach().contiguous(), kernel.detach()
    if features.device.type != "cpu":
        return _offset_by_offset(features, kernel, kernel_map, block_rows or _CUDA_PAIRS)
    out = features.new_empty(kernel_map.num_out, kernel.shape[2])
    rows = block_rows or _fitting_block(kernel_map.num_out, max(kernel.shape[1:]))
    bounds = kernel_map.bounds(rows)
    narrow = _compiles(out) and out.dtype == torch.float32 and direct.suits(out.shape[1])
    fill = _fill_directly if narrow else _fill
    kernel = kernel.contiguous() if narrow else kernel
    share_blocks(lambda blocks: fill(out, features, kernel, kernel_map, rows, bounds, blocks), len(bounds) - 1)
    return out


def _fitting_block(num_rows: int, width: int) -> int:
    """Rows of a block: the measured best, fewer where the threads would not find a few blocks each."""
    share = num_rows // (4 * torch.get_num_threads())
    return min(_BLOCK_ROWS if width > 128 else 2 * _BLOCK_ROWS, max(128, -(-share // 64) * 64))


def _fill(
    out: Tensor,
    features: Tensor,
    kernel: Tensor,
    kernel_map: KernelMap,
    block_rows: int,
    bounds: list[list[int]],
    blocks: Iterator[int],
) -> None:
    """Output rows of each block drawn: the product with the centre, then each offset's products added."""
    rows = RowMover(features, block_rows)
    products = features.new_empty(block_rows + _PAD, kernel.shape[2])
    add = RowAdder(out)
    for block in blocks:
        low = block * block_rows
        part = out[low : low + block_rows]
        _start_block(part, features[low : low + block_rows], kernel, kernel_map.centre)
        for k, (start, stop) in enumerate(zip(bounds[block], bounds[block + 1], strict=True)):
            if stop > start:
                gathered = rows.gather(kernel_map, k, start, stop)
                add(kernel_map, k, start, stop, multiply(gathered, kernel[k], products[: len(gathered)]))


def _fill_directly(
    out: Tensor,
    features: Tensor,
    kernel: Tensor,
    kernel_map: KernelMap,
    block_rows: int,
    bounds: list[list[int]],
    blocks: Iterator[int],
) -> None:
    """The same without buffers, for layers that are narrow enough."""
    source, weights, target = jit.read_only(features.numpy()), jit.read_only(kernel.numpy()), out.numpy()
    vectors, arrays = direct.vectors_for(target.shape[1]), kernel_map.arrays
    everyone = jit.read_only(np.arange(kernel_map.num_out, dtype=np.int32))
    for block in blocks:
        low = block * block_rows
        high = min(low + block_rows, kernel_map.num_out)
        target[low:high] = 0
        if kernel_map.centre is not None:
            direct.add_products(vectors, source, weights[kernel_map.centre], everyone, everyone, low, high, target)
        for k, (start, stop) in enumerate(zip(bounds[block], bounds[block + 1], strict=True)):
            if stop > start:
                direct.add_products(vectors, source, weights[k], *arrays[k], start, stop, target)


def _start_block(part: Tensor, features: Tensor, kernel: Tensor, centre: int | None) -> None:
    if centre is None:
        part.zero_()
    elif len(part) >= _PAD:
        product = multiply(features, kernel[centre], part)
        if product is not part:
            part.copy_(product)
    else:
        padded = features.new_zeros(_PAD, features.shape[1])
        padded[: len(part)] = features
        part.copy_(multiply(padded, kernel[centre], features.new_empty(_PAD, part.shape[1]))[: len(part)])


class RowMover:
    """Gathers input rows of pairs into a buffer of its own; compiled where numba is there, else by torch."""

    def __init__(self, source: Tensor, most_rows: int) -> None:
        self.source = source
        self.buffer = source.new_zeros(most_rows + _PAD, source.shape[1])
        self.arrays = (jit.read_only(source.numpy()), self.buffer.numpy()) if _compiles(source) else None

    def gather(self, kernel_map: KernelMap, k: int, start: int, stop: int, outputs: bool = False) -> Tensor:
        """Rows of the pairs [start, stop) of offset k, followed by arbitrary ones up to a multiple of 16 rows."""
        if self.arrays is None:
            rows = kernel_map.pairs[k][outputs][start:stop]
            torch.index_select(self.source, 0, rows, out=self.buffer[: stop - start])
        else:
            source, buffer = self.arrays
            gather_rows(source, kernel_map.arrays[k][outputs], start, stop, buffer)
        return self.buffer[: -(-(stop - start) // _PAD) * _PAD]


class RowAdder:
    """Adds products to the output rows of pairs."""

    def __init__(self, target: Tensor) -> None:
        self.target = target
        self.array = target.numpy() if _compiles(target) else None

    def __call__(self, kernel_map: KernelMap, k: int, start: int, stop: int, products: Tensor) -> None:
        """target[output row of pair p] += products[p - start]."""
        if self.array is None:
            self.target.index_add_(0, kernel_map.pairs[k][1][start:stop], products[: stop - start])
        else:
            add_rows(self.array, kernel_map.arrays[k][1], start, stop, products.numpy())


def _compiles(tensor: Tensor) -> bool:
    return jit.HAVE_NUMBA and tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.float64)


def _offset_by_offset(features: Tensor, kernel: Tensor, kernel_map: KernelMap, most_pairs: int) -> Tensor:
    """Few large launches, for CUDA. Half precision is summed in single."""
    wide = torch.promote_types(features.dtype, torch.float32)
    if kernel_map.centre is None:
        out = features.new_zeros(kernel_map.num_out, kernel.shape[2], dtype=wide)
    else:
        out = (features @ kernel[kernel_map.centre]).to(wide)
    for k, (in_rows, out_rows) in enumerate(kernel_map.pairs):
        for start in range(0, len(in_rows), most_pairs):
            pairs = slice(start, start + most_pairs)
            products = features.index_select(0, in_rows[pairs]) @ kernel[k]
            out.index_add_(0, out_rows[pairs], products.to(wide))
    return out.to(features.dtype)


def kernel_gradient(features: Tensor, gradient: Tensor, kernel_map: KernelMap, block_rows: int | None = None) -> Tensor:
    """(volume, in, out) gradient of the kernel: sum over pairs of features[i]ᵀ gradient[o]."""
    features, gradient = features.detach().contiguous(), gradient.detach().contiguous()
    wide = torch.promote_types(features.dtype, torch.float32)
    result = features.new_zeros(kernel_map.volume, features.shape[1], gradient.shape[1], dtype=wide)
    most_pairs = block_rows or (4 * _BLOCK_ROWS if features.device.type == "cpu" else _CUDA_PAIRS)

    def work(offsets: Iterator[int]) -> None:
        inputs, outputs = RowMover(features, most_pairs), RowMover(gradient, most_pairs)
        scratch = features.new_empty(features.shape[1], gradient.shape[1])
        for k in offsets:
            if k == kernel_map.centre:
                result[k] = multiply(features.T, gradient, scratch)
                continue
            num = len(kernel_map.pairs[k][0])
            for start in range(0, num, most_pairs):
                stop = min(start + most_pairs, num)
                left = inputs.gather(kernel_map, k, start, stop)[: stop - start]
                right = outputs.gather(kernel_map, k, start, stop, outputs=True)[: stop - start]
                result[k] += multiply(left.T, right, scratch)

    if features.device.type == "cpu":
        share_blocks(work, kernel_map.volume)
    else:
        work(iter(range(kernel_map.volume)))
    return result.to(features.dtype)
