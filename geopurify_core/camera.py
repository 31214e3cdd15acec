"""The pinhole camera and rigid poses: optical frame, x right, y down, z forward (REP-103), metres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geopurify_core.errors import InvalidCameraError, InvalidPoseError

_RIGID_TOLERANCE = 1e-3
_MAX_IMAGE_SIDE = 16_384


@dataclass(frozen=True)
class PinholeCamera:
    """Intrinsics of an undistorted image; a pixel's centre has integer coordinates, as in ROS and OpenCV.

    Attributes:
        fx, fy: Focal lengths, pixels, > 0.
        cx, cy: Principal point, pixels.
        width, height: Image size, pixels.

    Raises:
        InvalidCameraError: Any value is not finite, a focal length is not positive, or the size is not sensible.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int

    def __post_init__(self) -> None:
        k = (self.fx, self.fy, self.cx, self.cy)
        if not all(np.isfinite(k)):
            raise InvalidCameraError("camera.K", k, "Publish finite intrinsics.")
        if self.fx <= 0 or self.fy <= 0:
            raise InvalidCameraError("camera.K", k, "Calibrate the camera: fx and fy must be positive.")
        for name in ("width", "height"):
            side = getattr(self, name)
            if not 1 <= side <= _MAX_IMAGE_SIDE:
                raise InvalidCameraError(f"camera.{name}", side, f"It must lie in 1..{_MAX_IMAGE_SIDE} pixels.")

    @classmethod
    def from_matrix(cls, K: ArrayLike, width: int, height: int) -> PinholeCamera:
        """From a 3x3 or 4x4 intrinsic matrix (ScanNet writes 4x4)."""
        matrix = np.asarray(K, dtype=np.float64)
        if matrix.shape not in {(3, 3), (4, 4)}:
            raise InvalidCameraError("camera.K", matrix.shape, "Give a 3x3 or 4x4 intrinsic matrix.")
        return cls(
            float(matrix[0, 0]), float(matrix[1, 1]), float(matrix[0, 2]), float(matrix[1, 2]), int(width), int(height)
        )

    @property
    def K(self) -> NDArray[np.float64]:
        """The (3, 3) intrinsic matrix."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]], dtype=np.float64)

    def scaled(self, width: int, height: int) -> PinholeCamera:
        """The same lens seen at another resolution; pixel centres keep their integer coordinates."""
        sx, sy = width / self.width, height / self.height
        return PinholeCamera(
            self.fx * sx,
            self.fy * sy,
            (self.cx + 0.5) * sx - 0.5,
            (self.cy + 0.5) * sy - 0.5,
            int(width),
            int(height),
        )

    def project(self, points_camera: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Pixel coordinates (N, 2) as (u, v) and depth z (N,) of camera-frame points (N, 3); z ≤ 0 projects to NaN."""
        points = np.asarray(points_camera, dtype=np.float64)
        z = points[:, 2]
        with np.errstate(divide="ignore", invalid="ignore"):
            inverse = np.where(z > 0, 1.0 / z, np.nan)
        uv = np.stack([self.fx * points[:, 0] * inverse + self.cx, self.fy * points[:, 1] * inverse + self.cy], axis=1)
        return uv, z

    def back_project(self, depth_m: NDArray[np.floating]) -> NDArray[np.float64]:
        """Camera-frame points (H, W, 3), metres, of a depth image (H, W); depth 0 gives the origin."""
        depth = np.asarray(depth_m, dtype=np.float64)
        if depth.shape != (self.height, self.width):
            raise InvalidCameraError(
                "depth.shape", depth.shape, f"This camera is {self.height}x{self.width} (height x width)."
            )
        x = (np.arange(self.width) - self.cx) / self.fx
        y = (np.arange(self.height) - self.cy) / self.fy
        return np.stack([x[None, :] * depth, y[:, None] * depth, depth], axis=-1)


def check_pose(T: ArrayLike, field: str = "T_map_camera") -> NDArray[np.float64]:
    """A (4, 4) float64 rigid transform, or an error that says what is wrong with it.

    Rotation columns must be orthonormal with determinant +1 to 1e-3, and the last row (0, 0, 0, 1).

    Raises:
        InvalidPoseError: Wrong shape, not finite, scaled, mirrored, or singular.
    """
    matrix = np.asarray(T, dtype=np.float64)
    if matrix.shape != (4, 4):
        raise InvalidPoseError(f"{field}.shape", matrix.shape, "A pose is a 4x4 homogeneous matrix.")
    if not np.isfinite(matrix).all():
        raise InvalidPoseError(field, "NaN or infinity", "The tracker lost its pose here; skip the frame.")
    rotation = matrix[:3, :3]
    if np.abs(matrix[3] - (0, 0, 0, 1)).max() > _RIGID_TOLERANCE:
        raise InvalidPoseError(f"{field}[3]", matrix[3].tolist(), "The last row of a rigid transform is 0 0 0 1.")
    if np.abs(rotation.T @ rotation - np.eye(3)).max() > _RIGID_TOLERANCE or np.linalg.det(rotation) < 0:
        raise InvalidPoseError(
            f"{field}[:3,:3]", np.round(rotation, 4).tolist(), "Give a rotation: orthonormal, determinant +1."
        )
    return matrix


def pose_from_quaternion(translation_m: ArrayLike, quaternion_xyzw: ArrayLike) -> NDArray[np.float64]:
    """(4, 4) pose from a translation (3,) in metres and a quaternion (4,) in ROS order x, y, z, w.

    Raises:
        InvalidPoseError: Not finite, or the quaternion's norm is off unit by more than 1 %
            (an all-zero quaternion is what an unset message carries).
    """
    from scipy.spatial.transform import Rotation

    t = np.asarray(translation_m, dtype=np.float64)
    q = np.asarray(quaternion_xyzw, dtype=np.float64)
    if not (np.isfinite(t).all() and np.isfinite(q).all()):
        raise InvalidPoseError("pose", (t.tolist(), q.tolist()), "The pose holds NaN or infinity; skip the frame.")
    if abs(np.linalg.norm(q) - 1.0) > 1e-2:
        raise InvalidPoseError("pose.orientation", q.tolist(), "Publish a unit quaternion (x, y, z, w).")
    T = np.eye(4)
    T[:3, :3] = Rotation.from_quat(q).as_matrix()
    T[:3, 3] = t
    return T


def invert_pose(T: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of a rigid (4, 4) transform, by transposing its rotation."""
    inverse = np.eye(4)
    inverse[:3, :3] = T[:3, :3].T
    inverse[:3, 3] = -T[:3, :3].T @ T[:3, 3]
    return inverse
