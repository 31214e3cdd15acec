"""Which pose source the parameters ask for, and how messages and TF feed it."""

from __future__ import annotations

import contextlib
from typing import Any

from nav_msgs.msg import Odometry
from rclpy.node import Node

from geopurify_core.camera import pose_from_quaternion
from geopurify_core.errors import InvalidPoseError
from geopurify_ros.messages import pose_matrix, stamp_ns
from geopurify_ros.parameters import RosConfig
from geopurify_ros.poses import Pose, PoseBuffer, PoseSource, TfPoses


class PoseInputs:
    """Poses of the camera from PoseStamped, Odometry or TF.

    Attributes:
        source: Answers where the camera was.
        tf: TF, where it is asked for and installed.
        T_camera_points: Mount of the points' frame on the camera, as configured; None: ask TF.

    Raises:
        InvalidPoseError: A mount is not seven numbers, or TF is asked for and not installed.
    """

    def __init__(self, node: Node, ros: RosConfig, map_frame: str) -> None:
        self.T_camera_points = mount(ros.T_camera_points, "T_camera_points")
        self._T_base_camera = mount(ros.T_base_camera, "T_base_camera")
        self._body_frame = ""
        self.tf: TfPoses | None = None
        if ros.pose_source == "tf":
            self.source: PoseSource = TfPoses(node, map_frame)
            self.tf = self.source
            return
        odometry = ros.pose_source == "odom"
        if (odometry and self._T_base_camera is None) or ros.input == "points":
            with contextlib.suppress(InvalidPoseError):  # without tf2_ros the mount must come from a parameter
                self.tf = TfPoses(node, map_frame)
        mounted = self._mount if odometry or self._T_base_camera is not None else None
        self.source = self._buffer = PoseBuffer(ros.pose_source, map_frame, ros.pose_tolerance_s, mounted)

    def take(self, message: Any) -> None:
        """A PoseStamped or Odometry. Raises InvalidPoseError."""
        pose = message.pose
        if isinstance(message, Odometry):
            self._body_frame, pose = message.child_frame_id, message.pose.pose
        self._buffer.add(stamp_ns(message.header.stamp), message.header.frame_id, pose_matrix(pose))

    def rewind(self) -> None:
        """Time has jumped back: TF would refuse everything older than what it holds (a PoseBuffer notices)."""
        if self.tf is not None:
            self.tf.clear()

    def _mount(self, camera_frame: str) -> Pose:
        """``T_base_camera``, configured or from TF."""
        if self._T_base_camera is not None:
            return self._T_base_camera
        if self.tf is None:
            raise InvalidPoseError(
                f"mount '{self._body_frame}' -> '{camera_frame}'", None, "Set T_base_camera: x y z qx qy qz qw."
            )
        return self.tf.between(self._body_frame, camera_frame)


def mount(values: list[float], name: str) -> Pose | None:
    """A (4, 4) transform from ``x y z qx qy qz qw``; None for an empty list. Raises InvalidPoseError."""
    if not values:
        return None
    if len(values) != 7 or not all(isinstance(v, (int, float)) for v in values):
        raise InvalidPoseError(name, values, "Give seven numbers: x y z qx qy qz qw.")
    return pose_from_quaternion(values[:3], values[3:])
