"""Raw detector outputs to boxes: decoding and non-maximum suppression.

A box is (x0, y0, x1, y1) in pixels of the network's input; scores are (n, L), one column for each label.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from geopurify_core.errors import BackboneError

Array = NDArray[np.float32]
Window = tuple[int, int, int, int]  # top, left, height, width, pixels of the image

_TILE_OVERLAP = 0.25


def decode_yolox(raw: Array, height: int, width: int, strides: Sequence[int]) -> tuple[Array, Array]:
    """Boxes and scores of YOLOX's raw (n, 5 + L) output (Ge et al., "YOLOX", 2021): centre offsets in grid cells,
    logarithmic sizes, objectness, class scores; the grids of all strides follow one another row by row.

    Raises:
        BackboneError: The number of rows does not fit the input size and strides.
    """
    grid, stride = _yolox_grid(height, width, tuple(strides))
    if raw.ndim != 2 or raw.shape[0] != len(grid) or raw.shape[1] < 6:
        raise BackboneError(
            "model.output", raw.shape, f"YOLOX on {height}x{width} with strides {strides}: ({len(grid)}, 5+L)."
        )
    centre = (raw[:, :2] + grid) * stride
    size = np.exp(np.minimum(raw[:, 2:4], 20.0)) * stride
    return centre_to_corners(np.concatenate([centre, size], axis=1)), raw[:, 4:5] * raw[:, 5:]


@lru_cache(maxsize=8)
def _yolox_grid(height: int, width: int, strides: tuple[int, ...]) -> tuple[Array, Array]:
    cells, steps = [], []
    for stride in strides:
        rows, columns = np.mgrid[: height // stride, : width // stride]
        cells.append(np.stack([columns.ravel(), rows.ravel()], axis=1))
        steps.append(np.full((rows.size, 1), stride))
    return np.concatenate(cells).astype(np.float32), np.concatenate(steps).astype(np.float32)


def centre_to_corners(boxes: Array) -> Array:
    """(n, 4) centre x, centre y, width, height to corners."""
    half = boxes[:, 2:] / 2
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)


def merge_boxes(boxes: Array, scores: Array, min_score: float, max_iou: float, limit: int) -> tuple[Array, Array]:
    """Greedy non-maximum suppression over all labels together, best first.

    A box that overlaps a better one says something about the same thing under another name, so its label scores
    are kept there (element-wise maximum) instead of being thrown away.

    Returns:
        Boxes (m, 4) and merged scores (m, L), m ≤ ``limit``.
    """
    best = scores.max(axis=1)
    order = np.argsort(-best, kind="stable")
    order = order[best[order] >= min_score][: 20 * limit]
    boxes, scores = boxes[order], scores[order].copy()
    kept: list[int] = []
    alive = np.ones(len(boxes), dtype=bool)
    for i in range(len(boxes)):
        if not alive[i]:
            continue
        same = alive & (iou(boxes[i], boxes) > max_iou)
        same[i] = True
        scores[i] = scores[same].max(axis=0)
        alive &= ~same
        kept.append(i)
        if len(kept) == limit:
            break
    return boxes[kept], scores[kept]


def iou(box: Array, boxes: Array) -> Array:
    """(n,) intersection over union of one box with n boxes."""
    low = np.maximum(box[:2], boxes[:, :2])
    high = np.minimum(box[2:], boxes[:, 2:])
    common = np.clip(high - low, 0, None).prod(axis=1)
    union = (box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) - common
    return np.asarray(common / np.maximum(union, 1e-9), dtype=np.float32)


def tile_windows(height: int, width: int, tiles: int) -> list[Window]:
    """The whole image, and ``tiles`` x ``tiles`` parts of it that overlap by a quarter."""
    windows = [(0, 0, height, width)]
    if tiles == 1:
        return windows
    share = 1.0 / (tiles - (tiles - 1) * _TILE_OVERLAP)
    part_height, part_width = (min(side, max(1, round(side * share))) for side in (height, width))
    for row in range(tiles):
        top = round(row * (height - part_height) / (tiles - 1))
        for column in range(tiles):
            windows.append((top, round(column * (width - part_width) / (tiles - 1)), part_height, part_width))
    return windows


def cut_by_window(boxes: Array, window: Window, height: int, width: int) -> NDArray[np.bool_]:
    """(n,) whether a box, given as shares of the window, touches a side that is not also a side of the image.

    Such a box shows part of a thing that another window sees whole.
    """
    top, left, part_height, part_width = window
    inner = [left > 0, top > 0, left + part_width < width, top + part_height < height]
    margin = 0.015
    touching = np.stack(
        [boxes[:, 0] < margin, boxes[:, 1] < margin, boxes[:, 2] > 1 - margin, boxes[:, 3] > 1 - margin], axis=1
    )
    return np.asarray((touching & np.array(inner)).any(axis=1))
