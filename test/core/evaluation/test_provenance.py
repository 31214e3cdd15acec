"""What a student's own description tells the tables."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from geopurify_core.errors import InvalidConfigError
from geopurify_core.evaluation.provenance import data_set_of, sampling_of, student_about
from geopurify_core.purification.student.trained import StudentInfo


@pytest.mark.parametrize(
    ("description", "data_set"),
    [
        ("20 scenes (scene0102_01 to scene0692_01), teacher sonata, no labels", "scannet"),
        ("20 scenes (2n8kARJN3HM_region13 to vyrNrziPKCB_region57), teacher sonata, no labels", "matterport"),
        ("40 scenes (apartment_0300 to apartment_0339), teacher geometric, no labels", "rooms"),
        ("3 scenes (scene0102_01 to uNb9QFRL6hY_region33)", ""),
        ("5 scenes (office_1 to office_5)", ""),
        ("", ""),
    ],
)
def test_data_sets_are_known_by_the_names_of_their_scenes(description, data_set):
    assert data_set_of(description) == data_set


@pytest.mark.parametrize(
    ("recipe", "sampling"),
    [
        ({"macro": 48, "micro": 16}, "hybrid"), ({"macro": 64, "micro": 0}, "macro"), ({"macro": 48}, ""),
        ({"micro": 16, "contrast": 0.0}, ""), ({"micro": 16, "contrast": 1.0}, "hybrid"), (None, ""),
    ],
)  # fmt: skip
def test_the_recipe_tells_the_negatives(recipe, sampling):
    assert sampling_of(recipe) == sampling


def test_what_the_caller_says_overrules_the_description():
    info = StudentInfo("b:1", 8, 8, 4, 1, trained_on="scene0102_01", extra={"recipe": {"micro": 16}})
    student = SimpleNamespace(info=info)
    assert student_about(student)["trained_on"] == "scannet" and student_about(student)["sampling"] == "hybrid"
    assert student_about(student)["teacher"] == ""
    said = student_about(student, "matterport", "macro")
    assert said["trained_on"] == "matterport" and said["sampling"] == "macro"
    assert student_about(None) == {}


def test_teacher_and_only_known_kinds_of_negatives():
    info = StudentInfo("b:1", 8, 8, 4, 1, trained_on="scene0102_01", extra={"teacher": {"name": "sonata"}})
    assert student_about(SimpleNamespace(info=info))["teacher"] == "sonata"
    with pytest.raises(InvalidConfigError, match="sampling"):
        student_about(None, sampling="mixed")
