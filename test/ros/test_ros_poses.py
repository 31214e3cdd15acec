"""The pose buffer, without ROS: exact, interpolated, or an error that says why; never a guess."""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation, Slerp

from geopurify_core.errors import InvalidPoseError
from geopurify_ros.poses import PoseBuffer, TfPoses, interpolate

SECOND = 1_000_000_000
START = 50 * SECOND


def pose(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    T = np.eye(4)
    T[:3, :3] = Rotation.random(random_state=seed).as_matrix()
    T[:3, 3] = rng.normal(size=3)
    return T


def filled(*stamps_s: float, tolerance_s: float = 0.1) -> PoseBuffer:
    buffer = PoseBuffer("pose", "map", tolerance_s)
    for i, stamp in enumerate(stamps_s):
        buffer.add(START + round(stamp * SECOND), "map", pose(i))
    return buffer


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 10_000), st.floats(0, 1))
def test_interpolation_is_slerp_and_lerp(first: int, second: int, share: float) -> None:
    a, b = pose(first), pose(second)
    T = interpolate(a, b, share)
    reference = Slerp([0, 1], Rotation.from_matrix([a[:3, :3], b[:3, :3]]))(share).as_matrix()
    assert np.abs(T[:3, :3] - reference).max() < 1e-9
    assert np.abs(T[:3, 3] - ((1 - share) * a[:3, 3] + share * b[:3, 3])).max() < 1e-12
    assert np.abs(T[:3, :3].T @ T[:3, :3] - np.eye(3)).max() < 1e-12


def test_an_exact_stamp_gives_that_very_pose() -> None:
    assert (filled(0.0, 0.1).lookup(START, "camera") == pose(0)).all()
    assert (filled(0.0).lookup(START + 900_000, "camera") == pose(0)).all(), (
        "within 1 ms, as after a round trip in double"
    )


def test_in_between_both_neighbours_count() -> None:
    T = filled(0.0, 0.1).lookup(START + SECOND // 40, "camera")
    assert np.allclose(T, interpolate(pose(0), pose(1), 0.25))


@pytest.mark.parametrize("at_s", [-0.05, 0.15, 0.5])
def test_never_extrapolated(at_s: float) -> None:
    with pytest.raises(InvalidPoseError, match="'map' -> 'camera'"):
        filled(0.0, 0.1).lookup(START + round(at_s * SECOND), "camera")


def test_a_gap_wider_than_the_tolerance_is_not_bridged() -> None:
    with pytest.raises(InvalidPoseError, match="pose_tolerance_s"):
        filled(0.0, 1.0).lookup(START + SECOND // 2, "camera")


def test_an_empty_buffer_names_its_topic() -> None:
    with pytest.raises(InvalidPoseError, match="No pose has arrived on 'odom'"):
        PoseBuffer("odom", "map").lookup(START, "camera")


@pytest.mark.parametrize(("frame", "stamp"), [("odom", START), ("", START), ("map", 0)])
def test_a_pose_in_another_frame_or_without_stamp_is_refused(frame: str, stamp: int) -> None:
    with pytest.raises(InvalidPoseError):
        PoseBuffer("pose", "map").add(stamp, frame, np.eye(4))


def test_order_of_arrival_does_not_matter_and_memory_is_bounded() -> None:
    rng = np.random.default_rng(0)
    buffer = PoseBuffer("pose", "map")
    for i in rng.permutation(90):
        buffer.add(START + int(i) * SECOND // 100, "map", pose(int(i)))
    assert (buffer.lookup(START + 42 * SECOND // 100, "camera") == pose(42)).all()
    for i in range(10_000):
        buffer.add(START + (100 + i) * SECOND // 100, "map", np.eye(4))
    assert len(buffer._stamps) <= 4096


def test_poses_of_an_earlier_run_are_forgotten_when_time_jumps_back() -> None:
    buffer = filled(0.0, 2.0, 2.1)
    buffer.add(START + SECOND // 10, "map", pose(7))
    with pytest.raises(InvalidPoseError):
        buffer.lookup(START + 2 * SECOND + SECOND // 20, "camera")


def test_the_mount_is_applied_behind_the_body() -> None:
    buffer = PoseBuffer("odom", "map", mount=lambda frame: pose(5))
    buffer.add(START, "map", pose(1))
    assert np.allclose(buffer.lookup(START, "camera"), pose(1) @ pose(5))


def test_tf_lookups_ask_at_the_stamp_and_pass_on_tfs_words(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rclpy")
    asked: list[Any] = []

    class TransformError(Exception):
        pass

    class Buffer:
        def clear(self) -> None:
            asked.append("clear")

        def lookup_transform(self, target: str, source: str, when: Any) -> Any:
            asked.append((target, source, when.nanoseconds))
            if source == "lost":
                raise TransformError("extrapolation into the future")
            vector = types.SimpleNamespace(x=1.0, y=2.0, z=3.0, w=1.0)
            zero = types.SimpleNamespace(x=0.0, y=0.0, z=0.0, w=1.0)
            return types.SimpleNamespace(transform=types.SimpleNamespace(translation=vector, rotation=zero))

    fake = types.ModuleType("tf2_ros")
    fake.Buffer, fake.TransformException = Buffer, TransformError  # type: ignore[attr-defined]
    fake.TransformListener = lambda buffer, node: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tf2_ros", fake)
    poses = TfPoses(None, "map")
    assert poses.lookup(START, "camera")[:3, 3].tolist() == [1.0, 2.0, 3.0]
    assert asked == [("map", "camera", START)]
    with pytest.raises(InvalidPoseError, match="extrapolation into the future"):
        poses.lookup(START, "lost")
    from geopurify_ros.parameters import RosConfig
    from geopurify_ros.pose_inputs import PoseInputs

    inputs = PoseInputs(None, RosConfig(pose_source="tf"), "map")  # type: ignore[arg-type]
    inputs.rewind()
    assert asked[-1] == "clear", "tf2 refuses what is older than what it holds: a looped bag would never be heard"


def test_without_tf2_ros_the_error_says_what_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tf2_ros", None)
    with pytest.raises(InvalidPoseError, match="pose_source:=pose"):
        TfPoses(None, "map")
