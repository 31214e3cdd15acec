"""PLY files written here, read back, and damaged; normals of meshes and clouds."""

import subprocess
import sys

import numpy as np
import pytest

from geopurify_core.errors import DatasetError, NotAvailableError
from geopurify_core.scans.mesh import read_ply
from geopurify_core.scans.normals import plane_normals, scan_normals


@pytest.fixture
def room(disk):
    return disk.room()


@pytest.mark.parametrize("ascii_text", [False, True])
@pytest.mark.parametrize("meshed", [False, True])
def test_a_file_is_read_back(disk, room, tmp_path, ascii_text, meshed):
    points, rgb, ids, faces = room
    vertex = disk.columns(points, rgb, alpha=np.full(len(points), 255, np.uint8), label=ids.astype("<u2"))
    category = np.arange(len(faces), dtype="<i4")
    mesh_parts = (faces, {"category_id": category}) if meshed else (None, None)
    path = disk.write_ply(tmp_path / "a.ply", vertex, *mesh_parts, ascii_text=ascii_text)
    mesh = read_ply(path)
    np.testing.assert_array_equal(mesh.points_m, points)
    np.testing.assert_array_equal(mesh.rgb, rgb)
    np.testing.assert_array_equal(mesh.vertex_field("label", path), ids)
    assert mesh.points_m.dtype == np.float32 and mesh.rgb.dtype == np.uint8 and mesh.faces.dtype == np.int64
    if meshed:
        np.testing.assert_array_equal(mesh.faces, faces)
        np.testing.assert_array_equal(mesh.face_fields["category_id"], category)
    else:
        assert mesh.faces.shape == (0, 3) and not mesh.face_fields


def test_vertices_that_coincide_stay_apart(disk, tmp_path):
    points = np.zeros((5, 3), np.float32)
    mesh = read_ply(disk.write_ply(tmp_path / "a.ply", disk.columns(points, np.zeros((5, 3), np.uint8))))
    assert len(mesh) == 5


def test_without_colours_it_is_grey(disk, tmp_path):
    vertex = {name: np.arange(4, dtype="<f4") for name in "xyz"}
    assert (read_ply(disk.write_ply(tmp_path / "a.ply", vertex)).rgb == 128).all()


@pytest.mark.parametrize("keep", [0, 3, 60, 400, -1])
def test_a_truncated_file_is_an_error(disk, room, tmp_path, keep):
    points, rgb, _, faces = room
    path = disk.write_ply(tmp_path / "a.ply", disk.columns(points, rgb), faces)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DatasetError, match=r"a\.ply"):
        read_ply(path)


def test_bad_content_is_named(disk, tmp_path):
    grey = np.zeros((4, 3), np.uint8)
    nan = np.zeros((4, 3), np.float32)
    nan[2, 1] = np.nan
    with pytest.raises(DatasetError, match="1 of its 4 points are not finite"):
        read_ply(disk.write_ply(tmp_path / "nan.ply", disk.columns(nan, grey)))
    with pytest.raises(DatasetError, match="vertex 9 of 4"):
        points = np.arange(12, dtype=np.float32).reshape(4, 3)
        read_ply(disk.write_ply(tmp_path / "face.ply", disk.columns(points, grey), np.array([[0, 1, 9]])))
    with pytest.raises(DatasetError):
        read_ply(disk.write_ply(tmp_path / "empty.ply", disk.columns(nan[:0], grey[:0])))
    with pytest.raises(DatasetError, match="no such file"):
        read_ply(tmp_path / "absent.ply")
    path = disk.write_ply(tmp_path / "plain.ply", disk.columns(np.ones((4, 3), np.float32), grey))
    with pytest.raises(DatasetError, match="no such field"):
        read_ply(path).vertex_field("label", path)


def test_without_trimesh_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "trimesh", None)
    with pytest.raises(NotAvailableError, match=r"geopurify_ros\[training\]"):
        read_ply(tmp_path / "a.ply")


def test_a_robot_needs_nothing_that_scans_and_training_need():
    """The core, its reader of scans included, is imported where neither trimesh nor what trains is installed."""
    heavy = {"trimesh", "ray", "lightning_fabric", "sklearn", "tensorboard", "torchmetrics", "training"}
    code = f"import sys, geopurify_core.pipeline, geopurify_core.scans; print({heavy!r} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "set()"


def test_meshes_take_the_normals_of_their_faces_and_lone_vertices_a_plane(disk, room, tmp_path):
    points, rgb, _, faces = room
    lone = faces[(faces != 100).all(axis=1)]  # vertex 100 of the floor loses its faces
    mesh = read_ply(disk.write_ply(tmp_path / "a.ply", disk.columns(points, rgb), lone))
    np.testing.assert_allclose(scan_normals(mesh), np.tile([0, 0, 1], (len(points), 1)), atol=1e-6)


def test_planes_equal_those_of_a_loop():
    rng = np.random.default_rng(1)
    points = rng.uniform(-1, 1, (300, 3)) * (1, 1, 0.005)
    normals = plane_normals(points, neighbours=12)
    for i in range(0, 300, 17):
        near = points[np.argsort(((points - points[i]) ** 2).sum(axis=1), kind="stable")[:12]]
        axis = np.linalg.svd(near - near.mean(axis=0))[2][2]
        np.testing.assert_allclose(normals[i], axis * np.sign(axis[2]), atol=1e-5)


def test_planes_face_the_nearest_camera_or_up():
    grid = np.stack(np.meshgrid(np.arange(6.0), np.arange(6.0)), axis=-1).reshape(-1, 2)
    floor = np.column_stack([grid, np.zeros(36)])
    assert (plane_normals(floor)[:, 2] > 0.99).all()
    cameras = np.array([[0, 2.5, -2.0], [5, 2.5, 2.0]])
    normals = plane_normals(floor, cameras_m=cameras)
    assert (normals[floor[:, 0] < 2, 2] < -0.99).all() and (normals[floor[:, 0] > 3, 2] > 0.99).all()


def test_lines_and_handfuls_have_no_normal():
    line = np.column_stack([np.arange(40.0), np.zeros(40), np.zeros(40)])
    assert not plane_normals(line).any()
    assert plane_normals(line[:2]).shape == (2, 3) and not plane_normals(line[:2]).any()
