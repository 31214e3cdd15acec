"""Any closed-set box detector as an open-vocabulary backbone.

Each box gets the score-weighted mean of its labels' text vectors; depth cuts the object out of the box. Low score
thresholds are wanted: a weak detection has a small weight, and evidence adds up over the views that see the same
voxel.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopurify_core.config import setting
from geopurify_core.errors import BackboneError, InvalidConfigError
from geopurify_core.frame import check_rgb
from geopurify_core.vision.boxes import (
    Window,
    centre_to_corners,
    cut_by_window,
    decode_yolox,
    merge_boxes,
    tile_windows,
)
from geopurify_core.vision.boxmask import box_mask
from geopurify_core.vision.imageinput import Placement
from geopurify_core.vision.labelled import LabelledBackbone, LabelledSpec, read_spec
from geopurify_core.vision.mixture import VectorMixture
from geopurify_core.vision.runtime import dequantise

Array = NDArray[np.float32]
_LONG_SIDE_CELLS = 160


@dataclass(frozen=True)
class DetectorOutput:
    """What the network answers (the ``output:`` block)."""

    kind: str = setting(
        "boxes",
        "yolox: raw (n, 5+L) with grids; yolov8: (4+L, n) centre boxes and scores; boxes: separate decoded tensors.",
        choices=("yolox", "yolov8", "boxes"),
    )
    strides: list[int] = setting([8, 16, 32], "Strides of YOLOX's grids, in output order.")
    boxes: str = setting("", "Kind boxes: name of the (n, 4) tensor; the first output when left out.")
    scores: str = setting("", "Kind boxes: name of the (n,) or (n, L) tensor; the second output when left out.")
    classes: str = setting("", "Kind boxes with (n,) scores: name of the (n,) tensor; the third output when left out.")
    box_format: str = setting("xyxy", "Order within a box.", choices=("xyxy", "yxyx", "cxcywh"))
    normalised: bool = setting(False, "Boxes are shares of the input's size instead of pixels.")
    first_class: int = setting(0, "The class number that means the first label.", ge=0, le=1)
    min_score: float = setting(0.1, "Detections below it are ignored.", ge=0.0, le=1.0)
    max_iou: float = setting(0.6, "Boxes that overlap more are one object.", ge=0.0, le=1.0)
    max_boxes: int = setting(50, "Most boxes kept for an image.", ge=1, le=1000)
    score_power: float = setting(
        1.0, "Confidence is score to this power: above 1 trusts sure detections more.", ge=0.1, le=4.0
    )
    loose_area: float = setting(
        0.2,
        "Boxes above this share of the image or tile fit loosely (a bed's is half wall): confidence falls with size.",
        ge=0.001,
        le=1.0,
    )


@dataclass(frozen=True)
class DetectorSpec(LabelledSpec):
    """A detector's YAML."""

    tiles: int = setting(
        1,
        "Above 1, n x n overlapping parts of the image are searched too: finds smaller things, costs n² + 1 times.",
        ge=1,
        le=4,
    )
    output: DetectorOutput = field(default_factory=DetectorOutput)


@dataclass(frozen=True)
class Detections:
    """Boxes of one image, best first.

    Attributes:
        boxes: (n, 4) x0, y0, x1, y1 as shares of the image's width and height.
        scores: (n, L), excluded and ignored labels 0.
    """

    boxes: Array
    scores: Array


class DetectorBackbone(LabelledBackbone[DetectorSpec]):
    """``load_backbone("detector", config="model.yaml")``; the other options replace keys of that YAML.

    Args:
        config: The model's YAML (``docs/backbones.md``); may be left out when model and labels are given as options.
        model, labels_file, labels, grid, tiles: Replace those keys. Without a grid the longer image side gets
            160 cells.
        min_score: Replaces ``output.min_score``.
        weights_dir: Where relative paths are looked up beside the YAML's own folder (default: $GEOPURIFY_WEIGHTS).
        num_threads: 0 takes the machine's cores, four at most.

    Raises:
        InvalidConfigError: The YAML has an unknown key or a bad value.
        BackboneError: A file or library is missing, or labels and network do not fit.
    """

    name = "detector"

    def __init__(
        self,
        config: str | Path = "",
        *,
        model: str | None = None,
        labels_file: str | None = None,
        labels: list[str] | None = None,
        grid: list[int] | None = None,
        tiles: int | None = None,
        min_score: float | None = None,
        weights_dir: str | Path | None = None,
        num_threads: int = 0,
    ) -> None:
        overrides = {"model": model, "labels_file": labels_file, "labels": labels, "grid": grid, "tiles": tiles}
        spec = read_spec(DetectorSpec, config, overrides, {"output": {"min_score": min_score}})
        super().__init__(spec, config, weights_dir, num_threads)

    def mixture(self, rgb: NDArray[np.uint8], depth_m: NDArray[np.float32] | None = None) -> VectorMixture:
        """How much of each box a cell holds, and the boxes' vectors; outside of all boxes confidence is 0.

        With depth, boxes are cut out along it; without, the middle of each box counts.
        """
        return self.paint(self.detect(rgb), rgb.shape[:2], depth_m)

    def detect(self, rgb: NDArray[np.uint8]) -> Detections:
        """What the network finds, after suppression of doubles."""
        check_rgb(rgb)
        output = self._spec.output
        windows = tile_windows(rgb.shape[0], rgb.shape[1], self._spec.tiles)
        views = [self._detect_in(rgb, window) for window in windows]
        boxes, scores = (np.concatenate(parts) for parts in zip(*views, strict=True))
        boxes, scores = merge_boxes(boxes, scores, output.min_score, output.max_iou, output.max_boxes)
        return Detections(boxes, scores)

    def _detect_in(self, rgb: NDArray[np.uint8], window: Window) -> tuple[Array, Array]:
        """Boxes, as shares of the whole image, and scores of what one window shows."""
        top, left, height, width = window
        tensor, placement = self._input.prepare(rgb[top : top + height, left : left + width])
        boxes, scores = self._decode(self._runtime.run(tensor))
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise BackboneError("model.output", self._spec.name, "The network answered NaN or infinity for this image.")
        if scores.shape[1] != len(self.labels.names):
            raise BackboneError("labels", len(self.labels.names), f"The network scores {scores.shape[1]} classes.")
        promising = scores.max(axis=1) >= self._spec.output.min_score
        boxes = _to_window(boxes[promising], placement)
        scores = np.where(self.labels.ignored | self.labels.excluded, np.float32(0.0), scores[promising])
        image_height, image_width = rgb.shape[:2]
        if (height, width) != (image_height, image_width):
            # What fills a tile is a piece of something that the whole image shows better: a drawer seen as a suitcase.
            scores = scores * self._tightness(boxes)[:, None]
        whole = ~cut_by_window(boxes, window, image_height, image_width)
        origin = np.array([left / image_width, top / image_height] * 2, dtype=np.float32)
        size = np.array([width / image_width, height / image_height] * 2, dtype=np.float32)
        return (origin + boxes * size)[whole], scores[whole]

    def paint(
        self, found: Detections, image_shape: tuple[int, ...], depth_m: NDArray[np.float32] | None = None
    ) -> VectorMixture:
        """Paint detections onto the grid.

        A cell under several boxes gets their mean, weighed by score and mask; small boxes count more than large ones,
        because the mug on the table is also inside the table's box.
        """
        grid = self._grid(image_shape)
        depth_cells = _depth_at_cells(depth_m, grid) if depth_m is not None else None
        scale = np.array([grid[1], grid[0], grid[1], grid[0]], dtype=np.float32)
        share = np.zeros((*grid, len(found.boxes)), dtype=np.float32)
        doubt = np.ones(grid, dtype=np.float32)
        trust = self._trust(found)
        for i, box in enumerate(found.boxes * scale):
            rows, columns, mask = box_mask(box, depth_cells, grid)
            evidence = mask * trust[i]
            share[rows, columns, i] = evidence / max((box[2] - box[0]) * (box[3] - box[1]), 1.0)
            doubt[rows, columns] *= 1.0 - evidence
        share /= np.maximum(share.sum(axis=2, keepdims=True), 1e-12)
        return VectorMixture(share, self._box_vectors(found.scores), 1.0 - doubt)

    def _trust(self, found: Detections) -> Array:
        """(n,) confidence of each box: its score, lowered where the box is too large to fit tightly."""
        best = found.scores.max(axis=1) ** self._spec.output.score_power
        return np.asarray(best * self._tightness(found.boxes), dtype=np.float32)

    def _tightness(self, boxes: Array) -> Array:
        """(n,) 1 for boxes up to ``loose_area`` of the picture they are shares of, falling as they grow."""
        area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        return np.asarray(np.minimum(self._spec.output.loose_area / np.maximum(area, 1e-9), 1.0), dtype=np.float32)

    def _box_vectors(self, scores: Array) -> Array:
        """(n, C) mean label vector of each box, labels weighed by squared score: doubt between two names stays."""
        weights = np.square(scores)
        return np.asarray(weights @ self.labels.vectors / np.maximum(weights.sum(axis=1, keepdims=True), 1e-12))

    def _decode(self, raw: list[NDArray[Any]]) -> tuple[Array, Array]:
        outputs, spec = self._runtime.outputs, self._spec.output
        if spec.kind == "boxes":
            return self._decode_boxes([dequantise(tensor, info) for tensor, info in zip(raw, outputs, strict=True)])
        values = dequantise(raw[0], outputs[0])
        if values.ndim == 3:
            values = values[0]
        if spec.kind == "yolox":
            return decode_yolox(values, self._input.height, self._input.width, spec.strides)
        if values.ndim != 2 or values.shape[0] < 5:
            raise BackboneError("model.output", values.shape, "Kind yolov8 expects (4 + L, n).")
        return centre_to_corners(np.ascontiguousarray(values[:4].T)), np.ascontiguousarray(values[4:].T)

    def _decode_boxes(self, tensors: list[Array]) -> tuple[Array, Array]:
        spec = self._spec.output
        names = [info.name for info in self._runtime.outputs]
        boxes = tensors[names.index(spec.boxes) if spec.boxes else 0].reshape(-1, 4)
        scores = tensors[names.index(spec.scores) if spec.scores else 1]
        if scores.size == len(boxes) and (spec.classes or len(tensors) > 2):
            classes = tensors[names.index(spec.classes) if spec.classes else 2].ravel().astype(np.int64)
            scores = _one_label(scores.ravel(), classes - spec.first_class, len(self.labels.names))
        if scores.shape[-2:-1] != (len(boxes),):
            raise BackboneError(
                "model.output", scores.shape, f"Scores must be ({len(boxes)},) or ({len(boxes)}, labels)."
            )
        scores = scores.reshape(len(boxes), scores.shape[-1])
        if spec.box_format == "yxyx":
            boxes = boxes[:, [1, 0, 3, 2]]
        elif spec.box_format == "cxcywh":
            boxes = centre_to_corners(boxes)
        if spec.normalised:
            width, height = self._input.width, self._input.height
            boxes = boxes * np.array([width, height, width, height], dtype=np.float32)
        return np.asarray(boxes, dtype=np.float32), scores

    def _check_outputs(self, labels: int) -> None:
        spec, outputs = self._spec.output, self._runtime.outputs
        names = [info.name for info in outputs]
        for key in ("boxes", "scores", "classes"):
            name = getattr(spec, key)
            if name and name not in names:
                raise BackboneError(f"output.{key}", name, f"The network's outputs: {', '.join(names)}.")
        if not spec.strides or not all(type(stride) is int and stride > 0 for stride in spec.strides):
            raise InvalidConfigError("output.strides", spec.strides, "Give positive whole numbers.")
        last = outputs[0].shape[-1] if outputs[0].shape else -1
        if spec.kind == "yolox" and last not in (-1, 5 + labels):
            raise BackboneError("labels", labels, f"This YOLOX scores {last - 5} classes.")
        if spec.kind == "boxes" and len(outputs) < 2:
            raise BackboneError(
                "output.kind", spec.kind, f"The network has one output {outputs[0].shape}; is it yolox or yolov8?"
            )

    def _grid(self, image_shape: tuple[int, ...]) -> tuple[int, int]:
        if self._spec.grid:
            return self._spec.grid[0], self._spec.grid[1]
        scale = _LONG_SIDE_CELLS / max(image_shape[:2])
        return max(1, round(image_shape[0] * scale)), max(1, round(image_shape[1] * scale))


def _one_label(scores: Array, classes: NDArray[np.int64], count: int) -> Array:
    """(n, L) scores from one score and class number for each box; slots of an unknown class score 0."""
    if len(classes) != len(scores):
        raise BackboneError("model.output", len(classes), f"There are {len(scores)} scores but {len(classes)} classes.")
    table = np.zeros((len(scores), count), dtype=np.float32)
    known = np.flatnonzero((classes >= 0) & (classes < count))
    table[known, classes[known]] = scores[known]
    return table


def _to_window(boxes: Array, placement: Placement) -> Array:
    origin = np.array([placement.left, placement.top] * 2, dtype=np.float32)
    size = np.array([placement.width, placement.height] * 2, dtype=np.float32)
    return np.asarray(np.clip((boxes - origin) / size, 0.0, 1.0), dtype=np.float32)


def _depth_at_cells(depth_m: NDArray[np.float32], grid: tuple[int, int]) -> Array:
    """Depth at each cell's centre pixel; anything not a positive finite distance becomes 0."""
    height, width = depth_m.shape
    rows = ((np.arange(grid[0]) + 0.5) * height / grid[0]).astype(np.intp)
    columns = ((np.arange(grid[1]) + 0.5) * width / grid[1]).astype(np.intp)
    sampled = depth_m[np.ix_(rows, columns)]
    return np.where(np.isfinite(sampled) & (sampled > 0), sampled, np.float32(0.0))
