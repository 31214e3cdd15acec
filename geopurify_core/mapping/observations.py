"""What one frame says, as flat arrays: for each measurement a voxel, a feature cell, a weight, a colour, a normal."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from geopurify_core.camera import PinholeCamera
from geopurify_core.config import FusionConfig
from geopurify_core.frame import RGBDFrame
from geopurify_core.jit import read_only, run_chunks

# Normals are differences over this share of the image width: wide enough for sensor noise, narrower than most voxels.
_NORMAL_STEP_SHARE = 1 / 160


@dataclass(frozen=True)
class ObservationCounts:
    """Measurements trusted, used, and dropped because the map does not reach that far (±2^20 voxels)."""

    valid: int
    used: int
    outside: int


@dataclass(frozen=True)
class Observations:
    """M measurements of one moment.

    Attributes:
        counts: What became of the measurements.
        stamp_ns: When.
        camera_m: (3,) float64, from where, map frame.
        key: (M,) int64 voxel, NO_KEY where there is nothing to fuse.
        cell: (M,) int32 row of the feature map, i·w + j.
        weight: (M,) float32 > 0, range times incidence; the cell's confidence comes on top for the feature.
        rgb: (M, 3) uint8.
        normal: (3, M) float32 unit normals in the map frame, towards the camera; 0 where unknown.
        order: (M,) int32, a permutation that brings measurements of one cell together.
    """

    counts: ObservationCounts
    stamp_ns: int
    camera_m: NDArray[np.float64]
    key: NDArray[np.int64]
    cell: NDArray[np.int32]
    weight: NDArray[np.float32]
    rgb: NDArray[np.uint8]
    normal: NDArray[np.float32]
    order: NDArray[np.int32]


@dataclass(frozen=True)
class PixelTables:
    """Depth pixel → ray, colour pixel and feature cell.

    Depth and colour share the optical centre and axes, so all three depend on the column alone or the row alone:
    a table for columns and one for rows replaces a projection for each pixel.

    Attributes:
        ray_x, ray_y: (w + 2·step,), (h + 2·step,) float64; a pixel's ray is (ray_x, ray_y, 1). Padded as normals need.
        rgb_column, rgb_row: (w,), (h,) int32 nearest colour pixel.
        cell_column, cell_row: (w,), (h,) int32 feature cell, -1 outside the colour image.
        order: (h·w,) int32 pixels, cell after cell.
        step: Pixels between a pixel and the neighbours that give its normal.
        same_pixels: Whether every depth pixel has the colour pixel of its own place.
    """

    ray_x: NDArray[np.float64]
    ray_y: NDArray[np.float64]
    rgb_column: NDArray[np.int32]
    rgb_row: NDArray[np.int32]
    cell_column: NDArray[np.int32]
    cell_row: NDArray[np.int32]
    order: NDArray[np.int32]
    step: int
    same_pixels: bool


@lru_cache(maxsize=8)
def pixel_tables(depth: PinholeCamera, colour: PinholeCamera, grid_height: int, grid_width: int) -> PixelTables:
    """The tables of a pair of cameras and a feature map of ``grid_height`` x ``grid_width`` cells; remembered."""
    step = max(1, round(depth.width * _NORMAL_STEP_SHARE))
    ray_x: NDArray[np.float64] = (np.arange(-step, depth.width + step, dtype=np.float64) - depth.cx) / depth.fx
    ray_y: NDArray[np.float64] = (np.arange(-step, depth.height + step, dtype=np.float64) - depth.cy) / depth.fy
    rgb_column, cell_column = _columns(colour.fx * ray_x[step:-step] + colour.cx, colour.width, grid_width)
    rgb_row, cell_row = _columns(colour.fy * ray_y[step:-step] + colour.cy, colour.height, grid_height)
    cell = np.where((cell_row[:, None] < 0) | (cell_column < 0), -1, cell_row[:, None] * grid_width + cell_column)
    same = (
        (depth.width, depth.height) == (colour.width, colour.height)
        and bool((rgb_column == np.arange(depth.width)).all())
        and bool((rgb_row == np.arange(depth.height)).all())
    )
    order = np.argsort(cell.reshape(-1), kind="stable").astype(np.int32)
    return PixelTables(ray_x, ray_y, rgb_column, rgb_row, cell_column, cell_row, order, step, same)


def _columns(pixel: NDArray[np.floating], size: int, cells: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
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
) -> Observations:
    """Every trusted pixel of ``depth_m`` as an observation, compiled; ``reference.observe_frame`` is the same in torch.

    Args:
        frame: Colour, cameras and pose.
        depth_m: (h, w) float32 trusted depth of that frame.
        grid_shape: Height and width of the feature map.
        voxel_size_m: Edge of a voxel.
        config: Range and incidence weighting.
    """
    from geopurify_core.mapping.observe_kernels import gather_colours, observe_rows

    tables = pixel_tables(frame.depth_camera, frame.camera, *grid_shape)
    height, width = depth_m.shape
    key, cell = np.empty((height, width), np.int64), np.empty((height, width), np.int32)
    weight, normal = np.empty((height, width), np.float32), np.empty((3, height, width), np.float32)
    counts = run_chunks(
        observe_rows, height, np.pad(depth_m, tables.step), tables.step, tables.ray_x, tables.ray_y,
        tables.cell_column, tables.cell_row, grid_shape[1], np.ascontiguousarray(frame.T_map_camera[:3]),
        1.0 / voxel_size_m, float(config.range_weight_m), bool(config.incidence_weight), key, cell, weight, normal,
        min_chunk=16, per_thread=2,
    )  # fmt: skip
    rgb = read_only(frame.rgb)
    if not tables.same_pixels:
        near = np.empty((height, width, 3), np.uint8)
        run_chunks(gather_colours, height, rgb, tables.rgb_row, tables.rgb_column, near, min_chunk=64)
        rgb = read_only(near)
    valid, used, outside = (int(sum(column)) for column in zip(*counts, strict=True))
    return Observations(
        ObservationCounts(valid, used, outside), frame.stamp_ns, frame.T_map_camera[:3, 3],
        key.reshape(-1), cell.reshape(-1), weight.reshape(-1), rgb.reshape(-1, 3), normal.reshape(3, -1), tables.order,
    )  # fmt: skip
