"""One scene to shards and back: what is stored, what is done twice, and what is wrong with broken scenes."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from geopurify_core.config import Config, MapConfig
from geopurify_core.datasets.synthetic import SyntheticDataset
from geopurify_core.mapping.keys import pack_keys
from geopurify_core.pipeline import SemanticMapper
from geopurify_core.purification.student.normals import fill_normals
from geopurify_core.scans import LiftSettings, lift, read_scannet
from training.scenes import mapped, one
from training.scenes.one import is_whole, make_scene, missing, prepare_one
from training.scenes.prepared import load_scene, load_teacher_features, save_scene, scene_path, teacher_path
from training.scenes.settings import Preparation, TeacherChoice
from training.scenes.shard_header import read_header
from training.scenes.sources import Source, find_sources
from training.teachers import known

LIFT = {"stride": 1, "border_px": 2}
QUICK = Preparation(lift=LIFT)
KNOWN = TeacherChoice("known")


def source_of(path):
    (source,) = find_sources([str(path)], path)
    return source


@pytest.fixture
def scene(disk, tmp_path):
    return source_of(disk.write_scannet(tmp_path / "scans" / "scene0000_00"))


def test_a_scan_becomes_a_shard(scene, tmp_path):
    outcome = prepare_one(scene, tmp_path, replace(QUICK, teachers=(KNOWN,)))
    assert (outcome.status, outcome.error) == ("prepared", ""), outcome
    scan, shard = read_scannet(scene.place), load_scene(tmp_path, "scene0000_00")
    lifted = lift(scan, QUICK.load_backbone(), LiftSettings.preset("robot", **LIFT))
    np.testing.assert_array_equal(shard.points_m, scan.points_m)
    np.testing.assert_array_equal(shard.rgb, scan.rgb)
    np.testing.assert_array_equal(shard.features, lifted.features)
    np.testing.assert_array_equal(shard.weight, lifted.views)
    np.testing.assert_array_equal(shard.labels, scan.labels["scannet20"])
    np.testing.assert_array_equal(shard.instances, scan.instances)
    backbone = QUICK.load_backbone()
    told = {"label_set": "scannet20", "voxel_size_m": 0.0, "source": "scannet:scene0000_00", "frames": "4/4"}
    told |= {"backbone": backbone.fingerprint, "text_fingerprint": backbone.text_fingerprint, "backbone_name": "nano"}
    assert told.items() <= shard.about.items()
    features, about = load_teacher_features(tmp_path, "scene0000_00", "known")
    np.testing.assert_array_equal(features.dense(), known.KnownTeacher().describe(shard.cloud()).dense())
    assert about["fingerprint"] == "known:0" and about["licence"]


def test_no_folder_of_this_machine_is_remembered(scene, tmp_path):
    prepare_one(scene, tmp_path, QUICK)
    text = json.dumps(dict(load_scene(tmp_path, scene.name).about))
    assert str(tmp_path) not in text


def test_the_second_time_nothing_is_done(scene, tmp_path, monkeypatch):
    settings = replace(QUICK, teachers=(KNOWN,))
    prepare_one(scene, tmp_path, settings)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    monkeypatch.setattr(one, "make_scene", lambda *_: pytest.fail("made again"))
    assert missing(scene, tmp_path, settings) == []
    again = prepare_one(scene, tmp_path, settings)
    assert (again.status, again.points) == ("whole", len(load_scene(tmp_path, scene.name)))
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")} == before


def test_a_teacher_is_added_without_lifting_again(scene, tmp_path, monkeypatch):
    prepare_one(scene, tmp_path, QUICK)
    stamp = scene_path(tmp_path, scene.name).stat().st_mtime_ns
    monkeypatch.setattr(one, "make_scene", lambda *_: pytest.fail("made again"))
    settings = replace(QUICK, teachers=(KNOWN,))
    assert missing(scene, tmp_path, settings) == ["known"]
    assert prepare_one(scene, tmp_path, settings).status == "taught"
    other = replace(QUICK, teachers=(TeacherChoice("known", {"seed": 5}),))  # another teacher of that name
    assert prepare_one(scene, tmp_path, other).status == "taught"
    assert load_teacher_features(tmp_path, scene.name, "known")[1]["fingerprint"] == "known:5"
    there = Source(scene.name, "prepared", scene.name)  # also without the scan at hand
    assert prepare_one(there, tmp_path, settings).status == "taught"
    assert prepare_one(there, tmp_path, settings).status == "whole"
    assert scene_path(tmp_path, scene.name).stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    "change",
    [{"recipe": "openscene"}, {"lift": {**LIFT, "relative_depth": 0.1}}, {"as_map": True}, {"align": True}],
)
def test_other_settings_make_it_again_and_its_teachers_too(scene, tmp_path, change):
    settings = replace(QUICK, teachers=(KNOWN,))
    prepare_one(scene, tmp_path, settings)
    changed = replace(settings, **{**change, **({"lift": {**LIFT, **change.get("lift", {})}})})
    assert missing(scene, tmp_path, changed) == ["scene", "known"]
    assert prepare_one(scene, tmp_path, changed).status == "prepared"
    assert missing(scene, tmp_path, changed) == []


def test_a_new_frame_makes_it_again(disk, scene, tmp_path):
    prepare_one(scene, tmp_path, QUICK)
    disk.write_frames(tmp_path / "scans" / "scene0000_00", {50: (0.9, 1.3)})
    assert missing(scene, tmp_path, QUICK) == ["scene"]


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_damaged_shard_is_made_again(scene, tmp_path, keep):
    settings = replace(QUICK, teachers=(KNOWN,))
    prepare_one(scene, tmp_path, settings)
    path = teacher_path(tmp_path, scene.name, "known")
    path.write_bytes(path.read_bytes()[:keep])
    assert prepare_one(scene, tmp_path, settings).status == "taught"
    path = scene_path(tmp_path, scene.name)
    path.write_bytes(path.read_bytes()[:keep])
    assert prepare_one(scene, tmp_path, settings).status == "prepared"
    assert len(load_scene(tmp_path, scene.name)) > 0


def test_a_teacher_of_another_version_of_the_scene_does_not_count(scene, tmp_path):
    settings = replace(QUICK, teachers=(KNOWN,))
    prepare_one(scene, tmp_path, settings)
    shard = load_scene(tmp_path, scene.name)
    save_scene(tmp_path, replace(shard, about={**shard.about, "frames": "1/4"}))
    assert missing(Source(scene.name, "prepared", scene.name), tmp_path, settings) == ["known"]


# -- what is wrong ---------------------------------------------------------------------------------------------------


def broken(disk, folder, how):
    """A ScanNet scene with one thing wrong."""
    disk.write_scannet(folder, frames=how != "no images")
    mesh, labels = folder / f"{folder.name}_vh_clean_2.ply", folder / f"{folder.name}_vh_clean_2.labels.ply"
    points, rgb, _, faces = disk.room()
    if how == "mesh":
        mesh.write_bytes(mesh.read_bytes()[:5000])
    elif how == "images":
        for path in (folder / "color").iterdir():
            path.write_bytes(b"broken")
    elif how == "poses":
        for path in (folder / "pose").iterdir():
            path.write_text("inf " * 16)
    elif how == "labels":
        disk.write_ply(labels, disk.columns(points, rgb, label=np.full(len(points), 999, "<u2")))
    elif how in ("empty", "few"):
        count = 0 if how == "empty" else 65
        disk.write_ply(mesh, disk.columns(points[-count or len(points) :], rgb[-count or len(rgb) :]))
        labels.unlink()
        (folder / f"{folder.name}.aggregation.json").unlink()
    elif how == "elsewhere":
        disk.write_ply(mesh, disk.columns(points + 100, rgb), faces)
    return source_of(folder)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("mesh", "cannot be read"), ("images", "None of them sees"), ("poses", "None of them sees"),
        ("labels", "999"), ("empty", "no points"), ("few", "64 negatives need 66"),
        ("no images", "no images"), ("elsewhere", "None of them sees"),
    ],
)  # fmt: skip
def test_broken_scenes_are_told_apart_and_leave_nothing(disk, tmp_path, how, says):
    source = broken(disk, tmp_path / "scans" / "scene0000_00", how)
    outcome = prepare_one(source, tmp_path / "out", replace(QUICK, teachers=(KNOWN,)))
    assert (outcome.status, outcome.error) == ("failed", "DatasetError") and says in outcome.reason
    assert not list(tmp_path.glob("out/*"))


def test_an_unforeseen_error_is_an_outcome_too(scene, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError("of a library")

    monkeypatch.setattr(one, "read_scannet", fail)
    outcome = prepare_one(scene, tmp_path, QUICK)
    assert (outcome.status, outcome.error, outcome.reason) == ("failed", "ZeroDivisionError", "of a library")


# -- maps ------------------------------------------------------------------------------------------------------------


def test_a_recording_is_mapped(disk, tmp_path):
    walk = disk.write_frames(tmp_path / "walk")
    settings = replace(QUICK, config=Config(map=MapConfig(voxel_size_m=0.05)), stride=2)
    outcome = prepare_one(source_of(walk), tmp_path, settings)
    shard = load_scene(tmp_path, "walk")
    assert outcome.status == "prepared" and shard.voxel_size_m == 0.05 and shard.about["frames"] == "2/2"
    assert shard.labels is None and shard.instances is None and shard.about.get("label_set", "") == ""
    coords = np.round(shard.points_m / 0.05 - 0.5).astype(np.int64)
    np.testing.assert_allclose(shard.points_m, (coords + 0.5) * 0.05, atol=1e-5)
    assert (np.diff(pack_keys(coords)) > 0).all()
    assert missing(source_of(walk), tmp_path, replace(settings, config=Config())) == ["scene"]


def test_a_scan_may_be_mapped_and_keeps_its_labels(disk, scene, tmp_path):
    assert prepare_one(scene, tmp_path, replace(QUICK, as_map=True)).status == "prepared"
    shard, scan = load_scene(tmp_path, scene.name), read_scannet(scene.place)
    assert shard.voxel_size_m > 0 and shard.about["label_set"] == "scannet20" and shard.about["frames"] == "4/4"
    for row in range(0, len(shard), 97):
        distance = np.linalg.norm(scan.points_m - shard.points_m[row], axis=1)
        nearest = np.flatnonzero(distance <= distance.min() + 1e-6)
        expected = set(scan.labels["scannet20"][nearest]) if distance.min() <= mapped.REACH_M else {255}
        assert shard.labels[row] in expected


@pytest.mark.parametrize("as_map", [False, True])
def test_frames_that_cannot_be_read_are_counted(disk, scene, tmp_path, as_map):
    (tmp_path / "scans/scene0000_00/pose/20.txt").unlink()
    (tmp_path / "scans/scene0000_00/color/30.png").write_bytes(b"broken")
    outcome = prepare_one(scene, tmp_path, replace(QUICK, as_map=as_map))
    assert outcome.left_out == "frames (missing pose file: 1, unreadable image: 1)"
    about = load_scene(tmp_path, scene.name).about
    assert about["frames"] == "2/4" and sum(about["frames_left_out"].values()) == 2


def test_frames_of_a_recording_are_counted_too(disk, tmp_path):
    walk = disk.write_frames(tmp_path / "walk")
    (walk / "pose/20.txt").unlink()
    depth = walk / "depth/30.png"
    Image.fromarray(np.zeros((disk.HEIGHT, disk.WIDTH), np.uint16)).save(depth)
    outcome = prepare_one(source_of(walk), tmp_path, QUICK)
    assert outcome.left_out == "frames (missing pose file: 1, no usable depth: 1)"
    assert load_scene(tmp_path, "walk").about["frames"] == "2/4"


def test_a_region_is_prepared(disk, tmp_path):
    source = source_of(disk.write_matterport(tmp_path / "mp" / "aHouse"))
    settings = replace(QUICK, recipe="openscene_matterport", lift={"border_px": 2, "image_size": (64, 48)})
    assert prepare_one(source, tmp_path, settings).status == "prepared"
    assert load_scene(tmp_path, "aHouse_region0").about["label_set"] == "matterport21"
    chosen = replace(settings, label_set="matterport40")
    assert missing(source, tmp_path, chosen) == ["scene"]
    assert prepare_one(source, tmp_path, chosen).status == "prepared"
    assert load_scene(tmp_path, "aHouse_region0").about["label_set"] == "matterport40"


def test_consensus_uses_the_label_sets_words(scene, tmp_path):
    settings = replace(QUICK, recipe="geopurify", lift={**LIFT, "min_points": 20, "image_size": (64, 48)})
    assert settings.texts("scannet")[0] == "a wall in a scene" and len(settings.texts("scannet")) == 19
    assert settings.texts("matterport")[14] == "a refridgerator in a scene" and len(settings.texts("matterport")) == 21
    assert replace(settings, backbone="xdecoder").texts("scannet")[0] == "wall"  # it says "a {} in a scene" itself
    assert prepare_one(scene, tmp_path, settings).status == "prepared"
    shard = load_scene(tmp_path, scene.name)
    assert (shard.weight >= 1).all()  # unseen points are copies
    assert shard.features.any(axis=1).all()


def test_an_apartment_is_mapped_as_a_robot_would(monkeypatch):
    """Voxels, truth and normals are those of the plain pipeline along the same walk."""
    for module in (mapped, one):
        monkeypatch.setattr(module, "walk_of", lambda seed: (9, 3))
    shard = make_scene(Source("apartment_0399", "synthetic", "synthetic:399"), Preparation())
    recording = SyntheticDataset(399, num_frames=9)
    mapper = SemanticMapper(Config(), Preparation().load_backbone())
    for frame in recording.frames(stop=3):
        mapper.integrate(frame)
    snapshot = mapper.snapshot()
    order = np.argsort(pack_keys(snapshot.coords), kind="stable")
    np.testing.assert_array_equal(shard.points_m, snapshot.centers_m[order])
    np.testing.assert_array_equal(shard.features, snapshot.features[order])
    np.testing.assert_array_equal(shard.weight, snapshot.weight[order])
    filled = fill_normals(snapshot.coords, snapshot.normals)[order]
    np.testing.assert_array_equal(shard.normals, filled.astype(np.float16))
    instances = recording.ground_truth_instances(snapshot.centers_m)[order]
    np.testing.assert_array_equal(shard.instances, instances)
    np.testing.assert_array_equal(shard.labels, recording.apartment.class_of_instance[instances])
    assert shard.about["frames"] == "3/9" and shard.about["label_set"] == "synthetic"


def test_shards_of_before_are_recognised(make_scene, tmp_path, monkeypatch):
    """They remember backbone, source, walk and label set, but no settings: the defaults."""
    backbone = Preparation().load_backbone()
    about = {"backbone": backbone.fingerprint, "text_fingerprint": backbone.text_fingerprint, "voxel_size_m": 0.04}
    about |= {"source": "synthetic:300", "frames": "61/101", "label_set": "synthetic"}
    save_scene(tmp_path, make_scene("apartment_0300", **about))
    source = Source("apartment_0300", "synthetic", "synthetic:300")
    header = read_header(scene_path(tmp_path, "apartment_0300"))
    assert is_whole(header, source, Preparation())
    assert not is_whole(header, source, Preparation(config=Config(map=MapConfig(voxel_size_m=0.05))))
    for key, value in (("frames", "60/101"), ("backbone", "nano:other"), ("source", "synthetic:301")):
        other = replace(header, about={**header.about, key: value})
        assert not is_whole(other, source, Preparation())


def test_settings_newer_than_a_shard_count_as_the_defaults(scene, tmp_path):
    prepare_one(scene, tmp_path, QUICK)
    shard = load_scene(tmp_path, scene.name)
    recipe = json.loads(json.dumps(shard.about["recipe"]))
    del recipe["lift"]["fill_unseen"], recipe["lift"]["test"]["relative_depth"], recipe["texts"]
    save_scene(tmp_path, replace(shard, about={**shard.about, "recipe": recipe}))
    assert missing(scene, tmp_path, QUICK) == []
    assert missing(scene, tmp_path, replace(QUICK, lift={**LIFT, "fill_unseen": True})) == ["scene"]
    assert missing(scene, tmp_path, replace(QUICK, lift={**LIFT, "relative_depth": 0.1})) == ["scene"]
