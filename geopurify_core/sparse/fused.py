"""Convolution, batch normalisation, shortcut and ReLU in one go, for inference.

Each block of rows is finished while it is in the cache, in the thread that made it, instead of three more passes over
the whole tensor with all cores waiting for each other after each.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from geopurify_core.errors import SparseError
from geopurify_core.sparse.layers import SparseBatchNorm, SubmanifoldConv3d


def conv_norm_relu(conv: Any, norm: Any, x: Any, shortcut: Any = None) -> Any:
    """relu(norm(conv(x)) + shortcut), by any engine's layers; in one go where nothing is to be learned.

    Args:
        conv: Convolution of stride 1.
        norm: Its batch normalisation. Fused where it uses running statistics and gradients are off.
        x: (V, in) sparse tensor.
        shortcut: (V, out) sparse tensor on the same voxels to add before the ReLU, or None.

    Returns:
        (V, out) sparse tensor. Fused and step by step differ by rounding (1e-6 of the largest value).
    """
    if shortcut is not None and shortcut.features.shape[0] != x.features.shape[0]:
        raise SparseError("shortcut", tuple(shortcut.features.shape), "It must live on the voxels of the input.")
    if not _fusible(conv, norm):
        out = norm(conv(x))  # its features are its own: the rest may be done in place
        features = out.features if shortcut is None else out.features.add_(shortcut.features)
        return out.replace(features.relu_())
    scale, shift = _scale_and_shift(norm, conv.bias)

    def finish(rows: Tensor, first: int) -> None:
        rows.mul_(scale).add_(shift)
        if shortcut is not None:
            rows.add_(shortcut.features[first : first + len(rows)])
        rows.relu_()

    return x.replace(conv.sums(x, finish))


def _fusible(conv: Any, norm: Any) -> bool:
    return (
        isinstance(conv, SubmanifoldConv3d)
        and isinstance(norm, SparseBatchNorm)
        and not norm.training
        and not torch.is_grad_enabled()
    )


def _scale_and_shift(norm: SparseBatchNorm, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """y = x · scale + shift for running statistics, the convolution's own bias included."""
    bn = norm.bn
    assert bn.running_mean is not None and bn.running_var is not None
    scale = bn.weight * torch.rsqrt(bn.running_var + bn.eps)
    shift = bn.bias - bn.running_mean * scale
    return scale, shift if bias is None else shift + bias[0] * scale
