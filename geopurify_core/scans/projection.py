"""Which points of a scan a posed image sees, and at which pixels: projection with a test against the depth image.

The released code and OpenScene do the same with other numbers (see ``docs/scenes.md``): project, round to the nearest
pixel, leave out a border, and believe a point where the measured depth agrees with its own to a share of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from geopurify_core.camera import PinholeCamera, check_pose, invert_pose
from geopurify_core.errors import InvalidConfigError, InvalidFrameError


@dataclass(frozen=True)
class VisibilityTest:
    """When a point counts as seen.

    Attributes:
        relative_depth: Largest |measured − own| depth, as a share of the measured one: 0.05 (GeoPurify on ScanNet),
            0.02 (both on Matterport3D), 0.25 (OpenScene on ScanNet).
        border_px: Pixels at each edge of the image that are left out.
    """

    relative_depth: float = 0.05
    border_px: int = 10

    def __post_init__(self) -> None:
        if not 0 <= self.relative_depth < 1:
            raise InvalidConfigError("relative_depth", self.relative_depth, "Give a share from 0 to below 1.")
        if self.border_px < 0:
            raise InvalidConfigError("border_px", self.border_px, "Give a number of pixels, 0 or more.")


@dataclass(frozen=True)
class SeenPoints:
    """The n points that an image sees.

    Attributes:
        points: (n,) int64, which points of the scan, ascending.
        rows, columns: (n,) int64, their pixels.
    """

    points: NDArray[np.int64]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.points)


def seen_points(
    points_m: NDArray[np.floating],
    T_map_camera: NDArray[np.float64],
    camera: PinholeCamera,
    depth_m: NDArray[np.floating] | None,
    test: VisibilityTest | None = None,
    depth_camera: PinholeCamera | None = None,
) -> SeenPoints:
    """The points of a scan that one image sees.

    A pixel is the nearest one to the projected point (halves to the even number, as ``numpy.round``). With depth, a
    point is seen if |d − z| ≤ share · d, which a pixel without depth (d = 0) never fulfils; without, if it is in front.

    Args:
        points_m: (N, 3) in the map frame, metres.
        T_map_camera: (4, 4) pose of the camera's optical frame.
        camera: Intrinsics of the image whose pixels are returned.
        depth_m: (h, w) registered depth, metres, 0 unknown; None trusts every point in front of the camera.
        test: Limits.
        depth_camera: Intrinsics of ``depth_m``, where they are not those of ``camera``.

    Raises:
        InvalidFrameError: The depth image has another size than its camera.
        InvalidPoseError: The pose is not rigid.
    """
    test = test or VisibilityTest()
    depth_camera = depth_camera or camera
    T_camera_map = invert_pose(check_pose(T_map_camera))
    points = np.asarray(points_m, dtype=np.float64)
    p = T_camera_map[:3, :3] @ points.T + T_camera_map[:3, 3:]
    column, row, seen = _pixels(p, camera, test.border_px)
    if depth_m is None:
        seen &= p[2] > 0
    else:
        if depth_m.shape != (depth_camera.height, depth_camera.width):
            expected = f"The depth camera is {depth_camera.height}x{depth_camera.width}."
            raise InvalidFrameError("depth_m", depth_m.shape, expected)
        u, v = column, row
        if depth_camera != camera:
            u, v, inside = _pixels(p, depth_camera, 0)
            seen &= inside
        index = np.flatnonzero(seen)
        measured = np.asarray(depth_m)[v[index], u[index]]
        seen[index] = np.abs(measured - p[2, index]) <= test.relative_depth * measured
    index = np.flatnonzero(seen)
    return SeenPoints(index, row[index], column[index])


def _pixels(
    p: NDArray[np.float64], camera: PinholeCamera, border_px: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Column and row of the nearest pixel to each camera-frame point (3, N), and whether it lies inside the border."""
    with np.errstate(divide="ignore", invalid="ignore"):
        u = np.round(p[0] * camera.fx / p[2] + camera.cx)
        v = np.round(p[1] * camera.fy / p[2] + camera.cy)
        inside = (u >= border_px) & (v >= border_px)
        inside &= (u < camera.width - border_px) & (v < camera.height - border_px)
    inside &= p[2] != 0
    return np.where(inside, u, 0).astype(np.int64), np.where(inside, v, 0).astype(np.int64), inside


def centred_camera(camera: PinholeCamera, width: int, height: int) -> PinholeCamera:
    """The camera as the released ScanNet mapper takes it: for an image of another size, principal point in its middle.

    The scale is read off the principal point (width / 2 cx), not off the image's own size, so that a lens whose
    axis does not meet the image's middle gets another focal length.
    """
    scaled = replace(camera, width=width, height=height)
    fx, fy = camera.fx * width / (2 * camera.cx), camera.fy * height / (2 * camera.cy)
    return replace(scaled, fx=fx, fy=fy, cx=width / 2, cy=height / 2)
