"""X-Decoder as one network: an image in; class embeddings and masks of its queries out.

::

    image ─ normalise, pad ─► backbone ─► pixel decoder ─► masked decoder ─► class embeddings (text space), masks
    labels ─ 81 templates ─► language encoder ─► text vectors ─► logits = exp(s) cos(class embedding, text)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from geopurify_core.errors import BackboneError
from geopurify_core.vision.xdecoder import checkpoint, postprocess, trace
from geopurify_core.vision.xdecoder.decoder import MaskedDecoder
from geopurify_core.vision.xdecoder.image import build_backbone, build_pixel_decoder
from geopurify_core.vision.xdecoder.language import LanguageEncoder, uniform
from geopurify_core.vision.xdecoder.section import Section

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Decoded:
    """What the network says of a batch of images.

    Attributes:
        class_embed: (B, Q, C) class embeddings, not normalised; the last row is the class token's.
        masks: (B, Q, h, w) mask logits at stride 4 of the padded image.
        image_size: (H, W) of the images, pixels.
        padded_size: (H', W') they were padded to, right and bottom.
    """

    class_embed: Tensor
    masks: Tensor
    image_size: tuple[int, int]
    padded_size: tuple[int, int]

    def masks_at(self, output_size: Sequence[int] | None = None, crop_padding: bool = True) -> Tensor:
        """(B, Q, *output_size) mask logits on the image's pixels; see ``postprocess.masks_at_size``."""
        return postprocess.masks_at_size(self.masks, self.image_size, self.padded_size, output_size, crop_padding)


class SegmentationHead(nn.Module):
    """Pixel decoder and masked decoder under the official names."""

    def __init__(self, config: Mapping[str, Any], channels: Mapping[str, int]) -> None:
        super().__init__()
        self.pixel_decoder = build_pixel_decoder(config, channels)
        self.predictor = MaskedDecoder(Section(config).section("MODEL"))


class Criterion(nn.Module):
    """The training loss, of which a checkpoint keeps only the classes' weights."""

    def __init__(self, classes: int, no_object: float) -> None:
        super().__init__()
        weight = torch.ones(classes + 1)
        weight[-1] = no_object
        self.register_buffer("empty_weight", weight)


class XDecoder(nn.Module):
    """The network that ``config`` describes, in evaluation mode, with random weights; see the two ``from_`` methods.

    Its state dict has the official keys and shapes, those of captioning and training included.

    Args:
        config: The tree of the official YAML files: ``MODEL`` and, for mean and deviation of the pixels, ``INPUT``.

    Attributes:
        config: As given.
        num_queries: Q, the class token included.
        dim: C, width of class embeddings and text vectors.

    Raises:
        InvalidConfigError: A value is missing, contradicts another, or asks for what no released model has.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        model = Section(config).section("MODEL")
        self.config = config
        self.backbone = build_backbone(config)
        self.sem_seg_head = SegmentationHead(config, self.backbone.channels)
        self.num_queries = self.predictor.config.queries
        self.dim = self.predictor.config.out_dim
        self.divisor = _divisor(model.section("DECODER"), max(self.backbone.strides.values()))
        self.pixel_mean, self.pixel_std = _pixel_statistics(config)
        # For captioning and training only.
        width = model.integer("BACKBONE_DIM", self.backbone.channels["res5"])
        self.backbone_proj = nn.Parameter(uniform(width, self.dim))
        no_object = model.section("DECODER").number("NO_OBJECT_WEIGHT", 0.1)
        self.criterion = Criterion(model.section("ENCODER").integer("NUM_CLASSES", 133), no_object)
        self.eval().requires_grad_(False)

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        state_dict: Mapping[str, Any],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> XDecoder:
        """Build the network and load its weights strictly.

        Args:
            config: The tree of the official YAML files, or of the configurations beside the golden data.
            state_dict: Tensors (or arrays) by official key. Used as they are where type and device fit, not copied.
                What only captioning and training use may be absent: ``backbone_proj``, ``caping_embed``,
                ``pos_embed_caping``, ``self_attn_mask`` and ``criterion.empty_weight``.
            dtype: Of all weights. Default: float64 if every floating-point tensor is, else float32.
            device: Default: where the tensors are.

        Raises:
            InvalidConfigError: The configuration cannot be built.
            BackboneError: A key is missing or unexpected, or a shape differs; the message lists them.
        """
        with torch.device("meta"):  # no memory for weights that are replaced at once
            model = cls(config)
        checkpoint.fill(model, state_dict, dtype, device)
        return model

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        variant: str | Mapping[str, Any],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> XDecoder:
        """Load an official checkpoint (``.pt``) or a converted one (``.safetensors``).

        Args:
            path: The file.
            variant: ``focalt``, ``focall``, ``davitd3``, ``davitd5``, or a configuration (a tree, or the path of a
                JSON or YAML file) for any other network in the official format.
            dtype: As for ``from_config``.
            device: As for ``from_config``; default CPU.

        Raises:
            BackboneError: No such file or variant; truncated, foreign, or made for another variant.
            InvalidConfigError: The configuration cannot be built.
        """
        config = checkpoint.variant_config(variant)
        with torch.device("meta"):
            model = cls(config)
        state_dict = checkpoint.read_checkpoint(path)
        checkpoint.fill(model, state_dict, dtype, device if device is not None else "cpu", source=str(path))
        return model

    @property
    def predictor(self) -> MaskedDecoder:
        """The masked decoder."""
        return self.sem_seg_head.predictor

    @property
    def language(self) -> LanguageEncoder:
        """The text side: ``language.embed_labels(labels)``."""
        return self.predictor.lang_encoder

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.backbone_proj.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.backbone_proj.device

    def prepare(self, images: Tensor | NDArray[Any]) -> Tensor:
        """Normalise, and pad with zeros right and bottom to a multiple of 32.

        Args:
            images: (B, 3, H, W) or (3, H, W), RGB 0..255, uint8 or floating point.

        Returns:
            (B, 3, H', W') in the weights' type, where the weights are.

        Raises:
            BackboneError: Another shape or type.
        """
        # torch takes no view with negative strides, such as the usual change from BGR to RGB leaves behind.
        batch = torch.as_tensor(np.ascontiguousarray(images) if isinstance(images, np.ndarray) else images)
        batch = batch[None] if batch.ndim == 3 else batch
        if batch.ndim != 4 or batch.shape[1] != 3 or 0 in batch.shape:
            raise BackboneError("image", tuple(batch.shape), "Give (3, H, W) or (B, 3, H, W), red, green, blue.")
        if batch.is_complex() or batch.dtype == torch.bool:
            raise BackboneError("image", batch.dtype, "Give uint8 or floating-point values from 0 to 255.")
        batch = batch.to(device=self.device, dtype=self.dtype)
        mean, std = (batch.new_tensor(values)[:, None, None] for values in (self.pixel_mean, self.pixel_std))
        height, width = batch.shape[-2:]
        return F.pad((batch - mean) / std, (0, -width % self.divisor, 0, -height % self.divisor))

    def forward(self, images: Tensor | NDArray[Any]) -> Decoded:
        """Decode a batch of images of one size.

        Args:
            images: As ``prepare`` takes them.
        """
        padded = self.prepare(images)
        mask_features, _, scales = self.sem_seg_head.pixel_decoder(self.backbone(padded))
        (last,) = self.predictor(scales, mask_features)
        return Decoded(last.class_embed, last.masks, _size(images), _size(padded))

    def logits(self, class_embed: Tensor, text: Tensor) -> Tensor:
        """(…, Q, L) class logits exp(s) cos(class embedding, text) for unit text vectors (L, C)."""
        return self.language.logits(class_embed, text)

    @torch.inference_mode()
    def semantic_inference(
        self,
        images: Tensor | NDArray[Any],
        text: Tensor,
        *,
        output_size: Sequence[int] | None = None,
        crop_padding: bool = True,
        include_class_token: bool = False,
    ) -> Tensor:
        """Score of every label at every pixel.

        Args:
            images: As ``prepare`` takes them.
            text: (L + 1, C) unit text vectors; the last is the background's.
            output_size: As for ``postprocess.masks_at_size``; default the image's.
            crop_padding: As there.
            include_class_token: As for ``postprocess.semantic_inference``; the published ``evaluate`` includes it.

        Returns:
            (B, L, *output_size).
        """
        decoded = self(images)
        masks = decoded.masks_at(output_size, crop_padding)
        return postprocess.semantic_inference(self.logits(decoded.class_embed, text), masks, include_class_token)

    @torch.inference_mode()
    def stages(self, image: Tensor | NDArray[Any], labels: Sequence[str]) -> dict[str, Tensor]:
        """Every intermediate result of one image by name; see ``trace.stages``."""
        return trace.stages(self, image, labels)


def _divisor(decoder: Section, coarsest_stride: int) -> int:
    return decoder.integer("SIZE_DIVISIBILITY", max(32, coarsest_stride))


def _pixel_statistics(config: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    values = cast(Mapping[str, Any], config.get("INPUT") or {})
    mean, std = values.get("PIXEL_MEAN", PIXEL_MEAN), values.get("PIXEL_STD", PIXEL_STD)
    for name, numbers in (("PIXEL_MEAN", mean), ("PIXEL_STD", std)):
        if np.shape(numbers) != (3,) or not np.isfinite(np.asarray(numbers, float)).all():
            raise Section(values, "INPUT").error(name, "Give three numbers: red, green, blue.")
    if min(std) <= 0:
        raise Section(values, "INPUT").error("PIXEL_STD", "Give three positive numbers.")
    return tuple(map(float, mean)), tuple(map(float, std))


def _size(images: Tensor | NDArray[Any]) -> tuple[int, int]:
    height, width = images.shape[-2:]
    return int(height), int(width)
