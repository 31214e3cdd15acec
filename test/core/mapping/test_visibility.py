"""Point clouds: what the colour camera sees is fused, what something hides is not."""

from __future__ import annotations

import numpy as np
import pytest

from geopurify_core.camera import PinholeCamera, invert_pose, pose_from_quaternion
from geopurify_core.config import DepthConfig, FusionConfig
from geopurify_core.errors import (
    BackboneError,
    InvalidConfigError,
    InvalidFrameError,
    InvalidPoseError,
    MapMismatchError,
)
from geopurify_core.mapping.fusion import FusionReport, fuse_frame
from geopurify_core.mapping.visibility import PointObservation, VisibilityConfig, fuse_points, visible_points
from geopurify_core.vision.base import FeatureMap

CAMERA = PinholeCamera(60, 60, 31.5, 23.5, 64, 48)


def wall(z_m, half_width_m, count, seed=0):
    rng = np.random.default_rng(seed)
    return np.column_stack([rng.uniform(-half_width_m, half_width_m, (count, 2)), np.full(count, z_m)])


def test_equals_a_naive_z_test():
    """Every pair of points, by hand: hidden if another one within the splat is nearer by more than the tolerance."""
    rng = np.random.default_rng(1)
    points = np.column_stack([rng.uniform(-1.5, 1.5, (400, 2)), rng.uniform(0.5, 4, 400)])
    config = VisibilityConfig(tolerance=0.05, splat_px=2)
    pixel = [(round(60 * x / z + 31.5), round(60 * y / z + 23.5)) for x, y, z in points]
    inside = [0 <= u < 64 and 0 <= v < 48 for u, v in pixel]
    expected = [
        inside[i]
        and not any(
            inside[j]
            and abs(pixel[j][0] - pixel[i][0]) <= 2
            and abs(pixel[j][1] - pixel[i][1]) <= 2
            and points[j, 2] < points[i, 2] * 0.95
            for j in range(400)
        )
        for i in range(400)
    ]
    assert visible_points(points, CAMERA, config).tolist() == expected
    assert 20 < sum(expected) < sum(inside)


def test_a_sparse_screen_still_hides_the_wall_behind_it():
    screen, behind = wall(1.0, 0.3, 500), wall(3.0, 2.0, 3000, 1)
    visible = visible_points(np.vstack([screen, behind]), CAMERA)
    assert visible[:500].all()
    shadow = (np.abs(behind[:, :2]) < 3.0 * 0.27).all(axis=1)
    light = (
        (np.abs(behind[:, :2]) > 3.0 * 0.36).any(axis=1) & (np.abs(behind[:, 0]) < 1.5) & (np.abs(behind[:, 1]) < 1.1)
    )
    assert visible[500:][shadow].mean() < 0.05
    assert visible[500:][light].mean() > 0.95


def test_behind_outside_and_nowhere_are_unseen():
    points = np.array([[0, 0, -1.0], [0, 0, 0.0], [9, 0, 1.0], [0, 0, 1.0]])
    assert visible_points(points, CAMERA).tolist() == [False, False, False, True]
    assert visible_points(np.empty((0, 3)), CAMERA).tolist() == []


@pytest.fixture
def lidar():
    """A lidar turned and mounted elsewhere, a camera with a pose of its own, and a wall that both see."""
    T_map_camera = pose_from_quaternion([0.3, -0.2, 0.1], [0, np.sin(0.1), 0, np.cos(0.1)])
    T_map_sensor = pose_from_quaternion([0.1, 0.5, -0.4], [0.5, -0.5, 0.5, -0.5])
    in_camera = wall(2.0, 0.8, 4000)
    in_map = in_camera @ T_map_camera[:3, :3].T + T_map_camera[:3, 3]
    T_sensor_map = invert_pose(T_map_sensor)
    in_sensor = (in_map @ T_sensor_map[:3, :3].T + T_sensor_map[:3, 3]).astype(np.float32)
    rgb = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)

    def make(points=in_sensor, stamp_ns=5):
        return PointObservation(points, T_map_sensor, rgb, CAMERA, T_map_camera, stamp_ns)

    return make, in_map


@pytest.mark.parametrize("engine", ["numba", "torch"])
def test_points_land_where_they_are_with_their_cells_feature(new_map, lidar, engine):
    make, in_map = lidar
    rows = np.zeros((4, 8, 16), np.float32)
    rows[..., 0] = np.arange(8)  # the feature says which column of cells it came from
    voxel_map = new_map()
    features = FeatureMap.from_rows(rows, np.full((4, 8), 0.5, np.float32))
    report = fuse_points(voxel_map, make(), features, DepthConfig(), FusionConfig(range_weight_m=2.0), engine=engine)
    snapshot = voxel_map.snapshot()
    assert report.pixels_used == report.pixels_valid == 4000
    keys = {tuple(c) for c in np.floor(in_map / 0.05).astype(int).tolist()}
    strange = {tuple(c) for c in snapshot.coords.tolist()} ^ keys
    assert len(strange) <= 0.02 * len(keys)  # float32 points on a voxel's edge
    assert snapshot.weight.astype(float).sum() == pytest.approx(4000 * 0.5 * 0.5, rel=1e-4)  # z = 2 m weighs one half
    T = invert_pose(make().T_map_camera)
    in_camera = snapshot.centers_m @ T[:3, :3].T + T[:3, 3]
    column = (60 * in_camera[:, 0] / in_camera[:, 2] + 32) * 8 / 64
    assert np.abs(snapshot.features[:, 0] + 0.5 - column).max() < 0.9
    assert not snapshot.normals.any()


def test_a_depth_image_as_points_gives_the_same_voxels(new_map, make_frame, make_features):
    frame, features = make_frame(0, holes=0.3), make_features(0)
    points = frame.camera.back_project(frame.depth_m)[frame.depth_m > 0]
    depth_cfg, fusion_cfg = DepthConfig(edge_jump=0.0), FusionConfig(incidence_weight=False)
    a, b = new_map(), new_map()
    fuse_frame(a, frame, features, depth_cfg, fusion_cfg)
    cloud = PointObservation(points, frame.T_map_camera, frame.rgb, frame.camera, frame.T_map_camera, frame.stamp_ns)
    fuse_points(b, cloud, features, depth_cfg, fusion_cfg, VisibilityConfig(tolerance=0.9, splat_px=1))
    both = {tuple(c) for c in a.snapshot().coords.tolist()} & {tuple(c) for c in b.snapshot().coords.tolist()}
    assert len(both) >= 0.99 * max(len(a), len(b))
    assert b.snapshot().weight.sum() == pytest.approx(a.snapshot().weight.sum(), rel=1e-3)


def test_nothing_usable_changes_nothing(new_map, lidar, make_features):
    make, _ = lidar
    voxel_map, features = new_map(), make_features(0)
    for points in (
        np.empty((0, 3), np.float32),
        np.full((5, 3), np.nan, np.float32),
        np.full((5, 3), 1e30, np.float32),
    ):
        assert fuse_points(voxel_map, make(points), features) == FusionReport()
    rows = features.rows.reshape(12, 16, 16).copy()
    rows[0, 0, 0] = np.nan
    with pytest.raises(BackboneError):
        fuse_points(voxel_map, make(), FeatureMap.from_rows(rows, features.confidence))
    with pytest.raises(MapMismatchError):
        fuse_points(voxel_map, make(), make_features(0, channels=8))
    assert len(voxel_map) == 0 and voxel_map.version == 0


def test_bad_clouds_are_refused(lidar):
    good = lidar[0]()
    args = [good.points_m, good.T_map_sensor, good.rgb, good.camera, good.T_map_camera, good.stamp_ns]
    for i, value, error in (
        (0, np.zeros((5, 4), np.float32), InvalidFrameError),
        (0, np.zeros((5, 3), np.int32), InvalidFrameError),
        (1, np.zeros((4, 4)), InvalidPoseError),
        (2, np.zeros((10, 10, 3), np.uint8), InvalidFrameError),
        (4, np.eye(3), InvalidPoseError),
        (5, -1, InvalidFrameError),
    ):
        with pytest.raises(error):
            PointObservation(*args[:i], value, *args[i + 1 :])


def test_range_limits_hold_for_points(new_map, lidar, make_features):
    report = fuse_points(new_map(), lidar[0](), make_features(0), DepthConfig(max_range_m=1.5))
    assert report == FusionReport()


@pytest.mark.parametrize(
    "change", [{"tolerance": -0.1}, {"tolerance": float("nan")}, {"splat_px": -1}, {"splat_px": 999}]
)
def test_odd_z_tests_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(InvalidConfigError, match=next(iter(change))):
        VisibilityConfig(**change)  # type: ignore[arg-type]
