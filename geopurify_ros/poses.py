"""Where the camera was when the picture was taken: from pose messages, odometry or TF. Never guessed."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from geopurify_core.camera import pose_from_quaternion
from geopurify_core.errors import InvalidPoseError

_NS = 1_000_000_000
_SAME_NS = 1_000_000
_REWIND_NS = _NS
_CAPACITY = 4096

Pose = NDArray[np.float64]


class PoseSource(Protocol):
    """Anything that knows poses."""

    def lookup(self, stamp_ns: int, camera_frame: str) -> Pose:
        """``T_map_camera`` (4, 4) at the stamp. Raises InvalidPoseError that says why there is none."""
        ...


class PoseBuffer:
    """Recent poses by stamp, interpolated in between (lerp and slerp), never extrapolated.

    Args:
        topic: Where they come from, for messages.
        map_frame: The frame in which they must be given.
        tolerance_s: Both neighbours of a stamp must lie within this, seconds. One within 1 ms serves alone.
        mount: Gives ``T_body_camera`` for a camera frame, where the arriving pose is that of the body; None: it is the
            camera's own.
    """

    def __init__(
        self, topic: str, map_frame: str, tolerance_s: float = 0.1, mount: Callable[[str], Pose] | None = None
    ) -> None:
        self._topic = topic
        self._map_frame = map_frame
        self._tolerance_ns = round(tolerance_s * _NS)
        self._mount = mount
        self._lock = threading.Lock()
        self._stamps: list[int] = []
        self._poses: list[Pose] = []

    def add(self, stamp_ns: int, frame_id: str, T: Pose) -> None:
        """Take in one pose. Raises InvalidPoseError for the wrong frame or an unset stamp."""
        if frame_id != self._map_frame:
            raise InvalidPoseError(
                f"{self._topic}.header.frame_id",
                frame_id,
                f"Poses must be given in the map frame '{self._map_frame}'; set map.frame_id if that is another one.",
            )
        if stamp_ns <= 0:
            raise InvalidPoseError(f"{self._topic}.header.stamp", stamp_ns, "Stamp the poses.")
        with self._lock:
            if (
                self._stamps and stamp_ns < self._stamps[-1] - _REWIND_NS
            ):  # time has jumped back: these are of another run
                self._stamps, self._poses = [], []
            at = bisect_left(self._stamps, stamp_ns)
            if at < len(self._stamps) and self._stamps[at] == stamp_ns:
                self._poses[at] = T
                return
            self._stamps.insert(at, stamp_ns)
            self._poses.insert(at, T)
            if len(self._stamps) > _CAPACITY:
                del self._stamps[: _CAPACITY // 4], self._poses[: _CAPACITY // 4]

    def lookup(self, stamp_ns: int, camera_frame: str) -> Pose:
        """``T_map_camera`` at the stamp. Raises InvalidPoseError where the buffer does not cover it."""
        T_map_body = self._interpolate(stamp_ns, camera_frame)
        return T_map_body if self._mount is None else T_map_body @ self._mount(camera_frame)

    def _interpolate(self, stamp_ns: int, camera_frame: str) -> Pose:
        with self._lock:
            at = bisect_left(self._stamps, stamp_ns)
            near = [(abs(self._stamps[i] - stamp_ns), i) for i in (at - 1, at) if 0 <= i < len(self._stamps)]
            if near and min(near)[0] <= _SAME_NS:
                return self._poses[min(near)[1]]
            if len(near) < 2 or max(near)[0] > self._tolerance_ns:
                raise self._missing(stamp_ns, camera_frame, min(near)[0] if near else None)
            share = (stamp_ns - self._stamps[at - 1]) / (self._stamps[at] - self._stamps[at - 1])
            return interpolate(self._poses[at - 1], self._poses[at], share)

    def _missing(self, stamp_ns: int, camera_frame: str, gap_ns: int | None) -> InvalidPoseError:
        frames = f"'{self._map_frame}' -> '{camera_frame}'"
        if gap_ns is None:
            return InvalidPoseError(
                f"pose {frames}", None, f"No pose has arrived on '{self._topic}': check its publisher."
            )
        return InvalidPoseError(
            f"pose {frames}",
            f"nearest {gap_ns / _NS:.3f} s away",
            f"'{self._topic}' must hold poses on both sides of the image stamp within pose_tolerance_s "
            f"({self._tolerance_ns / _NS:g} s): publish faster, or check that the clocks agree.",
        )


class TfPoses:
    """Poses from TF, looked up at the image's stamp. Needs tf2_ros, which every ROS 2 installation has.

    Raises:
        InvalidPoseError: tf2_ros cannot be imported.
    """

    def __init__(self, node: Any, map_frame: str) -> None:
        try:
            import tf2_ros
        except ImportError as error:
            raise InvalidPoseError(
                "pose_source", "tf", "tf2_ros is not installed here: use pose_source:=pose or odom."
            ) from error
        self._map_frame = map_frame
        self._error: type[Exception] = tf2_ros.TransformException
        self._buffer = tf2_ros.Buffer()
        self._listener = tf2_ros.TransformListener(self._buffer, node)

    def lookup(self, stamp_ns: int, camera_frame: str) -> Pose:
        """``T_map_camera`` at the stamp. Raises InvalidPoseError with TF's own words."""
        return self.between(self._map_frame, camera_frame, stamp_ns)

    def clear(self) -> None:
        """Forget what is not static."""
        self._buffer.clear()

    def between(self, target: str, source: str, stamp_ns: int = 0) -> Pose:
        """``T_target_source`` at the stamp, 0 for the newest. Raises InvalidPoseError with TF's own words."""
        from rclpy.time import Time

        try:
            found = self._buffer.lookup_transform(target, source, Time(nanoseconds=stamp_ns))
        except self._error as error:
            raise InvalidPoseError(f"tf '{target}' -> '{source}'", str(error), "Publish this transform.") from error
        t, q = found.transform.translation, found.transform.rotation
        return pose_from_quaternion((t.x, t.y, t.z), (q.x, q.y, q.z, q.w))


def interpolate(first: Pose, second: Pose, share: float) -> Pose:
    """The pose between two: positions linearly, rotations along the shortest arc (slerp); share 0 is the first."""
    from scipy.spatial.transform import Rotation

    turn = Rotation.from_matrix(first[:3, :3].T @ second[:3, :3]).as_rotvec()
    T = np.eye(4)
    T[:3, :3] = first[:3, :3] @ Rotation.from_rotvec(share * turn).as_matrix()
    T[:3, 3] = (1 - share) * first[:3, 3] + share * second[:3, 3]
    return T
