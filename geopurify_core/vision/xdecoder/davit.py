"""DaViT-d3 and DaViT-d5 (Ding et al., "DaViT: Dual Attention Vision Transformers", ECCV 2022).

Two kinds of attention take turns. *Spatial window attention* relates the cells inside each 7x7 window, channel by
channel; *channel group attention* relates whole channels to one another, each channel being one token as long as the
image has cells, and so sees the whole image at a cost linear in its size. Both kinds sit in a block of the same shape::

    x = x + DWConv(x);   x = x + attention(LN(x));   x = x + DWConv(x);   x = x + MLP(LN(x))

The depth-wise 3x3 convolutions tell a cell where it lies: there is no other position encoding.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geopurify_core.vision.xdecoder.layers import (
    LAYER_NORM_EPS,
    BlockedConv2d,
    Mlp,
    channels_first,
    channels_last,
)
from geopurify_core.vision.xdecoder.section import Section

_STAGE_NAMES = ("res2", "res3", "res4", "res5")


@dataclass(frozen=True)
class DaViTConfig:
    """Everything that shapes a DaViT, one value per stage; ``from_section`` reads it from ``MODEL.BACKBONE``.

    Attributes:
        depths: Pairs of a spatial and a channel block.
        dims: Channels.
        heads: Heads of the window attention.
        groups: Groups of the channel attention.
        patch_sizes: Kernel of the convolution that leads into the stage.
        patch_strides: Its stride.
        patch_paddings: Its padding on all sides.
        patch_prenorms: Whether its layer norm comes before it instead of after.
        window: Cells along each side of a window.
        mlp_ratio: Hidden width of the MLPs over their input's.
        conv_at_attention: The depth-wise convolution before each attention.
        conv_at_mlp: The one before each MLP.
        dynamic_scale: Scale channel attention by the number of cells instead of the channels of a group.
        out_features: Names of the stages to return.
    """

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    heads: tuple[int, ...]
    groups: tuple[int, ...]
    patch_sizes: tuple[int, ...]
    patch_strides: tuple[int, ...]
    patch_paddings: tuple[int, ...]
    patch_prenorms: tuple[bool, ...]
    window: int = 7
    mlp_ratio: float = 4.0
    conv_at_attention: bool = True
    conv_at_mlp: bool = True
    dynamic_scale: bool = True
    out_features: tuple[str, ...] = _STAGE_NAMES

    @classmethod
    def from_section(cls, backbone: Section) -> DaViTConfig:
        """From the node ``MODEL.BACKBONE``. Raises InvalidConfigError where values are missing or contradict."""
        node = backbone.section("DAVIT")
        depths = node.integers("DEPTHS")
        stages = len(depths)
        if stages > len(_STAGE_NAMES):
            raise node.error("DEPTHS", f"At most {len(_STAGE_NAMES)} stages are known: {', '.join(_STAGE_NAMES)}.")
        config = cls(
            depths=depths,
            dims=node.integers("DIM_EMBED", stages),
            heads=node.integers("NUM_HEADS", stages),
            groups=node.integers("NUM_GROUPS", stages),
            patch_sizes=node.integers("PATCH_SIZE", stages),
            patch_strides=node.integers("PATCH_STRIDE", stages),
            patch_paddings=node.integers("PATCH_PADDING", stages, least=0),
            patch_prenorms=node.flags("PATCH_PRENORM", stages),
            window=node.integer("WINDOW_SIZE", 7),
            mlp_ratio=node.number("MLP_RATIO", 4.0),
            conv_at_attention=node.flag("CONV_AT_ATTN", True),
            conv_at_mlp=node.flag("CONV_AT_FFN", True),
            dynamic_scale=node.flag("DYNAMIC_SCALE", True),
            out_features=node.texts("OUT_FEATURES", _STAGE_NAMES[:stages]),
        )
        config._check(node)
        return config

    def _check(self, node: Section) -> None:
        for key, parts in (("NUM_HEADS", self.heads), ("NUM_GROUPS", self.groups)):
            if any(dim % part for dim, part in zip(self.dims, parts, strict=True)):
                raise node.error(key, f"Each must divide its stage's DIM_EMBED {self.dims}.")
        if not set(self.out_features) <= set(_STAGE_NAMES[: len(self.depths)]):
            raise node.error("OUT_FEATURES", f"DEPTHS gives {', '.join(_STAGE_NAMES[: len(self.depths)])}.")


class ConvEmbed(nn.Module):
    """The convolution that leads into a stage, with its layer norm before or after."""

    def __init__(self, config: DaViTConfig, stage: int) -> None:
        super().__init__()
        inputs = config.dims[stage - 1] if stage else 3
        self.prenorm = config.patch_prenorms[stage]
        self.proj = BlockedConv2d(
            inputs,
            config.dims[stage],
            config.patch_sizes[stage],
            config.patch_strides[stage],
            config.patch_paddings[stage],
        )
        self.norm = nn.LayerNorm(inputs if self.prenorm else config.dims[stage], eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, inputs) → (B, H', W', dim)."""
        if self.prenorm:
            x = self.norm(x)
        x = channels_last(self.proj(channels_first(x)))
        return x if self.prenorm else self.norm(x)


class Residual(nn.Module):
    """``x + fn(norm(x))``."""

    def __init__(self, fn: nn.Module, norm_dim: int = 0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(norm_dim, eps=LAYER_NORM_EPS) if norm_dim else nn.Identity()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim), the same shape out."""
        y: Tensor = x + self.fn(self.norm(x))
        return y


class DepthwiseConv(nn.Module):
    """A 3x3 convolution of each channel by itself."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dw = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim), the same shape out."""
        return channels_last(self.dw(channels_first(x)))


class WindowAttention(nn.Module):
    """Spatial window attention: every cell looks at the cells of its own window.

    The map is padded with zeros right and bottom to whole windows. The padding is not masked: its cells take part
    with the bias of ``qkv`` as their key and value, as in the published network.
    """

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim), the same shape out."""
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, -width % self.window, 0, -height % self.window))
        rows, columns = x.shape[1] // self.window, x.shape[2] // self.window
        # (B, rows, window, columns, window, dim) → (B rows columns, window², dim)
        x = torch.unflatten(torch.unflatten(x, 2, (columns, self.window)), 1, (rows, self.window))
        windows = x.transpose(2, 3).flatten(3, 4).flatten(0, 2)
        y: Tensor = self.proj(self._attend(windows))
        y = torch.unflatten(torch.unflatten(y, 1, (self.window, self.window)), 0, (-1, rows, columns))
        return y.transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, :height, :width]

    def _attend(self, windows: Tensor) -> Tensor:
        """(windows, window², dim), the same shape out."""
        q, k, v = self.qkv(windows).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class ChannelAttention(nn.Module):
    """Channel group attention: every channel looks at the channels of its own group, over all cells at once."""

    def __init__(self, dim: int, groups: int, dynamic_scale: bool) -> None:
        super().__init__()
        self.groups, self.dynamic_scale = groups, dynamic_scale
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim), the same shape out."""
        height, width = x.shape[1:3]
        # Each (B, groups, cells, channels of the group).
        q, k, v = self.qkv(x.flatten(1, 2)).unflatten(-1, (3, self.groups, -1)).permute(2, 0, 3, 1, 4)
        tokens = q.shape[2] if self.dynamic_scale else q.shape[3]
        # Scaled before the product: a sum over all cells would leave fp16's range.
        attention = torch.softmax((q * tokens**-0.5).transpose(-1, -2) @ k, dim=-1)
        mixed = (attention @ v.transpose(-1, -2)).permute(0, 3, 1, 2).flatten(2)
        y: Tensor = self.proj(mixed)
        return torch.unflatten(y, 1, (height, width))


def _block(config: DaViTConfig, stage: int, name: str, attention: nn.Module) -> nn.Sequential:
    """DWConv, attention, DWConv, MLP, each added to its input; ``name`` is the attention's key in the state dict."""
    dim = config.dims[stage]
    mlp = nn.Sequential(OrderedDict(net=Mlp(dim, int(dim * config.mlp_ratio))))
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if config.conv_at_attention:
        parts["conv1"] = Residual(DepthwiseConv(dim))
    parts[name] = Residual(attention, dim)
    if config.conv_at_mlp:
        parts["conv2"] = Residual(DepthwiseConv(dim))
    parts["ffn"] = Residual(mlp, dim)
    return nn.Sequential(parts)


def _dual_block(config: DaViTConfig, stage: int) -> nn.Sequential:
    """A spatial block, then a channel block."""
    dim = config.dims[stage]
    spatial = WindowAttention(dim, config.heads[stage], config.window)
    channel = ChannelAttention(dim, config.groups[stage], config.dynamic_scale)
    return nn.Sequential(
        OrderedDict(
            spatial_block=_block(config, stage, "window_attn", spatial),
            channel_block=_block(config, stage, "channel_attn", channel),
        )
    )


class DaViT(nn.Module):
    """A DaViT that returns its stages, without output norms.

    Stochastic depth (``DROP_PATH_RATE``) is training's and does not exist here.

    Attributes:
        channels: Channels of each returned stage.
        strides: Pixels per cell of each returned stage.
    """

    def __init__(self, config: DaViTConfig) -> None:
        super().__init__()
        self.channels: dict[str, int] = {}
        self.strides: dict[str, int] = {}
        stride = 1
        for stage, name in enumerate(_STAGE_NAMES[: len(config.depths)]):
            stride *= config.patch_strides[stage]
            if name in config.out_features:
                self.channels[name], self.strides[name] = config.dims[stage], stride
        self.convs = nn.ModuleList(ConvEmbed(config, stage) for stage in range(len(config.depths)))
        self.blocks = nn.ModuleList(
            nn.Sequential(*(_dual_block(config, stage) for _ in range(depth)))
            for stage, depth in enumerate(config.depths)
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Features at several strides.

        Args:
            images: (B, 3, H, W), normalised; any floating dtype that the weights have.

        Returns:
            ``{"res2": (B, C, H / 4, W / 4), …}``, channels-last in memory.
        """
        features = {}
        x = channels_last(images)
        for name, embed, blocks in zip(_STAGE_NAMES, self.convs, self.blocks, strict=False):
            x = blocks(embed(x))
            if name in self.channels:
                features[name] = channels_first(x)
        return features
