"""The backbone ``xdecoder``: X-Decoder behind the protocol of all 2D backbones. docs/xdecoder.md explains it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geopurify_core.frame import check_rgb
from geopurify_core.vision.base import FeatureMap
from geopurify_core.vision.resample import bin_labels
from geopurify_core.vision.text import check_texts
from geopurify_core.vision.xdecoder.assignment import (
    QueryOutputs,
    background_objectness,
    mask_objectness,
    open_weights,
    vocabulary_scores,
    winners,
)
from geopurify_core.vision.xdecoder.settings import BACKGROUND, XDecoderSpec, read_settings
from geopurify_core.vision.xdecoder.views import nearest_known

if TYPE_CHECKING:
    from torch import Tensor

_DEFAULT_FOCAL = 0.9  # x the image's width; 577 / 640 for the sensors behind ScanNet
# What decides about the features beside the weights; where and how fast they were computed does not.
_MATTERS = {
    "open": ("assignment", "objectness", "padding"),
    "vocabulary": ("assignment", "prompt", "padding", "stride", "fill", "focal_px"),
}


class XDecoderBackbone:
    """X-Decoder as a frozen backbone.

    Args:
        config: A YAML with any of the keys below.
        weights_dir: Where checkpoints are looked up (default: $GEOPURIFY_WEIGHTS).
        weights, variant, assignment, labels, label_set, prompt, objectness, padding, stride, fill, focal_px, precision,
            device, text_cache, seed: See ``XDecoderSpec``; each replaces the YAML's value.

    Attributes:
        name: ``"xdecoder"``; feature_dim: 512 for the released models; licence: ``NOASSERTION`` for released weights.
        labels: What pixels are assigned by; empty for the assignment ``open``.

    Raises:
        BackboneError: No such weights, they do not fit the variant, no labels, or no such device.
        InvalidConfigError: An unknown key or bad value.
    """

    name = "xdecoder"

    def __init__(
        self,
        config: str | Path = "",
        *,
        weights_dir: str | Path | None = None,
        weights: str | None = None,
        variant: str | None = None,
        assignment: str | None = None,
        labels: list[str] | None = None,
        label_set: str | None = None,
        prompt: str | None = None,
        objectness: str | None = None,
        padding: str | None = None,
        stride: int | None = None,
        fill: bool | None = None,
        focal_px: float | None = None,
        precision: str | None = None,
        device: str | None = None,
        text_cache: str | None = None,
        seed: int | None = None,
    ) -> None:
        from geopurify_core.vision.xdecoder.network import Network

        overrides = {
            "weights": weights, "variant": variant, "assignment": assignment, "labels": labels,
            "label_set": label_set, "prompt": prompt, "objectness": objectness, "padding": padding, "stride": stride,
            "fill": fill, "focal_px": focal_px, "precision": precision, "device": device, "text_cache": text_cache,
            "seed": seed,
        }  # fmt: skip
        self.settings = read_settings(config, overrides)
        self.labels = self.settings.vocabulary()
        self._network = Network.load(self.settings, config, weights_dir)
        self.feature_dim: int = self._network.dim
        self.licence = self._network.licence
        self.text_fingerprint = f"{self._network.text_fingerprint}+{self.settings.prompt}"
        self.fingerprint = _fingerprint(self.settings, self.labels, self._network.digest, self.text_fingerprint)
        self._classes: Tensor | None = None

    def encode_image(self, rgb: NDArray[np.uint8], depth_m: NDArray[np.float32] | None = None) -> FeatureMap:
        """Features of one (H, W, 3) uint8 RGB image; see ``encode_images``."""
        return self.encode_images([rgb], [depth_m])[0]

    def encode_images(
        self, rgbs: Sequence[NDArray[np.uint8]], depths_m: Sequence[NDArray[np.float32] | None] | None = None
    ) -> list[FeatureMap]:
        """Features of several images of one size, in one pass of the network.

        Args:
            rgbs: (H, W, 3) uint8 each.
            depths_m: Registered depth of each, metres, or None; only the assignment ``vocabulary`` uses it, to fill
                pixels without a mask.

        Returns:
            ``open``: (C, H/4, W/4) mixtures of unit class embeddings, shorter where queries disagree; confidence is the
            largest objectness x mask probability. ``vocabulary``: the owners' unit class embeddings, float16 with
            ``stride`` 1, else means over cells; confidence is the share of a cell's pixels that have one.

        Raises:
            InvalidFrameError: Not an RGB image.
            BackboneError: Images of several sizes, or the network fails.
        """
        import torch

        for rgb in rgbs:
            check_rgb(rgb)
        depths_m = depths_m if depths_m is not None else [None] * len(rgbs)
        with torch.inference_mode():
            answers = self._network.queries(rgbs)
            if self.labels:
                return [self._vocabulary(answer, depth) for answer, depth in zip(answers, depths_m, strict=True)]
            return [self._open(answer) for answer in answers]

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, C) unit-norm vectors: each text in the prompt, in each of the 81 templates, averaged and normalised.

        Raises:
            QueryError: Empty or oversized text.
        """
        return self._network.texts.encode([self._in_prompt(text) for text in check_texts(texts)])

    def _in_prompt(self, text: str) -> str:
        return self.settings.prompt.replace("{}", text)

    def _open(self, answer: QueryOutputs) -> FeatureMap:
        if self.settings.objectness == "mask":
            objectness = mask_objectness(answer.masks)
        else:
            objectness = background_objectness(self._logits(answer))
        weights, confidence = open_weights(answer, objectness, self.settings.padding)
        rows = weights @ unit_rows(answer.class_embeds)
        rows = rows.half() if rows.is_cuda else rows  # halves what crosses the bus; the map stores float16 anyway
        return FeatureMap.from_rows(rows.cpu().numpy(), confidence.float().cpu().numpy())

    def _vocabulary(self, answer: QueryOutputs, depth_m: NDArray[np.float32] | None) -> FeatureMap:
        query, own = winners(answer, vocabulary_scores(self._logits(answer)), self.settings.padding)
        if depth_m is not None and self.settings.fill:
            query, own = fill_by_depth(query, own, depth_m, self.settings.focal_px)
        vectors = unit_rows(answer.class_embeds).cpu().numpy()
        return spread(vectors, query, own, self.settings.stride)

    def _logits(self, answer: QueryOutputs) -> Tensor:
        logits: Tensor = self._network.model.logits(answer.class_embeds, self._class_vectors())
        return logits

    def _class_vectors(self) -> Tensor:
        """(L + 1, C) text vectors of the labels, or of the reference words, and of the background; encoded once."""
        import torch

        if self._classes is None:
            if self.labels:
                rows = self._network.texts.encode([*map(self._in_prompt, self.labels), BACKGROUND])
            else:
                # One wording each: 134 words in all 81 templates would take minutes on a CPU.
                rows = self._network.texts.encode([*reference_words(), BACKGROUND], bare=True)
            self._classes = torch.from_numpy(rows).to(self._network.device)
        return self._classes


def unit_rows(vectors: Tensor) -> Tensor:
    """(n, C) float32 rows of length 1."""
    from torch.nn.functional import normalize

    return normalize(vectors.float(), dim=-1)


def reference_words() -> list[str]:
    """The 133 names of COCO's panoptic classes, which X-Decoder was trained to tell from the background."""
    text = resources.files(__package__).joinpath("reference_words.txt").read_text(encoding="utf-8")
    return text.split("\n")[:-1]


def fill_by_depth(
    query: NDArray[np.int64], own: NDArray[np.bool_], depth_m: NDArray[np.float32], focal_px: float = 0.0
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Pixels with depth but without a mask take the query of the nearest pixel in 3D that has both.

    Args:
        query, own: (H, W) of ``winners``.
        depth_m: (h, w) registered depth, metres, 0 = none.
        focal_px: Focal length at the image's width W; 0 takes 0.9 W. Only the order of distances depends on it.
    """
    height, width = query.shape
    rows, columns = (
        np.arange(size) * cells // size for size, cells in zip((height, width), depth_m.shape, strict=True)
    )
    z = depth_m[rows[:, None], columns[None, :]]
    there = np.isfinite(z) & (z > 0)
    if not (there & own).any() or not (there & ~own).any():
        return query, own
    v, u = np.nonzero(there)
    z = z[there]
    focal = focal_px or _DEFAULT_FOCAL * width
    xyz = np.stack([(u - width / 2) * z / focal, (v - height / 2) * z / focal, z], axis=1)
    source = nearest_known(xyz, own[there])
    filled = query.copy()
    filled[there] = query[there][source]
    return filled, own | there


def spread(vectors: NDArray[np.float32], query: NDArray[np.int64], own: NDArray[np.bool_], stride: int) -> FeatureMap:
    """The feature map in which each pixel (H, W) holds its query's vector (Q, C), or means over ``stride`` pixels."""
    nobody = len(vectors)
    owner = np.where(own, query, nobody)
    if stride == 1:
        rows = np.concatenate([vectors, np.zeros_like(vectors[:1])]).astype(np.float16)[owner]
        return FeatureMap.from_rows(rows, own.astype(np.float32))
    height, width = owner.shape
    grid = (max(1, round(height / stride)), max(1, round(width / stride)))
    shares = bin_labels(owner, 0.0, 0.0, float(height), float(width), grid, nobody + 1)
    confidence = 1.0 - shares[..., nobody]
    mean = shares[..., :nobody] / np.maximum(confidence, 1e-6)[..., None]
    return FeatureMap.from_rows(mean @ vectors, confidence.clip(0.0, 1.0))


def _fingerprint(spec: XDecoderSpec, labels: Sequence[str], weights_digest: str, text_fingerprint: str) -> str:
    values: dict[str, Any] = {key: getattr(spec, key) for key in _MATTERS[spec.assignment]}
    values |= {"labels": list(labels), "weights": weights_digest}
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
    return f"xdecoder:{spec.assignment}:{digest}|{text_fingerprint}"
