"""All of offline distillation as a user runs it: two generated rooms, two epochs, and the student cleans a third."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from geopurify_core.config import PurificationConfig
from geopurify_core.datasets.synthetic.kinds import SCANNET20
from geopurify_core.purification.student.checkpoint import load_student
from geopurify_core.purification.update.compute import purify_snapshot
from geopurify_core.vision.nano import NanoBackbone
from training.cli import app
from training.experiments.room import load_rooms
from training.experiments.rooms import ScoredRoom, student_row
from training.experiments.scorespace import Texts

# Coarse voxels make rooms of a few thousand voxels, so that this takes seconds; nothing else is cut down but the width.
COARSE = ("--set", "map.voxel_size_m=0.12")
SMALL = {"epochs": 2, "hidden": 16, "out": 16, "blocks": 2, "crop": 1500, "anchors": 512, "voxel_size_m": 0.12}


def run(*words):
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distillation")
    scenes, made = folder / "scenes", folder / "run"
    run("prepare", "synthetic:350-351", "--out", scenes, "--backbone", "nano", "--teacher", "geometric", *COARSE)
    settings = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
    run("distil", scenes, "--out", made, "--preset", "robot", "--teacher", "geometric", "--threads", "1", *settings)
    run("export", made)
    return load_student(made / "student.safetensors")


@pytest.mark.slow
def test_the_student_says_where_it_comes_from(student):
    assert student.backbone == NanoBackbone().fingerprint and student.voxel_size_m == 0.12
    assert student.info.licence == "Apache-2.0" and "geometric" in student.info.trained_on
    assert json.dumps(student.info.extra)


@pytest.mark.slow
def test_the_student_cleans_a_room_it_has_not_seen(student, tmp_path):
    run("prepare", "synthetic:200", "--out", tmp_path, "--backbone", "nano", *COARSE)
    room = load_rooms(tmp_path, [200])[0]
    scored = ScoredRoom.of(room, Texts.of(SCANNET20, NanoBackbone()))
    blur = {name: build for name, build in scored.affinities.named("geometric", None).items() if "blur" in name}
    ((_, blurred),) = scored.of_builders(blur, (2,)).items()
    cleaned = scored.of_student(student, (2,))[student_row(2)]
    assert cleaned["accuracy"] > blurred["accuracy"] + 1  # more than smoothing
    purified = purify_snapshot(room.snapshot(), student, PurificationConfig(steps=1)).as_snapshot()
    assert np.isfinite(purified.features).all() and not np.array_equal(purified.features, room.scene.features)
