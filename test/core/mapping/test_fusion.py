"""Fusion against a naive double loop, the two engines against each other, and what must never happen."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from geopurify_core import jit
from geopurify_core.camera import PinholeCamera
from geopurify_core.config import DepthConfig, FusionConfig, MapConfig
from geopurify_core.errors import BackboneError, MapMismatchError
from geopurify_core.frame import RGBDFrame
from geopurify_core.mapping.fusion import FusionReport, fuse_frame
from geopurify_core.mapping.voxel_map import VoxelMap
from geopurify_core.vision.base import FeatureMap

DEPTH = DepthConfig(min_range_m=0.2, max_range_m=6.0, edge_jump=0.0)
ULP16 = 2.0**-11  # relative rounding of float16


def naive(frames, size, config):
    """Every pixel by hand, in float64: {voxel: (feature mean, weight, colour mean, geometry weight)}, never rounded."""
    sums = {}
    for frame, features in frames:
        height, width = frame.depth_m.shape
        depth_camera, camera = frame.depth_camera, frame.camera
        channels, grid_h, grid_w = features.features.shape
        step = max(1, round(width / 160))
        for v, u in itertools.product(range(height), range(width)):
            d = float(frame.depth_m[v, u])
            if not DEPTH.min_range_m <= d <= DEPTH.max_range_m:
                continue
            ray = np.array([(u - depth_camera.cx) / depth_camera.fx, (v - depth_camera.cy) / depth_camera.fy, 1.0])
            uc, vc = camera.fx * ray[0] + camera.cx, camera.fy * ray[1] + camera.cy
            if not (-0.5 <= uc < camera.width - 0.5 and -0.5 <= vc < camera.height - 0.5):
                continue
            point = frame.T_map_camera[:3, :3] @ (ray * d) + frame.T_map_camera[:3, 3]
            cosine = naive_cosine(frame, u, v, step)
            weight = 1.0
            if config.range_weight_m > 0:
                weight /= 1 + (d / config.range_weight_m) ** 2
            if config.incidence_weight:
                weight *= 0.5 if cosine is None else max(cosine, 0.1)
            i, j = int((vc + 0.5) * grid_h / camera.height), int((uc + 0.5) * grid_w / camera.width)
            confidence = float(features.confidence[i, j])
            entry = sums.setdefault(
                tuple(math.floor(c) for c in point / size), [np.zeros(channels), 0.0, np.zeros(3), 0.0]
            )
            if confidence > 0 and confidence >= config.min_confidence:
                entry[0] += weight * confidence * features.features[:, i, j].astype(np.float64)
                entry[1] += weight * confidence
            entry[2] += weight * frame.rgb[math.floor(vc + 0.5), math.floor(uc + 0.5)]
            entry[3] += weight
    return {key: (f / w if w else f, w, c / g, g) for key, (f, w, c, g) in sums.items()}


def naive_cosine(frame, u, v, step):
    camera = frame.depth_camera
    height, width = frame.depth_m.shape

    def point(uu, vv):
        d = float(frame.depth_m[vv, uu])
        return np.array([(uu - camera.cx) / camera.fx * d, (vv - camera.cy) / camera.fy * d, d])

    d = float(frame.depth_m[v, u])

    def side(du, dv):
        uu, vv = u + du, v + dv
        if not (0 <= uu < width and 0 <= vv < height) or frame.depth_m[vv, uu] <= 0:
            return None
        return point(uu, vv) if abs(float(frame.depth_m[vv, uu]) - d) <= 0.05 * d else None

    left, right, up, down = side(-step, 0), side(step, 0), side(0, -step), side(0, step)
    if (left is None and right is None) or (up is None and down is None):
        return None
    here = point(u, v)
    across = (here if right is None else right) - (here if left is None else left)
    downwards = (here if down is None else down) - (here if up is None else up)
    normal = np.cross(downwards, across)
    return abs(normal @ here) / np.linalg.norm(normal) / np.linalg.norm(here)


def by_voxel(snapshot):
    return {tuple(int(c) for c in coord): i for i, coord in enumerate(snapshot.coords)}


def aligned(a, b):
    """Rows of snapshot ``b`` in the order of ``a``; both must hold the same voxels."""
    order_a, order_b = np.lexsort(a.coords.T), np.lexsort(b.coords.T)
    np.testing.assert_array_equal(a.coords[order_a], b.coords[order_b])
    rows = np.empty(len(a), dtype=np.int64)
    rows[order_a] = order_b
    return rows


@pytest.mark.parametrize("engine", ["numba", "torch"])
@pytest.mark.parametrize("rgb_scale", [1, 2])
@pytest.mark.parametrize("config", [FusionConfig(), FusionConfig(0.0, False, 0.5)], ids=["weighted", "plain"])
def test_equals_a_double_loop_in_float64(new_map, make_frame, make_features, engine, rgb_scale, config):
    frames = [(make_frame(i, 40, 30, rgb_scale=rgb_scale), make_features(i, 16, 7, 9)) for i in range(3)]
    expected = naive(frames, 0.05, config)
    voxel_map = new_map()
    for frame, features in frames:
        fuse_frame(voxel_map, frame, features, DEPTH, config, engine=engine)
    snapshot = voxel_map.snapshot()
    rows = by_voxel(snapshot)
    assert rows.keys() == expected.keys()
    for key, (feature, weight, colour, geometry) in expected.items():
        i = rows[key]
        assert snapshot.weight[i] == pytest.approx(weight, rel=1e-5)
        assert snapshot.geometry_weight[i] == pytest.approx(geometry, rel=1e-5)
        # three roundings to float16, each of at most half a unit in the last place of values up to 1
        np.testing.assert_allclose(snapshot.features[i].astype(float), feature, atol=3 * ULP16)
        np.testing.assert_allclose(snapshot.rgb[i].astype(float), colour, atol=0.51)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("grid", [(12, 16), (48, 64), (5, 7), (1, 1)])
def test_numba_equals_torch(new_map, make_frame, make_features, grid, dtype):
    maps = {}
    for engine in ("numba", "torch"):
        maps[engine] = new_map()
        reports = [
            fuse_frame(maps[engine], make_frame(i), make_features(i, 16, *grid, dtype), engine=engine) for i in range(4)
        ]
        maps[engine, "reports"] = reports
    assert maps["numba", "reports"] == maps["torch", "reports"]
    a, b = maps["numba"].snapshot(), maps["torch"].snapshot()
    rows = aligned(a, b)
    np.testing.assert_allclose(a.weight, b.weight[rows], rtol=1e-5)
    np.testing.assert_allclose(a.geometry_weight, b.geometry_weight[rows], rtol=1e-5)
    np.testing.assert_allclose(a.features.astype(float), b.features[rows].astype(float), atol=2 * ULP16)
    np.testing.assert_allclose(a.normals.astype(float), b.normals[rows].astype(float), atol=5e-3)
    assert np.abs(a.rgb.astype(int) - b.rgb[rows]).max() <= 1
    np.testing.assert_array_equal(a.first_seen_ns, b.first_seen_ns[rows])
    np.testing.assert_array_equal(a.last_seen_ns, b.last_seen_ns[rows])


def test_order_of_frames_does_not_matter(new_map, make_frame, make_features):
    """Stated tolerance: weights to 1e-5 relative; features to one float16 rounding a frame, which is 1e-5 in cosine."""
    frames = [(make_frame(i), make_features(i)) for i in range(8)]
    snapshots = []
    for order in (range(8), [3, 0, 7, 1, 6, 2, 5, 4], range(7, -1, -1)):
        voxel_map = new_map()
        for i in order:
            fuse_frame(voxel_map, *frames[i])
        snapshots.append(voxel_map.snapshot())
    first = snapshots[0]
    for other in snapshots[1:]:
        rows = aligned(first, other)
        np.testing.assert_allclose(first.weight, other.weight[rows], rtol=1e-5)
        a, b = first.features.astype(float), other.features[rows].astype(float)
        assert np.abs(a - b).max() <= 8 * ULP16 * np.abs(a).max()
        seen = first.weight > 0
        cosine = (a * b).sum(1)[seen] / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))[seen]
        assert (1 - cosine).max() <= 1e-5
        np.testing.assert_array_equal(first.first_seen_ns, other.first_seen_ns[rows])
        np.testing.assert_array_equal(first.last_seen_ns, other.last_seen_ns[rows])


def test_same_input_gives_the_same_bits_with_any_number_of_threads(new_map, make_frame, make_features, monkeypatch):
    results = []
    for threads in (1, 2, 5, 2):
        monkeypatch.setattr(jit, "num_threads", lambda threads=threads: threads)
        voxel_map = new_map()
        for i in range(3):
            fuse_frame(voxel_map, make_frame(i, 160, 120), make_features(i))
        results.append(voxel_map.snapshot())
    for other in results[1:]:
        for name in (
            "coords",
            "features",
            "weight",
            "geometry_weight",
            "rgb",
            "normals",
            "first_seen_ns",
            "last_seen_ns",
        ):
            np.testing.assert_array_equal(getattr(results[0], name), getattr(other, name))


def test_a_wall_is_where_it_is_and_looks_at_the_camera(new_map):
    """A wall at z = 2 m, seen straight on: one layer of voxels, normals -z, colour and feature as given."""
    camera = PinholeCamera(100, 100, 31.5, 23.5, 64, 48)
    rgb = np.full((48, 64, 3), (10, 200, 30), dtype=np.uint8)
    frame = RGBDFrame(rgb, np.full((48, 64), 2.01, np.float32), camera, np.eye(4), 7)
    row = np.linspace(-1, 1, 16, dtype=np.float32)
    features = FeatureMap.from_rows(np.tile(row, (6, 8, 1)), np.ones((6, 8), np.float32))
    voxel_map = new_map()
    report = fuse_frame(voxel_map, frame, features)
    snapshot = voxel_map.snapshot()
    assert report.pixels_valid == report.pixels_used == 48 * 64
    assert report.voxels_new == report.voxels_touched == len(snapshot) == len(voxel_map)
    assert set(snapshot.coords[:, 2]) == {40}
    np.testing.assert_allclose(snapshot.normals.astype(float), np.tile([0, 0, -1.0], (len(snapshot), 1)), atol=1e-3)
    np.testing.assert_array_equal(snapshot.rgb, np.tile(rgb[0, 0], (len(snapshot), 1)))
    np.testing.assert_allclose(snapshot.features.astype(float), np.tile(row, (len(snapshot), 1)), atol=ULP16)
    assert (snapshot.centers_m[:, 2] == pytest.approx(2.025)) and snapshot.stamp_ns == 7
    middle = by_voxel(snapshot)[0, 0, 40]
    u = [u for u in range(64) if 0 <= (u - 31.5) / 100 * 2.01 < 0.05]
    assert snapshot.weight[middle] == pytest.approx(len(u) ** 2 * 1 / (1 + 1.005**2), rel=1e-2)


def test_nearer_and_steeper_views_weigh_more(new_map, make_features):
    camera = PinholeCamera(100, 100, 31.5, 23.5, 64, 48)
    rgb = np.zeros((48, 64, 3), np.uint8)

    def mean_weight(depth):
        voxel_map = new_map(voxel_size_m=1.0)
        features = FeatureMap.from_rows(np.ones((1, 1, 16), np.float32), np.ones((1, 1), np.float32))
        report = fuse_frame(voxel_map, RGBDFrame(rgb, depth, camera, np.eye(4), 0), features, DEPTH)
        return voxel_map.snapshot().weight.sum() / report.pixels_used

    near, far = (mean_weight(np.full((48, 64), z, np.float32)) for z in (1.0, 3.0))
    assert near / far == pytest.approx((1 + 2.25) / (1 + 0.25), rel=0.01)
    slope = 1.5 / (1 - 1.5 * (np.arange(64) - 31.5) / 100)  # a wall turned by 56 degrees, at 1.5 m in the middle
    turned = np.tile(slope, (48, 1)).astype(np.float32)
    assert mean_weight(turned) < 0.75 * mean_weight(np.full((48, 64), 1.5, np.float32))


def test_cells_without_confidence_add_geometry_only(new_map, make_frame, make_features):
    features = make_features(0)
    silent = FeatureMap(features.features, np.zeros_like(features.confidence))
    voxel_map = new_map()
    fuse_frame(voxel_map, make_frame(0), silent)
    snapshot = voxel_map.snapshot()
    assert len(snapshot) > 0
    assert not snapshot.weight.any() and not snapshot.features.any()
    assert (snapshot.geometry_weight > 0).all() and snapshot.rgb.any()
    fuse_frame(voxel_map, make_frame(0), features)  # a later confident look counts in full
    again = voxel_map.snapshot()
    alone = new_map()
    fuse_frame(alone, make_frame(0), features)
    np.testing.assert_array_equal(again.features, alone.snapshot().features)


def test_weight_stops_at_the_limit(new_map, make_frame, make_features):
    voxel_map = new_map(max_weight=2.0)
    for _ in range(6):
        fuse_frame(voxel_map, make_frame(0), make_features(0))
    assert voxel_map.snapshot().weight.max() == np.float32(2.0)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, -np.inf, -1.0, 65535.0])
def test_bad_depth_never_reaches_the_map(new_map, make_frame, make_features, value):
    """R4: single bad pixels are skipped; an image of them changes nothing."""
    frame = make_frame(0)
    spoiled = frame.depth_m.copy()
    spoiled[::3, ::2] = value
    voxel_map = new_map()
    report = fuse_frame(voxel_map, RGBDFrame(frame.rgb, spoiled, frame.camera, frame.T_map_camera, 1), make_features(0))
    assert 0 < report.pixels_used < frame.depth_m.size
    snapshot = voxel_map.snapshot()
    for name in ("features", "weight", "geometry_weight", "normals"):
        assert np.isfinite(getattr(snapshot, name)).all()
    everything = RGBDFrame(frame.rgb, np.full_like(spoiled, value), frame.camera, frame.T_map_camera, 2)
    assert fuse_frame(voxel_map, everything, make_features(1)) == FusionReport()
    assert voxel_map.snapshot() is snapshot


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e6])
@pytest.mark.parametrize("engine", ["numba", "torch"])
def test_bad_features_change_nothing(new_map, make_frame, make_features, value, engine):
    voxel_map = new_map()
    fuse_frame(voxel_map, make_frame(0), make_features(0))
    before = voxel_map.snapshot()
    features = make_features(1)
    rows = features.rows.reshape(12, 16, 16).copy()
    rows[11, 15, 3] = value
    with pytest.raises(BackboneError, match="features"):
        fuse_frame(voxel_map, make_frame(1), FeatureMap.from_rows(rows, features.confidence), engine=engine)
    assert voxel_map.snapshot() is before and len(voxel_map) == len(before)


@pytest.mark.parametrize("value", [np.nan, -0.1, 1.5])
def test_bad_confidence_changes_nothing(new_map, make_frame, make_features, value):
    voxel_map, features = new_map(), make_features(0)
    confidence = features.confidence.copy()
    confidence[2, 3] = value
    with pytest.raises(BackboneError, match="confidence"):
        fuse_frame(voxel_map, make_frame(0), FeatureMap(features.features, confidence))
    assert len(voxel_map) == 0 and voxel_map.version == 0


def test_features_of_another_width_are_refused(new_map, make_frame, make_features):
    voxel_map = new_map()
    with pytest.raises(MapMismatchError, match="16 channels"):
        fuse_frame(voxel_map, make_frame(0), make_features(0, channels=8))
    assert len(voxel_map) == 0


def test_points_out_of_reach_are_dropped_and_counted(new_map, make_frame, make_features):
    frame = make_frame(0)
    far = frame.T_map_camera.copy()
    far[0, 3] = 0.05 * (1 << 20) - 0.5  # half a metre before the end of the world
    voxel_map = new_map()
    report = fuse_frame(voxel_map, RGBDFrame(frame.rgb, frame.depth_m, frame.camera, far, 1), make_features(0))
    assert report.dropped_out_of_bounds > 0 and report.pixels_used > 0
    assert report.pixels_used + report.dropped_out_of_bounds == report.pixels_valid
    assert voxel_map.snapshot().coords[:, 0].max() <= (1 << 20) - 1


def test_depth_wider_than_colour_uses_the_overlap(new_map, make_features):
    """A depth camera that sees more than the colour camera: pixels outside the colour image are not used."""
    depth_camera = PinholeCamera(40, 40, 31.5, 23.5, 64, 48)
    camera = PinholeCamera(80, 80, 31.5, 23.5, 64, 48)
    frame = RGBDFrame(
        np.zeros((48, 64, 3), np.uint8), np.full((48, 64), 2, np.float32), camera, np.eye(4), 1, depth_camera
    )
    report = fuse_frame(new_map(), frame, make_features(0))
    assert report.pixels_valid == 64 * 48
    assert report.pixels_used == 32 * 24


def test_full_resolution_frame_of_real_size(make_frame, make_features):
    """640x480 with 512 channels: the sizes the speed goal is about, checked for weight conservation."""
    voxel_map = VoxelMap(MapConfig(), 512, "b", "t")
    frame, features = make_frame(2, 640, 480), make_features(2, 512, 120, 160, np.float16)
    report = fuse_frame(voxel_map, frame, features, fusion_cfg=FusionConfig(0.0, False))
    snapshot = voxel_map.snapshot()
    assert snapshot.geometry_weight.astype(float).sum() == pytest.approx(report.pixels_used, rel=1e-5)
    assert report.pairs_merged < report.pixels_used / 2


def test_warm_up_leaves_nothing_to_compile(make_frame, make_features, new_map):
    pytest.importorskip("numba")
    from geopurify_core.mapping import merge_kernels, observe_kernels, update_kernels
    from geopurify_core.mapping.fusion import warm_up

    warm_up()
    kernels = [
        merge_kernels.merge_part, merge_kernels.join_voxels, merge_kernels.group_pairs, observe_kernels.observe_rows,
        observe_kernels.gather_colours, update_kernels.update_features, update_kernels.update_geometry,
        update_kernels.copy_blocks,
    ]  # fmt: skip
    before = [len(kernel.signatures) for kernel in kernels]
    for scale, dtype in ((1, np.float32), (2, np.float16)):
        frame, features = make_frame(0, rgb_scale=scale), make_features(0, dtype=dtype)
        frame.rgb.setflags(write=False)
        features.features.setflags(write=False)
        features.confidence.setflags(write=False)
        voxel_map = new_map()
        fuse_frame(voxel_map, frame, features, DepthConfig(edge_jump=0), FusionConfig(2, False, 0))
        voxel_map.snapshot()
    assert [len(kernel.signatures) for kernel in kernels] == before
