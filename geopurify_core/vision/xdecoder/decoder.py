"""The masked decoder: learned queries look at the pixel decoder's maps where their own masks are, layer by layer.

After Zou et al., "Generalized Decoding for Pixel, Image and Language" (X-Decoder, 2023), on Mask2Former's scheme. With
x_0 = query_feat, e = query_embed (added to queries, in self-attention also to keys) and F_l the map of level l % 3::

    h_l   = heads(x_l)                                            class embeddings and masks
    M_l   = sigmoid(resize(masks of h_l, size of F_l)) ≥ 0.5       where a query may look; everywhere if nowhere
    a     = LN(x_l + attend(x_l + e, F_l + position, F_l; M_l))
    b     = LN(a   + attend(a + e, a + e, a; S))                   S: objects and class token do not see each other
    x_l+1 = LN(b   + mlp(b))

The last query is the class token. The heads replace it by Σ_q softmax_q(cos(token, q)) q over the object queries.
State-dict keys below ``sem_seg_head.predictor``. Parts that only captioning uses are kept, so that the keys are whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geopurify_core.vision.xdecoder.language import LanguageEncoder, table, uniform, unit
from geopurify_core.vision.xdecoder.layers import (
    LAYER_NORM_EPS,
    MultiHeadAttention,
    channels_last,
    sine_position_encoding,
)
from geopurify_core.vision.xdecoder.section import Section

LEVELS = 3


@dataclass(frozen=True)
class DecoderConfig:
    """Everything that shapes the masked decoder; ``from_section`` reads it from ``MODEL``.

    Attributes:
        dim: Width of the queries.
        in_dim: Channels of the maps it looks at (``ENCODER.CONVS_DIM``).
        mask_dim: Channels of the mask features.
        out_dim: Width of the class embeddings (``DIM_PROJ``).
        queries: Object queries and the class token.
        heads: Attention heads.
        feed_forward: Hidden width of the MLPs.
        layers: One less than ``DEC_LAYERS``, which counts the heads before the first layer too.
        caption_length: Tokens of a caption, which only the unused captioning parameters know.
        own_projection: Project the maps even where the width fits already.
    """

    dim: int
    in_dim: int
    mask_dim: int
    out_dim: int
    queries: int
    heads: int
    feed_forward: int
    layers: int
    caption_length: int
    own_projection: bool

    @classmethod
    def from_section(cls, model: Section) -> DecoderConfig:
        """From the node ``MODEL``. Raises InvalidConfigError."""
        decoder, encoder = model.section("DECODER"), model.section("ENCODER")
        config = cls(
            dim=decoder.integer("HIDDEN_DIM"),
            in_dim=encoder.integer("CONVS_DIM"),
            mask_dim=encoder.integer("MASK_DIM"),
            out_dim=model.integer("DIM_PROJ"),
            queries=decoder.integer("NUM_OBJECT_QUERIES"),
            heads=decoder.integer("NHEADS"),
            feed_forward=decoder.integer("DIM_FEEDFORWARD"),
            layers=decoder.integer("DEC_LAYERS") - 1,
            caption_length=model.section("TEXT").integer("CONTEXT_LENGTH", 77),
            own_projection=decoder.flag("ENFORCE_INPUT_PROJ", False),
        )
        if decoder.flag("PRE_NORM", False):
            raise decoder.error("PRE_NORM", "Only the post-norm decoder of the released models is built here.")
        if config.dim % 4 or config.dim % config.heads:
            raise decoder.error("HIDDEN_DIM", f"It must be a multiple of 4 and of NHEADS {config.heads}.")
        if config.queries < 2:
            raise decoder.error("NUM_OBJECT_QUERIES", "Count one object query and the class token: 2 or more.")
        if config.layers < 1:
            raise decoder.error("DEC_LAYERS", "Give 2 or more: it counts one more than there are layers.")
        return config


@dataclass(frozen=True)
class Heads:
    """What the heads say of the queries after one layer.

    Attributes:
        class_embed: (B, Q, out_dim), not normalised; the last row is the class token's.
        masks: (B, Q, h, w) mask logits at stride 4.
    """

    class_embed: Tensor
    masks: Tensor


class CrossAttention(nn.Module):
    """Queries look at a map, then the sum is normalised."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.multihead_attn = MultiHeadAttention(config.dim, config.heads)
        self.norm = nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor, embed: Tensor, keys: Tensor, values: Tensor, allowed: Tensor) -> Tensor:
        """(B, Q, dim) queries, (B, N, dim) cells, (B, 1, Q, N) bool → (B, Q, dim)."""
        y: Tensor = self.norm(x + self.multihead_attn(x + embed, keys, values, allowed))
        return y


class SelfAttention(nn.Module):
    """Queries look at each other, then the sum is normalised."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.self_attn = MultiHeadAttention(config.dim, config.heads)
        self.norm = nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor, embed: Tensor, allowed: Tensor) -> Tensor:
        """(B, Q, dim) queries, (1, 1, Q, Q) bool → (B, Q, dim)."""
        placed = x + embed
        y: Tensor = self.norm(x + self.self_attn(placed, placed, x, allowed))
        return y


class FeedForward(nn.Module):
    """An MLP with ReLU, then the sum is normalised."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.linear1 = nn.Linear(config.dim, config.feed_forward)
        self.linear2 = nn.Linear(config.feed_forward, config.dim)
        self.norm = nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, Q, dim), the same shape out."""
        y: Tensor = self.norm(x + self.linear2(F.relu(self.linear1(x))))
        return y


class MaskEmbed(nn.Module):
    """Three linear layers with ReLU between: from a query to its vector in the space of the mask features."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(dim, width) for width in (dim, dim, out))

    def forward(self, x: Tensor) -> Tensor:
        """(…, dim) → (…, out)."""
        *hidden, last = self.layers
        for layer in hidden:
            x = F.relu(layer(x))
        y: Tensor = last(x)
        return y


class MaskedDecoder(nn.Module):
    """Pixel decoder's maps in, class embeddings and masks of all queries out; the equations stand above.

    Args:
        model: The node ``MODEL`` of the configuration.

    Raises:
        InvalidConfigError: Values are missing, contradict each other, or ask for what no released model has.
    """

    self_attn_mask: Tensor

    def __init__(self, model: Section) -> None:
        super().__init__()
        config = DecoderConfig.from_section(model)
        self.config = config
        self.query_feat = table(config.queries, config.dim)
        self.query_embed = table(config.queries, config.dim)
        self.level_embed = table(LEVELS, config.dim)
        projected = config.own_projection or config.in_dim != config.dim
        self.input_proj = nn.ModuleList(
            nn.Conv2d(config.in_dim, config.dim, 1) if projected else nn.Identity() for _ in range(LEVELS)
        )
        self.transformer_cross_attention_layers = nn.ModuleList(CrossAttention(config) for _ in range(config.layers))
        self.transformer_self_attention_layers = nn.ModuleList(SelfAttention(config) for _ in range(config.layers))
        self.transformer_ffn_layers = nn.ModuleList(FeedForward(config) for _ in range(config.layers))
        self.decoder_norm = nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS)
        self.class_embed = nn.Parameter(uniform(config.dim, config.out_dim))
        self.mask_embed = MaskEmbed(config.dim, config.mask_dim)
        self.lang_encoder = LanguageEncoder(model.section("TEXT"), config.out_dim)
        # For captioning only.
        self.caping_embed = nn.Parameter(uniform(config.dim, config.out_dim))
        self.pos_embed_caping = table(config.caption_length, config.dim)
        self.register_buffer("self_attn_mask", blocked_self_attention(config.queries, config.caption_length))

    def forward(self, scales: Sequence[Tensor], mask_features: Tensor, every_layer: bool = False) -> list[Heads]:
        """Decode one batch.

        Args:
            scales: Three maps (B, in_dim, …) at strides 32, 16, 8.
            mask_features: (B, mask_dim, h, w) at stride 4.
            every_layer: Return masks of every layer, and resize masks as the reference does. Otherwise the mask
                features are resized, once for each level: the same values up to rounding, since both steps are
                linear, for a small part of the work.

        Returns:
            Heads before the first and after each layer if ``every_layer``, else the last alone.
        """
        levels = [self._level(i, scale) for i, scale in enumerate(scales)]
        grids = [scale.shape[-2:] for scale in scales]
        small = [] if every_layer else [_resize(mask_features, grid) for grid in grids]
        embed = self.query_embed.weight
        x = self.query_feat.weight.expand(mask_features.shape[0], -1, -1)
        free = ~self.self_attn_mask[:, None, : self.config.queries, : self.config.queries]
        answers: list[Heads] = []
        for i in range(self.config.layers):
            level = i % LEVELS
            queries = self._normalised(x)
            if every_layer:
                answers.append(self._heads(queries, mask_features))
                masks = _resize(self._masks(queries, mask_features), grids[level])
            else:
                masks = self._masks(queries, small[level])
            x = self.transformer_cross_attention_layers[i](x, embed, *levels[level], _may_look(masks))
            x = self.transformer_self_attention_layers[i](x, embed, free)
            x = self.transformer_ffn_layers[i](x)
        return [*answers, self._heads(self._normalised(x), mask_features)]

    def _level(self, index: int, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, N, dim) of one map; only the keys carry the position."""
        height, width = scale.shape[-2:]
        position = sine_position_encoding(height, width, self.config.dim, scale.device, scale.dtype)
        values = channels_last(self.input_proj[index](scale)).flatten(1, 2) + self.level_embed.weight[index]
        return values + position.flatten(0, 1), values

    def _normalised(self, x: Tensor) -> Tensor:
        """(B, Q, dim) after ``decoder_norm``, the class token replaced."""
        y = self.decoder_norm(x)
        directions = unit(y)
        objects = y[:, :-1]
        weight = (directions[:, -1:] @ directions[:, :-1].transpose(1, 2)).softmax(dim=-1)
        return torch.cat((objects, weight @ objects), dim=1)

    def _masks(self, queries: Tensor, mask_features: Tensor) -> Tensor:
        embed: Tensor = self.mask_embed(queries)
        return torch.einsum("bqc,bchw->bqhw", embed, mask_features)

    def _heads(self, queries: Tensor, mask_features: Tensor) -> Heads:
        return Heads(queries @ self.class_embed, self._masks(queries, mask_features))


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bicubic", align_corners=False, antialias=True)


def _may_look(masks: Tensor) -> Tensor:
    """(B, 1, Q, N) bool from mask logits (B, Q, h, w): inside of the mask; everywhere if the mask is empty."""
    inside = masks.sigmoid().flatten(2) >= 0.5
    return (inside | ~inside.any(dim=-1, keepdim=True))[:, None]


def blocked_self_attention(queries: int, caption_length: int) -> Tensor:
    """(1, Q + L, Q + L) bool, true where a row may not look at a column.

    Object queries and the class token (the last query) do not see each other, neither sees the caption, and a caption's
    token sees all queries and the tokens up to itself.
    """
    size = queries + caption_length
    order = torch.arange(size)
    blocked = order > order[:, None]
    blocked[:queries, :queries] = False
    blocked[: queries - 1, queries - 1] = True
    blocked[queries - 1, : queries - 1] = True
    return blocked[None]
