"""Depth images: encodings after REP-118, invalid values after REP-117, and the filter against a naive loop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from geopurify_core.camera import PinholeCamera
from geopurify_core.config import DepthConfig, MapConfig
from geopurify_core.depth import decode_depth, trusted_depth, trusted_depth_numpy
from geopurify_core.errors import InvalidFrameError
from geopurify_core.frame import RGBDFrame
from geopurify_core.mapping.fusion import fuse_frame
from geopurify_core.mapping.voxel_map import VoxelMap
from geopurify_core.vision.base import FeatureMap


@pytest.mark.parametrize("encoding", ["16UC1", "mono16"])
@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_millimetres(encoding, dtype):
    depth = decode_depth(np.array([[0, 1, 1234, 65534, 65535]], dtype=dtype), encoding)
    assert depth.dtype == np.float32 and depth.dtype.isnative
    np.testing.assert_array_equal(depth, np.array([[0, 0.001, 1.234, 65.534, 0]], np.float32))


def test_metres():
    values = np.array([[np.nan, np.inf, -np.inf, -0.0, -1, 0, 1.25, 65535]], np.float32)
    depth = decode_depth(values, "32FC1")
    np.testing.assert_array_equal(depth, [[0, 0, 0, 0, 0, 0, 1.25, 0]])
    depth[0, 0] = 5  # a copy, free to be changed
    assert np.isnan(values[0, 0])


@pytest.mark.parametrize(
    ("image", "encoding", "field"),
    [
        (np.zeros((2, 2), np.uint8), "8UC1", "encoding"),
        (np.zeros((2, 2), np.uint16), "16UC2", "encoding"),
        (np.zeros((2, 2), np.uint16), "", "encoding"),
        (np.zeros((2, 2), np.float32), "16UC1", "dtype"),
        (np.zeros((2, 2), np.int16), "16UC1", "dtype"),
        (np.zeros((2, 2), np.uint16), "32FC1", "dtype"),
        (np.zeros((2, 2), np.float64), "32FC1", "dtype"),
        (np.zeros((2, 2, 1), np.uint16), "16UC1", "shape"),
        (np.zeros((0, 2), np.uint16), "16UC1", "shape"),
    ],
)
def test_anything_else_is_refused_by_name(image, encoding, field):
    with pytest.raises(InvalidFrameError) as caught:
        decode_depth(image, encoding)
    assert caught.value.field == f"depth.{field}" and caught.value.remedy


def naive_filter(depth, config):
    out = np.zeros_like(depth)
    height, width = depth.shape
    for v in range(height):
        for u in range(width):
            d = depth[v, u]
            if not (np.isfinite(d) and d > 0 and config.min_range_m <= d <= config.max_range_m):
                continue
            around = [(v, u - 1), (v, u + 1), (v - 1, u), (v + 1, u)]
            others = [depth[i, j] for i, j in around if 0 <= i < height and 0 <= j < width]
            measured = [o for o in others if np.isfinite(o) and o > 0]
            if config.edge_jump == 0 or all(abs(o - d) <= np.float32(config.edge_jump) * d for o in measured):
                out[v, u] = d
    return out


DEPTHS = st.sampled_from([0, 0.1, 0.26, 1.0, 1.04, 1.06, 1.2, 4.9, 5.1, -1, 65535, np.nan, np.inf, -np.inf])


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=DEPTHS),
    st.sampled_from([0.0, 0.05, 0.3]),
)
def test_filter_equals_a_naive_loop(depth, edge_jump):
    config = DepthConfig(edge_jump=edge_jump)
    expected = naive_filter(depth, config)
    np.testing.assert_array_equal(trusted_depth(depth, config), expected)
    np.testing.assert_array_equal(trusted_depth_numpy(depth, config), expected)


def test_filter_wants_float32_metres():
    for bad in (np.zeros((2, 2)), np.zeros((2, 2, 1), np.float32), np.zeros(4, np.uint16)):
        with pytest.raises(InvalidFrameError, match="depth_m"):
            trusted_depth(bad, DepthConfig())


def test_millimetres_and_metres_of_one_scene_give_one_map():
    """R5: identical voxels, and not one bit of difference in their features."""
    rng = np.random.default_rng(0)
    millimetres = rng.integers(300, 4000, (48, 64), dtype=np.uint16)
    metres = (millimetres / 1000).astype(np.float32)
    rgb = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    features = FeatureMap.from_rows(rng.normal(size=(12, 16, 8)).astype(np.float32), np.ones((12, 16), np.float32))
    snapshots = []
    for image, encoding in ((millimetres, "16UC1"), (metres, "32FC1")):
        voxel_map = VoxelMap(MapConfig(), 8, "b", "t")
        frame = RGBDFrame(rgb, decode_depth(image, encoding), PinholeCamera(60, 60, 32, 24, 64, 48), np.eye(4), 1)
        fuse_frame(voxel_map, frame, features, DepthConfig(edge_jump=0.0))
        snapshots.append(voxel_map.snapshot())
    a, b = snapshots
    assert len(a) > 1000
    for name in ("coords", "features", "weight", "rgb", "normals"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
