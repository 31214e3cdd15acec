"""One RGB-D observation, checked once at the border so that everything behind it may trust it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from geopurify_core.camera import PinholeCamera, check_pose
from geopurify_core.errors import InvalidFrameError


@dataclass(frozen=True)
class RGBDFrame:
    """A colour image, a depth image registered to it, and where the camera was.

    "Registered" means that both share the optical centre and axes; they may differ in resolution and focal length
    (ScanNet: 1296x968 colour, 640x480 depth), which is why each may have its own intrinsics.

    Attributes:
        rgb: (H, W, 3) uint8, RGB.
        depth_m: (h, w) float32, metres along the optical axis; 0 where there is no measurement.
        camera: Intrinsics of ``rgb``.
        T_map_camera: (4, 4) float64; maps points of the optical frame (x right, y down, z forward) into the map.
        stamp_ns: Acquisition time, nanoseconds.
        depth_camera: Intrinsics of ``depth_m``; by default ``camera`` scaled to the depth image's size.

    Raises:
        InvalidFrameError: A shape, dtype or stamp is wrong.
        InvalidPoseError: The pose is not a finite rigid transform.
    """

    rgb: NDArray[np.uint8]
    depth_m: NDArray[np.float32]
    camera: PinholeCamera
    T_map_camera: NDArray[np.float64]
    stamp_ns: int
    depth_camera: PinholeCamera = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        check_rgb(self.rgb)
        if self.rgb.shape[:2] != (self.camera.height, self.camera.width):
            raise InvalidFrameError(
                "rgb.shape",
                self.rgb.shape,
                f"The camera says {self.camera.height}x{self.camera.width}; send the CameraInfo of this image.",
            )
        if self.depth_m.ndim != 2 or self.depth_m.dtype != np.float32:
            raise InvalidFrameError(
                "depth_m", f"{self.depth_m.dtype}{self.depth_m.shape}", "Give (h, w) float32 metres (see decode_depth)."
            )
        height, width = self.depth_m.shape
        if self.depth_camera is None:
            object.__setattr__(self, "depth_camera", self.camera.scaled(width, height))
        if (self.depth_camera.height, self.depth_camera.width) != (height, width):
            raise InvalidFrameError("depth_camera", self.depth_camera, f"The depth image is {height}x{width}.")
        check_stamp(self.stamp_ns)
        object.__setattr__(self, "T_map_camera", check_pose(self.T_map_camera))


def check_stamp(stamp_ns: int) -> None:
    """Raise InvalidFrameError unless ``stamp_ns`` is a whole number that a map can store."""
    if not isinstance(stamp_ns, (int, np.integer)) or not 0 <= stamp_ns < 1 << 63:
        raise InvalidFrameError("stamp_ns", stamp_ns, "Give whole nanoseconds since an epoch, from 0 to below 2^63.")


def check_rgb(rgb: NDArray[np.uint8]) -> None:
    """Raise InvalidFrameError unless ``rgb`` is a non-empty (H, W, 3) uint8 image."""
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or rgb.size == 0:
        raise InvalidFrameError("rgb", f"{rgb.dtype}{rgb.shape}", "Give a (H, W, 3) uint8 RGB image.")
