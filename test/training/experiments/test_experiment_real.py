"""Real recordings as rooms: a tiny labelled scan, a map beside it, and what is refused."""

import json

import numpy as np
import pytest

from geopurify_core.datasets.synthetic import SyntheticDataset
from geopurify_core.datasets.synthetic.kinds import SCANNET20
from geopurify_core.errors import DatasetError
from training.experiments.real import SCAN, labelled_scan, mapped, real_scores, scan_room, target_scores

WALL_ID, FLOOR_ID, PERSON_ID = 1, 2, 31  # NYU40; ScanNet's 20 classes have no person


def write_scan(path, points, ids, instances):
    vertices = np.zeros(len(points), dtype=[("xyz", "<f4", 3), ("rgb", "u1", 3), ("label", "<u2"), ("instance", "<u2")])
    vertices["xyz"], vertices["label"], vertices["instance"] = points, ids, instances
    kinds = (
        "float x",
        "float y",
        "float z",
        "uchar red",
        "uchar green",
        "uchar blue",
        "ushort label",
        "ushort instance",
    )
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}"]
    header += [f"property {kind}" for kind in kinds] + ["end_header", ""]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("\n".join(header).encode() + vertices.tobytes())


@pytest.fixture(scope="module")
def snapshot(encoder):
    """Four frames of a procedural apartment."""
    return mapped(SyntheticDataset(11, num_frames=40).frames(stop=4), encoder)


def test_labels_are_read_in_scannets_classes(tmp_path):
    write_scan(tmp_path / "a.ply", np.eye(3), [WALL_ID, FLOOR_ID, PERSON_ID], [4, 5, 6])
    points, labels, instances = labelled_scan(tmp_path / "a.ply")
    np.testing.assert_array_equal(points, np.eye(3))
    assert labels.tolist() == [SCANNET20.index("wall"), SCANNET20.index("floor"), 255]
    assert instances.tolist() == [4, 5, 6]


@pytest.mark.parametrize("content", [b"", b"ply\nformat ascii 1.0\nend_header\n", None])
def test_a_broken_scan_is_named(tmp_path, content):
    write_scan(tmp_path / "a.ply", np.eye(3), [1, 2, 3], [1, 2, 3])
    whole = (tmp_path / "a.ply").read_bytes()
    (tmp_path / "a.ply").write_bytes(whole[:-5] if content is None else content)
    with pytest.raises(DatasetError, match="labelled scan"):
        labelled_scan(tmp_path / "a.ply")


def test_voxels_take_the_label_of_the_nearest_point_within_reach(snapshot, tmp_path):
    """Points beside every other voxel centre: those voxels are labelled, others where such a point is near."""
    chosen = snapshot.centers_m[::2] + np.array([0.01, 0.02, 0.0])
    write_scan(tmp_path / "a.ply", chosen, np.full(len(chosen), FLOOR_ID), np.arange(len(chosen)) % 1000 + 1)
    room = scan_room(snapshot, tmp_path / "a.ply", "toy")
    gap = np.array([np.linalg.norm(chosen - centre, axis=1).min() for centre in room.scene.points_m[:300]])
    clear = np.abs(gap - 0.1) > 1e-4
    np.testing.assert_array_equal((room.truth[:300] != 255)[clear], (gap < 0.1)[clear])
    write_scan(tmp_path / "far.ply", chosen + 50.0, np.full(len(chosen), FLOOR_ID), np.ones(len(chosen)))
    assert (scan_room(snapshot, tmp_path / "far.ply", "toy").truth == 255).all()


def test_a_folder_without_anything_to_score_is_refused(tmp_path, student, encoder):
    with pytest.raises(DatasetError, match="neither"):
        real_scores(tmp_path, student, encoder)


def test_targets_are_asked_of_raw_and_of_purified_maps(snapshot, student, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("training.experiments.real.open_dataset", lambda folder: ())
    monkeypatch.setattr("training.experiments.real.mapped", lambda frames, backbone: snapshot)
    entries = [{"query": "floor", "xyz": snapshot.centers_m[0].tolist()}, {"query": "bed", "xyz": [99, 99, 99]}]
    (tmp_path / "objects.json").write_text(json.dumps({"objects": entries}))
    result = target_scores(tmp_path, student, encoder, steps=(1,))
    assert set(result) == {"raw", "student, T=1"} and result["raw"]["targets"] == 2
    assert all(0 <= row["hit_at_1"] <= row["hit_at_3"] <= 1 for row in result.values())


@pytest.mark.slow
def test_the_photographs_of_the_labelled_scan_are_scored(shared_dir, encoder, student, tmp_path):
    """Only the three photographs, through the same command's function."""
    for name in ("posed_images_scene0000_00", SCAN.parts[0]):
        (tmp_path / name).symlink_to(shared_dir / "data" / name)
    result = real_scores(tmp_path, student, encoder)
    rows = result["posed_images_scene0000_00"]
    assert list(result) == ["posed_images_scene0000_00"] and len(rows["raw"]["IoU"]) == 9
    assert rows["raw"]["mIoU"] == pytest.approx(14.0, abs=1.0) and "student, T=36" in rows
    assert rows["true objects, T=18"]["mIoU"] > rows["raw"]["mIoU"] + 2
