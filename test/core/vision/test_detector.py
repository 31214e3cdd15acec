"""Box detectors as backbones, on networks with known answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from geopurify_core.errors import BackboneError, InvalidConfigError
from geopurify_core.vision import load_backbone
from geopurify_core.vision.base import SemanticBackbone
from geopurify_core.vision.text import shared_encoder

MakeModel = Callable[..., Path]
MakeConfig = Callable[..., Path]
LABELS = ["cup", "table"]
RGB = np.zeros((64, 64, 3), np.uint8)
BOXES = np.array([[[8, 8, 24, 24], [0, 0, 64, 64], [40, 40, 56, 56]]], np.float32)


def decoded(constant_net: MakeModel, scores: list[float], classes: list[int], boxes: np.ndarray = BOXES) -> str:
    tensors = {
        "boxes": boxes,
        "scores": np.array([scores], np.float32),
        "classes": np.array([classes], np.float32),
    }
    return str(constant_net(tensors))


def test_boxes_scores_classes(constant_net: MakeModel) -> None:
    model = decoded(constant_net, [0.8, 0.05, 0.4], [0, 1, 1])
    backbone = load_backbone("detector", model=model, labels=LABELS, grid=[16, 16])
    assert isinstance(backbone, SemanticBackbone)
    got = backbone.encode_image(RGB)
    cup, table = shared_encoder().encode_text(LABELS)
    assert got.features.shape == (384, 16, 16)
    np.testing.assert_allclose(got.features[:, 4, 4], cup, atol=1e-5)
    np.testing.assert_allclose(got.features[:, 12, 12], table, atol=1e-5)
    # The cell's centre lies half a cell off the middle of a box 4 cells wide.
    assert got.confidence[4, 4] == pytest.approx(0.8 * np.exp(-2 * (0.5 / 2) ** 2), abs=1e-5)
    outside = np.ones((16, 16), bool)
    outside[2:6, 2:6] = outside[10:14, 10:14] = False
    assert (got.confidence[outside] == 0).all() and (got.features[:, outside] == 0).all()


def test_small_boxes_win_over_large_ones(constant_net: MakeModel) -> None:
    model = decoded(constant_net, [0.4, 0.8, 0.0], [0, 1, 1])
    got = load_backbone("detector", model=model, labels=LABELS, grid=[16, 16]).encode_image(RGB)
    cup, table = shared_encoder().encode_text(LABELS)
    on_cup = got.features[:, 4, 4]
    assert on_cup @ cup > on_cup @ table
    np.testing.assert_allclose(got.features[:, 8, 8], table, atol=1e-5)


def test_depth_cuts_the_object_out(constant_net: MakeModel) -> None:
    model = decoded(constant_net, [0.8, 0.0, 0.0], [0, 1, 1], boxes=np.array([[[16, 16, 48, 48]] * 3], np.float32))
    depth = np.full((32, 32), 3.0, np.float32)
    depth[12:20, 12:20] = 1.0
    depth[0, 0] = np.nan
    got = load_backbone("detector", model=model, labels=LABELS, grid=[32, 32]).encode_image(RGB, depth)
    np.testing.assert_array_equal(got.confidence > 0, depth == 1.0)


@pytest.mark.parametrize(
    ("output", "boxes"),
    [
        ({"box_format": "xyxy"}, [8, 8, 24, 40]),
        ({"box_format": "yxyx"}, [8, 8, 40, 24]),
        ({"box_format": "cxcywh"}, [16, 24, 16, 32]),
        ({"normalised": True}, [0.125, 0.125, 0.375, 0.625]),
        ({"first_class": 1}, [8, 8, 24, 40]),
        ({"boxes": "boxes", "scores": "scores", "classes": "classes"}, [8, 8, 24, 40]),
    ],
)
def test_box_formats(constant_net: MakeModel, write_yaml: MakeConfig, output: dict, boxes: list[float]) -> None:
    first = output.get("first_class", 0)
    model = decoded(constant_net, [0.8], [first], boxes=np.array([[boxes]], np.float32))
    backbone = load_backbone("detector", config=write_yaml({"model": model, "labels": LABELS, "output": output}))
    found = backbone.detect(RGB)
    np.testing.assert_allclose(found.boxes, [[0.125, 0.125, 0.375, 0.625]], atol=1e-6)
    np.testing.assert_allclose(found.scores, [[0.8, 0.0]], atol=1e-6)


def test_score_matrix_and_yolov8(constant_net: MakeModel, write_yaml: MakeConfig) -> None:
    scores = np.array([[[0.3, 0.6], [0.01, 0.02]]], np.float32)
    model = constant_net({"boxes": BOXES[:, :2], "scores": scores})
    found = load_backbone("detector", model=str(model), labels=LABELS).detect(RGB)
    np.testing.assert_allclose(found.scores, [[0.3, 0.6]])
    rows = np.array([[16, 16, 16, 16, 0.3, 0.6], [40, 40, 8, 8, 0, 0.05]], np.float32).T[None]
    config = write_yaml({"model": str(constant_net({"out": rows})), "labels": LABELS, "output": {"kind": "yolov8"}})
    again = load_backbone("detector", config=config).detect(RGB)
    np.testing.assert_allclose(again.boxes, [[0.125, 0.125, 0.375, 0.375]], atol=1e-6)
    np.testing.assert_allclose(again.scores, found.scores)


def yolox(constant_net: MakeModel) -> str:
    """One box of 16 pixels in the cell at row 1, column 2 of stride 16 (64 x 64 input)."""
    raw = np.zeros((1, 84, 7), np.float32)
    raw[0, 64 + 1 * 4 + 2] = [0.5, 0.25, 0.0, 0.0, 0.5, 0.2, 0.8]
    return str(constant_net({"out": raw}))


def test_yolox(constant_net: MakeModel, write_yaml: MakeConfig) -> None:
    config = write_yaml({"model": yolox(constant_net), "labels": LABELS, "output": {"kind": "yolox"}})
    found = load_backbone("detector", config=config).detect(RGB)
    centre = np.array([2.5 * 16, 1.25 * 16])
    np.testing.assert_allclose(found.boxes * 64, [[*(centre - 8), *(centre + 8)]], atol=1e-4)
    np.testing.assert_allclose(found.scores, [[0.1, 0.4]], atol=1e-6)
    assert len(load_backbone("detector", config=config, min_score=0.5).detect(RGB).boxes) == 0


@pytest.mark.parametrize("fit", ["letterbox", "letterbox_top_left"])
def test_letterboxed_boxes_return_to_the_image(constant_net: MakeModel, write_yaml: MakeConfig, fit: str) -> None:
    top = 16 if fit == "letterbox" else 0
    model = decoded(constant_net, [0.8], [0], boxes=np.array([[[16, top + 8, 32, top + 24]]], np.float32))
    config = write_yaml({"model": model, "labels": LABELS, "input": {"fit": fit}})
    wide = np.zeros((50, 100, 3), np.uint8)
    np.testing.assert_allclose(
        load_backbone("detector", config=config).detect(wide).boxes, [[0.25, 0.25, 0.5, 0.75]], atol=1e-6
    )


def test_tiles_find_the_same_thing_once(constant_net: MakeModel) -> None:
    model = decoded(constant_net, [0.8], [0], boxes=np.array([[[0, 0, 64, 64]]], np.float32))
    found = load_backbone("detector", model=model, labels=LABELS, tiles=2).detect(RGB)
    # In every tile the box touches an inner edge; only the whole image's remains.
    np.testing.assert_allclose(found.boxes, [[0, 0, 1, 1]])


def test_what_fills_a_tile_counts_less_than_what_fills_the_image(
    constant_net: MakeModel, write_yaml: MakeConfig
) -> None:
    model = decoded(constant_net, [0.8], [0], boxes=np.array([[[16, 16, 48, 48]]], np.float32))
    values = {"model": model, "labels": LABELS, "tiles": 2, "output": {"loose_area": 0.125}}
    found = load_backbone("detector", config=write_yaml(values)).detect(RGB)
    # The same box in every view: a quarter of the image once, and a quarter, twice the loose area, of four tiles.
    np.testing.assert_allclose(found.scores[:, 0], [0.8, 0.4, 0.4, 0.4, 0.4], atol=1e-6)
    np.testing.assert_allclose(found.boxes[0], [0.25, 0.25, 0.75, 0.75])


def test_loose_boxes_are_trusted_less(constant_net: MakeModel, write_yaml: MakeConfig) -> None:
    model = decoded(constant_net, [0.8, 0.0, 0.0], [0, 1, 1], boxes=np.array([[[0, 0, 64, 32]] * 3], np.float32))
    confidences = {}
    for loose_area in (1.0, 0.2):
        values = {"model": model, "labels": LABELS, "output": {"loose_area": loose_area}}
        seen = load_backbone("detector", config=write_yaml(values)).encode_image(RGB)
        confidences[loose_area] = seen.confidence
    np.testing.assert_allclose(confidences[0.2], confidences[1.0] * 0.2 / 0.5, atol=1e-6)
    assert confidences[1.0].max() > 0.7


def test_doubt_between_names_stays(constant_net: MakeModel) -> None:
    model = str(constant_net({"boxes": BOXES[:, :1], "scores": np.array([[[0.6, 0.3]]], np.float32)}))
    got = load_backbone("detector", model=model, labels=LABELS, grid=[16, 16]).encode_image(RGB)
    cup, table = shared_encoder().encode_text(LABELS)
    np.testing.assert_allclose(got.features[:, 4, 4], 0.8 * cup + 0.2 * table, atol=1e-5)


def test_excluded_labels_do_not_make_boxes(constant_net: MakeModel, write_yaml: MakeConfig) -> None:
    model = decoded(constant_net, [0.8, 0.7, 0.6], [0, 1, 1])
    config = write_yaml({"model": model, "labels": LABELS, "exclude": ["table"]})
    found = load_backbone("detector", config=config).detect(RGB)
    assert found.scores.shape == (1, 2) and found.scores[0, 0] == pytest.approx(0.8)


def test_no_box_at_all(constant_net: MakeModel) -> None:
    model = decoded(constant_net, [0.0, 0.0, 0.0], [0, 0, 0])
    got = load_backbone("detector", model=model, labels=LABELS).encode_image(np.zeros((480, 640, 3), np.uint8))
    assert got.features.shape == (384, 120, 160) and not got.confidence.any() and not got.features.any()


def test_class_numbers_out_of_range_are_ignored(constant_net: MakeModel) -> None:
    model = decoded(constant_net, [0.9, 0.9, 0.9], [7, -1, 0])
    assert len(load_backbone("detector", model=model, labels=LABELS).detect(RGB).boxes) == 1


@pytest.mark.parametrize(
    ("output", "error", "says"),
    [
        ({"kind": "yolo"}, InvalidConfigError, "yolox"),
        ({"min_score": 2.0}, InvalidConfigError, "min_score"),
        ({"strides": [0]}, InvalidConfigError, "strides"),
        ({"strides": []}, InvalidConfigError, "strides"),
        ({"scores": "confidences"}, BackboneError, "outputs: boxes, scores, classes"),
        ({"kind": "yolox"}, BackboneError, "scores -1 classes"),
    ],
)
def test_bad_configuration(
    constant_net: MakeModel, write_yaml: MakeConfig, output: dict, error: type[Exception], says: str
) -> None:
    model = decoded(constant_net, [0.8, 0.7, 0.6], [0, 1, 1])
    with pytest.raises(error, match=says):
        load_backbone("detector", config=write_yaml({"model": model, "labels": LABELS, "output": output}))


def test_wrong_label_counts(constant_net: MakeModel, write_yaml: MakeConfig) -> None:
    values = {"model": yolox(constant_net), "labels": [*LABELS, "sofa"], "output": {"kind": "yolox"}}
    with pytest.raises(BackboneError, match="scores 2 classes"):
        load_backbone("detector", config=write_yaml(values))
    one = str(constant_net({"out": np.zeros((1, 84, 7), np.float32)}))
    with pytest.raises(BackboneError, match="one output"):
        load_backbone("detector", model=one, labels=LABELS)
    matrix = str(constant_net({"boxes": BOXES, "scores": np.full((1, 3, 5), 0.5, np.float32)}))
    with pytest.raises(BackboneError, match="scores 5 classes"):
        load_backbone("detector", model=matrix, labels=LABELS).detect(RGB)


def test_decoded_tensors_that_do_not_fit_each_other(constant_net: MakeModel) -> None:
    model = str(constant_net({"boxes": BOXES, "scores": np.full((1, 2), 0.5, np.float32)}))
    with pytest.raises(BackboneError, match="Scores must be"):
        load_backbone("detector", model=model, labels=LABELS).detect(RGB)
    model = decoded(constant_net, [0.8, 0.7, 0.6], [0])
    with pytest.raises(BackboneError, match="classes"):
        load_backbone("detector", model=model, labels=LABELS).detect(RGB)


def test_networks_that_answer_no_boxes(constant_net: MakeModel) -> None:
    model = decoded(constant_net, [], [], boxes=np.zeros((1, 0, 4), np.float32))
    assert len(load_backbone("detector", model=model, labels=LABELS).detect(RGB).boxes) == 0


def test_nan_is_reported(constant_net: MakeModel) -> None:
    model = decoded(constant_net, [np.nan, 0.7, 0.6], [0, 1, 1])
    with pytest.raises(BackboneError, match="NaN"):
        load_backbone("detector", model=model, labels=LABELS).encode_image(RGB)
