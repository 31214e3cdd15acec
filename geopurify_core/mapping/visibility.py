"""Point clouds in colour: which points of a lidar or another depth sensor does the colour camera really see?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geopurify_core.camera import PinholeCamera, check_pose, invert_pose
from geopurify_core.config import DepthConfig, FusionConfig
from geopurify_core.errors import InvalidConfigError, InvalidFrameError
from geopurify_core.frame import check_rgb, check_stamp
from geopurify_core.jit import read_only
from geopurify_core.mapping.fusion import FusionReport, check_values, check_width, integrate
from geopurify_core.mapping.keys import NO_KEY, voxel_of
from geopurify_core.mapping.observations import ObservationCounts, Observations
from geopurify_core.mapping.voxel_map import VoxelMap
from geopurify_core.vision.base import FeatureMap

_MIN_SPLAT_PX, _MAX_SPLAT_PX = 2, 16


@dataclass(frozen=True)
class PointObservation:
    """Points of one sensor, the colour image of another, and where both were.

    Attributes:
        points_m: (N, 3) float, metres in the sensor's frame; points with NaN or infinity are no returns.
        T_map_sensor: (4, 4) float64, from the sensor's frame into the map (identity for points in the map frame).
        rgb: (H, W, 3) uint8, RGB.
        camera: Intrinsics of ``rgb``.
        T_map_camera: (4, 4) float64 pose of the colour camera's optical frame.
        stamp_ns: Acquisition time, nanoseconds.

    Raises:
        InvalidFrameError: A shape, dtype or stamp is wrong.
        InvalidPoseError: A pose is not a finite rigid transform.
    """

    points_m: NDArray[np.floating]
    T_map_sensor: NDArray[np.float64]
    rgb: NDArray[np.uint8]
    camera: PinholeCamera
    T_map_camera: NDArray[np.float64]
    stamp_ns: int

    def __post_init__(self) -> None:
        check_rgb(self.rgb)
        if self.rgb.shape[:2] != (self.camera.height, self.camera.width):
            raise InvalidFrameError(
                "rgb.shape", self.rgb.shape, f"The camera says {self.camera.height}x{self.camera.width}."
            )
        if self.points_m.ndim != 2 or self.points_m.shape[1] != 3 or self.points_m.dtype.kind != "f":
            raise InvalidFrameError(
                "points_m", f"{self.points_m.dtype}{self.points_m.shape}", "Give (N, 3) float metres."
            )
        check_stamp(self.stamp_ns)
        object.__setattr__(self, "T_map_sensor", check_pose(self.T_map_sensor, "T_map_sensor"))
        object.__setattr__(self, "T_map_camera", check_pose(self.T_map_camera))


@dataclass(frozen=True)
class VisibilityConfig:
    """The z-test.

    Attributes:
        tolerance: A point is seen if nothing lies nearer than its depth by more than this share of it.
        splat_px: Each point hides what is behind it within this many pixels, so that a sparse cloud is not transparent.
            0 takes the spacing of the points in the image.
    """

    tolerance: float = 0.03
    splat_px: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < 1:
            raise InvalidConfigError("visibility.tolerance", self.tolerance, "Give a share from 0 to below 1.")
        if not 0 <= self.splat_px <= _MAX_SPLAT_PX:
            raise InvalidConfigError("visibility.splat_px", self.splat_px, f"Give 0 to {_MAX_SPLAT_PX} pixels.")


def visible_points(
    points_camera: NDArray[np.floating], camera: PinholeCamera, config: VisibilityConfig | None = None
) -> NDArray[np.bool_]:
    """(N,) which points, given in the camera's optical frame (N, 3), lie in its image with nothing in front of them."""
    config = config or VisibilityConfig()
    uv, z = camera.project(points_camera)
    with np.errstate(invalid="ignore"):
        pixel = np.floor(uv + 0.5)
        inside = (pixel >= 0).all(axis=1) & (pixel[:, 0] < camera.width) & (pixel[:, 1] < camera.height)
    visible = np.zeros(len(z), dtype=bool)
    if not inside.any():
        return visible
    u, v = pixel[inside].astype(np.int64).T
    nearest = np.full((camera.height, camera.width), np.inf)
    np.minimum.at(nearest, (v, u), z[inside])
    radius = config.splat_px or _spacing(nearest)
    from scipy.ndimage import minimum_filter

    nearest = minimum_filter(nearest, size=2 * radius + 1, mode="nearest")
    visible[inside] = z[inside] * (1.0 - config.tolerance) <= nearest[v, u]
    return visible


def _spacing(nearest: NDArray[np.float64]) -> int:
    """The typical distance between hit pixels, rounded up; never one, as what is near is often sparser than that."""
    hit = int(np.isfinite(nearest).sum())
    return int(np.clip(np.ceil(np.sqrt(nearest.size / hit)), _MIN_SPLAT_PX, _MAX_SPLAT_PX))


def fuse_points(
    voxel_map: VoxelMap,
    points: PointObservation,
    feature_map: FeatureMap,
    depth_cfg: DepthConfig | None = None,
    fusion_cfg: FusionConfig | None = None,
    visibility_cfg: VisibilityConfig | None = None,
    *,
    engine: str = "auto",
) -> FusionReport:
    """Fuse the points that the colour camera sees; hidden points and those outside its image are left out.

    Points have no normals, so their weight is cell confidence x range, and normals in the map stay as they are.
    All or nothing, as in :func:`geopurify_core.mapping.fusion.fuse_frame`, and with the same errors.

    Args:
        voxel_map: Changed in place.
        points: Cloud, colour image, poses.
        feature_map: (C, h, w) features of ``points.rgb``.
        depth_cfg: Range limits, applied along the optical axis.
        fusion_cfg: Range weighting, least confidence.
        visibility_cfg: The z-test.
    """
    depth_cfg, fusion_cfg = depth_cfg or DepthConfig(), fusion_cfg or FusionConfig()
    check_width(voxel_map, feature_map)
    finite = np.isfinite(points.points_m).all(axis=1)
    sensor_points = points.points_m[finite].astype(np.float64)
    map_points = sensor_points @ points.T_map_sensor[:3, :3].T + points.T_map_sensor[:3, 3]
    T_camera_map = invert_pose(points.T_map_camera)
    camera_points = map_points @ T_camera_map[:3, :3].T + T_camera_map[:3, 3]
    seen = visible_points(camera_points, points.camera, visibility_cfg)
    seen &= (camera_points[:, 2] >= depth_cfg.min_range_m) & (camera_points[:, 2] <= depth_cfg.max_range_m)
    if not seen.any():
        return FusionReport()
    check_values(feature_map)
    observations = _observe(points, map_points[seen], camera_points[seen], feature_map, voxel_map, fusion_cfg)
    return integrate(voxel_map, observations, feature_map, fusion_cfg, engine=engine)


def _observe(
    points: PointObservation,
    map_points: NDArray[np.float64],
    camera_points: NDArray[np.float64],
    feature_map: FeatureMap,
    voxel_map: VoxelMap,
    config: FusionConfig,
) -> Observations:
    uv, z = points.camera.project(camera_points)
    grid_height, grid_width = feature_map.confidence.shape
    size = (points.camera.width, points.camera.height)
    column, row = (
        np.floor((uv[:, i] + 0.5) * cells / size[i]).astype(np.int64)
        for i, cells in ((0, grid_width), (1, grid_height))
    )
    cell = np.minimum(row, grid_height - 1) * grid_width + np.minimum(column, grid_width - 1)
    key = voxel_of(map_points, voxel_map.config.voxel_size_m)
    u, v = np.floor(uv + 0.5).astype(np.int64).T
    weight = 1.0 / (1.0 + (z / config.range_weight_m) ** 2) if config.range_weight_m > 0 else np.ones(len(z))
    outside = int((key == NO_KEY).sum())
    return Observations(
        ObservationCounts(len(key), len(key) - outside, outside),
        points.stamp_ns,
        points.T_map_camera[:3, 3],
        key,
        cell.astype(np.int32),
        weight.astype(np.float32),
        read_only(points.rgb[v, u]),
        np.zeros((3, len(z)), np.float32),
        np.argsort(cell, kind="stable").astype(np.int32),
    )
