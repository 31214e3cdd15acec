"""Points to pixels: the published mappers' golden numbers, and a naive loop."""

import numpy as np
import pytest

from geopurify_core.camera import PinholeCamera
from geopurify_core.errors import InvalidConfigError, InvalidFrameError, InvalidPoseError
from geopurify_core.scans.projection import SeenPoints, VisibilityTest, centred_camera, seen_points


@pytest.fixture(scope="module")
def golden(shared_dir):
    return np.load(shared_dir / "golden/geopurify/projection.npz")


def as_mapping(seen, count):
    """(N, 3) rows (v, u, visible), zero where unseen, as the reference returns them."""
    mapping = np.zeros((count, 3), dtype=np.int64)
    mapping[seen.points] = np.stack([seen.rows, seen.columns, np.ones_like(seen.rows)], axis=1)
    return mapping


def scannet_camera(golden):
    return centred_camera(PinholeCamera.from_matrix(golden["K"], 1296, 968), 648, 484)


def test_intrinsics_are_rescaled_and_centred_as_published(golden):
    np.testing.assert_array_equal(scannet_camera(golden).K, golden["K_scaled"][:3, :3])


@pytest.mark.parametrize("depth", ["depth", "depth64", None])
def test_scannet_mapper_equals_the_golden_one_exactly(golden, depth):
    image = None if depth is None else golden[depth]
    seen = seen_points(golden["points"], golden["c2w"], scannet_camera(golden), image, VisibilityTest(0.05))
    wanted = golden["mapping_nodepth" if depth is None else "mapping"]
    assert 0 < len(seen) < len(golden["points"])
    np.testing.assert_array_equal(as_mapping(seen, len(wanted)), wanted)


def test_matterport_mapper_equals_the_golden_one_exactly(golden):
    camera = PinholeCamera.from_matrix(golden["mp_K"], 640, 512)
    seen = seen_points(golden["points"], golden["c2w"], camera, golden["mp_depth64"], VisibilityTest(0.02))
    np.testing.assert_array_equal(as_mapping(seen, len(golden["points"])), golden["mp_mapping"])


def test_the_goldens_tell_the_thresholds_apart(golden):
    seen = [
        len(seen_points(golden["points"], golden["c2w"], scannet_camera(golden), golden["depth64"], VisibilityTest(s)))
        for s in (0.02, 0.05, 0.25)
    ]
    assert seen[0] < seen[1] < seen[2]


def naive(points, T, camera, depth, share, border):
    inverse, found = np.linalg.inv(T), []
    for i, point in enumerate(points):
        x, y, z = (inverse @ [*point, 1.0])[:3]
        if z <= 0:
            continue
        u, v = round(x * camera.fx / z + camera.cx), round(y * camera.fy / z + camera.cy)
        if not (border <= u < camera.width - border and border <= v < camera.height - border):
            continue
        if abs(float(depth[v, u]) - z) <= share * depth[v, u]:
            found.append((i, v, u))
    return found


def test_equals_a_loop_over_points():
    rng = np.random.default_rng(0)
    points = rng.uniform(-2, 2, (600, 3))
    camera = PinholeCamera(40, 42, 30.5, 25.25, 64, 48)
    depth = rng.uniform(0, 2, (48, 64)).astype(np.float32)
    depth[depth < 0.3] = 0
    T = np.eye(4)
    T[:3, 3] = 0.1, -0.2, -0.7
    wanted = naive(points, T, camera, depth, 0.3, 3)
    seen = seen_points(points, T, camera, depth, VisibilityTest(0.3, 3))
    assert len(wanted) > 20
    assert list(zip(seen.points, seen.rows, seen.columns, strict=True)) == wanted


def test_depth_of_another_resolution_is_read_through_its_own_camera(disk):
    points, *_ = disk.room()
    camera = PinholeCamera.from_matrix(disk.K, disk.WIDTH, disk.HEIGHT)
    _, depth = disk.image(1.2, 1.2)
    small = camera.scaled(disk.WIDTH // 2, disk.HEIGHT // 2)
    test = VisibilityTest(0.05, 2)
    exact = seen_points(points, disk.pose(1.2, 1.2), camera, depth, test)
    halved = seen_points(points, disk.pose(1.2, 1.2), camera, depth[::2, ::2], test, small)
    common = np.intersect1d(exact.points, halved.points)
    assert len(common) > 0.9 * len(exact)  # what differs lies at the table's edge
    at = np.searchsorted(exact.points, common)
    np.testing.assert_array_equal(exact.rows[at], halved.rows[np.searchsorted(halved.points, common)])


def test_the_table_hides_the_floor_below_it(disk):
    points, *_ = disk.room()
    camera = PinholeCamera.from_matrix(disk.K, disk.WIDTH, disk.HEIGHT)
    _, depth = disk.image(1.2, 1.2)
    seen = points[seen_points(points, disk.pose(1.2, 1.2), camera, depth, VisibilityTest(0.05, 0)).points]
    below = (np.abs(seen[:, :2] - 1.2) < 0.3).all(axis=1)
    assert below.any() and (seen[below, 2] == np.float32(disk.TABLE_Z_M)).all()


def test_points_on_the_camera_or_behind_it_and_holes_are_unseen():
    camera, T = PinholeCamera(10, 10, 10, 10, 21, 21), np.eye(4)
    points = np.array([[0, 0, 0], [0, 0, -1], [0, 0, 1], [0.5, 0, 1]], dtype=np.float64)
    depth = np.ones((21, 21), np.float32)
    depth[10, 15] = 0
    assert seen_points(points, T, camera, depth, VisibilityTest(0.05, 0)).points.tolist() == [2]
    assert seen_points(points, T, camera, None, VisibilityTest(0.05, 0)).points.tolist() == [2, 3]
    assert len(seen_points(points[:0], T, camera, depth)) == 0


def test_wrong_input_is_named():
    camera = PinholeCamera(10, 10, 10, 10, 21, 21)
    with pytest.raises(InvalidFrameError, match="21x21"):
        seen_points(np.zeros((1, 3)), np.eye(4), camera, np.ones((5, 5)))
    with pytest.raises(InvalidPoseError):
        seen_points(np.zeros((1, 3)), 2 * np.eye(4), camera, None)
    for values in ((-0.1, 10), (1.0, 10), (0.05, -1)):
        with pytest.raises(InvalidConfigError):
            VisibilityTest(*values)
    assert isinstance(seen_points(np.zeros((1, 3)), np.eye(4), camera, None), SeenPoints)
