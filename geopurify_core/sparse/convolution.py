"""Sparse convolution as gather, matrix product, scatter; one block of output rows after another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from geopurify_core.sparse.kernel_map import KernelMap

DEFAULT_BLOCK_ROWS = 4096


def convolve(features: Tensor, kernel: Tensor, kernel_map: KernelMap, block_rows: int = DEFAULT_BLOCK_ROWS) -> Tensor:
    """out[o] = sum over pairs (i, o) of offset k of features[i] @ kernel[k]; differentiable once.

    Args:
        features: (num_in, in) rows.
        kernel: (volume, in, out) weights of the same dtype.
        kernel_map: The pairs.
        block_rows: Output rows worked on at a time; bounds the memory beside input and output.

    Returns:
        (num_out, out) rows.
    """
    out: Tensor = _Convolution.apply(features, kernel, kernel_map, block_rows)  # type: ignore[no-untyped-call]
    return out


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, kernel: Tensor, kernel_map: KernelMap, block_rows: int) -> Tensor:
        ctx.save_for_backward(features, kernel)
        ctx.kernel_map, ctx.block_rows = kernel_map, block_rows
        return gather_multiply_scatter(features, kernel, kernel_map, block_rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:  # type: ignore[override]
        features, kernel = ctx.saved_tensors
        kernel_map, block_rows = ctx.kernel_map, ctx.block_rows
        gradient = gradient.contiguous()
        of_features = of_kernel = None
        if ctx.needs_input_grad[0]:
            back = kernel.transpose(1, 2)
            of_features = gather_multiply_scatter(gradient, back, kernel_map.transposed(), block_rows)
        if ctx.needs_input_grad[1]:
            of_kernel = kernel_gradient(features, gradient, kernel_map, block_rows)
        return of_features, of_kernel, None, None


def gather_multiply_scatter(features: Tensor, kernel: Tensor, kernel_map: KernelMap, block_rows: int) -> Tensor:
    """The forward sum of :func:`convolve` without autograd. The pairs of a block are added in offset order."""
    out = features.new_empty(kernel_map.num_out, kernel.shape[2])
    bounds = kernel_map.bounds(block_rows)
    for block, low in enumerate(range(0, kernel_map.num_out, block_rows)):
        part = out[low : low + block_rows]
        if kernel_map.centre is None:
            part.zero_()
        else:
            torch.mm(features[low : low + block_rows], kernel[kernel_map.centre], out=part)
        for k, (start, stop) in enumerate(zip(bounds[block], bounds[block + 1], strict=True)):
            if stop > start:
                rows = features.index_select(0, kernel_map.in_rows[start:stop])
                part.index_add_(0, kernel_map.out_rows[start:stop] - low, rows @ kernel[k])
    return out


def kernel_gradient(features: Tensor, gradient: Tensor, kernel_map: KernelMap, block_rows: int) -> Tensor:
    """(volume, in, out) gradient of the kernel: sum over pairs of features[i]ᵀ gradient[o]."""
    result = features.new_zeros(kernel_map.volume, features.shape[1], gradient.shape[1])
    for k in range(kernel_map.volume):
        if k == kernel_map.centre:
            torch.mm(features.T, gradient, out=result[k])
            continue
        for start in range(kernel_map.starts[k], kernel_map.starts[k + 1], block_rows):
            pairs = slice(start, min(start + block_rows, kernel_map.starts[k + 1]))
            rows = features.index_select(0, kernel_map.in_rows[pairs])
            result[k].addmm_(rows.T, gradient.index_select(0, kernel_map.out_rows[pairs]))
    return result
