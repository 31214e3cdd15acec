"""Decoding and suppression against plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from geopurify_core.errors import BackboneError
from geopurify_core.vision.boxes import cut_by_window, decode_yolox, iou, merge_boxes, tile_windows


def test_yolox_decoding_equals_a_loop() -> None:
    rng = np.random.default_rng(1)
    height, width, strides = 32, 64, (8, 16)
    count = 4 * 8 + 2 * 4
    raw = rng.random((count, 7), dtype=np.float32)
    boxes, scores = decode_yolox(raw, height, width, strides)
    i = 0
    for stride in strides:
        for row in range(height // stride):
            for column in range(width // stride):
                x, y = (raw[i, 0] + column) * stride, (raw[i, 1] + row) * stride
                w, h = np.exp(raw[i, 2]) * stride, np.exp(raw[i, 3]) * stride
                np.testing.assert_allclose(boxes[i], [x - w / 2, y - h / 2, x + w / 2, y + h / 2], rtol=1e-5)
                np.testing.assert_allclose(scores[i], raw[i, 4] * raw[i, 5:], rtol=1e-6)
                i += 1
    assert i == count
    with pytest.raises(BackboneError, match="40, 5"):
        decode_yolox(raw[:-1], height, width, strides)


def test_huge_logarithmic_sizes_stay_finite() -> None:
    raw = np.full((16, 6), 1e4, np.float32)
    assert np.isfinite(decode_yolox(raw, 32, 32, (8,))[0]).all()


def test_iou_of_known_boxes() -> None:
    boxes = np.array([[0, 0, 2, 2], [1, 1, 3, 3], [5, 5, 6, 6], [0, 0, 2, 2], [1, 1, 1, 1]], np.float32)
    np.testing.assert_allclose(iou(boxes[0], boxes), [1, 1 / 7, 0, 1, 0], atol=1e-6)


def test_merging_equals_a_loop() -> None:
    rng = np.random.default_rng(2)
    corner = rng.uniform(0, 50, (60, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 30, (60, 2))], axis=1).astype(np.float32)
    scores = rng.random((60, 4)).astype(np.float32)
    got_boxes, got_scores = merge_boxes(boxes, scores, 0.3, 0.4, 100)
    todo = sorted((i for i in range(60) if scores[i].max() >= 0.3), key=lambda i: -scores[i].max())
    expected = []
    while todo:
        best = todo[0]
        same = [i for i in todo if i == best or iou(boxes[best], boxes[i][None])[0] > 0.4]
        expected.append((boxes[best], scores[same].max(axis=0)))
        todo = [i for i in todo if i not in same]
    assert len(got_boxes) == len(expected)
    np.testing.assert_array_equal(got_boxes, [box for box, _ in expected])
    np.testing.assert_array_equal(got_scores, [score for _, score in expected])


def test_merging_nothing_and_limits() -> None:
    boxes, scores = merge_boxes(np.zeros((0, 4), np.float32), np.zeros((0, 3), np.float32), 0.1, 0.5, 10)
    assert boxes.shape == (0, 4) and scores.shape == (0, 3)
    apart = np.array([[i * 10, 0, i * 10 + 5, 5] for i in range(8)], np.float32)
    best = np.linspace(0.2, 0.9, 8, dtype=np.float32)[:, None]
    kept, kept_scores = merge_boxes(apart, best, 0.1, 0.5, 3)
    np.testing.assert_array_equal(kept, apart[:4:-1])
    np.testing.assert_array_equal(kept_scores[:, 0], best[:4:-1, 0])


@pytest.mark.parametrize("tiles", [1, 2, 3, 4])
def test_tiles_cover_the_image_and_overlap(tiles: int) -> None:
    windows = tile_windows(48, 64, tiles)
    assert windows[0] == (0, 0, 48, 64) and len(windows) == 1 + (tiles**2 if tiles > 1 else 0)
    seen = np.zeros((48, 64), int)
    for top, left, height, width in windows[1:] or windows:
        assert top >= 0 and left >= 0 and top + height <= 48 and left + width <= 64
        seen[top : top + height, left : left + width] += 1
    assert seen.min() >= 1


def test_boxes_at_a_tiles_inner_edge_are_dropped() -> None:
    window = (0, 20, 30, 20)  # of a 30 x 40 image: its left side is inside, the others are the image's own
    boxes = np.array([[0, 0.4, 0.5, 0.6], [0.3, 0, 0.5, 1], [0.6, 0.4, 1, 0.6]], np.float32)
    np.testing.assert_array_equal(cut_by_window(boxes, window, 30, 40), [True, False, False])


@pytest.mark.parametrize("tiles", [2, 3, 4])
def test_no_tile_of_a_tiny_image_is_empty(tiles: int) -> None:
    for top, left, height, width in tile_windows(1, 2, tiles):
        assert height == 1 and 1 <= width <= 2 and top == 0 and left + width <= 2
