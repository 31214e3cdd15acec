"""What a scene adds, the folder that keeps it, and the report made of it."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from geopurify_core.errors import DatasetError, InvalidConfigError
from geopurify_core.evaluation.counts import ALL, SEEN, Key, SceneCounts, count_scene, total_of
from geopurify_core.evaluation.openscene import readings_of, tally
from geopurify_core.evaluation.picture import draw_confusion
from geopurify_core.evaluation.points import PointScores
from geopurify_core.evaluation.report import build_report, headline, write_class_table, write_scene_table
from geopurify_core.evaluation.results import ResultsFolder
from geopurify_core.labels import load_label_set

SCANNET = load_label_set("scannet20")
SETTINGS = {"dataset": "scannet", "labels": "scannet20", "protocol": {"name": "openscene"}}


def scene(name, seed, count=400):
    """Random labels of twelve classes, right in two thirds of the points; raw features miss at a quarter of them."""
    rng = np.random.default_rng(seed)
    truth = rng.choice([*range(12), 19, 255], count).astype(np.uint8)
    scores = rng.random((count, 20)).astype(np.float32)
    right = (rng.random(count) < 0.66) & (truth != 255)
    scores[np.flatnonzero(right), truth[right]] = 2
    without = rng.random(count) < 0.25
    none = np.zeros(count, dtype=bool)
    variants = [PointScores("raw", scores, without), PointScores("T=18", scores, none)]
    return truth, scores, without, count_scene(name, truth, variants, SCANNET)


def test_all_and_seen_points_are_counted_apart():
    truth, scores, without, counts = scene("a", 0)
    best = scores.argmax(1)
    labelled = truth != 255
    everything = counts.confusions[Key("T=18", "20", ALL)]
    seen = counts.confusions[Key("T=18", "20", SEEN)]
    assert everything.sum() == labelled.sum() and everything[:, -1].sum() == 0
    assert seen.sum() == (labelled & ~without).sum()
    assert np.trace(seen) == ((best == truth) & labelled & ~without).sum()
    raw = counts.confusions[Key("raw", "20", ALL)]
    assert raw[:, -1].sum() == (labelled & without).sum() == counts.about["featureless"]["raw"]
    assert counts.about["featureless"]["T=18"] == 0
    np.testing.assert_array_equal(counts.confusions[Key("raw", "20", SEEN)], seen)  # same scores, same points


def test_the_reading_of_19_judges_no_other_furniture():
    truth, scores, _, counts = scene("a", 0)
    confusion = counts.confusions[Key("T=18", "19", ALL)]
    kept = (truth != 255) & (truth != 19)
    assert confusion.shape == (19, 20) and confusion.sum() == kept.sum()
    assert np.trace(confusion) == (scores[:, :19].argmax(1) == truth)[kept].sum()


def test_scenes_add_up_before_anything_is_divided():
    first, second = scene("a", 0), scene("b", 1, count=900)
    total = total_of([first[3], second[3]])[Key("T=18", "20", ALL)]
    truth = np.concatenate([first[0], second[0]])
    best = np.concatenate([first[1], second[1]]).argmax(1)
    np.testing.assert_array_equal(total, tally(truth, best, readings_of(SCANNET)[0]))


def test_scenes_scored_differently_do_not_add_up():
    counts = scene("a", 0)[3]
    other = SceneCounts("b", {Key("raw", "20", ALL): counts.confusions[Key("raw", "20", ALL)]})
    with pytest.raises(DatasetError, match="b"):
        total_of([counts, other])


@pytest.mark.parametrize(
    ("truth", "scores", "message"),
    [
        (np.full(5, 255), np.zeros((5, 20)), "no labelled point"),
        (np.full(5, 20), np.zeros((5, 20)), "label 20"),
        (np.zeros(5), np.zeros((5, 19)), "scores"),
        (np.zeros(5), np.full((5, 20), np.nan), "finite"),
    ],
)
def test_scenes_that_cannot_be_judged_are_refused(truth, scores, message):
    one = PointScores("raw", scores.astype(np.float32), np.zeros(5, dtype=bool))
    with pytest.raises(DatasetError, match=message):
        count_scene("bad", truth.astype(np.uint8), [one], SCANNET)


# -- the folder ------------------------------------------------------------------------------------------------------


def test_a_scene_comes_back_as_it_was(tmp_path):
    folder = ResultsFolder(tmp_path / "out", SETTINGS)
    counts = scene("scene0000_00", 0)[3]
    folder.save(counts)
    again = ResultsFolder(tmp_path / "out", SETTINGS)
    assert again.done() == ["scene0000_00"]
    back = again.load("scene0000_00")
    assert back.about == counts.about and back.confusions.keys() == counts.confusions.keys()
    for key, confusion in counts.confusions.items():
        np.testing.assert_array_equal(back.confusions[key], confusion)
    assert not [path for path in (tmp_path / "out" / "scenes").iterdir() if path.suffix != ".npz"]


def test_other_settings_are_refused_unless_one_starts_anew(tmp_path):
    ResultsFolder(tmp_path, SETTINGS).save(scene("a", 0)[3])
    other = {**SETTINGS, "student": "student:2"}
    with pytest.raises(InvalidConfigError, match="student"):
        ResultsFolder(tmp_path, other)
    assert ResultsFolder(tmp_path, SETTINGS).done() == ["a"]
    assert ResultsFolder(tmp_path, other, fresh=True).done() == []


def test_a_folder_without_scenes_takes_any_settings(tmp_path):
    ResultsFolder(tmp_path, SETTINGS)
    ResultsFolder(tmp_path, {**SETTINGS, "labels": "scannet200"})
    assert json.loads((tmp_path / "settings.json").read_text())["labels"] == "scannet200"


def test_damaged_files_and_bad_names_are_typed_errors(tmp_path):
    folder = ResultsFolder(tmp_path, SETTINGS)
    folder.save(scene("a", 0)[3])
    (tmp_path / "scenes" / "a.npz").write_bytes(b"PK half a file")
    with pytest.raises(DatasetError, match=r"a\.npz"):
        folder.load("a")
    with pytest.raises(DatasetError, match="name"):
        folder.save(scene("../a", 0)[3])
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidConfigError, match="--out"):
        ResultsFolder(tmp_path / "file", SETTINGS)


# -- the report ------------------------------------------------------------------------------------------------------


def test_the_report_holds_every_mean_and_who_was_left_out(tmp_path):
    scenes = [scene("a", 0)[3], scene("b", 1)[3]]
    report = build_report(SETTINGS, SCANNET, scenes, {"c": "no mesh"})
    report = json.loads(json.dumps(report))  # plain values only
    assert report["scenes"] == ["a", "b"] and report["skipped"] == {"c": "no mesh"}
    assert set(report["results"]) == {"raw", "T=18"} and set(report["results"]["raw"]) == {"20", "19"}
    values = report["results"]["T=18"]["20"][ALL]
    assert len(values["classes"]) == 20 and len(values["absent"]) == 7
    assert values["miou"] == pytest.approx(sum(row["iou"] for row in values["classes"].values()) / 20)
    assert values["miou_present"] == pytest.approx(values["miou"] * 20 / 13)
    rows = headline(report)
    assert [(row["variant"], row["classes"], row["which"]) for row in rows[:2]] == [
        ("raw", 20, ALL), ("raw", 20, SEEN)
    ]  # fmt: skip
    write_scene_table(tmp_path / "scenes.csv", SCANNET, scenes)
    write_class_table(tmp_path / "classes.csv", report)
    with (tmp_path / "scenes.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2 * 2 * 2 * 2
    with (tmp_path / "classes.csv").open() as file:
        lines = [row for row in csv.DictReader(file) if row["class"] == "wall" and row["which"] == ALL]
    assert [row["classes"] for row in lines] == ["20", "19", "20", "19"]


@pytest.mark.parametrize("classes", [3, 20, 200])
def test_confusion_pictures_are_drawn_for_few_and_for_many_classes(tmp_path, classes):
    confusion = np.random.default_rng(0).integers(0, 50, (classes, classes + 1))
    confusion[1] = 0
    path = tmp_path / "confusion.png"
    draw_confusion(confusion, [f"class {i}" for i in range(classes)], path, "title")
    assert path.stat().st_size > 5000


def test_a_scene_of_which_nothing_was_seen_is_refused():
    one = PointScores("raw", np.ones((4, 20), np.float32), np.ones(4, dtype=bool))
    with pytest.raises(DatasetError, match="no point has a feature"):
        count_scene("a", np.zeros(4, np.uint8), [one], SCANNET)
