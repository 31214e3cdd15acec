"""Small layers that several parts of X-Decoder share.

Inside the networks a feature map is (B, H, W, C): the linear layers and layer norms act on the last axis, and its
channels-first view is what torch calls the channels-last memory format, so convolutions take it without a copy.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LAYER_NORM_EPS = 1e-5
# Of the large maps of the feature pyramid: half of the rounding error for a quarter more time.
PYRAMID_BLOCK = 128


def channels_first(x: Tensor) -> Tensor:
    """(B, H, W, C) → (B, C, H, W), a view."""
    return x.permute(0, 3, 1, 2)


def channels_last(x: Tensor) -> Tensor:
    """(B, C, H, W) → (B, H, W, C), a view."""
    return x.permute(0, 2, 3, 1)


class Mlp(nn.Module):
    """Widen, exact GELU, narrow; on the last axis."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(…, dim), the same shape out."""
        y: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return y


class BlockedConv2d(nn.Conv2d):
    """A convolution whose sums are taken in blocks of input channels where that saves digits: float32 on a CPU.

    oneDNN adds the terms of one output in a row, 1728 of them for 3x3 over 192 channels; measured, that rounds up to
    five times worse than a matrix product, and from stage to stage nothing else of these networks comes near it. Blocks
    of 32 channels get back to the matrix product's error; the convolution alone then takes up to 1.5 times as long.
    Elsewhere (GPU, half, double) it is the plain convolution.

    Args:
        inputs: Input channels.
        outputs: Output channels.
        kernel: Kernel size.
        stride: Stride.
        padding: Zeros on all sides.
        bias: Whether there is one.
        block: Input channels per block.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
        block: int = 32,
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding, bias=bias)
        self.block = block

    def forward(self, input: Tensor) -> Tensor:
        """(B, inputs, H, W) → (B, outputs, H', W')."""
        if input.device.type != "cpu" or input.dtype != torch.float32 or self.kernel_size == (1, 1):
            return super().forward(input)
        inputs, weights = torch.split(input, self.block, dim=1), torch.split(self.weight, self.block, dim=1)
        y = F.conv2d(inputs[0], weights[0], self.bias, self.stride, self.padding)
        for x, weight in zip(inputs[1:], weights[1:], strict=True):
            y += F.conv2d(x, weight, None, self.stride, self.padding)
        return y


class ConvNorm(BlockedConv2d):
    """A convolution, a group norm of 32 groups and, where asked for, ReLU. Keys: ``weight``, ``norm.weight``, …"""

    GROUPS = 32

    def __init__(self, inputs: int, outputs: int, kernel: int, norm: bool = True, relu: bool = False) -> None:
        super().__init__(inputs, outputs, kernel, 1, kernel // 2, bias=not norm, block=PYRAMID_BLOCK)
        self.norm = nn.GroupNorm(self.GROUPS, outputs) if norm else nn.Identity()
        self.relu = relu

    def forward(self, input: Tensor) -> Tensor:
        """(B, inputs, H, W) → (B, outputs, H, W)."""
        y: Tensor = self.norm(super().forward(input))
        return F.relu(y) if self.relu else y


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention with ``torch.nn.MultiheadAttention``'s keys, batch first.

    Args:
        dim: Width of queries, keys and values.
        heads: Number of heads; divides ``dim``.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Weighted means of the values.

        Args:
            query: (B, N, dim).
            key: (B, M, dim).
            value: (B, M, dim).
            allowed: Boolean, broadcastable to (B, heads, N, M): true where a query may look. None: everywhere.

        Returns:
            (B, N, dim).
        """
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (self._split(F.linear(x, w, b)) for x, w, b in zip((query, key, value), weights, biases, strict=True))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        y: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return y

    def _split(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (self.heads, -1)).transpose(1, 2)


def sine_position_encoding(
    height: int, width: int, channels: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Where a cell lies, as sines and cosines: half of the channels tell the row, half the column (DETR's).

    Cell i of n stands at 2π (i + 1) / (n + 1e-6); frequency j is 10000^(-4j / channels); sine and cosine alternate.

    Args:
        height: Rows of the grid.
        width: Columns of the grid.
        channels: A multiple of 4.
        device: Where to put it.
        dtype: Of the result; computed in float32 or better.

    Returns:
        (height, width, channels).
    """
    exact = torch.promote_types(dtype, torch.float32)
    half = channels // 2
    frequency = 10000.0 ** (-2.0 * torch.arange(half // 2, device=device, dtype=exact) / half)

    def encode(n: int) -> Tensor:
        angle = torch.arange(1, n + 1, device=device, dtype=exact) * (2 * math.pi / (n + 1e-6))
        phase = angle[:, None] * frequency
        return torch.stack((phase.sin(), phase.cos()), dim=-1).flatten(1)

    rows = encode(height)[:, None].expand(-1, width, -1)
    columns = encode(width)[None].expand(height, -1, -1)
    return torch.cat((rows, columns), dim=-1).to(dtype)
