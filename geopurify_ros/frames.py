"""From matched messages to a checked frame: decode, find the camera, find the pose."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from sensor_msgs.msg import CameraInfo, PointCloud2

from geopurify_core.camera import PinholeCamera
from geopurify_core.depth import decode_depth
from geopurify_core.errors import InvalidCameraError, InvalidPoseError
from geopurify_core.frame import RGBDFrame
from geopurify_core.mapping.visibility import PointObservation
from geopurify_ros.clouds import cloud_points
from geopurify_ros.messages import camera_of, color_image, depth_image, is_distorted
from geopurify_ros.poses import Pose, PoseSource, TfPoses
from geopurify_ros.sync import SyncedSet

_POLL_S = 0.01
_MAX_WARNINGS = 20


class FrameBuilder:
    """Knows the newest cameras and the pose source.

    Args:
        poses: Where poses come from.
        map_frame: Name of the map frame.
        wait_s: How long after its arrival a frame may wait for its camera info and pose.
        T_camera_points: Mount of the points' frame on the camera; None: ask ``tf``, unless both frames are one.
        tf: TF, where there is one.
        warn: Told once of each doubtful thing.
        stopping: Whether to give up waiting.
    """

    def __init__(
        self,
        poses: PoseSource,
        map_frame: str,
        wait_s: float,
        T_camera_points: Pose | None,
        tf: TfPoses | None,
        warn: Callable[[str], object],
        stopping: Callable[[], bool],
    ) -> None:
        self._poses, self._map_frame, self._wait_s = poses, map_frame, wait_s
        self._T_camera_points, self._tf = T_camera_points, tf
        self._warn, self._stopping = warn, stopping
        self._cameras: dict[str, PinholeCamera] = {}
        self._warned: set[str] = set()

    def set_camera(self, name: str, info: CameraInfo) -> None:
        """Take in a CameraInfo ("rgb" or "depth"). Raises InvalidCameraError and then keeps the last good one."""
        self._cameras[name] = camera_of(info)
        if is_distorted(info):
            self._warn_once(
                f"{name}/camera_info has lens distortion: rectified images are expected (image_proc does it)."
            )

    def build(self, matched: SyncedSet, received_s: float) -> RGBDFrame | PointObservation:
        """The frame of matched messages; blocks up to ``wait_s``. Raises a typed error for what is wrong or missing."""
        color, geometry = matched.messages
        rgb = color_image(color)
        if isinstance(geometry, PointCloud2):
            points_m = cloud_points(geometry)
            camera, T_map_camera = self._placed(matched.stamp_ns, color.header.frame_id, received_s)
            T_map_sensor = self._sensor_pose(color.header.frame_id, geometry.header.frame_id, T_map_camera)
            return PointObservation(points_m, T_map_sensor, rgb, camera, T_map_camera, matched.stamp_ns)
        pixels = depth_image(geometry)
        depth_m = decode_depth(pixels, "16UC1" if pixels.dtype == np.uint16 else "32FC1")
        if geometry.header.frame_id != color.header.frame_id:
            self._warn_once(
                f"depth/image is in frame '{geometry.header.frame_id}', rgb/image in '{color.header.frame_id}': "
                "depth must be registered to the colour camera."
            )
        camera, T_map_camera = self._placed(matched.stamp_ns, color.header.frame_id, received_s)
        depth_camera = self._cameras.get("depth")
        return RGBDFrame(rgb, depth_m, camera, T_map_camera, matched.stamp_ns, depth_camera)  # type: ignore[arg-type]

    def _placed(self, stamp_ns: int, frame_id: str, received_s: float) -> tuple[PinholeCamera, Pose]:
        """Camera and pose, waiting for whichever is still on its way."""
        while True:
            try:
                camera = self._cameras.get("rgb")
                if camera is None:
                    raise InvalidCameraError(
                        "rgb/camera_info", None, "No usable CameraInfo has arrived: check the topic."
                    )
                return camera, self._poses.lookup(stamp_ns, frame_id)
            except (InvalidCameraError, InvalidPoseError):
                if self._stopping() or time.monotonic() > received_s + self._wait_s:
                    raise
            time.sleep(_POLL_S)

    def _sensor_pose(self, camera_frame: str, points_frame: str, T_map_camera: Pose) -> Pose:
        """``T_map_sensor``. Raises InvalidPoseError when nothing says where the points' sensor sits."""
        if self._T_camera_points is not None:
            return T_map_camera @ self._T_camera_points
        if points_frame == camera_frame:
            return T_map_camera
        if points_frame == self._map_frame:
            return np.eye(4)
        if self._tf is None:
            raise InvalidPoseError(
                f"mount '{camera_frame}' -> '{points_frame}'", None, "Set T_camera_points: x y z qx qy qz qw."
            )
        return T_map_camera @ self._tf.between(camera_frame, points_frame)

    def _warn_once(self, text: str) -> None:
        if text not in self._warned and len(self._warned) < _MAX_WARNINGS:
            self._warned.add(text)
            self._warn(text)
