"""From a configuration to the parts of X-Decoder that look at the image: backbone and pixel decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from geopurify_core.vision.xdecoder.davit import DaViT, DaViTConfig
from geopurify_core.vision.xdecoder.focal import FLAVOURS, FocalConfig, FocalNet
from geopurify_core.vision.xdecoder.pixel_decoder import PixelDecoder, build_pixel_decoder
from geopurify_core.vision.xdecoder.section import Section

__all__ = ["PixelDecoder", "build_backbone", "build_pixel_decoder"]


def build_backbone(config: Mapping[str, Any]) -> FocalNet | DaViT:
    """The image backbone that ``MODEL.BACKBONE`` describes, with random weights.

    Called on normalised images (B, 3, H, W) it returns ``{"res2": (B, C, H / 4, W / 4), …, "res5": …}``; its
    ``channels`` and ``strides`` say what to expect. Its state dict has the official keys below ``backbone.``.

    Args:
        config: The tree of the official YAML files: ``{"MODEL": {"BACKBONE": {"NAME": "focal", "FOCAL": …}}}``.

    Raises:
        InvalidConfigError: The name is unknown, or values are missing or contradict each other.
    """
    backbone = Section(config).section("MODEL").section("BACKBONE")
    if backbone.text("NAME", (*FLAVOURS, "davit")) == "davit":
        return DaViT(DaViTConfig.from_section(backbone))
    return FocalNet(FocalConfig.from_section(backbone))
