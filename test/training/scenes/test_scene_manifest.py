"""The manifest tells what is there, can be made again, and never lists what is half written."""

import json
import os
import time
from dataclasses import replace

import numpy as np
import pytest

from training.scenes.manifest import FILE, remove_stale, write_manifest
from training.scenes.one import Outcome
from training.scenes.prepared import load_scene, save_scene, save_teacher, scene_names, scene_path, teacher_path
from training.teachers.base import TeacherFeatures


@pytest.fixture
def folder(tmp_path, make_scene):
    for name, count in (("a", 100), ("b", 70)):
        save_scene(tmp_path, make_scene(name, count, label_set="scannet20", frames="3/4"))
    features = TeacherFeatures(np.ones((4, 6), np.float16), np.zeros(100, np.int32))
    save_teacher(tmp_path, "a", "geometric", features, {"fingerprint": "g:1", "licence": "Apache-2.0"})
    return tmp_path


def test_it_tells_what_is_there(folder):
    manifest = write_manifest(folder)
    assert json.loads((folder / FILE).read_text()) == manifest
    a = manifest["scenes"]["a"]
    assert (a["file"], a["points"], a["channels"], a["label_set"], a["instances"]) == (
        "a.safetensors", 100, 8, "scannet20", True
    )  # fmt: skip
    assert a["bytes"] == (folder / "a.safetensors").stat().st_size
    assert a["teachers"]["geometric"]["fingerprint"] == "g:1" and a["teachers"]["geometric"]["channels"] == 6
    assert manifest["scenes"]["b"]["teachers"] == {} and manifest["points"] == 170
    assert manifest["backbones"] == ["b:1"] and manifest["label_sets"] == ["scannet20"] and not manifest["skipped"]


def test_it_can_be_made_again_from_the_shards(folder):
    before = write_manifest(folder)
    (folder / FILE).unlink()
    assert write_manifest(folder) == before
    (folder / FILE).write_text("{ damaged")
    assert write_manifest(folder) == before


def test_half_written_and_damaged_files_are_never_listed(folder):
    whole = scene_path(folder, "a").read_bytes()
    (folder / "c.4711.tmp").write_bytes(whole[:1000])
    (folder / "d.safetensors").write_bytes(whole[:-1])
    (folder / "e.safetensors").write_bytes(b"")
    teacher = teacher_path(folder, "a", "geometric")
    teacher.write_bytes(teacher.read_bytes()[:-1])
    manifest = write_manifest(folder)
    assert list(manifest["scenes"]) == ["a", "b"] and manifest["scenes"]["a"]["teachers"] == {}
    assert "c" not in scene_names(folder)


def test_a_teacher_of_other_points_is_not_listed(folder, make_scene):
    save_scene(folder, make_scene("a", 99))
    assert write_manifest(folder)["scenes"]["a"]["teachers"] == {}


def test_what_failed_stays_listed_until_it_is_there(folder, make_scene):
    bad = Outcome("c", "scannet:c", "failed", error="DatasetError", reason="mesh")
    write_manifest(folder, [bad, Outcome("a", "s", "whole", 100)])
    entry = {"name": "c", "source": "scannet:c", "error": "DatasetError", "reason": "mesh"}
    assert write_manifest(folder)["skipped"] == [entry]
    assert write_manifest(folder, [replace(bad, reason="pose")])["skipped"] == [{**entry, "reason": "pose"}]
    save_scene(folder, make_scene("c"))
    assert write_manifest(folder)["skipped"] == []


def test_stale_files_go_and_fresh_ones_stay(folder):
    old, fresh, mine = (folder / name for name in ("x.1.tmp", "y.2.tmp", "a.geometric.3.tmp"))
    for path in (old, fresh, mine):
        path.write_bytes(b"half")
    hour_ago = time.time() - 3600
    os.utime(old, (hour_ago, hour_ago))
    assert remove_stale(folder) == ["x.1.tmp"]
    assert remove_stale(folder, ["a", "b"]) == ["a.geometric.3.tmp"]
    assert fresh.exists() and len(scene_names(folder)) == 2


def test_others_may_read_the_shards(folder):
    before = os.umask(0o022)
    try:
        save_scene(folder, load_scene(folder, "a"))
        assert scene_path(folder, "a").stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(before)
