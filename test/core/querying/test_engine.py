"""Whole queries on small rooms whose content is known."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from geopurify_core.config import QueryConfig
from geopurify_core.errors import QueryError
from geopurify_core.mapping.snapshot import MapSnapshot
from geopurify_core.querying.boxes import distance_to_box
from geopurify_core.querying.engine import QueryEngine

DIM = 64
GREY, RED, WHITE, BLUE = (120, 120, 120), (180, 35, 40), (235, 235, 235), (40, 70, 170)
Room = tuple[MapSnapshot, dict[str, np.ndarray]]
MakeRoom = Callable[..., Room]
Make = Callable[..., Any]


def overlap(voxels: np.ndarray, mask: np.ndarray) -> float:
    found = np.zeros(len(mask), dtype=bool)
    found[voxels] = True
    return float((found & mask).sum() / (found | mask).sum())


def test_every_thing_is_found_whole_and_first(make_room: MakeRoom, encoder: Any) -> None:
    snapshot, masks = make_room(
        {
            "chair": ((0, 0, 0), (8, 8, 16), GREY),
            "lamp": ((20, 5, 0), (4, 4, 20), GREY),
            "box": ((-20, 0, 0), (9, 6, 5), GREY),
        }
    )
    engine = QueryEngine(snapshot, encoder)
    for result in engine.query(["chair", "lamp", "box", "floor"]):
        best = result.objects[0]
        assert overlap(best.voxels, masks[result.text]) > 0.95
        inside = snapshot.centers_m[masks[result.text]]
        assert np.percentile(distance_to_box(inside, best.center_m, best.size_m, best.R_map_box), 95) < 0.06
        assert result.scores.shape == (len(snapshot),)
        assert result.scores.dtype == np.float32
        assert [item.score for item in result.objects] == sorted((item.score for item in result.objects), reverse=True)
        assert (np.diff(best.voxels) > 0).all()
        assert best.voxels.dtype == np.int32
    assert engine.snapshot is snapshot


def test_equal_things_apart_are_objects_of_their_own(make_room: MakeRoom, encoder: Any) -> None:
    snapshot, masks = make_room({"chair#1": ((0, 0, 0), (8, 8, 16), GREY), "chair#2": ((20, 0, 0), (8, 8, 16), GREY)})
    objects = QueryEngine(snapshot, encoder).query(["chair"])[0].objects
    found = sorted(max(overlap(item.voxels, masks[name]) for name in masks) for item in objects[:2])
    assert min(found) > 0.95
    assert len({int(item.voxels[0]) for item in objects[:2]}) == 2


@pytest.mark.parametrize(("text", "expected"), [("red chair", "chair#red"), ("blue chair", "chair#blue")])
def test_colour_words_choose_between_equal_things(make_room: MakeRoom, encoder: Any, text: str, expected: str) -> None:
    snapshot, masks = make_room(
        {
            "chair#red": ((0, 0, 0), (8, 8, 16), RED),
            "chair#blue": ((20, 0, 0), (8, 8, 16), BLUE),
            "box#red": ((-20, 0, 0), (8, 8, 16), RED),
            "paper": ((-20, 20, 0), (8, 8, 1), WHITE),
        }
    )
    best = QueryEngine(snapshot, encoder).query([text])[0].objects[0]
    assert overlap(best.voxels, masks[expected]) > 0.9
    blind = QueryEngine(snapshot, encoder, QueryConfig(colour_weight=0.0)).query([text, "chair"])
    np.testing.assert_array_equal(blind[0].scores, blind[1].scores)


def test_touching_things_of_unequal_meaning_come_apart(make_room: MakeRoom, encoder: Any) -> None:
    snapshot, masks = make_room({"table": ((0, 0, 0), (24, 16, 10), GREY), "mug": ((10, 6, 10), (3, 3, 3), WHITE)})
    for text in ("mug", "table"):
        best = QueryEngine(snapshot, encoder).query([text])[0].objects[0]
        assert overlap(best.voxels, masks[text]) > 0.9


def test_where_a_thing_stands_is_not_what_is_asked_for(make_room: MakeRoom, encoder: Any) -> None:
    snapshot, masks = make_room({"table": ((0, 0, 0), (24, 16, 10), RED), "mug": ((10, 6, 10), (3, 3, 3), WHITE)})
    phrase, plain = QueryEngine(snapshot, encoder).query(["the white mug on the red table", "white mug"])
    assert overlap(phrase.objects[0].voxels, masks["mug"]) > 0.9
    np.testing.assert_array_equal(phrase.scores, plain.scores)


def test_a_colour_beats_no_noun_that_the_map_surely_holds(make_room: MakeRoom, encoder: Any) -> None:
    snapshot, masks = make_room({"chair": ((0, 0, 0), (8, 8, 16), GREY), "box": ((-20, 0, 0), (8, 8, 16), RED)})
    best = QueryEngine(snapshot, encoder).query(["red chair"])[0].objects[0]
    assert overlap(best.voxels, masks["chair"]) > 0.9


def test_the_colour_word_alone_asks_for_the_word(make_room: MakeRoom, encoder: Any) -> None:
    snapshot, masks = make_room({"orange": ((0, 0, 0), (3, 3, 3), (230, 140, 40)), "box": ((9, 9, 0), (5, 5, 5), GREY)})
    best = QueryEngine(snapshot, encoder).query(["orange"])[0].objects[0]
    assert overlap(best.voxels, masks["orange"]) > 0.9


def test_limits_are_kept(make_room: MakeRoom, encoder: Any) -> None:
    things = {f"chair#{i}": ((-38 + 12 * i, 0, 0), (5, 5, 10), GREY) for i in range(6)}
    engine = QueryEngine(make_room(things)[0], encoder)
    every = engine.query(["chair"], max_objects=100)[0].objects
    assert len(every) >= 6
    assert len(engine.query(["chair"], max_objects=2)[0].objects) == 2
    threshold = every[3].score
    assert all(item.score >= threshold for item in engine.query(["chair"], min_score=threshold)[0].objects)
    assert engine.query(["chair"], min_score=float("inf"))[0].objects == ()


@pytest.mark.parametrize("min_voxels", [1, 50, 500, 5_000, 100_000])
def test_objects_smaller_than_asked_for_are_left_out(min_voxels: int, make_room: MakeRoom, encoder: Any) -> None:
    snapshot, _ = make_room({"chair": ((0, 0, 0), (8, 8, 16), GREY)})
    objects = QueryEngine(snapshot, encoder, QueryConfig(min_voxels=min_voxels)).query(["chair"])[0].objects
    assert all(found.num_voxels >= min_voxels for found in objects)
    assert bool(objects) == (min_voxels <= 500)  # the chair has 1024


def test_boxes_are_axis_aligned_on_request(make_room: MakeRoom, encoder: Any) -> None:
    snapshot, _ = make_room({"chair": ((0, 0, 0), (8, 8, 16), GREY)})
    engine = QueryEngine(snapshot, encoder, QueryConfig(oriented_boxes=False))
    best = engine.query(["chair"])[0].objects[0]
    assert best.yaw_rad == 0.0
    np.testing.assert_array_equal(best.R_map_box, np.eye(3))
    np.testing.assert_allclose(best.center_m, [0.2, 0.2, 0.4], atol=0.03)
    np.testing.assert_allclose(best.size_m, [0.4, 0.4, 0.8], atol=0.06)


def test_an_empty_map_answers_with_nothing(make_snapshot: Make, encoder: Any) -> None:
    engine = QueryEngine(make_snapshot(np.zeros((0, 3)), np.zeros((0, DIM))), encoder)
    result = engine.query(["chair", "red table"])
    assert [item.text for item in result] == ["chair", "red table"]
    assert all(len(item.scores) == 0 and item.objects == () for item in result)
    index, confidence = engine.segment(["chair"])
    assert len(index) == len(confidence) == 0


@pytest.mark.parametrize("features", [np.zeros((30, DIM)), np.ones((30, DIM))])
def test_maps_without_a_difference_do_not_fail(
    make_snapshot: Make, block: Make, features: np.ndarray, encoder: Any
) -> None:
    snapshot = make_snapshot(block((0, 0, 0), (5, 3, 2)), features)
    result = QueryEngine(snapshot, encoder).query(["red chair", "chair"])
    assert all(np.isfinite(item.scores).all() for item in result)


def test_segment_names_every_voxel(make_snapshot: Make, block: Make, make_room: MakeRoom, encoder: Any) -> None:
    snapshot, masks = make_room({"chair": ((0, 0, 0), (8, 8, 16), GREY), "lamp": ((20, 5, 0), (4, 4, 20), GREY)})
    index, confidence = QueryEngine(snapshot, encoder).segment(["lamp", "floor", "chair"])
    for label, name in enumerate(["lamp", "floor", "chair"]):
        assert (index[masks[name]] == label).all()
    assert confidence.min() > 0.5
    assert confidence.max() <= 1.0
    unseen = make_snapshot(block((0, 0, 0), (2, 2, 2)), np.zeros((8, DIM)))
    index, confidence = QueryEngine(unseen, encoder).segment(["lamp"])
    assert (index == -1).all()
    assert (confidence == 0).all()


@pytest.mark.parametrize(
    ("texts", "field"),
    [
        ([], "texts"),
        ("chair", "texts"),
        (None, "texts"),
        (5, "texts"),
        ([""], "texts[0]"),
        (["chair", "  \n"], "texts[1]"),
        (["a\x00b"], "texts[0]"),
        (["x" * 10_000], "texts[0]"),
        (["\u00e9" * 600], "texts[0]"),
        (["\ud800"], "texts[0]"),
        ([7], "texts[0]"),
        (["chair"] * 257, "texts"),
    ],
)
def test_unusable_texts_are_refused(texts: object, field: str, make_room: MakeRoom, encoder: Any) -> None:
    engine = QueryEngine(make_room({})[0], encoder)
    encoder.asked.clear()
    for ask in (engine.query, engine.segment):
        with pytest.raises(QueryError) as error:
            ask(texts)  # type: ignore[operator]
        assert error.value.field == field
        assert error.value.remedy
    assert encoder.asked == []


@pytest.mark.parametrize("value", [0, -1, 1.5, "3", True, float("nan")])
def test_unusable_object_limits_are_refused(make_snapshot: Make, value: object, encoder: Any) -> None:
    engine = QueryEngine(make_snapshot(np.zeros((0, 3)), np.zeros((0, DIM))), encoder)
    with pytest.raises(QueryError, match="max_objects"):
        engine.query(["chair"], max_objects=value)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [float("nan"), "1", True])
def test_unusable_thresholds_are_refused(make_snapshot: Make, value: object, encoder: Any) -> None:
    engine = QueryEngine(make_snapshot(np.zeros((0, 3)), np.zeros((0, DIM))), encoder)
    with pytest.raises(QueryError, match="min_score"):
        engine.query(["chair"], min_score=value)  # type: ignore[arg-type]


def test_the_encoder_must_fit_the_map(make_snapshot: Make, encoder: Any) -> None:
    with pytest.raises(QueryError, match="feature_dim"):
        QueryEngine(make_snapshot(np.zeros((1, 3)), np.zeros((1, DIM + 1))), encoder)


def test_threads_get_the_same_answers(make_room: MakeRoom, encoder: Any) -> None:
    snapshot, _ = make_room({"chair": ((0, 0, 0), (8, 8, 16), RED), "lamp": ((20, 5, 0), (4, 4, 20), BLUE)})
    texts = ["red chair", "lamp", "blue lamp", "floor"]
    expected = QueryEngine(snapshot, encoder).query(texts)
    engine = QueryEngine(snapshot, encoder)
    answers: list[object] = []

    def ask() -> None:
        answers.append(engine.query(texts))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(answers) == 4
    for answer in answers:
        for mine, theirs in zip(answer, expected, strict=True):  # type: ignore[call-overload]
            np.testing.assert_array_equal(mine.scores, theirs.scores)
            assert [item.score for item in mine.objects] == [item.score for item in theirs.objects]
