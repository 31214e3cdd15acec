"""A small procedural room seen by a walking camera: enough geometry to fuse, quick enough to fuse often."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from geopurify_core.camera import PinholeCamera
from geopurify_core.config import MapConfig
from geopurify_core.frame import RGBDFrame
from geopurify_core.mapping.voxel_map import VoxelMap
from geopurify_core.vision.base import FeatureMap

HALF_ROOM_M = np.array([2.0, 1.2, 2.2])


def box_depth(camera: PinholeCamera, T_map_camera: np.ndarray) -> np.ndarray:
    """(h, w) float64 depth of a camera inside a box of half extents HALF_ROOM_M."""
    rays = camera.back_project(np.ones((camera.height, camera.width), dtype=np.float32)) @ T_map_camera[:3, :3].T
    with np.errstate(divide="ignore"):
        walls = (np.sign(rays) * HALF_ROOM_M - T_map_camera[:3, 3]) / rays
    return np.nanmin(np.where(walls > 0, walls, np.inf), axis=-1)


def pose(x_m: float, yaw_rad: float) -> np.ndarray:
    T = np.eye(4)
    cosine, sine = np.cos(yaw_rad), np.sin(yaw_rad)
    T[:3, :3] = [[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]]
    T[0, 3] = x_m
    return T


@pytest.fixture
def make_frame() -> Callable[..., RGBDFrame]:
    """frame(i, width, height, …): the i-th view of the room, with noise and holes of its own."""

    def make(i: int, width: int = 64, height: int = 48, *, holes: float = 0.05, rgb_scale: int = 1) -> RGBDFrame:
        rng = np.random.default_rng(i)
        camera = PinholeCamera(0.8 * width, 0.82 * width, width / 2 - 0.3, height / 2 + 0.2, width, height)
        colour = camera.scaled(width * rgb_scale, height * rgb_scale)
        T = pose(0.07 * i - 0.3, 0.4 * i)
        depth = box_depth(camera, T) + rng.normal(0, 0.004, (height, width))
        depth[rng.random((height, width)) < holes] = 0
        rgb = rng.integers(0, 256, (height * rgb_scale, width * rgb_scale, 3), dtype=np.uint8)
        return RGBDFrame(rgb, depth.astype(np.float32), colour, T, 1_000_000 * (i + 1), camera)

    return make


@pytest.fixture
def make_features() -> Callable[..., FeatureMap]:
    """features(i, C, h, w): unit-length rows, some cells without confidence."""

    def make(i: int, channels: int = 16, height: int = 12, width: int = 16, dtype: type = np.float32) -> FeatureMap:
        rng = np.random.default_rng(1000 + i)
        rows = rng.normal(size=(height, width, channels))
        rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
        confidence = rng.uniform(0.1, 1, (height, width)).astype(np.float32)
        confidence[rng.random((height, width)) < 0.1] = 0
        return FeatureMap.from_rows(rows.astype(dtype), confidence)

    return make


@pytest.fixture
def new_map() -> Callable[..., VoxelMap]:
    """An empty map of 16 channels and 5 cm voxels; keywords go to MapConfig."""

    def make(channels: int = 16, **config: object) -> VoxelMap:
        return VoxelMap(
            MapConfig(**{"voxel_size_m": 0.05, "budget_mb": 16, **config}), channels, "backbone-a", "text-a"
        )

    return make
