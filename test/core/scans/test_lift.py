"""2D features at scan points: every recipe against a loop over views, and the published fusion's golden numbers."""

import tempfile
from dataclasses import replace

import numpy as np
import pytest

from geopurify_core.errors import DatasetError, InvalidConfigError
from geopurify_core.scans import LiftSettings, lift, read_scannet
from geopurify_core.scans.lift_settings import PRESETS
from geopurify_core.scans.projection import seen_points
from geopurify_core.scans.views import StoredViews, View, prepared_image
from geopurify_core.vision.xdecoder.views import fuse_views

SMALL = {"stride": 1, "border_px": 2, "min_points": 20, "image_size": None, "centred": False}


@pytest.fixture
def scan(disk, tmp_path):
    return read_scannet(disk.write_scannet(tmp_path / "scene0000_00", aggregation=False))


def naive_views(scan, backbone, settings):
    """For each view: {point: (feature, confidence)}, pixel by pixel."""
    views = []
    for frame in scan.frames(settings.stride):
        rgb, camera, depth_camera = prepared_image(frame, settings)
        seen = seen_points(scan.points_m, frame.T_map_camera, camera, frame.depth_m, settings.test, depth_camera)
        if len(seen) < settings.min_points:
            continue
        features = backbone.encode_image(rgb)
        height, width = features.confidence.shape
        view = {}
        for point, row, column in zip(seen.points, seen.rows, seen.columns, strict=True):
            i, j = int((row + 0.5) * height / camera.height), int((column + 0.5) * width / camera.width)
            if features.confidence[i, j] > 0:
                view[int(point)] = features.features[:, i, j].astype(np.float64), float(features.confidence[i, j])
        views.append(view)
    return views


@pytest.mark.parametrize("name", ["robot", "openscene"])
def test_means_equal_a_loop(scan, colours, name):
    settings = LiftSettings.preset(name, **SMALL)
    lifted = lift(scan, colours, settings)
    views = naive_views(scan, colours, settings)
    assert lifted.frames == "4/4" and len(views) == 4
    for point in range(0, len(scan), 7):
        mine = [view[point] for view in views if point in view]
        assert lifted.views[point] == len(mine)
        weights = [weight if name == "robot" else 1.0 for _, weight in mine]
        wanted = sum(w * f for w, (f, _) in zip(weights, mine, strict=True)) / sum(weights) if mine else np.zeros(3)
        np.testing.assert_allclose(lifted.features[point], wanted, atol=2e-3)  # half floats
    assert 0.3 < (lifted.views > 0).mean() < 1
    assert (lifted.backbone, lifted.text_fingerprint) == ("colour:1", "colour-text:1")


def test_consensus_keeps_the_three_views_that_agree_best(scan, colours):
    texts = ["red", "green", "blue"]
    settings = LiftSettings.preset("geopurify", **SMALL, fill_unseen=False, fill_view=False)
    lifted = lift(scan, colours, settings, texts=texts)
    text, views = colours.encode_text(texts).astype(np.float64), naive_views(scan, colours, settings)
    for point in range(0, len(scan), 7):
        unit = [view[point][0] / np.linalg.norm(view[point][0]) for view in views if point in view]
        if not unit:
            assert not lifted.features[point].any()
            continue
        logits = np.array([settings.logit_scale * text @ feature for feature in unit])
        agreement = logits[:, logits.mean(axis=0).argmax()]
        best = np.argsort(-agreement, kind="stable")[:3]
        weight = np.exp(agreement[best] - agreement[best].max())
        wanted = (weight / weight.sum()) @ np.array(unit)[best]
        np.testing.assert_allclose(lifted.features[point], wanted, atol=2e-3)
    assert lifted.views.max() == 4  # so that one view had to go


def test_views_on_disk_give_the_golden_fusion(shared_dir, tmp_path):
    data = np.load(shared_dir / "golden/geopurify/multiview_fusion.npz")
    generator = np.random.default_rng(0)
    text = generator.standard_normal((19, 512)).astype(np.float32)

    class Given(StoredViews):
        """The golden's own logits beside the stored features."""

        def __getitem__(self, i):
            return replace(super().__getitem__(i), logits=data["view_logits"][i])

    stored = Given(tmp_path, text, float(data["logit_scale"]))
    for points, features in zip(data["view_pts"], data["view_feat"], strict=True):
        rows, index = np.arange(len(points)), np.arange(len(points), dtype=np.int32)
        shuffled = generator.permutation(rows)
        stored.append(View(points.astype(np.int32), np.argsort(shuffled).astype(np.int32), features[shuffled], index))
    fused, counter = fuse_views(data["xyz"], stored)
    np.testing.assert_array_equal(counter, data["counter"])
    np.testing.assert_allclose(fused, data["fused"], atol=1e-4)  # features wait on disk as half floats


def test_unseen_points_copy_the_nearest_or_stay_empty(scan, colours):
    dropped = lift(scan, colours, LiftSettings.preset("openscene", **SMALL))
    copied = lift(scan, colours, LiftSettings.preset("openscene", **SMALL, fill_unseen=True))
    unseen = np.flatnonzero(dropped.views == 0)
    seen = np.flatnonzero(dropped.views > 0)
    assert len(unseen) > 100 and not dropped.features[unseen].any()
    np.testing.assert_array_equal(dropped.features[seen], copied.features[seen])
    for point in unseen[::50]:
        distance = np.linalg.norm(scan.points_m[seen].astype(np.float64) - scan.points_m[point], axis=1)
        nearest = seen[distance <= distance.min() + 1e-9]
        assert any(np.array_equal(copied.features[point], copied.features[i]) for i in nearest)
    np.testing.assert_array_equal(copied.views, dropped.views)


def test_pixels_without_feature_are_left_out_or_filled_within_the_view(disk, scan, colours):
    class Half(type(colours)):
        """Nothing is known in the left half of each image."""

        def encode_image(self, rgb, depth_m=None):
            rgb = rgb.copy()
            rgb[:, : rgb.shape[1] // 2] = 0
            return super().encode_image(rgb)

    settings = LiftSettings.preset("openscene", **SMALL)
    out = lift(scan, Half(), settings)
    filled = lift(scan, Half(), replace(settings, fill_view=True))
    whole = lift(scan, colours, settings)
    np.testing.assert_array_equal(filled.views, whole.views)
    assert out.views.sum() < 0.7 * whole.views.sum()
    assert filled.features[whole.views > 0].any(axis=1).all()


def test_poor_views_are_skipped_and_strides_obeyed(scan, colours):
    assert lift(scan, colours, LiftSettings.preset("openscene", **{**SMALL, "stride": 20})).frames == "3/3"
    most = lift(scan, colours, LiftSettings.preset("openscene", **SMALL)).views.sum()
    limited = LiftSettings.preset("openscene", **{**SMALL, "min_points": int(most)})
    with pytest.raises(DatasetError, match="poses, intrinsics"):
        lift(scan, colours, limited)
    with pytest.raises(DatasetError):
        lift(scan, colours, LiftSettings.preset("openscene", **SMALL, max_points=20))


def test_images_are_resized_and_centred_for_the_backbone(scan, colours):
    called = []
    settings = LiftSettings.preset("openscene", **{**SMALL, "image_size": (80, 60)})
    lift(scan, colours, settings, progress=called.append)
    assert {image.shape for image in colours.images} == {(60, 80, 3)} and called == [1, 2, 3, 4]
    frame = next(iter(scan.frames(1)))
    moved = replace(frame, camera=replace(frame.camera, cx=30.0, cy=25.0), depth_camera=None)
    _, camera, depth_camera = prepared_image(moved, replace(settings, centred=True))
    assert (camera.cx, camera.cy, camera.fx) == (40, 30, 60 * 80 / 60)
    assert (depth_camera.cx, depth_camera.cy) == (32, 24)


def test_the_same_whatever_the_scans_order(scan, colours):
    settings = LiftSettings.preset("geopurify", **SMALL)
    order = np.random.default_rng(0).permutation(len(scan))
    shuffled = replace(scan, points_m=scan.points_m[order])
    a = lift(scan, colours, settings, texts=["red", "blue"])
    b = lift(shuffled, colours, settings, texts=["red", "blue"])
    seen = a.views[order] > 0  # copies may come from another of several equally near points
    np.testing.assert_array_equal(a.features[order][seen], b.features[seen])


def test_the_disk_is_clean_afterwards(scan, colours, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = set(tmp_path.iterdir())
    lift(scan, colours, LiftSettings.preset("geopurify", **SMALL), texts=["red"])
    assert set(tmp_path.iterdir()) == before


def test_wrong_settings_are_named(scan, colours):
    with pytest.raises(InvalidConfigError, match="labels to be asked for"):
        lift(scan, colours, LiftSettings.preset("geopurify", **SMALL))
    with pytest.raises(DatasetError, match="no images"):
        lift(replace(scan, frames=None), colours, LiftSettings())
    for change in ({"fusion": "median"}, {"stride": 0}, {"image_size": (0, 4)}, {"logit_scale": 0}, {"colour": 1}):
        with pytest.raises(InvalidConfigError):
            LiftSettings.preset("robot", **change)
    with pytest.raises(InvalidConfigError, match="robot"):
        LiftSettings.preset("paper")


def test_presets_hold_the_published_numbers():
    presets = {name: LiftSettings.preset(name) for name in PRESETS}
    assert {name: s.test.relative_depth for name, s in presets.items()} == {
        "robot": 0.05, "geopurify": 0.05, "geopurify_matterport": 0.02, "openscene": 0.25, "openscene_matterport": 0.02
    }  # fmt: skip
    assert presets["geopurify"].image_size == (648, 484) and presets["geopurify"].centred
    assert presets["geopurify"].min_points == 400 and presets["geopurify"].fill_unseen
    assert presets["openscene"].image_size == (320, 240) and not presets["openscene"].fill_unseen
    assert all(s.test.border_px == 10 for s in presets.values())
