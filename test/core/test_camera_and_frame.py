"""Cameras, poses and frames: the mathematics, and everything that must be refused at the border."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geopurify_core.camera import PinholeCamera, check_pose, invert_pose, pose_from_quaternion
from geopurify_core.errors import GeoPurifyError, InvalidCameraError, InvalidFrameError, InvalidPoseError
from geopurify_core.frame import RGBDFrame

CAMERA = PinholeCamera(50.0, 55.0, 31.0, 24.5, 64, 48)
number = st.floats(-100, 100)
unit = st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: np.linalg.norm(q) > 0.1)


@given(st.tuples(number, number, number), unit)
def test_a_pose_and_its_inverse_cancel(translation, quaternion):
    """R20: SE(3) inverse composed with the pose is the identity."""
    T = pose_from_quaternion(translation, np.array(quaternion) / np.linalg.norm(quaternion))
    np.testing.assert_allclose(invert_pose(T) @ T, np.eye(4), atol=1e-9)
    np.testing.assert_allclose(T @ invert_pose(T), np.eye(4), atol=1e-9)
    assert check_pose(T) is not None


def test_quaternions_are_in_ros_order():
    half = np.sqrt(0.5)
    T = pose_from_quaternion([1, 2, 3], [0, 0, half, half])  # a quarter turn about z
    np.testing.assert_allclose(T @ [1, 0, 0, 1], [1, 3, 3, 1], atol=1e-12)


@given(st.floats(0.3, 10), st.integers(0, 63), st.integers(0, 47))
def test_projection_undoes_back_projection(depth, u, v):
    image = np.zeros((48, 64), np.float32)
    image[v, u] = depth
    point = CAMERA.back_project(image)[v, u]
    uv, z = CAMERA.project(point[None])
    np.testing.assert_allclose(uv[0], [u, v], atol=1e-6)
    assert z[0] == pytest.approx(np.float32(depth))


def test_points_behind_the_camera_project_nowhere():
    uv, _ = CAMERA.project(np.array([[0, 0, -1.0], [0, 0, 0.0]]))
    assert np.isnan(uv).all()


def test_scaling_keeps_what_a_pixel_sees():
    """The corner of the image stays the corner: pixel edges, not centres, scale."""
    half = CAMERA.scaled(32, 24)
    left = ((-0.5 - CAMERA.cx) / CAMERA.fx, (-0.5 - CAMERA.cy) / CAMERA.fy)
    assert ((-0.5 - half.cx) / half.fx, (-0.5 - half.cy) / half.fy) == pytest.approx(left)
    right = (63.5 - CAMERA.cx) / CAMERA.fx
    assert (31.5 - half.cx) / half.fx == pytest.approx(right)
    again = half.scaled(64, 48)
    assert (again.fx, again.fy, again.cx, again.cy) == pytest.approx((50.0, 55.0, 31.0, 24.5))


@pytest.mark.parametrize("change", [
    {"fx": 0.0}, {"fy": -1.0}, {"fx": np.nan}, {"cx": np.inf}, {"width": 0}, {"height": -3}, {"width": 1 << 20},
])  # fmt: skip
def test_impossible_cameras_are_refused(change):
    values = {"fx": 50.0, "fy": 50.0, "cx": 1.0, "cy": 1.0, "width": 4, "height": 4, **change}
    with pytest.raises(InvalidCameraError):
        PinholeCamera(**values)


def test_matrices_of_either_size_and_no_other():
    K = np.eye(4)
    K[0, 0], K[1, 1], K[0, 2], K[1, 2] = 50, 55, 31, 24.5
    assert PinholeCamera.from_matrix(K, 64, 48) == PinholeCamera.from_matrix(K[:3, :3], 64, 48) == CAMERA
    np.testing.assert_array_equal(CAMERA.K, K[:3, :3])
    with pytest.raises(InvalidCameraError):
        PinholeCamera.from_matrix(np.zeros((3, 4)), 64, 48)
    with pytest.raises(InvalidCameraError):
        PinholeCamera.from_matrix(np.zeros((3, 3)), 64, 48)
    with pytest.raises(InvalidCameraError):
        CAMERA.back_project(np.zeros((4, 4), np.float32))


BAD_POSES = {
    "shape": np.eye(3),
    "NaN": np.full((4, 4), np.nan),
    "infinite, as ScanNet writes lost frames": np.full((4, 4), -np.inf),
    "zero": np.zeros((4, 4)),
    "scaled": np.diag([2.0, 2, 2, 1]),
    "mirrored": np.diag([1.0, 1, -1, 1]),
    "projective": np.eye(4) + np.eye(4, k=-3) * 0.5,
}


@pytest.mark.parametrize("pose", BAD_POSES.values(), ids=BAD_POSES.keys())
def test_poses_that_are_none_are_refused(pose):
    with pytest.raises(InvalidPoseError) as caught:
        check_pose(pose, "T_map_sensor")
    assert caught.value.field.startswith("T_map_sensor")


@pytest.mark.parametrize("quaternion", [(0, 0, 0, 0), (0, 0, 0, 2), (np.nan, 0, 0, 1)])
def test_quaternions_that_are_none_are_refused(quaternion):
    with pytest.raises(InvalidPoseError):
        pose_from_quaternion([0, 0, 0], quaternion)


def frame(**change):
    values = {
        "rgb": np.zeros((48, 64, 3), np.uint8), "depth_m": np.zeros((24, 32), np.float32), "camera": CAMERA,
        "T_map_camera": np.eye(4), "stamp_ns": 0, **change,
    }  # fmt: skip
    return RGBDFrame(**values)


def test_the_depth_camera_defaults_to_the_colour_camera_at_its_size():
    assert frame().depth_camera == CAMERA.scaled(32, 24)


@pytest.mark.parametrize("change", [
    {"rgb": np.zeros((48, 64), np.uint8)},
    {"rgb": np.zeros((48, 64, 4), np.uint8)},
    {"rgb": np.zeros((48, 64, 3), np.float32)},
    {"rgb": np.zeros((64, 48, 3), np.uint8)},
    {"rgb": np.zeros((0, 64, 3), np.uint8)},
    {"depth_m": np.zeros((24, 32))},
    {"depth_m": np.zeros((24, 32), np.uint16)},
    {"depth_m": np.zeros((24, 32, 1), np.float32)},
    {"T_map_camera": np.full((4, 4), np.nan)},
    {"stamp_ns": -1},
    {"stamp_ns": 2**63},
    {"stamp_ns": 1.5},
    {"depth_camera": CAMERA},
])  # fmt: skip
def test_frames_that_do_not_fit_together_are_refused(change):
    with pytest.raises(InvalidFrameError):
        frame(**change)


def test_errors_carry_field_value_and_remedy_even_through_pickle():
    import pickle

    with pytest.raises(GeoPurifyError) as caught:
        frame(stamp_ns=-1)
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.field, error.value) == ("stamp_ns", -1) and error.remedy and str(error) == str(caught.value)
    assert len(str(GeoPurifyError("x", "y" * 10_000, "z"))) < 300
