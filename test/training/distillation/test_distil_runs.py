"""Runs: what they leave, going on from a checkpoint, and what stops them."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from geopurify_core.errors import DatasetError, InvalidConfigError, NotAvailableError, StudentError
from training.distillation import distiller as distiller_module
from training.distillation.checkpoints import check_belongs, load_checkpoint
from training.distillation.recipe import Recipe
from training.distillation.record import read_log
from training.distillation.shards import Shards
from training.distillation.train import Interrupted, distil
from training.scenes.prepared import load_scene, save_scene, save_teacher, scene_path
from training.teachers.base import TeacherFeatures

QUIET = {"teacher": "known", "quiet": True, "accelerator": "cpu"}


def same_state(a, b):
    """Bit for bit, however nested."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_state(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same_state, a, b))
    return a == b


@pytest.mark.parametrize(
    ("preset", "kind"), [("robot", "maps"), ("paper", "maps"), ("official_code", "scans"), ("robot", "scans")]
)
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(preset, kind, request, tiny, tiny_robot, tmp_path):
    scenes = request.getfixturevalue(kind)
    changes = tiny_robot if preset == "robot" else {**tiny, "epochs": 3}
    recipe = Recipe.preset(preset, **{**changes, "lr": 3e-3})
    whole = distil(recipe, scenes, tmp_path / "whole", **QUIET)
    with pytest.raises(Interrupted, match="step 3 of 6"):
        distil(recipe, scenes, tmp_path / "half", stop_at=3, save_every=1, history=True, **QUIET)
    distil(recipe, scenes, tmp_path / "half", resume=True, **QUIET)
    a, b = load_checkpoint(whole), load_checkpoint(tmp_path / "half")
    assert a["step"] == b["step"] == 6 and same_state(a, b)
    earlier = tmp_path / "half" / "step_000003.pt"
    distil(recipe, scenes, tmp_path / "third", checkpoint=earlier, **QUIET)
    assert same_state(a, load_checkpoint(tmp_path / "third"))
    assert not same_state(a["network"], load_checkpoint(earlier)["network"])


def test_a_run_leaves_its_recipe_origin_log_and_pictures(maps, tiny_robot, tmp_path):
    recipe = Recipe.preset("robot", **tiny_robot)
    run = distil(recipe, maps, tmp_path / "run", teacher="known", accelerator="cpu")
    document = json.loads((run / "recipe.json").read_text())
    assert Recipe.from_dict(document["recipe"]) == recipe and document["steps"] == 6
    assert document["origin"]["scenes"] == ["room_a", "room_b"] and document["origin"]["backbone"] == "toy:1"
    assert document["origin"]["teacher"]["fingerprint"] == "known:0" and document["versions"]["torch"]
    rows = read_log(run)
    assert [row["step"] for row in rows] == list(range(1, 7)) and all(np.isfinite(row["loss"]) for row in rows)
    assert rows[0]["points_per_s"] > 0 and rows[-1]["lr"] < max(row["lr"] for row in rows)
    for picture in ("loss.png", "affinity.png"):
        assert (run / picture).read_bytes()[:4] == b"\x89PNG"
    assert list((run / "tensorboard").iterdir()) and not list(run.glob("*.tmp*"))


def test_lines_after_the_checkpoint_are_cut_off_when_it_is_taken_up(maps, tiny_robot, tmp_path):
    recipe = Recipe.preset("robot", **tiny_robot)
    run = tmp_path / "run"
    distil(recipe, maps, run, history=True, save_every=2, **QUIET)
    distil(recipe, maps, run, checkpoint=run / "step_000002.pt", **QUIET)
    assert [row["step"] for row in read_log(run)] == list(range(1, 7))


def test_a_folder_with_a_run_is_not_overwritten(maps, tiny_robot, tmp_path):
    recipe = Recipe.preset("robot", **{**tiny_robot, "steps": 1})
    distil(recipe, maps, tmp_path / "run", **QUIET)
    with pytest.raises(InvalidConfigError, match="--resume"):
        distil(recipe, maps, tmp_path / "run", **QUIET)
    before = load_checkpoint(tmp_path / "run")
    distil(recipe, maps, tmp_path / "run", resume=True, **QUIET)
    assert same_state(before, load_checkpoint(tmp_path / "run"))


def test_a_checkpoint_of_another_recipe_or_backbone_is_refused(maps, toy, tiny_robot, tmp_path):
    recipe = Recipe.preset("robot", **tiny_robot)
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        distil(recipe, maps, run, stop_at=1, **QUIET)
    with pytest.raises(StudentError, match=r"checkpoint\.lr"):
        distil(Recipe.preset("robot", **tiny_robot, lr=1.0), maps, run, resume=True, **QUIET)
    other = tmp_path / "other"
    for seed, name in enumerate(("room_a", "room_b")):
        save_scene(other, toy(name, seed, backbone="toy:2"))
    with pytest.raises(StudentError, match=r"checkpoint\.backbone.*toy:1"):
        distil(recipe, other, run, resume=True, **QUIET)
    state = load_checkpoint(run)
    with pytest.raises(StudentError, match=r"checkpoint\.processes.*--devices 1"):
        check_belongs(state, recipe, state["origin"], processes=2)
    good = (run / "last.pt").read_bytes()
    for damaged in (good[:3000], b"", b"no pickle", good[:100] + b"\xff" * 300 + good[400:]):
        (run / "last.pt").write_bytes(damaged)
        with pytest.raises(StudentError, match="damaged"):
            distil(recipe, maps, run, resume=True, **QUIET)
        assert (run / "last.pt").read_bytes() == damaged


def test_a_gradient_that_is_not_finite_stops_the_run_and_leaves_the_last_good_checkpoint(
    maps, tiny_robot, tmp_path, monkeypatch
):
    recipe = Recipe.preset("robot", **tiny_robot)
    honest, steps = distiller_module.loss_of, []

    def poisoned(embeddings, batch, recipe):
        loss, parts = honest(embeddings, batch, recipe)
        steps.append(1)
        return (loss * float("nan") if len(steps) == 4 else loss), parts

    monkeypatch.setattr(distiller_module, "loss_of", poisoned)
    with pytest.raises(StudentError, match="gradient of step 3"):
        distil(recipe, maps, tmp_path / "run", save_every=2, **QUIET)
    state = load_checkpoint(tmp_path / "run")
    assert state["step"] == 2 and all(bool(torch.isfinite(v).all()) for v in state["network"].values())


def test_devices_that_are_not_there_are_named(maps, tiny_robot, tmp_path, monkeypatch):
    recipe = Recipe.preset("robot", **tiny_robot)
    with pytest.raises(InvalidConfigError, match="accelerator"):
        distil(recipe, maps, tmp_path / "run", teacher="known", accelerator="tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(NotAvailableError, match="accelerator"):
        distil(recipe, maps, tmp_path / "run", teacher="known", accelerator="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(NotAvailableError, match="2 GPUs"):
        distil(recipe, maps, tmp_path / "run", teacher="known", devices=3)


@pytest.mark.slow
def test_two_processes_share_the_scenes_and_keep_one_student(maps, tiny_robot, tmp_path):
    """Two processes on gloo; a minute on a busy machine, most of it imports in fresh interpreters."""
    recipe = Recipe.preset("robot", **{**tiny_robot, "crops": 1, "steps": 4})
    run = distil(recipe, maps, tmp_path / "run", devices=2, threads=1, **QUIET)
    document = json.loads((run / "recipe.json").read_text())
    assert document["processes"] == 2 and document["steps_per_epoch"] == 1
    rows = read_log(run)
    assert [row["step"] for row in rows] == [1, 2, 3, 4] and rows[-1]["loss"] < rows[0]["loss"]
    assert load_checkpoint(run)["step"] == 4


@pytest.mark.slow
def test_what_ends_one_of_two_processes_is_named(maps, tiny_robot, tmp_path):
    """A scene whose values are found to be nonsense when its turn comes."""
    folder = tmp_path / "scenes"
    shutil.copytree(maps, folder)
    scene = load_scene(folder, "room_b")
    scene.points_m[3] = np.nan
    save_scene(folder, scene)
    recipe = Recipe.preset("robot", **{**tiny_robot, "crops": 1, "rank": 0, "steps": 4})
    with pytest.raises(StudentError, match=r"process.*scene room_b: points_m"):
        distil(recipe, folder, tmp_path / "run", devices=2, threads=1, **QUIET)


# -- scenes ----------------------------------------------------------------------------------------------------------


def test_a_scene_with_too_few_points_is_named_or_left_out(maps, toy, tiny_robot, tmp_path):
    folder = tmp_path / "scenes"
    shutil.copytree(maps, folder)
    scene = toy("small", 3)
    few = {name: value[:15] for name, value in vars(scene).items() if isinstance(value, np.ndarray)}
    save_scene(folder, type(scene)(name="small", about=scene.about, **few))
    recipe = Recipe.preset("robot", **{**tiny_robot, "steps": 1})
    with pytest.raises(DatasetError, match=r"scene small: '15 points'.*18"):
        distil(recipe, folder, tmp_path / "run", **QUIET)
    run = distil(recipe, folder, tmp_path / "run", skip_bad=True, **QUIET)
    document = json.loads((run / "recipe.json").read_text())
    assert document["origin"]["scenes"] == ["room_a", "room_b"] and list(document["refused"]) == ["small"]


def test_damaged_shards_missing_teachers_and_scenes_that_do_not_go_together_are_named(maps, toy, tmp_path):
    recipe = Recipe.preset("robot")
    folder = tmp_path / "scenes"
    shutil.copytree(maps, folder)
    with pytest.raises(DatasetError, match="prepare"):
        Shards(folder, "geometric", recipe)
    path = scene_path(folder, "room_b")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DatasetError, match=r"room_b.*prepare the scene again"):
        Shards(folder, "known", recipe)
    assert list(Shards(folder, "known", recipe, skip_bad=True).refused) == ["room_b"]
    save_scene(folder, toy("room_b", 1, backbone="toy:2"))
    with pytest.raises(DatasetError, match="room_b: backbone"):
        Shards(folder, "known", recipe)
    with pytest.raises(DatasetError, match="No shards"):
        Shards(tmp_path / "nowhere", "known", recipe)


def test_descriptors_of_another_cloud_are_named(maps, tmp_path):
    folder = tmp_path / "scenes"
    shutil.copytree(maps, folder)
    features = TeacherFeatures(np.eye(4, dtype=np.float16), np.zeros(50, np.int32))
    for name in ("room_a", "room_b"):
        save_teacher(folder, name, "known", features, {"fingerprint": "x", "licence": "MIT"})
    with pytest.raises(DatasetError, match="scene room_a: 50"):
        Shards(folder, "known", Recipe.preset("robot"))


@pytest.mark.parametrize("field", ["features", "normals", "points_m"])
def test_values_that_would_train_nonsense_are_named_with_their_scene(maps, tmp_path, field):
    scene = load_scene(maps, "room_a")
    getattr(scene, field)[5] = np.nan
    save_scene(tmp_path, scene)
    with pytest.raises(DatasetError, match=f"scene room_a: {field}"):
        Shards(tmp_path, "known", Recipe.preset("paper")).scene("room_a")


def test_one_teacher_under_two_licences_is_refused(maps, tmp_path):
    folder = tmp_path / "scenes"
    shutil.copytree(maps, folder)
    for name, licence in (("room_a", "MIT"), ("room_b", "CC-BY-NC-4.0")):
        features = TeacherFeatures(np.eye(4, dtype=np.float16), np.zeros(len(load_scene(maps, name)), np.int32))
        save_teacher(folder, name, "known", features, {"fingerprint": "x", "licence": licence})
    with pytest.raises(DatasetError, match="room_b: teacher_licence"):
        Shards(folder, "known", Recipe.preset("paper"))


def test_an_unpickled_shard_is_not_believed(tmp_path):
    save_file({"points_m": np.zeros((3, 3))}, tmp_path / "room.safetensors")
    with pytest.raises(DatasetError, match="prepare the scene again"):
        Shards(tmp_path, "known", Recipe.preset("robot"))


def test_only_some_scenes_are_kept_in_memory(maps):
    shards = Shards(maps, "known", Recipe.preset("robot", rank=4), most_bytes=1)
    first = shards.scene("room_a")
    assert shards.scene("room_a") is first
    shards.scene("room_b")
    assert shards.scene("room_a") is not first
    roomy = Shards(maps, "known", Recipe.preset("robot", rank=4))
    assert roomy.scene("room_a") is roomy.scene(("room_a", roomy.scene("room_b").name)[0])
