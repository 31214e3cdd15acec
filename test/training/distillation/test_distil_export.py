"""From a run to the file that purification loads, and the commands from end to end."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from geopurify_core.config import PurificationConfig
from geopurify_core.errors import DatasetError, StudentError
from geopurify_core.mapping.snapshot import MapSnapshot
from geopurify_core.purification.student.checkpoint import load_student
from geopurify_core.purification.student.inputs import student_inputs
from geopurify_core.purification.update.compute import purify_snapshot
from training.distillation.checkpoints import load_checkpoint
from training.distillation.export import (
    SHIPPED_FOLDER,
    compact_network,
    export_student,
    installed_path,
    licence_of,
    settle,
    student_info,
)
from training.distillation.pieces import whole_scene
from training.distillation.recipe import Recipe
from training.distillation.shards import Shards
from training.distillation.train import distil
from training.scenes.prepared import load_scene, save_scene

QUIET = {"teacher": "known", "quiet": True, "accelerator": "cpu"}


def snapshot_of(scene):
    """The map that a scene of voxels was prepared from."""
    size = scene.voxel_size_m
    stamps = np.zeros(len(scene), np.int64)
    return MapSnapshot(
        np.rint(scene.points_m / size - 0.5).astype(np.int32), scene.features, scene.weight, scene.rgb, scene.normals,
        stamps, stamps, size, "map", 1, 1, scene.backbone, "toy",
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(maps, tiny_robot, tmp_path_factory):
    return distil(Recipe.preset("robot", **tiny_robot), maps, tmp_path_factory.mktemp("runs") / "run", **QUIET)


def test_the_exported_student_is_the_trained_one_on_all_channels(maps, tiny_robot, tmp_path):
    """Eight of twelve channels are mixtures of the others, so six directions hold everything."""
    folder = tmp_path / "scenes"
    mixture = np.random.default_rng(1).standard_normal((4, 12)).astype(np.float32)
    for name in ("room_a", "room_b"):
        scene = load_scene(maps, name)
        features = (scene.features[:, :4].astype(np.float32) @ mixture).astype(np.float16)
        save_scene(folder, type(scene)(**{**vars(scene), "features": features}))
    recipe = Recipe.preset("robot", **{**tiny_robot, "rank": 6})
    made = distil(recipe, folder, tmp_path / "run", **QUIET)
    (made / "recipe.json").unlink()  # so that the statistics stay what they are
    student = load_student(export_student(made, tmp_path / "deep" / "student.safetensors"))
    assert student.backbone == "toy:1" and student.feature_dim == 12 and student.voxel_size_m == 0.04
    state = load_checkpoint(made)
    piece = whole_scene(Shards(folder, "known", recipe, basis=state["basis"]).scene("room_a"), recipe)
    compact = compact_network(state).embed(piece.coords, piece.inputs)
    snapshot = snapshot_of(load_scene(folder, "room_a"))
    full = student.network.embed(snapshot.coords, student_inputs(snapshot))
    torch.testing.assert_close(full, compact, atol=0.02 * float(compact.abs().max()), rtol=0.02)


def test_settling_takes_statistics_of_the_pieces_as_they_are(run, maps, tiny_robot):
    state = load_checkpoint(run)
    recipe = Recipe.preset("robot", **{**tiny_robot, "crop": 10**6})
    shards = Shards(maps, "known", recipe, basis=state["basis"])
    network = compact_network(state)
    settle(network, shards, recipe, pieces=2)
    norm = network.input_layer[1].bn
    assert int(norm.num_batches_tracked) == 2 and norm.momentum == 0.1 and not network.training
    means = []
    for name in shards.names:
        piece = whole_scene(shards.scene(name), recipe)
        with torch.no_grad():
            x = network._prepared(piece.coords, piece.inputs)[0]
            means.append(network.input_layer[0](x).features.mean(0))
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0), atol=1e-4, rtol=1e-3)


def test_statistics_are_settled_where_the_scenes_are_still_there(run, maps, tmp_path, caplog):
    import shutil

    default = load_student(export_student(run, tmp_path / "a.safetensors")).fingerprint
    assert default == load_student(export_student(run, tmp_path / "b.safetensors", maps)).fingerprint
    assert not caplog.records
    (tmp_path / "moved").mkdir()
    shutil.copy(run / "last.pt", tmp_path / "moved")
    assert load_student(export_student(tmp_path / "moved", tmp_path / "c.safetensors")).fingerprint != default
    assert "are gone" in caplog.text


def test_the_file_says_where_the_student_comes_from(run, maps, tmp_path):
    info = load_student(export_student(run, tmp_path / "s.safetensors", maps)).info
    assert info.trained_on == "2 scenes (room_a to room_b), teacher known (known:0), true objects"
    assert info.extra["steps_done"] == 6 and info.extra["recipe"]["base"] == "robot"
    assert installed_path(run) == SHIPPED_FOLDER / "student_toy.safetensors"


def test_a_students_licence_is_as_free_as_its_teachers():
    assert licence_of("none: there are no weights") == licence_of("MIT") == licence_of("Apache-2.0") == "Apache-2.0"
    assert licence_of("CC-BY-NC-4.0") == "CC-BY-NC-4.0" and licence_of("").startswith("unknown")


def test_a_student_of_sonata_says_so(run):
    state = load_checkpoint(run)
    state["origin"]["teacher"] = {"name": "sonata", "fingerprint": "sonata:1", "licence": "CC-BY-NC-4.0"}
    info = student_info(state)
    assert info.licence == "CC-BY-NC-4.0" and info.trained_on.endswith("sonata (sonata:1), no labels")


def test_exporting_nothing_or_with_other_scenes_is_refused(run, toy, tmp_path):
    with pytest.raises(StudentError, match="train first"):
        export_student(tmp_path, tmp_path / "s.safetensors")
    save_scene(tmp_path / "other", toy("room_a", backbone="toy:2"))
    with pytest.raises(DatasetError, match="toy:1"):
        export_student(run, tmp_path / "s.safetensors", tmp_path / "other")
    save_scene(tmp_path / "finer", toy("room_a", voxel_size_m=0.02))
    with pytest.raises(DatasetError, match=r"voxel_size_m.*0\.04"):
        export_student(run, tmp_path / "s.safetensors", tmp_path / "finer")
    done = command("export", run, "--out", tmp_path / "s.safetensors", "--install")
    assert done.exit_code == 2 and "--install" in done.output
    assert not (tmp_path / "s.safetensors").exists()


# -- commands --------------------------------------------------------------------------------------------------------


def command(*words):
    from training.cli import app

    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.parametrize(("preset", "kind"), [("paper", "maps"), ("official_code", "scans"), ("robot", "maps")])
def test_two_scenes_and_two_epochs_from_one_command_to_a_purified_map(preset, kind, request, tiny, maps, tmp_path):
    changes = {**tiny, "epochs": 2, **({"crop": 500, "rank": 6} if preset == "robot" else {})}
    settings = [word for name, value in changes.items() for word in ("--set", f"{name}={value}")]
    scenes, made = request.getfixturevalue(kind), tmp_path / "run"
    done = command("distil", scenes, "--out", made, "--preset", preset, "--teacher", "known", *settings)
    assert done.exit_code == 0, done.output
    assert json.loads((made / "recipe.json").read_text())["steps"] == (2 if preset == "robot" else 4)
    done = command("export", made)
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["file"] == str(made / "student.safetensors") and said["backbone"] == "toy:1"
    student = load_student(made / "student.safetensors")
    snapshot = snapshot_of(load_scene(maps, "room_b"))
    purified = purify_snapshot(snapshot, student, PurificationConfig(steps=2, neighbors=24)).as_snapshot()
    assert np.isfinite(purified.features).all() and not np.array_equal(purified.features, snapshot.features)
    again = command("distil", scenes, "--out", made, "--preset", preset, "--teacher", "known", *settings)
    assert again.exit_code == 2 and "--resume" in again.output


def test_a_wrong_setting_is_one_line_and_names_the_field(maps, tmp_path):
    done = command("distil", maps, "--out", tmp_path / "run", "--teacher", "known", "--set", "lr=fast")
    assert done.exit_code == 2 and "lr: 'fast' is not usable" in done.output
    assert not (tmp_path / "run").exists()


def started(maps, changes, run, *options):
    """A run as a process group of its own, some steps in."""
    settings = [word for name, value in {**changes, "steps": 100000}.items() for word in ("--set", f"{name}={value}")]
    words = ["distil", str(maps), "--out", str(run), "--teacher", "known", "--accelerator", "cpu", *settings, *options]
    process = subprocess.Popen(
        [sys.executable, "-m", "training", *words, "--quiet", "--threads", "1"],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"}, start_new_session=True,
    )  # fmt: skip
    log, deadline = run / "log.csv", time.monotonic() + 240
    while not (log.exists() and len(log.read_text().splitlines()) > 3):
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.1)
    return process


def alive(group):
    """Processes of a group that have not ended (those that nobody has asked for yet have)."""
    lines = subprocess.check_output(["ps", "-eo", "pgid=,stat=,pid="], text=True).splitlines()
    return [pid for number, state, pid in map(str.split, lines) if int(number) == group and state[0] != "Z"]


def test_ctrl_c_finishes_the_step_saves_and_says_how_to_go_on(maps, tiny_robot, tmp_path):
    process = started(maps, tiny_robot, tmp_path / "run")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130 and "--resume" in said
    state = load_checkpoint(tmp_path / "run")
    assert 3 <= state["step"] < 100000 and f"after step {state['step']} of" in said


@pytest.mark.slow
@pytest.mark.parametrize("reaches", ["all", "parent", "twice"])
def test_ctrl_c_stops_two_processes_whomever_it_reaches(maps, tiny_robot, reaches, tmp_path):
    """A terminal interrupts the whole group, ``kill -INT`` the first process alone; the second time ends it at once."""
    process = started(maps, {**tiny_robot, "crops": 1}, tmp_path / "run", "--devices", "2")
    if reaches == "parent":
        process.send_signal(signal.SIGINT)
    else:
        os.killpg(process.pid, signal.SIGINT)
    if reaches == "twice":
        time.sleep(0.002)
        os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=240)
    assert process.returncode in ((1, 130) if reaches == "twice" else (130,)), said
    if reaches != "twice":  # there the second one may come before the first one's message is out
        assert "finishing the step" in said
        assert f"after step {load_checkpoint(tmp_path / 'run')['step']} of" in said and "--resume" in said
    deadline = time.monotonic() + 60
    while members := alive(process.pid):
        assert time.monotonic() < deadline, members
        time.sleep(0.1)
