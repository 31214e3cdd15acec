"""Clouds read back by another program's reader, and by hand."""

import dataclasses

import numpy as np
import pytest

from geopurify_core.errors import InvalidConfigError
from geopurify_core.export import distinct_colors, write_cloud
from geopurify_core.mapping.snapshot import MapSnapshot


def snapshot(n=50):
    rng = np.random.default_rng(0)
    normals = rng.normal(size=(n, 3))
    return MapSnapshot(
        coords=rng.permutation(np.stack(np.meshgrid(*[np.arange(-5, 5)] * 3), -1).reshape(-1, 3))[:n].astype(np.int32),
        features=np.zeros((n, 2), np.float16),
        weight=np.ones(n, np.float32),
        rgb=rng.integers(0, 256, (n, 3), dtype=np.uint8),
        normals=(normals / np.linalg.norm(normals, axis=1, keepdims=True)).astype(np.float16),
        first_seen_ns=np.zeros(n, np.int64),
        last_seen_ns=np.zeros(n, np.int64),
        voxel_size_m=0.04,
        frame_id="map",
        stamp_ns=1,
        version=1,
        backbone="b",
        text_fingerprint="t",
    )


@pytest.mark.parametrize("suffix", [".ply", ".pcd", ".PLY"])
def test_open3d_reads_the_same_points(tmp_path, suffix):
    o3d = pytest.importorskip("open3d")
    map_ = snapshot()
    write_cloud(map_, tmp_path / f"new/cloud{suffix}")
    cloud = o3d.io.read_point_cloud(str(tmp_path / f"new/cloud{suffix}"))
    np.testing.assert_allclose(np.asarray(cloud.points), map_.centers_m, atol=1e-6)
    np.testing.assert_allclose(np.asarray(cloud.normals), map_.normals, atol=1e-3)
    np.testing.assert_allclose(np.asarray(cloud.colors) * 255, map_.rgb, atol=0.5)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [f"cloud{suffix}"]


def read_ply(path):
    """By the format's words: header lines, then packed little-endian records."""
    header, _, body = path.read_bytes().partition(b"\nend_header\n")
    lines = header.decode().splitlines()
    kinds = {"float": "<f4", "uchar": "u1", "int": "<i4"}
    fields = [line.split()[1:] for line in lines if line.startswith("property")]
    points = np.frombuffer(body, dtype=[(name, kinds[kind]) for kind, name in fields])
    assert f"element vertex {len(points)}" in lines
    return points, [line for line in lines if line.startswith("comment")]


def test_labels_colours_and_confidence(tmp_path):
    map_ = snapshot()
    label = (np.arange(50) % 4 - 1).astype(np.int32)
    confidence = np.linspace(0, 1, 50, dtype=np.float32)
    names = ["chair", "dining\ntable", "end_header"]
    write_cloud(map_, tmp_path / "a.ply", names, label, confidence)
    points, comments = read_ply(tmp_path / "a.ply")
    assert "comment label 1 dining table" in comments
    assert "comment features raw" in comments
    np.testing.assert_array_equal(points["label"], label)
    np.testing.assert_array_equal(points["confidence"], confidence)
    colors = np.stack([points["red"], points["green"], points["blue"]], 1)
    for i in range(3):
        np.testing.assert_array_equal(colors[label == i], np.tile(distinct_colors(3)[i], (np.sum(label == i), 1)))
    assert (colors[label == -1] == 150).all()
    purified = dataclasses.replace(map_, purified="student:1|k=96")
    write_cloud(purified, tmp_path / "a.ply", names, label, confidence, paint_labels=False)
    points, comments = read_ply(tmp_path / "a.ply")
    assert "comment features purified by student:1|k=96" in comments
    np.testing.assert_array_equal(points["green"], map_.rgb[:, 1])


def test_an_empty_map_is_an_empty_cloud(tmp_path):
    for name in ("a.ply", "a.pcd"):
        write_cloud(snapshot(0), tmp_path / name)
    assert b"element vertex 0" in (tmp_path / "a.ply").read_bytes()
    assert b"POINTS 0" in (tmp_path / "a.pcd").read_bytes()


def test_bad_requests_are_named_and_leave_the_old_file(tmp_path):
    (tmp_path / "a.ply").write_text("old")
    with pytest.raises(InvalidConfigError, match=r"\.ply"):
        write_cloud(snapshot(), tmp_path / "a.obj")
    for label in (np.zeros(49, np.int32), np.full(50, 2, np.int32), np.full(50, -2, np.int32)):
        with pytest.raises(InvalidConfigError, match="label"):
            write_cloud(snapshot(), tmp_path / "a.ply", ["x", "y"], label)
    (tmp_path / "blocked").write_text("a file")
    with pytest.raises(InvalidConfigError, match="written"):
        write_cloud(snapshot(), tmp_path / "blocked/a.ply")
    assert (tmp_path / "a.ply").read_text() == "old"


def test_colours_stay_apart():
    colors = distinct_colors(20).astype(int)
    gaps = np.abs(colors[:, None] - colors[None]).sum(-1) + 999 * np.eye(20, dtype=int)
    assert gaps.min() > 25 and distinct_colors(0).shape == (0, 3)
