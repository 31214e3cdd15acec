"""What Sonata's encoder is made of (Point Transformer V3, mode 2). Parameters bear the published names."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geopurify_core.sparse.convolution import convolve
from geopurify_core.sparse.coordinates import CoordinateMap
from geopurify_core.sparse.kernel_map import unpack_keys, voxel_keys
from geopurify_core.sparse.product import affine
from training.teachers.sonata.config import SonataConfig
from training.teachers.sonata.serialization import Serialization, serialize

_ROWS = 1 << 15  # of a feed-forward layer at once: its hidden rows are four times as wide
_LOGITS = 1 << 25  # of attention at once: 128 MiB where a kernel keeps them all


@dataclass(frozen=True)
class Points:
    """N points at one stage.

    Attributes:
        features: (N, C).
        coord: (N, 3) float32 positions, metres; means of cells from the second stage on.
        coordinates: Their cells, (N, 3) from 0 on.
        curves: Their places on the curves.
        pooling_inverse: For each point of the stage before, its row here; None at the first stage.
    """

    features: Tensor
    coord: Tensor
    coordinates: CoordinateMap
    curves: Serialization
    pooling_inverse: Tensor | None = None

    @property
    def grid(self) -> Tensor:
        """(N, 3) int64 cells."""
        return self.coordinates.coords.long()

    def with_features(self, features: Tensor) -> Points:
        """The same points with other features."""
        return replace(self, features=features)


class Linear(nn.Linear):
    """``nn.Linear``, by the faster of torch's two libraries where no gradients are recorded."""

    def forward(self, rows: Tensor, gelu: bool = False) -> Tensor:
        """(N, in) to (N, out), with exact GELU on top if asked for."""
        return affine(rows, self.weight, self.bias, gelu)


class Stem(nn.Module):
    """Linear, normalisation, GELU."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.linear = Linear(in_channels, channels)
        self.norm = nn.LayerNorm(channels)

    def forward(self, features: Tensor) -> Tensor:
        """(N, in) to (N, C)."""
        return F.gelu(self.norm(self.linear(features)))


class Embedding(nn.Module):
    """The stem, and the token that pre-training puts in place of masked points."""

    def __init__(self, config: SonataConfig) -> None:
        super().__init__()
        channels = config.enc_channels[0]
        self.stem = Stem(config.in_channels, channels)
        if config.mask_token:
            self.mask_token = nn.Parameter(torch.zeros(1, channels))

    def forward(self, features: Tensor) -> Tensor:
        """(N, in) to (N, C); nothing is masked."""
        embedded: Tensor = self.stem(features)
        return embedded


class SubmanifoldConvolution(nn.Module):
    """3 x 3 x 3 convolution on occupied cells, with spconv's shape of the weight: (out, x, y, z, in).

    In memory the weight lies as ``geopurify_core.sparse`` wants it, offset by offset, x fastest, each (in, out); the
    published shape is a view of that. Nothing is converted at a call, and nothing is stored twice.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3, 3, 3, channels, channels).permute(4, 2, 1, 0, 3))
        self.bias = nn.Parameter(torch.zeros(channels))

    def kernel(self) -> Tensor:
        """(27, in, out), offset index (dx + 1) + 3 (dy + 1) + 9 (dz + 1)."""
        return self.weight.permute(3, 2, 1, 4, 0).reshape(27, self.weight.shape[4], self.weight.shape[0])

    def forward(self, features: Tensor, coordinates: CoordinateMap) -> Tensor:
        """(N, C) to (N, C): out[c] = sum over d of W[d] in[c + d], plus the bias."""
        kernel = self.kernel()
        if features.is_cuda and torch.is_autocast_enabled("cuda"):
            half = torch.get_autocast_dtype("cuda")
            features, kernel = features.to(half), kernel.to(half)
        return convolve(features, kernel, coordinates.kernel_map(3)) + self.bias


class PatchAttention(nn.Module):
    """Attention among K points that follow each other on a curve."""

    def __init__(self, channels: int, heads: int, patch_size: int, config: SonataConfig) -> None:
        super().__init__()
        self.heads, self.patch_size = heads, patch_size
        self.scale = config.qk_scale or (channels // heads) ** -0.5
        self.qkv = Linear(channels, 3 * channels, bias=config.qkv_bias)
        self.proj = Linear(channels, channels)

    def forward(self, features: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        """(N, C) to (N, C), with ``order`` and ``inverse`` (N,) of the curve."""
        qkv = self.qkv(features.index_select(0, order)).view(len(features), 3, self.heads, -1)
        attended = attend_in_patches(qkv, self.patch_size, self.scale)
        out: Tensor = self.proj(attended).index_select(0, inverse)
        return out


def attend_in_patches(qkv: Tensor, patch_size: int, scale: float) -> Tensor:
    """Softmax attention within stretches of ``patch_size`` rows.

    Up to ``patch_size`` rows are one patch. Otherwise the rows after the last whole patch attend to the last
    ``patch_size`` rows: the reference completes their patch with borrowed points, those right before them, whose own
    answers it throws away; keys have no order, so these are the same keys.

    Args:
        qkv: (N, 3, H, D) queries, keys and values along a curve.
        patch_size: K.
        scale: Of the logits.

    Returns:
        (N, H * D).
    """
    count, _, heads, _ = qkv.shape
    size = min(count, patch_size)
    whole = count - count % size
    patches = qkv[:whole].view(-1, size, *qkv.shape[1:]).permute(2, 0, 3, 1, 4)  # 3, patch, head, point, channel
    together = max(1, _LOGITS // (heads * size * size))
    parts = [
        _attend(queries, keys, values, scale)
        for queries, keys, values in zip(*(part.split(together) for part in patches), strict=True)
    ]
    if whole < count:
        queries = qkv[whole:, 0].transpose(0, 1)[None]
        keys, values = (qkv[count - size :, i].transpose(0, 1)[None] for i in (1, 2))
        parts.append(_attend(queries, keys, values, scale))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """(P, H, N, D) each to (P * N, H * D)."""
    attended = F.scaled_dot_product_attention(queries, keys, values, scale=scale)
    return attended.transpose(1, 2).flatten(2).flatten(0, 1)


class FeedForward(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(channels, hidden)
        self.fc2 = Linear(hidden, channels)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C) to (N, C), some rows after the other."""
        parts = [self.fc2(self.fc1(rows, gelu=True)) for rows in torch.split(features, _ROWS)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class LayerScale(nn.Module):
    """A factor for each channel."""

    def __init__(self, channels: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels,), float(initial)))

    def forward(self, features: Tensor) -> Tensor:
        """(N, C) to (N, C)."""
        return features * self.gamma


class Block(nn.Module):
    """Position (convolution), attention, feed-forward, each added to its input.

    The lists of one module are the published names' ``.0``.
    """

    def __init__(self, config: SonataConfig, stage: int, index: int) -> None:
        super().__init__()
        channels = config.enc_channels[stage]
        self.curve = index % len(config.order)
        self.pre_norm = config.pre_norm
        self.cpe = nn.ModuleList([SubmanifoldConvolution(channels), Linear(channels, channels), nn.LayerNorm(channels)])
        self.norm1 = nn.Sequential(nn.LayerNorm(channels))
        self.norm2 = nn.Sequential(nn.LayerNorm(channels))
        self.ls1, self.ls2 = _layer_scale(channels, config), _layer_scale(channels, config)
        self.attn = PatchAttention(channels, config.enc_num_head[stage], config.enc_patch_size[stage], config)
        self.mlp = nn.Sequential(FeedForward(channels, int(channels * config.mlp_ratio)))

    def forward(self, points: Points) -> Points:
        """The same points with new features."""
        order, inverse = points.curves.order[self.curve], points.curves.inverse[self.curve]
        convolution, linear, norm = self.cpe
        x = points.features
        x = x + norm(linear(convolution(x, points.coordinates)))
        if self.pre_norm:
            x = x + self.ls1(self.attn(self.norm1(x), order, inverse))
            return points.with_features(x + self.ls2(self.mlp(self.norm2(x))))
        x = self.norm1(x + self.ls1(self.attn(x, order, inverse)))
        return points.with_features(self.norm2(x + self.ls2(self.mlp(x))))


def _layer_scale(channels: int, config: SonataConfig) -> nn.Module:
    return nn.Sequential(nn.Identity() if config.layer_scale is None else LayerScale(channels, config.layer_scale))


class GridPooling(nn.Module):
    """Points of one larger cell become one: greatest feature, mean position; then new curves."""

    def __init__(self, config: SonataConfig, stage: int) -> None:
        super().__init__()
        self.stride, self.order = config.stride[stage - 1], config.order
        self.proj = Linear(config.enc_channels[stage - 1], config.enc_channels[stage])
        self.norm = nn.Sequential(nn.LayerNorm(config.enc_channels[stage]))

    def forward(self, points: Points, permutation: Tensor | None = None) -> Points:
        """Rows in the order of the cells: x, then y, then z. ``permutation`` (O,) shuffles the curves."""
        keys, inverse = torch.unique(voxel_keys(points.grid // self.stride), return_inverse=True)
        grid = unpack_keys(keys)
        features = F.gelu(self.norm(_greatest(self.proj(points.features), inverse, len(keys))))
        curves = serialize(grid, self.order, permutation)
        return Points(features, _mean(points.coord, inverse, len(keys)), CoordinateMap(grid), curves, inverse)


def _greatest(rows: Tensor, group: Tensor, groups: int) -> Tensor:
    """(G, C) maximum over the rows of each group."""
    out = rows.new_full((groups, rows.shape[1]), -torch.inf)
    return out.scatter_reduce_(0, group[:, None].expand_as(rows), rows, "amax")


def _mean(rows: Tensor, group: Tensor, groups: int) -> Tensor:
    """(G, C) mean over the rows of each group, summed in double precision: the same whatever the order of the rows."""
    total = rows.new_zeros((groups, rows.shape[1]), dtype=torch.float64).index_add_(0, group, rows.double())
    return (total / torch.bincount(group, minlength=groups)[:, None]).to(rows.dtype)
