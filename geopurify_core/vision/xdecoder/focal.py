"""Focal-T and Focal-L: focal modulation networks (Yang et al., "Focal Modulation Networks", NeurIPS 2022).

Attention compares first and gathers later; focal modulation gathers first. Around every cell it collects context at
several focal levels (ever wider depth-wise convolutions, then the mean of the whole image), lets the cell's own gates
choose how much of each level it wants, and multiplies the outcome, the modulator, onto the cell's query::

    z_0 = W_z x,   z_l = GELU(DWConv_l(z_{l-1})),   z_{L+1} = GELU(mean z_L)       hierarchical contextualization
    m   = h( Σ_l g_l ⊙ z_l / (L + 1) )                                             gated aggregation
    y   = W_y ( q ⊙ m )                                                            modulation

X-Decoder uses two flavours that differ in the order of norms and residuals, in two extra convolutions per block, and
in the padding of the very first convolution: ``focal`` (Focal-L) and ``focal_dw`` (Focal-T).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

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

FLAVOURS = ("focal", "focal_dw")
_STAGE_NAMES = ("res2", "res3", "res4", "res5")
_STEM_STRIDE = 4
# Each focal level looks two cells wider than the one before: kernels 3, 5, 7 for a focal window of 3.
_FOCAL_FACTOR = 2
# What a layer scale starts from before training; checkpoints bring their own.
_LAYER_SCALE = 1e-4


@dataclass(frozen=True)
class FocalConfig:
    """Everything that shapes a focal network; ``from_section`` reads it from ``MODEL.BACKBONE``.

    Attributes:
        depthwise: Flavour ``focal_dw``: two 3x3 depth-wise convolutions per block, norms after the sums.
        embed_dim: Channels of the first stage; they double from stage to stage.
        depths: Blocks of each stage.
        focal_levels: L of each stage, the global mean not counted.
        focal_windows: Kernel size of the first level of each stage.
        mlp_ratio: Hidden width of the MLPs over their input's.
        patch_norm: A layer norm after each patch embedding.
        conv_embed: Overlapping patches (7x7 stem, 3x3 after) instead of disjoint ones.
        patch_size: Stride of the stem.
        scale_modulator: Divide the gathered context by L + 1.
        post_norm: Norm after a block's modulation and MLP instead of before.
        norm_in_modulation: A layer norm between q ⊙ m and W_y.
        layer_scale: A learned factor per channel on both residuals.
        out_features: Names of the stages to return.
        out_indices: Stages that have an output norm.
    """

    depthwise: bool
    embed_dim: int
    depths: tuple[int, ...]
    focal_levels: tuple[int, ...]
    focal_windows: tuple[int, ...]
    mlp_ratio: float = 4.0
    patch_norm: bool = True
    conv_embed: bool = True
    patch_size: int = _STEM_STRIDE
    scale_modulator: bool = True
    post_norm: bool = True
    norm_in_modulation: bool = False
    layer_scale: bool = True
    out_features: tuple[str, ...] = _STAGE_NAMES
    out_indices: tuple[int, ...] = (0, 1, 2, 3)

    @classmethod
    def from_section(cls, backbone: Section) -> FocalConfig:
        """From the node ``MODEL.BACKBONE``. Raises InvalidConfigError where values are missing or contradict."""
        node = backbone.section("FOCAL")
        depths = node.integers("DEPTHS")
        if len(depths) > len(_STAGE_NAMES):
            raise node.error("DEPTHS", f"At most {len(_STAGE_NAMES)} stages are known: {', '.join(_STAGE_NAMES)}.")
        config = cls(
            depthwise=backbone.text("NAME", FLAVOURS) == "focal_dw",
            embed_dim=node.integer("EMBED_DIM"),
            depths=depths,
            focal_levels=node.integers("FOCAL_LEVELS", len(depths)),
            focal_windows=node.integers("FOCAL_WINDOWS", len(depths)),
            mlp_ratio=node.number("MLP_RATIO", 4.0),
            patch_norm=node.flag("PATCH_NORM", True),
            conv_embed=node.flag("USE_CONV_EMBED", True),
            patch_size=node.integer("PATCH_SIZE", _STEM_STRIDE),
            scale_modulator=node.flag("SCALING_MODULATOR", True),
            post_norm=node.flag("USE_POSTLN", True),
            norm_in_modulation=node.flag("USE_POSTLN_IN_MODULATION", False),
            layer_scale=node.flag("USE_LAYERSCALE", True),
            out_features=node.texts("OUT_FEATURES", _STAGE_NAMES[: len(depths)]),
            out_indices=node.integers("OUT_INDICES", least=0, default=range(len(depths))),
        )
        config._check(node)
        return config

    def _check(self, node: Section) -> None:
        if self.conv_embed and self.patch_size != _STEM_STRIDE:
            raise node.error("PATCH_SIZE", f"USE_CONV_EMBED has a stem of stride {_STEM_STRIDE}: set it to that.")
        if any(window % 2 == 0 for window in self.focal_windows):
            raise node.error("FOCAL_WINDOWS", "Give odd kernel sizes, so that each has a centre.")
        if any(index >= len(self.depths) for index in self.out_indices):
            raise node.error("OUT_INDICES", f"There are {len(self.depths)} stages, counted from 0.")
        with_norm = {_STAGE_NAMES[index] for index in self.out_indices}
        if not set(self.out_features) <= with_norm:
            raise node.error("OUT_FEATURES", f"OUT_INDICES gives {', '.join(sorted(with_norm))}.")

    def dim(self, stage: int) -> int:
        """Channels of a stage."""
        return self.embed_dim << stage


class PatchEmbed(nn.Module):
    """Cuts an image or a map into patches, one cell each, padding right and bottom to whole patches."""

    def __init__(self, config: FocalConfig, inputs: int, outputs: int, stem: bool) -> None:
        super().__init__()
        stride = config.patch_size if stem else 2
        kernel, padding = stride, 0
        if config.conv_embed:
            kernel, padding = (7, 3 if config.depthwise else 2) if stem else (3, 1)
        self.stride = stride
        self.proj = BlockedConv2d(inputs, outputs, kernel, stride, padding)
        self.norm = nn.LayerNorm(outputs, eps=LAYER_NORM_EPS) if config.patch_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) → (B, ⌈H / stride⌉, ⌈W / stride⌉, outputs)."""
        right, bottom = -x.shape[3] % self.stride, -x.shape[2] % self.stride
        if right or bottom:
            x = F.pad(x, (0, right, 0, bottom))
        y: Tensor = self.norm(channels_last(self.proj(x)))
        return y


class FocalModulation(nn.Module):
    """The layer that replaces self-attention (the equations stand at the head of this file)."""

    def __init__(self, config: FocalConfig, stage: int) -> None:
        super().__init__()
        dim = config.dim(stage)
        self.levels = config.focal_levels[stage]
        self.divisor = float(self.levels + 1) if config.scale_modulator else 1.0
        # One projection makes the query q, the context z_0, and a gate for each level and for the global mean.
        self.f = nn.Linear(dim, 2 * dim + self.levels + 1)
        self.focal_layers = nn.ModuleList()
        for level in range(self.levels):
            kernel = config.focal_windows[stage] + _FOCAL_FACTOR * level
            widen = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim, bias=False)
            self.focal_layers.append(nn.Sequential(widen, nn.GELU()))
        self.h = nn.Conv2d(dim, dim, 1)
        self.ln = nn.LayerNorm(dim, eps=LAYER_NORM_EPS) if config.norm_in_modulation else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim), the same shape out."""
        dim = x.shape[-1]
        query, context, gates = self.f(x).split((dim, dim, self.levels + 1), dim=-1)
        modulator = self.h(self._gather(channels_first(context), channels_first(gates)))
        y: Tensor = self.proj(self.ln(query * channels_last(modulator)))
        return y

    def _gather(self, context: Tensor, gates: Tensor) -> Tensor:
        """Σ_l g_l ⊙ z_l / (L + 1) from z_0 (B, dim, H, W) and the gates (B, L + 1, H, W)."""
        # One number per cell is divided here instead of one per cell and channel at the end.
        *level_gates, whole_gate = torch.split(gates / self.divisor, 1, dim=1)
        gathered = torch.zeros_like(context)
        for focal_layer, gate in zip(self.focal_layers, level_gates, strict=True):
            context = focal_layer(context)
            gathered.addcmul_(context, gate)
        whole_image = F.gelu(context.mean(dim=(2, 3), keepdim=True))
        return gathered.addcmul_(whole_image, whole_gate)


class FocalBlock(nn.Module):
    """Modulation, then an MLP, each with a residual: γ1, γ2 are the layer scales, LN1, LN2 the norms.

    ``focal``, post norm:     x = x + γ1 LN1(mod(x));   x = x + γ2 LN2(mlp(x))
    ``focal``, pre norm:      x = x + γ1 mod(LN1(x));   x = x + γ2 mlp(LN2(x))
    ``focal_dw``, post norm:  x = x + dw1(x);  x = LN1(x + γ1 mod(x));  x = x + dw2(x);  x = LN2(x + γ2 mlp(x))
    ``focal_dw``, pre norm:   the same two convolutions around the pre-norm sums
    """

    def __init__(self, config: FocalConfig, stage: int) -> None:
        super().__init__()
        dim = config.dim(stage)
        self.post_norm, self.norm_after_sum = config.post_norm, config.post_norm and config.depthwise
        self.dw1, self.dw2 = (_depthwise3x3(dim) if config.depthwise else None for _ in range(2))
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.modulation = FocalModulation(config, stage)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, int(dim * config.mlp_ratio))
        self.gamma_1, self.gamma_2 = (
            nn.Parameter(torch.full((dim,), _LAYER_SCALE)) if config.layer_scale else None for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim), the same shape out."""
        x = self._residual(x, self.dw1, self.modulation, self.norm1, self.gamma_1)
        return self._residual(x, self.dw2, self.mlp, self.norm2, self.gamma_2)

    def _residual(
        self, x: Tensor, local: nn.Module | None, body: nn.Module, norm: nn.Module, gamma: Tensor | None
    ) -> Tensor:
        if local is not None:
            x = x + channels_last(local(channels_first(x)))
        if not self.post_norm:
            return _add_scaled(x, body(norm(x)), gamma)
        if self.norm_after_sum:
            y: Tensor = norm(_add_scaled(x, body(x), gamma))
            return y
        return _add_scaled(x, norm(body(x)), gamma)


def _add_scaled(x: Tensor, y: Tensor, gamma: Tensor | None) -> Tensor:
    return x + y if gamma is None else torch.addcmul(x, y, gamma)


def _depthwise3x3(dim: int) -> nn.Conv2d:
    return nn.Conv2d(dim, dim, 3, padding=1, groups=dim)


class FocalStage(nn.Module):
    """Blocks of one resolution, and the patch embedding that leads to the next."""

    def __init__(self, config: FocalConfig, stage: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(FocalBlock(config, stage) for _ in range(config.depths[stage]))
        last = stage == len(config.depths) - 1
        self.downsample = None if last else PatchEmbed(config, config.dim(stage), config.dim(stage + 1), stem=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim), the same shape out; ``downsample`` is the caller's to apply."""
        for block in self.blocks:
            x = block(x)
        return x


class FocalNet(nn.Module):
    """A focal network that returns its stages.

    Stochastic depth and dropout (``DROP_PATH_RATE``, ``DROP_RATE``) are training's and do not exist here: the same
    image gives the same features in every mode.

    Attributes:
        channels: Channels of each returned stage.
        strides: Pixels per cell of each returned stage.
    """

    def __init__(self, config: FocalConfig) -> None:
        super().__init__()
        stages = range(len(config.depths))
        names = {_STAGE_NAMES[stage]: stage for stage in stages if _STAGE_NAMES[stage] in config.out_features}
        self.channels = {name: config.dim(stage) for name, stage in names.items()}
        self.strides = {name: config.patch_size * 2**stage for name, stage in names.items()}
        self.patch_embed = PatchEmbed(config, 3, config.embed_dim, stem=True)
        self.layers = nn.ModuleList(FocalStage(config, stage) for stage in stages)
        for stage in config.out_indices:
            self.add_module(f"norm{stage}", nn.LayerNorm(config.dim(stage), eps=LAYER_NORM_EPS))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Features at several strides.

        Args:
            images: (B, 3, H, W), normalised; any floating dtype that the weights have.

        Returns:
            ``{"res2": (B, C, ⌈H / 4⌉, ⌈W / 4⌉), …}``, channels-last in memory.
        """
        features = {}
        x = self.patch_embed(images)
        for stage, layer in enumerate(self.layers):
            x = layer(x)
            name = _STAGE_NAMES[stage]
            if name in self.channels:
                features[name] = channels_first(self.get_submodule(f"norm{stage}")(x))
            downsample = cast("nn.Module | None", layer.downsample)
            if downsample is not None:
                x = downsample(channels_first(x))
        return features
