"""ROS messages to plain values and back: stamps, images, camera info, poses.

Outgoing arrays travel as ``array('B')``: the one form that rclpy takes by reference instead of item by item.
"""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point, Pose, Quaternion
from numpy.typing import NDArray
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from geopurify_core.camera import PinholeCamera, pose_from_quaternion
from geopurify_core.datasets.image_codec import decode_compressed, decode_image
from geopurify_core.errors import BadMessageError

_NS = 1_000_000_000
_ENCODINGS = {("uint8", 3): "rgb8", ("uint8", 2): "mono8", ("uint16", 2): "16UC1", ("float32", 2): "32FC1"}


def stamp_ns(stamp: Time) -> int:
    """Nanoseconds since the epoch."""
    return int(stamp.sec) * _NS + int(stamp.nanosec)


def to_stamp(ns: int) -> Time:
    """A message stamp from nanoseconds since the epoch."""
    return Time(sec=ns // _NS, nanosec=ns % _NS)


def header(ns: int, frame_id: str) -> Header:
    """A header with stamp and frame."""
    return Header(stamp=to_stamp(ns), frame_id=frame_id)


def byte_array(values: NDArray[Any]) -> array[int]:
    """The bytes of a numpy array as ``array('B')``, copied once."""
    out = array("B")
    out.frombytes(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    return out


def image_array(message: Image | CompressedImage) -> NDArray[Any]:
    """The pixels: (H, W, 3) uint8 RGB, (H, W) uint16 or (H, W) float32. Raises BadMessageError."""
    if isinstance(message, CompressedImage):
        return decode_compressed(message.format, message.data)
    return decode_image(
        message.encoding, message.height, message.width, message.step, message.data, message.is_bigendian
    )


def color_image(message: Image | CompressedImage) -> NDArray[np.uint8]:
    """The (H, W, 3) uint8 RGB pixels. Raises BadMessageError, also for a depth image."""
    pixels = image_array(message)
    if pixels.ndim != 3:
        raise BadMessageError("rgb/image.encoding", _kind(message), "Remap rgb/image to a colour image.")
    return pixels


def depth_image(message: Image | CompressedImage) -> NDArray[Any]:
    """The (H, W) uint16 millimetres or float32 metres, as sent. Raises BadMessageError, also for a colour image."""
    pixels = image_array(message)
    if pixels.ndim != 2:
        raise BadMessageError("depth/image.encoding", _kind(message), "Remap depth/image to a 16UC1 or 32FC1 image.")
    return pixels


def _kind(message: Image | CompressedImage) -> str:
    return str(message.format if isinstance(message, CompressedImage) else message.encoding)


def to_image(pixels: NDArray[Any], ns: int, frame_id: str) -> Image:
    """An Image of (H, W, 3) uint8 RGB, (H, W) uint8, (H, W) uint16 or (H, W) float32 pixels."""
    encoding = _ENCODINGS.get((pixels.dtype.name, pixels.ndim))
    if encoding is None:
        raise BadMessageError("pixels", f"{pixels.dtype}{pixels.shape}", "Give uint8 colour, uint16 or float32 depth.")
    height, width = pixels.shape[:2]
    return Image(
        header=header(ns, frame_id),
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=0,
        step=pixels.nbytes // height,
        data=byte_array(pixels),
    )


def camera_of(info: CameraInfo) -> PinholeCamera:
    """The camera of a rectified image. Raises InvalidCameraError for K = 0 (an uncalibrated driver) and the like.

    With distortion in D, the image that belongs to this camera is the rectified one, whose intrinsics stand in P.
    """
    camera = PinholeCamera.from_matrix(np.reshape(info.k, (3, 3)), info.width, info.height)
    if is_distorted(info) and info.p[0] > 0:
        return PinholeCamera.from_matrix(np.reshape(info.p, (3, 4))[:, :3], info.width, info.height)
    return camera


def is_distorted(info: CameraInfo) -> bool:
    """Whether the lens of this camera bends straight lines."""
    return any(abs(d) > 0 for d in info.d)


def to_camera_info(camera: PinholeCamera, ns: int, frame_id: str) -> CameraInfo:
    """CameraInfo of an undistorted camera."""
    p = np.hstack([camera.K, np.zeros((3, 1))])
    return CameraInfo(
        header=header(ns, frame_id),
        width=camera.width,
        height=camera.height,
        distortion_model="plumb_bob",
        d=[0.0] * 5,
        k=camera.K.reshape(-1),
        r=np.eye(3).reshape(-1),
        p=p.reshape(-1),
    )


def pose_matrix(pose: Pose) -> NDArray[np.float64]:
    """The (4, 4) transform. Raises InvalidPoseError for NaN or a quaternion that is not of unit length."""
    t, q = pose.position, pose.orientation
    return pose_from_quaternion((t.x, t.y, t.z), (q.x, q.y, q.z, q.w))


def to_pose(T: NDArray[np.float64]) -> Pose:
    """A Pose message of a rigid (4, 4) transform."""
    from scipy.spatial.transform import Rotation

    x, y, z, w = (float(v) for v in Rotation.from_matrix(T[:3, :3]).as_quat())
    px, py, pz = (float(v) for v in T[:3, 3])
    return Pose(position=Point(x=px, y=py, z=pz), orientation=Quaternion(x=x, y=y, z=z, w=w))
