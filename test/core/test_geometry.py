"""Up directions and upright boxes against constructed rooms and plain trigonometry."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from geopurify_core.errors import InvalidConfigError
from geopurify_core.geometry import corners_m, estimate_up, level_rotation, unit_up
from geopurify_core.mapping.snapshot import MapSnapshot

VOXEL_M = 0.05


def room(R: np.ndarray, ceiling: bool = False) -> MapSnapshot:
    """A 5 x 4 x 2.5 m room with a table, z up before it is turned by R."""
    points, normals = [], []

    def plane(origin, u, v, normal):
        a, b = np.meshgrid(np.arange(0, 1, VOXEL_M / np.linalg.norm(u)), np.arange(0, 1, VOXEL_M / np.linalg.norm(v)))
        points.append(np.asarray(origin) + a.reshape(-1, 1) * u + b.reshape(-1, 1) * v)
        normals.append(np.tile(normal, (a.size, 1)))

    x, y, z = np.array([5.0, 0, 0]), np.array([0, 4.0, 0]), np.array([0, 0, 2.5])
    plane((0, 0, 0), x, y, (0, 0, 1))
    plane((0, 0, 0), x, z, (0, 1, 0))
    plane((0, 4, 0), x, z, (0, -1, 0))
    plane((0, 0, 0), y, z, (1, 0, 0))
    plane((1, 1, 0.75), x / 3, y / 3, (0, 0, 1))
    if ceiling:
        plane((0, 0, 2.5), x / 2, y / 2, (0, 0, -1))
    centers, normal = np.concatenate(points) @ R.T, np.concatenate(normals) @ R.T
    noisy = normal + np.random.default_rng(0).normal(0, 0.05, normal.shape)
    noisy /= np.linalg.norm(noisy, axis=1, keepdims=True)
    n = len(centers)
    return MapSnapshot(
        coords=np.floor(centers / VOXEL_M).astype(np.int32),
        features=np.zeros((n, 2), np.float16),
        weight=np.ones(n, np.float32),
        rgb=np.full((n, 3), 128, np.uint8),
        normals=noisy.astype(np.float16),
        first_seen_ns=np.zeros(n, np.int64),
        last_seen_ns=np.zeros(n, np.int64),
        voxel_size_m=VOXEL_M,
        frame_id="map",
        stamp_ns=1,
        version=1,
        backbone="test",
        text_fingerprint="test",
    )


@pytest.mark.parametrize("ceiling", [False, True])
@pytest.mark.parametrize("yaw_deg", [0, 30, 90, 200])
def test_up_of_a_z_up_room(yaw_deg, ceiling):
    up = estimate_up(room(Rotation.from_euler("z", yaw_deg, degrees=True).as_matrix(), ceiling))
    assert np.degrees(np.arccos(up @ (0, 0, 1))) < 1.0


@pytest.mark.parametrize("tilt_deg", [-25, 0, 25])
@pytest.mark.parametrize("yaw_deg", [0, 45, 90, 250])
def test_up_of_a_first_camera_world(yaw_deg, tilt_deg):
    # z-up room → optical axes (x right, y down, z forward), seen by a camera tilted up or down
    R = (
        Rotation.from_euler("x", tilt_deg, degrees=True).as_matrix()
        @ np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
        @ Rotation.from_euler("z", yaw_deg, degrees=True).as_matrix()
    )
    up = estimate_up(room(R))
    assert np.degrees(np.arccos(np.clip(up @ R[:, 2], -1, 1))) < 1.0


def test_too_few_normals_mean_z_up():
    snapshot = room(np.eye(3))
    few = {name: getattr(snapshot, name)[:50] for name in ("coords", "normals")}
    assert estimate_up(MapSnapshot(**{**snapshot.__dict__, **few})).tolist() == [0, 0, 1]


@pytest.mark.parametrize("up", [(0, 0, 1), (0, 0, -1), (0, -1, 0), (0.01, -0.9, -0.43), (1, 1, 1)])
def test_level_rotation_lifts_up_onto_z(up):
    R = level_rotation(up)
    np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-12)
    assert np.isclose(np.linalg.det(R), 1)
    np.testing.assert_allclose(R @ unit_up(up), (0, 0, 1), atol=1e-9)


def test_box_corners_by_hand():
    np.testing.assert_allclose(corners_m((1, 2, 3), (2, 4, 6), np.eye(3))[7], (2, 4, 6))
    corners = corners_m((1, 2, 3), (2, 4, 6), Rotation.from_euler("z", 90, degrees=True).as_matrix())
    np.testing.assert_allclose(np.ptp(corners, axis=0), (4, 2, 6))
    np.testing.assert_allclose(corners.mean(axis=0), (1, 2, 3))
    np.testing.assert_allclose(corners[0], (3, 1, 0))  # (-1, -2, -3) turned by 90°: (2, -1, -3)


@pytest.mark.parametrize("up", [(0, 0, 0), (1, 2), (np.nan, 0, 1), "up", None])
def test_no_direction_is_an_error(up):
    with pytest.raises(InvalidConfigError, match="0 0 1"):
        unit_up(up)
