"""What one frame says, as flat arrays: a voxel, a feature cell, a weight, a colour and a normal for each measurement."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geopurify_core.config import FusionConfig
from geopurify_core.frame import RGBDFrame

# How much a measurement counts whose surface normal is unknown, and the least a grazing one counts.
UNKNOWN_COSINE = 0.5
LEAST_COSINE = 0.1
# Neighbours whose depth differs by more than this share lie on another surface and give no normal.
NORMAL_JUMP = 0.05
# Normals are differences over this share of the image width: wide enough for sensor noise, narrower than most voxels.
_NORMAL_STEP_SHARE = 1 / 160


@dataclass(frozen=True)
class Observations:
    """M measurements. Those of one feature cell lie together.

    Attributes:
        key: (M,) int64 voxel, NO_KEY where there is nothing to fuse.
        cell: (M,) int32 row of the feature map, i·w + j.
        weight: (M,) float32 > 0, range times incidence; the cell's confidence comes on top for the feature.
        rgb: (M, 3) uint8.
        normal: (M, 3) float32 unit normals in the map frame, towards the camera; 0 where unknown.
    """

    key: NDArray[np.int64]
    cell: NDArray[np.int32]
    weight: NDArray[np.float32]
    rgb: NDArray[np.uint8]
    normal: NDArray[np.float32]

    @classmethod
    def empty(cls, count: int) -> Observations:
        """Room for ``count`` measurements, not yet filled."""
        return cls(
            np.empty(count, np.int64),
            np.empty(count, np.int32),
            np.empty(count, np.float32),
            np.empty((count, 3), np.uint8),
            np.empty((count, 3), np.float32),
        )


@dataclass(frozen=True)
class ObservationCounts:
    """Measurements trusted, used, and dropped because the map does not reach that far (±2^20 voxels)."""

    valid: int
    used: int
    outside: int


@dataclass(frozen=True)
class PixelTables:
    """Depth pixel → ray, colour pixel and feature cell.

    Depth and colour share the optical centre and axes, so all three depend on the column alone or the row alone: a table for
    columns and one for rows replaces a projection for each pixel.

    Attributes:
        ray_x, ray_y: (w,), (h,) float64; the pixel's ray is (ray_x, ray_y, 1).
        rgb_column, rgb_row: (w,), (h,) int32 nearest colour pixel.
        cell_column, cell_row: (w,), (h,) int32 feature cell, -1 outside the colour image.
        step: Pixels between a pixel and the neighbours that give its normal.
    """

    ray_x: NDArray[np.float64]
    ray_y: NDArray[np.float64]
    rgb_column: NDArray[np.int32]
    rgb_row: NDArray[np.int32]
    cell_column: NDArray[np.int32]
    cell_row: NDArray[np.int32]
    step: int

    @classmethod
    def of(cls, frame: RGBDFrame, grid_height: int, grid_width: int) -> PixelTables:
        """For this frame and a feature map of ``grid_height`` x ``grid_width`` cells."""
        depth, colour = frame.depth_camera, frame.camera
        ray_x = (np.arange(depth.width) - depth.cx) / depth.fx
        ray_y = (np.arange(depth.height) - depth.cy) / depth.fy
        rgb_column, cell_column = _columns(colour.fx * ray_x + colour.cx, colour.width, grid_width)
        rgb_row, cell_row = _columns(colour.fy * ray_y + colour.cy, colour.height, grid_height)
        step = max(1, round(depth.width * _NORMAL_STEP_SHARE))
        return cls(ray_x, ray_y, rgb_column, rgb_row, cell_column, cell_row, step)


def _columns(pixel: NDArray[np.float64], size: int, cells: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Nearest pixel and cell of pixel coordinates along one axis; pixel i covers [i - 0.5, i + 0.5)."""
    edge = pixel + 0.5
    inside = (edge >= 0) & (edge < size)
    nearest = np.clip(np.floor(edge), 0, size - 1).astype(np.int32)
    cell = np.minimum(np.floor(edge * cells / size), cells - 1)
    return nearest, np.where(inside, cell, -1).astype(np.int32)


def observe_frame(
    frame: RGBDFrame,
    depth_m: NDArray[np.float32],
    grid_shape: tuple[int, int],
    voxel_size_m: float,
    config: FusionConfig,
) -> tuple[Observations, ObservationCounts]:
    """Every trusted pixel of ``depth_m`` as an observation, compiled; ``reference.observe_frame`` is the same in torch.

    Args:
        frame: Colour, cameras and pose.
        depth_m: (h, w) float32 trusted depth of that frame.
        grid_shape: Height and width of the feature map.
        voxel_size_m: Edge of a voxel.
        config: Range and incidence weighting.
    """
    from geopurify_core.mapping.jit import run_chunks
    from geopurify_core.mapping.kernels import observe

    tables = PixelTables.of(frame, *grid_shape)
    bands, columns = _runs(tables.cell_row), _runs(tables.cell_column)
    out = Observations.empty(depth_m.size)
    T = frame.T_map_camera
    counts = run_chunks(
        observe, len(bands), bands, columns, np.ascontiguousarray(depth_m), np.ascontiguousarray(frame.rgb),
        tables.ray_x, tables.ray_y, tables.rgb_column, tables.rgb_row, grid_shape[1],
        np.ascontiguousarray(T[:3, :3]), np.ascontiguousarray(T[:3, 3]), 1.0 / voxel_size_m,
        config.range_weight_m, config.incidence_weight, tables.step, NORMAL_JUMP, UNKNOWN_COSINE, LEAST_COSINE,
        out.key, out.cell, out.weight, out.rgb, out.normal, per_thread=4,
    )  # fmt: skip
    valid, used, outside = (sum(column) for column in zip(*counts, strict=True))
    return out, ObservationCounts(valid, used, outside)


def _runs(cells: NDArray[np.int32]) -> NDArray[np.int32]:
    """(R, 3) runs of equal cells along one axis: cell, first pixel, one past the last."""
    starts = np.flatnonzero(np.r_[True, cells[1:] != cells[:-1]])
    return np.stack([cells[starts], starts, np.r_[starts[1:], len(cells)]], axis=1).astype(np.int32)
