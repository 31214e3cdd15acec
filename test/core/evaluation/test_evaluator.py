"""Scene after scene: what stops a run, what does not, and what a second run still has to do."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from geopurify_core.errors import DatasetError, InvalidConfigError, StudentError
from geopurify_core.evaluation.counts import count_scene
from geopurify_core.evaluation.evaluator import Evaluator, Source, folder_sources, score_all
from geopurify_core.evaluation.points import PointScores
from geopurify_core.evaluation.protocol import Protocol
from geopurify_core.evaluation.results import ResultsFolder
from geopurify_core.labels import load_label_set
from geopurify_core.scans.scan import Scan

LABELS = load_label_set("scannet20")
SETTINGS = {"dataset": "scannet"}


def scan(name):
    truth = np.arange(20, dtype=np.uint8)
    points = np.zeros((20, 3), np.float32)
    return Scan(name, points, np.zeros((20, 3), np.uint8), points, {"scannet20": truth})


class Perfect:
    """Stands in for an evaluator: every point gets its true class."""

    def __init__(self):
        self.scored = []

    def score(self, scan, progress=None):
        self.scored.append(scan.name)
        one = PointScores("raw", np.eye(20, dtype=np.float32), np.zeros(20, dtype=bool))
        return count_scene(scan.name, scan.labels["scannet20"], [one], LABELS)


def source(name, error=None):
    def read():
        if error is not None:
            raise error
        return scan(name)

    return Source(f"/data/{name}", read)


def test_an_interrupted_run_goes_on_with_the_next_scene(tmp_path):
    evaluator, folder = Perfect(), ResultsFolder(tmp_path, SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        list(score_all(evaluator, [source("a"), source("b", KeyboardInterrupt()), source("c")], folder))
    assert ResultsFolder(tmp_path, SETTINGS).done() == ["a"]
    steps = list(score_all(evaluator, [source(name) for name in "abc"], ResultsFolder(tmp_path, SETTINGS)))
    assert evaluator.scored == ["a", "b", "c"]
    assert [step.known for step in steps] == [True, False, False]
    scenes = ResultsFolder(tmp_path, SETTINGS).scenes()
    assert len(scenes) == 3 and [one.name for one in scenes] == ["a", "b", "c"]
    assert [one.name for one in scenes[1:]] == ["b", "c"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (DatasetError("mesh", "a.ply", "Download it again."), "Download it again"),
        (FileNotFoundError("a.ply"), "a.ply"),
        (RuntimeError("index out of bounds"), "RuntimeError: index out of bounds"),
    ],
)
def test_a_failing_scene_costs_no_other_and_is_tried_again(tmp_path, error, reason):
    folder = ResultsFolder(tmp_path, SETTINGS)
    steps = list(score_all(Perfect(), [source("a", error), source("b")], folder))
    assert steps[0].counts is None and reason in steps[0].reason
    assert steps[1].counts is not None
    again = list(score_all(Perfect(), [source("a"), source("b")], ResultsFolder(tmp_path, SETTINGS)))
    assert [step.known for step in again] == [False, True]


def test_two_scenes_of_one_name_are_not_counted_twice():
    double = Source("/elsewhere/a", lambda: scan("a"))
    steps = list(score_all(Perfect(), [source("a"), double], None))
    assert steps[1].counts is None and "same name" in steps[1].reason
    steps = list(score_all(Perfect(), [source("a"), source("a")], None))
    assert steps[1].counts is None and "same name" in steps[1].reason


def test_a_scene_of_an_earlier_run_is_not_replaced_by_another_of_its_name(tmp_path):
    here, elsewhere = tmp_path / "here" / "a", tmp_path / "elsewhere" / "a"
    here.mkdir(parents=True)
    evaluator, results = Perfect(), tmp_path / "results"
    list(score_all(evaluator, [Source(str(here), lambda: scan("a"))], ResultsFolder(results, SETTINGS)))
    other = [Source(str(elsewhere), lambda: scan("a"))]
    (step,) = score_all(evaluator, other, ResultsFolder(results, SETTINGS))
    assert step.counts is None and str(here) in step.reason
    here.rmdir()  # the data set has moved
    (step,) = score_all(evaluator, other, ResultsFolder(results, SETTINGS))
    assert step.counts is not None and ResultsFolder(results, SETTINGS).sources() == {str(elsewhere): "a"}


def test_sources_are_known_by_their_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (one, two) = folder_sources([tmp_path / "a", tmp_path / "b"], lambda path: scan(path.name))
    assert one.name == str((tmp_path / "a").resolve()) and two.open().name == "b"


class Backbone:
    name, feature_dim, licence, fingerprint, text_fingerprint = "plain", 4, "CC0-1.0", "plain:1", "plain-text:1"

    def encode_text(self, texts):
        self.texts = list(texts)
        return np.ones((len(texts), 4), np.float32)


def test_settings_name_everything_that_decides_the_numbers():
    geopurify = Evaluator(load_label_set("matterport21"), Protocol.preset("geopurify"), Backbone()).settings()
    assert geopurify["prompts"][14] == "refridgerator" and geopurify["prompts"][19] == "otherfurniture"
    assert geopurify["student"] is None and geopurify["protocol"]["steps"] == [19] and geopurify["lifting"]["stride"]
    mapped = Evaluator(LABELS, Protocol.preset("map"), Backbone()).settings()
    assert mapped["mapping"]["map"]["voxel_size_m"] and mapped["prompts"][-1] == "other"
    scene = Evaluator(LABELS, Protocol.preset("openscene", wording="scene"), Backbone()).settings()
    assert scene["prompts"][0] == "a wall in a scene" and scene["prompts"] != mapped["prompts"]


def test_names_are_not_put_into_two_frames():
    class Framing(Backbone):
        settings = SimpleNamespace(prompt="a {} in a scene")

    with pytest.raises(InvalidConfigError, match="wording"):
        Evaluator(LABELS, Protocol.preset("openscene", wording="scene"), Framing())
    Framing.settings.prompt = "{}"
    assert Evaluator(LABELS, Protocol.preset("openscene", wording="scene"), Framing()).prompts[-1] == "other"


def test_geopurify_tells_its_recipe_nineteen_classes_in_scannet_and_all_in_matterport():
    def vocabulary(labels, protocol):
        return len(Evaluator(load_label_set(labels), Protocol.preset(protocol), Backbone())._vocabulary())

    assert vocabulary("scannet20", "geopurify") == 19 and vocabulary("scannet20", "openscene") == 20
    assert vocabulary("matterport21", "geopurify") == 21 and vocabulary("scannet200", "geopurify") == 200


def test_scans_without_labels_or_images_are_refused():
    evaluator = Evaluator(load_label_set("scannet200"), Protocol.preset("openscene"), Backbone())
    with pytest.raises(DatasetError, match="scannet20"):
        evaluator.score(scan("a"))
    for protocol in ("openscene", "map"):
        with pytest.raises(DatasetError, match="images"):
            Evaluator(LABELS, Protocol.preset(protocol), Backbone()).score(scan("a"))


def test_scans_without_a_label_are_refused_before_their_images_are_looked_at():
    blank = scan("a")
    blank.labels["scannet20"][:] = 255
    with pytest.raises(DatasetError, match="no labelled point"):  # and not: no images
        Evaluator(LABELS, Protocol.preset("openscene"), Backbone()).score(blank)


def test_a_foreign_student_is_refused_before_any_scene():
    class Student:
        feature_dim = 4

        def check_backbone(self, backbone):
            raise StudentError("student.backbone", "other:1", "Name another.")

    with pytest.raises(StudentError, match="other:1"):
        Evaluator(LABELS, Protocol.preset("openscene"), Backbone(), Student())
