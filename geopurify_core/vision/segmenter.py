"""Any closed-set segmentation network as an open-vocabulary backbone.

A pixel's feature is the probability-weighted mean of its labels' text vectors, F = Σ_l p_l e_l with Σ_l p_l = 1 over
the labels that mean something. Its length tells how certain the network was: 1 for a single label, less for a mixture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopurify_core.config import setting
from geopurify_core.errors import BackboneError
from geopurify_core.frame import check_rgb
from geopurify_core.vision.imageinput import Placement
from geopurify_core.vision.labelled import LabelledBackbone, LabelledSpec, read_spec
from geopurify_core.vision.mixture import VectorMixture
from geopurify_core.vision.resample import bin_labels, crop_resize
from geopurify_core.vision.runtime import TensorInfo, dequantise

Array = NDArray[np.float32]


@dataclass(frozen=True)
class SegmenterOutput:
    """What the network answers (the ``output:`` block)."""

    tensor: str = setting("", "Name of the output tensor; the first when left out.")
    kind: str = setting(
        "logits",
        "logits need an activation, probabilities are used as they are, argmax holds label numbers.",
        choices=("logits", "probabilities", "argmax"),
    )
    layout: str = setting("nchw", "Order of the output tensor's axes.", choices=("nchw", "nhwc"))
    activation: str = setting(
        "softmax", "softmax: one label a pixel; sigmoid: each label by itself.", choices=("softmax", "sigmoid")
    )
    temperature: float = setting(1.0, "Logits are divided by it: above 1 softens, below 1 sharpens.", ge=0.01, le=100.0)


@dataclass(frozen=True)
class SegmenterSpec(LabelledSpec):
    """A segmentation network's YAML."""

    output: SegmenterOutput = field(default_factory=SegmenterOutput)


class SegmenterBackbone(LabelledBackbone[SegmenterSpec]):
    """``load_backbone("segmenter", config="model.yaml")``; the other options replace keys of that YAML.

    Args:
        config: The model's YAML (``docs/backbones.md``); may be left out when model and labels are given as options.
        model, labels_file, labels, grid: Replace the keys of the same names.
        weights_dir: Where relative paths are looked up beside the YAML's own folder (default: $GEOPURIFY_WEIGHTS).
        num_threads: 0 takes the machine's cores, four at most.

    Raises:
        InvalidConfigError: The YAML has an unknown key or a bad value.
        BackboneError: A file or library is missing, or labels and network do not fit.
    """

    name = "segmenter"

    def __init__(
        self,
        config: str | Path = "",
        *,
        model: str | None = None,
        labels_file: str | None = None,
        labels: list[str] | None = None,
        grid: list[int] | None = None,
        weights_dir: str | Path | None = None,
        num_threads: int = 0,
    ) -> None:
        overrides = {"model": model, "labels_file": labels_file, "labels": labels, "grid": grid}
        super().__init__(read_spec(SegmenterSpec, config, overrides), config, weights_dir, num_threads)
        self._exponentials = _exponential_table(self._spec.output, self._output)

    def _check_outputs(self, labels: int) -> None:
        self._output_index, self._output = _choose_output(self._spec.output, self._runtime.outputs)
        _check_static_labels(self._spec.output, self._output, labels)

    def probabilities(self, rgb: NDArray[np.uint8]) -> Array:
        """(h, w, L) float32 label probabilities over the image; excluded labels have none."""
        check_rgb(rgb)
        tensor, placement = self._input.prepare(rgb)
        raw = self._runtime.run(tensor)[self._output_index]
        if self._spec.output.kind == "argmax":
            return self._count_labels(raw, placement)
        scores = _channels_last(raw, self._spec.output.layout)
        if scores.shape[-1] != len(self.labels.names):
            raise BackboneError(
                "labels", len(self.labels.names), f"The network answers with {scores.shape[-1]} channels."
            )
        return crop_resize(
            self._activate(scores), *self._window(placement, scores.shape[:2]), self._grid(scores.shape[:2])
        )

    def mixture(self, rgb: NDArray[np.uint8], depth_m: NDArray[np.float32] | None = None) -> VectorMixture:
        """Label weights of every cell, and label vectors; confidence is what is not ignored. Depth is not used.

        How peaked the distribution is shows in the feature's length and is not counted again as confidence: the mean
        over many views is then the mean of their distributions (measured: no worse than trusting peaked views more).
        """
        del depth_m
        p = self.probabilities(rgb)
        known = np.asarray(np.clip(p @ (~self.labels.ignored).astype(np.float32), 0.0, 1.0), dtype=np.float32)
        weights = np.asarray(p / np.maximum(known, np.float32(1e-6))[..., None], dtype=np.float32)
        return VectorMixture(weights, self.labels.vectors, known)

    def _activate(self, scores: NDArray[Any]) -> Array:
        output = self._spec.output
        if self._exponentials is not None:
            p = np.take(self._exponentials, scores)
        else:
            p = dequantise(scores, self._output)
            if not np.isfinite(p).all():
                raise BackboneError(
                    "model.output", self._output.name, "The network answered NaN or infinity for this image."
                )
            if output.kind == "logits":
                p = (
                    _sigmoid(p / output.temperature)
                    if output.activation == "sigmoid"
                    else _exponential(p / output.temperature)
                )
        p[..., self.labels.excluded] = 0.0
        total = p.sum(axis=-1, keepdims=True)
        if output.activation == "sigmoid":
            # Independent labels may sum to less than one: the rest is 'nothing known', not something to scale up.
            total = np.maximum(total, 1.0)
        return np.asarray(p / np.maximum(total, 1e-12))

    def _count_labels(self, raw: NDArray[Any], placement: Placement) -> Array:
        labels: NDArray[Any] = np.squeeze(raw)
        if labels.ndim != 2:
            raise BackboneError("model.output", raw.shape, "An argmax output holds one label number for each pixel.")
        count = len(self.labels.names)
        if labels.min() < 0 or labels.max() >= count:
            raise BackboneError(
                "labels", count, f"The network answers with label numbers {labels.min()}..{labels.max()}."
            )
        height, width = labels.shape
        window = self._window(placement, (height, width))
        shape = (max(1, height // 4), max(1, width // 4))
        p = bin_labels(labels, *window, self._grid(shape), count)
        p[..., self.labels.excluded] = 0.0
        return np.asarray(p / np.maximum(p.sum(axis=-1, keepdims=True), 1e-12))

    def _grid(self, native: tuple[int, ...]) -> tuple[int, int]:
        return (self._spec.grid[0], self._spec.grid[1]) if self._spec.grid else (native[0], native[1])

    def _window(self, placement: Placement, shape: tuple[int, ...]) -> tuple[float, float, float, float]:
        """The image's part of the output, in output cells: top, left, height, width."""
        y, x = shape[0] / self._input.height, shape[1] / self._input.width
        return placement.top * y, placement.left * x, placement.height * y, placement.width * x


def _choose_output(spec: SegmenterOutput, outputs: Sequence[TensorInfo]) -> tuple[int, TensorInfo]:
    if not spec.tensor:
        return 0, outputs[0]
    for index, info in enumerate(outputs):
        if info.name == spec.tensor:
            return index, info
    raise BackboneError(
        "output.tensor", spec.tensor, f"The network's outputs: {', '.join(info.name for info in outputs)}."
    )


def _check_static_labels(spec: SegmenterOutput, output: TensorInfo, labels: int) -> None:
    if spec.kind == "argmax":
        return
    if len(output.shape) != 4:
        raise BackboneError(
            "output.kind", spec.kind, f"The output is {output.shape}; scores need 4 axes (or is it argmax?)."
        )
    channels = output.shape[1] if spec.layout == "nchw" else output.shape[3]
    if channels not in (-1, labels):
        raise BackboneError(
            "labels", labels, f"The network has {channels} channels in layout {spec.layout} ({output.shape})."
        )


def _channels_last(raw: NDArray[Any], layout: str) -> NDArray[Any]:
    if raw.ndim != 4:
        raise BackboneError("model.output", raw.shape, "Expected a tensor with 4 axes.")
    return np.ascontiguousarray(raw[0].transpose(1, 2, 0)) if layout == "nchw" else raw[0]


def _exponential_table(spec: SegmenterOutput, output: TensorInfo) -> Array | None:
    """exp(logit / T) for each of the 256 values of a quantised output: a look-up is several times faster than exp."""
    if spec.kind != "logits" or spec.activation != "softmax" or output.dtype != np.uint8 or not output.scale:
        return None
    values = dequantise(np.arange(256, dtype=np.uint8), output) / spec.temperature
    return np.asarray(np.exp(values - values.max()), dtype=np.float32)


def _exponential(logits: Array) -> Array:
    return np.asarray(np.exp(logits - logits.max(axis=-1, keepdims=True)), dtype=np.float32)


def _sigmoid(logits: Array) -> Array:
    from scipy.special import expit

    return np.asarray(expit(logits), dtype=np.float32)
