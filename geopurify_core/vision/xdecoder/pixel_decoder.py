"""The pixel decoder: a transformer over the coarsest features, then a feature pyramid back up to stride 4.

After Cheng et al., "Per-Pixel Classification is Not All You Need for Semantic Segmentation" (MaskFormer, 2021), with
the encoder of Carion et al., "End-to-End Object Detection with Transformers" (DETR, 2020) at stride 32::

    t  = TransformerEncoder(proj(res5) + position)        transformer_encoder_features, stride 32
    y4 = layer_4(t)                                       stride 32
    y3 = layer_3( adapter_3(res4) + up(y4) )              stride 16
    y2 = layer_2( adapter_2(res3) + up(y3) )              stride 8
    y1 = layer_1( adapter_1(res2) + up(y2) )              stride 4
    mask_features = conv3x3(y1)

The masked decoder looks at y4, y3, y2 (``multi_scale``) in turn, and multiplies its queries with ``mask_features``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geopurify_core.errors import BackboneError
from geopurify_core.vision.xdecoder.layers import (
    LAYER_NORM_EPS,
    PYRAMID_BLOCK,
    BlockedConv2d,
    ConvNorm,
    MultiHeadAttention,
    channels_last,
    sine_position_encoding,
)
from geopurify_core.vision.xdecoder.section import Section

NAME = "transformer_encoder_fpn"
# How many of the pyramid's maps, coarsest first, the masked decoder looks at.
MULTI_SCALE = 3


@dataclass(frozen=True)
class PixelDecoderConfig:
    """Everything that shapes a pixel decoder besides the backbone; ``from_section`` reads it from ``MODEL``.

    Attributes:
        in_features: Backbone stages to use, finest first.
        dim: Channels of the pyramid and of the transformer.
        mask_dim: Channels of ``mask_features``.
        layers: Transformer encoder layers.
        heads: Their attention heads.
        feed_forward: Hidden width of their MLPs.
        pre_norm: Norms before attention and MLP, and one after the last layer, instead of after each sum.
        norm: Group norms after the convolutions; without them the convolutions have biases.
    """

    in_features: tuple[str, ...]
    dim: int
    mask_dim: int
    layers: int
    heads: int
    feed_forward: int
    pre_norm: bool = False
    norm: bool = True

    @classmethod
    def from_section(cls, model: Section, channels: Mapping[str, int]) -> PixelDecoderConfig:
        """From the node ``MODEL``, for a backbone with ``channels``. Raises InvalidConfigError."""
        encoder, decoder = model.section("ENCODER"), model.section("DECODER")
        encoder.text("NAME", (NAME,))
        config = cls(
            in_features=encoder.texts("IN_FEATURES"),
            dim=encoder.integer("CONVS_DIM"),
            mask_dim=encoder.integer("MASK_DIM"),
            layers=encoder.integer("TRANSFORMER_ENC_LAYERS"),
            heads=decoder.integer("NHEADS"),
            feed_forward=decoder.integer("DIM_FEEDFORWARD"),
            pre_norm=decoder.flag("PRE_NORM", False),
            norm=encoder.text("NORM", ("GN", "")) == "GN",
        )
        config._check(encoder, decoder, channels)
        return config

    def _check(self, encoder: Section, decoder: Section, channels: Mapping[str, int]) -> None:
        if not set(self.in_features) <= set(channels):
            raise encoder.error("IN_FEATURES", f"The backbone returns {', '.join(channels)}.")
        if len(self.in_features) < MULTI_SCALE:
            raise encoder.error("IN_FEATURES", f"The masked decoder needs {MULTI_SCALE} scales or more.")
        if self.dim % 4 or self.dim % self.heads:
            raise encoder.error("CONVS_DIM", f"It must be a multiple of 4 and of DECODER.NHEADS {self.heads}.")
        if self.norm and self.dim % ConvNorm.GROUPS:
            raise encoder.error("CONVS_DIM", f"NORM: GN wants a multiple of {ConvNorm.GROUPS}.")


class EncoderLayer(nn.Module):
    """Self-attention and an MLP with ReLU; positions are added to queries and keys only.

    Post norm: x = LN1(x + attend(x)); x = LN2(x + mlp(x)).   Pre norm: x = x + attend(LN1(x)); x = x + mlp(LN2(x)).
    """

    def __init__(self, config: PixelDecoderConfig) -> None:
        super().__init__()
        self.pre_norm = config.pre_norm
        self.self_attn = MultiHeadAttention(config.dim, config.heads)
        self.linear1 = nn.Linear(config.dim, config.feed_forward)
        self.linear2 = nn.Linear(config.feed_forward, config.dim)
        self.norm1 = nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS)
        self.norm2 = nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """Tokens (B, N, dim) and their positions (N, dim) → (B, N, dim)."""
        if self.pre_norm:
            x = x + self._attend(self.norm1(x), position)
            return x + self._mlp(self.norm2(x))
        x = self.norm1(x + self._attend(x, position))
        y: Tensor = self.norm2(x + self._mlp(x))
        return y

    def _attend(self, x: Tensor, position: Tensor) -> Tensor:
        placed = x + position
        y: Tensor = self.self_attn(placed, placed, x)
        return y

    def _mlp(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear2(F.relu(self.linear1(x)))
        return y


class Encoder(nn.Module):
    """A stack of encoder layers; with pre norm, one more norm at the end."""

    def __init__(self, config: PixelDecoderConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS) if config.pre_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, H, W), the same shape out."""
        height, width = x.shape[2:]
        position = sine_position_encoding(height, width, x.shape[1], x.device, x.dtype).flatten(0, 1)
        tokens = channels_last(x).flatten(1, 2)
        for layer in self.layers:
            tokens = layer(tokens, position)
        y: Tensor = self.norm(tokens)
        return torch.unflatten(y.transpose(1, 2), 2, (height, width))


class PixelDecoder(nn.Module):
    """Backbone features in, mask features and several scales out (the equations stand at the head of this file).

    Args:
        config: Its shape.
        channels: Channels of the backbone's features.
    """

    def __init__(self, config: PixelDecoderConfig, channels: Mapping[str, int]) -> None:
        super().__init__()
        self.in_features = config.in_features
        *finer, coarsest = config.in_features
        self.input_proj = nn.Conv2d(channels[coarsest], config.dim, 1)
        # The two levels of names are the official state dict's.
        self.transformer = nn.ModuleDict({"encoder": Encoder(config)})
        for level, name in enumerate(finer, start=1):
            self.add_module(f"adapter_{level}", ConvNorm(channels[name], config.dim, 1, config.norm))
        for level in range(1, len(config.in_features) + 1):
            self.add_module(f"layer_{level}", ConvNorm(config.dim, config.dim, 3, config.norm, relu=True))
        self.mask_features = BlockedConv2d(config.dim, config.mask_dim, 3, padding=1, block=PYRAMID_BLOCK)

    def forward(self, features: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """One pass down and up.

        Args:
            features: The backbone's (B, C, h, w) by name; more names than ``in_features`` are ignored.

        Returns:
            ``mask_features`` (B, mask_dim, H / 4, W / 4), ``transformer_encoder_features`` (B, dim, H / 32, W / 32),
            and ``multi_scale``: three maps (B, dim, …) at strides 32, 16 and 8.

        Raises:
            BackboneError: A stage is missing.
        """
        absent = [name for name in self.in_features if name not in features]
        if absent:
            raise BackboneError("features", sorted(features), f"The pixel decoder also needs {', '.join(absent)}.")
        *finer, coarsest = self.in_features
        encoded: Tensor = self.transformer["encoder"](self.input_proj(features[coarsest]))
        y: Tensor = self.get_submodule(f"layer_{len(self.in_features)}")(encoded)
        scales = [y]
        for level, name in reversed(list(enumerate(finer, start=1))):
            lateral: Tensor = self.get_submodule(f"adapter_{level}")(features[name])
            up = F.interpolate(y, size=lateral.shape[2:], mode="nearest")
            y = self.get_submodule(f"layer_{level}")(lateral + up)
            scales.append(y)
        return self.mask_features(y), encoded, scales[:MULTI_SCALE]


def build_pixel_decoder(config: Mapping[str, Any], channels: Mapping[str, int]) -> PixelDecoder:
    """The pixel decoder that ``MODEL.ENCODER`` and ``MODEL.DECODER`` describe, with random weights.

    Args:
        config: The tree of the official YAML files.
        channels: ``build_backbone(config).channels``.

    Raises:
        InvalidConfigError: Values are missing or contradict each other or the backbone.
    """
    return PixelDecoder(PixelDecoderConfig.from_section(Section(config).section("MODEL"), channels), channels)
