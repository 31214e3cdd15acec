"""Where histograms come from: shards, meshes, OpenScene's files, tables, geometry; and what is left out and why."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from geopurify_core.errors import DatasetError, GeoPurifyError
from training.scenes.prepared import PreparedScene, save_scene
from training.selection.geometry import geometry_histogram
from training.selection.label_files import of_pth, of_table
from training.selection.sources import find_scenes, read_scenes


def room(width_m: float, depth_m: float, height_m: float, seed: int = 0, per_m2: int = 1200) -> np.ndarray:
    """(N, 3) float32 points on floor and four walls."""
    rng = np.random.default_rng(seed)
    sides = [(width_m, depth_m, (0, 1)), (width_m, height_m, (0, 2)), (depth_m, height_m, (1, 2))]
    parts = []
    for a, b, axes in sides:
        for offset in (0.0,) if axes == (0, 1) else (0.0, (depth_m, width_m)[axes == (1, 2)]):
            part = np.full((int(a * b * per_m2), 3), offset)
            part[:, axes] = rng.uniform((0, 0), (a, b), (len(part), 2))
            parts.append(part)
    return np.concatenate(parts).astype(np.float32)


def ball(centre: tuple[float, float, float], radius_m: float, points: int = 4000, seed: int = 0) -> np.ndarray:
    directions = np.random.default_rng(seed).standard_normal((points, 3))
    return (np.array(centre) + radius_m * directions / np.linalg.norm(directions, axis=1, keepdims=True)).astype("f4")


def shard(folder: Path, name: str, labels: np.ndarray | None, points_m: np.ndarray | None = None) -> None:
    count = len(labels) if labels is not None else len(points_m)
    points = np.zeros((count, 3), np.float32) if points_m is None else points_m
    blank = np.zeros((count, 3), np.float16)
    about = {"label_set": "scannet20"}
    save_scene(
        folder,
        PreparedScene(name, points, blank.astype(np.uint8), blank, blank, np.ones(count, "f4"), labels, about=about),
    )


def labelled_ply(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cloud = np.zeros(len(ids), [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("label", "<u2")])
    cloud["label"] = ids
    kinds = "".join(f"property {kind} {name}\n" for name, kind in zip("xyz", ["float"] * 3, strict=True))
    header = (
        f"ply\nformat binary_little_endian 1.0\nelement vertex {len(ids)}\n{kinds}property ushort label\nend_header\n"
    )
    path.write_bytes(header.encode() + cloud.tobytes())


def read_all(*sources: Path, **options):
    return read_scenes(find_scenes(sources, **options))


def test_prepared_scenes_are_counted_and_teachers_shards_are_none(tmp_path):
    shard(tmp_path, "b", np.array([0, 0, 3, 255], np.uint8))
    shard(tmp_path, "a", np.array([1, 19], np.uint8))
    (tmp_path / "a.geometric.safetensors").write_bytes(b"of a teacher")
    good, skipped = read_all(tmp_path)
    assert not skipped and [one.name for one in good] == ["a", "b"]
    assert good[1].histogram[[0, 3]].tolist() == [2, 1] and good[1].richness == 2
    assert good[0].source == tmp_path / "a.safetensors"


def test_bad_scenes_are_left_out_each_with_its_reason(tmp_path):
    shard(tmp_path, "good", np.array([0, 1], np.uint8))
    shard(tmp_path, "unlabelled", None, np.zeros((3, 3), np.float32))
    shard(tmp_path, "nothing", np.array([255, 255], np.uint8))
    shard(tmp_path, "foreign", np.array([0, 20], np.uint8))
    (tmp_path / "broken.safetensors").write_bytes((tmp_path / "good.safetensors").read_bytes()[:60])
    good, skipped = read_all(tmp_path)
    assert [one.name for one in good] == ["good"]
    reasons = {one.name: one.reason for one in skipped}
    assert sorted(reasons) == ["broken", "foreign", "nothing", "unlabelled"]
    assert "--without-labels" in reasons["unlabelled"] and "label 20" in reasons["foreign"]
    assert "no labelled point" in reasons["nothing"] and "prepare" in reasons["broken"]


def test_scannet_scenes_are_found_by_their_labelled_meshes(tmp_path):
    for name, ids in (("scene0001_00", [1, 1, 2, 0]), ("scene0002_01", [39, 40, 13])):
        labelled_ply(tmp_path / name / f"{name}_vh_clean_2.labels.ply", np.array(ids))
    good, _ = read_all(tmp_path)
    assert [(one.name, one.source) for one in good] == [
        ("scene0001_00", tmp_path / "scene0001_00"), ("scene0002_01", tmp_path / "scene0002_01"),
    ]  # fmt: skip
    assert good[0].histogram[[0, 1]].tolist() == [2, 1] and good[0].histogram.sum() == 3  # id 0: not annotated
    assert good[1].histogram.tolist() == [0] * 19 + [1]  # 39 is otherfurniture, 40 and 13 are outside the twenty


def test_ids_that_nyu40_does_not_have_are_no_labels(tmp_path):
    labelled_ply(tmp_path / "scene0001_00_vh_clean_2.labels.ply", np.array([1, 41]))
    good, skipped = read_all(tmp_path)
    assert not good and "41" in skipped[0].reason


def test_the_real_scan_has_the_classes_its_table_says(shared_dir):
    folder = shared_dir / "data" / "scan_scene0000_00"
    good, _ = read_all(folder / "labelled.ply")
    table = json.loads((folder / "labels.json").read_text())["counts"]
    assert good[0].histogram[0] == table["wall"]["points"] and good[0].histogram[1] == table["floor"]["points"]
    assert good[0].complexity_bits == pytest.approx(3.1, abs=0.3)


def test_openscene_files_are_read_as_arrays_only(tmp_path):
    points, colours = np.zeros((4, 3), np.float32), np.zeros((4, 3))
    torch.save((points, colours, np.array([0, 0, 5, 255], np.uint8)), tmp_path / "scene0001_00_vh_clean_2.pth")
    good, _ = read_all(tmp_path, label_set="matterport21")
    assert good[0].histogram.tolist() == [2, 0, 0, 0, 0, 1] + [0] * 15
    assert good[0].name == "scene0001_00"
    torch.save((points, colours, np.array([0.0, -100.0, 1.0])), tmp_path / "floats.pth")
    assert of_pth(tmp_path / "floats.pth", None, "floats").tolist() == [1, 1]


class Trap:
    """Touches a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", [torch.save, lambda data, path: path.write_bytes(pickle.dumps(data))])
def test_code_in_a_pth_file_is_refused_not_run(tmp_path, save):
    save((0, 0, Trap(tmp_path / "ran")), tmp_path / "bad.pth")
    with pytest.raises(DatasetError, match="tuple"):
        of_pth(tmp_path / "bad.pth", None, "bad")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a pickle"])
def test_a_damaged_pth_file_is_a_typed_error(tmp_path, content):
    (tmp_path / "bad.pth").write_bytes(content)
    with pytest.raises(DatasetError):
        of_pth(tmp_path / "bad.pth", None, "bad")


def test_tables_of_histograms(tmp_path):
    (tmp_path / "h.csv").write_text("scene,wall,floor\na,3,0\nb,1,2\n\n")
    (tmp_path / "h.json").write_text(json.dumps({"a": {"wall": 3}, "b": {"floor": 2, "wall": 1}}))
    (tmp_path / "lists.json").write_text(json.dumps({"a": [3], "b": [1, 2]}))
    for name in ("h.csv", "h.json", "lists.json"):
        table = of_table(tmp_path / name)
        assert {scene: counts.tolist() for scene, counts in table.items()} == {"a": [3, 0], "b": [1, 2]}
        assert [one.source for one in read_all(tmp_path / name)[0]] == [None, None]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "scene,wall\na,-1\n",
        "scene,wall\na,1.5\n",
        "scene,wall\na,1,2\n",
        "scene,wall\na,1\na,2\n",
        "scene,wall\na,x\n",
    ],
)
def test_tables_that_are_none_are_refused(tmp_path, text):
    (tmp_path / "h.csv").write_text(text)
    with pytest.raises(DatasetError):
        of_table(tmp_path / "h.csv")


def test_a_scene_of_a_table_without_points_is_left_out(tmp_path):
    (tmp_path / "h.csv").write_text("scene,wall\na,0\nb,1\n")
    good, skipped = read_all(tmp_path / "h.csv")
    assert [one.name for one in good] == ["b"] and skipped[0].name == "a"


@pytest.mark.parametrize("name", ["absent", "empty", "photo.jpg"])
def test_sources_that_hold_no_scene_are_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(GeoPurifyError, match="prepared shards"):
        find_scenes([tmp_path / name])


# -- geometry instead of labels --------------------------------------------------------------------------------------


def test_a_furnished_room_is_richer_than_an_empty_one():
    bare = room(4, 3, 2.5)
    things = [ball((1, 1, 0.5), 0.3), ball((3, 2, 1.0), 0.15, seed=1), ball((2, 2, 0.8), 0.45, seed=2)]
    furnished = np.concatenate([bare, *things])
    counts = [geometry_histogram(points, "room") for points in (bare, furnished)]
    assert np.count_nonzero(counts[1]) > np.count_nonzero(counts[0])


def test_a_turn_about_the_vertical_and_a_shift_hardly_matter_and_density_does_not():
    points = np.concatenate([room(4, 3, 2.5), ball((1, 1, 0.5), 0.3)])
    c, s = np.cos(0.7), np.sin(0.7)
    turned = points @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]]) + (5, -3, 1)
    dense = np.concatenate([points, points + np.float32(0.001)])
    base = geometry_histogram(points, "room").astype(float)
    for other in (turned, dense):
        counts = geometry_histogram(other, "room").astype(float)
        overlap = np.minimum(base / base.sum(), counts / counts.sum()).sum()
        assert overlap > 0.85  # the grid of cells lies elsewhere; measured 0.96 and 0.97


def test_floor_and_walls_are_told_apart_by_slope_and_height():
    counts = geometry_histogram(room(6, 6, 2.5), "room").reshape(9, 3, 5)
    walls, leaning, level = counts.sum(axis=0)
    assert level[0] > 0.9 * level.sum() > 0  # the floor is level and low
    assert (walls[1:] > 0).all() and leaning.sum() < 0.2 * counts.sum()


@pytest.mark.parametrize(
    "points", [np.zeros((0, 3)), np.full((500, 3), np.nan), np.zeros((5000, 3)), np.random.rand(500, 3) * 1e6]
)
def test_what_is_no_scene_is_refused(points):
    with pytest.raises(DatasetError):
        geometry_histogram(points, "room")


def test_meshes_shards_and_maps_need_no_labels(tmp_path):
    points = room(2, 2, 2)
    shard(tmp_path, "mapped", None, points)
    trimesh.PointCloud(points).export(tmp_path / "cloud.ply")
    from_shard, _ = read_all(tmp_path / "mapped.safetensors", without_labels=True)
    from_ply, _ = read_all(tmp_path / "cloud.ply", without_labels=True)
    assert from_shard[0].richness == pytest.approx(from_ply[0].richness, abs=2)  # samples are seeded by name
    assert from_shard[0].richness > 3


def test_a_saved_map_is_turned_upright(tmp_path, small_map):
    good, skipped = read_all(small_map, without_labels=True)
    assert not skipped and good[0].name == small_map.stem and good[0].richness > 3


@pytest.fixture
def small_map(tmp_path):
    from geopurify_core.mapping.snapshot import MapSnapshot
    from geopurify_core.mapping.store import save_map

    points = room(2, 2, 2)[:, [0, 2, 1]] * (1, -1, 1)  # up is -y, as where the world is the first camera
    coords = np.unique(np.floor(points / 0.04).astype(np.int32), axis=0)
    n = len(coords)
    normals = np.zeros((n, 3), np.float16)
    normals[coords[:, 1] == coords[:, 1].max()] = (0, -1, 0)
    path = tmp_path / "walk.safetensors"
    times = np.zeros(n, np.int64)
    save_map(path, MapSnapshot(
        coords, np.zeros((n, 4), np.float16), np.ones(n, "f4"), np.zeros((n, 3), np.uint8), normals, times, times,
        0.04, "map", 0, 1, "none", "none",
    ))  # fmt: skip
    return path
