"""The pipeline as a whole, with a backbone whose features are the colours it sees."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from geopurify_core.camera import PinholeCamera
from geopurify_core.config import Config
from geopurify_core.errors import BackboneError, InvalidConfigError, MapMismatchError, NotAvailableError
from geopurify_core.frame import RGBDFrame
from geopurify_core.pipeline import SemanticMapper
from geopurify_core.vision.base import FeatureMap

CAMERA = PinholeCamera(80.0, 80.0, 39.5, 29.5, 80, 60)


class Colours:
    """Three channels: red, green, blue. The text "red" is the first axis, and so on; other texts are grey."""

    name, feature_dim, licence, fingerprint, text_fingerprint = "colours", 3, "Apache-2.0", "colours-1", "colours"

    def encode_image(self, rgb: NDArray[np.uint8], depth_m: NDArray[np.float32] | None = None) -> FeatureMap:
        return FeatureMap.from_rows(
            (rgb / np.float32(255)).astype(np.float32), np.ones(rgb.shape[:2], dtype=np.float32)
        )

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        axes = {"ruby": (1, 0, 0), "emerald": (0, 1, 0), "sapphire": (0, 0, 1)}
        rows = np.array([axes.get(text, (1, 1, 1)) for text in texts], dtype=np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class Broken(Colours):
    def encode_image(self, rgb: NDArray[np.uint8], depth_m: NDArray[np.float32] | None = None) -> FeatureMap:
        raise BackboneError("network", "out of memory", "Use a smaller image.")


def frame(stamp_ns: int = 1, x_m: float = 0.0) -> RGBDFrame:
    """A wall 1 m ahead: left half red, right half blue."""
    rgb = np.zeros((60, 80, 3), dtype=np.uint8)
    rgb[:, :40, 0], rgb[:, 40:, 2] = 255, 255
    T_map_camera = np.eye(4)
    T_map_camera[0, 3] = x_m
    return RGBDFrame(rgb, np.ones((60, 80), dtype=np.float32), CAMERA, T_map_camera, stamp_ns)


@pytest.fixture
def mapper() -> SemanticMapper:
    return SemanticMapper(Config.from_dict({"query": {"min_voxels": 2}}), Colours())


def test_what_goes_in_can_be_asked_for(mapper: SemanticMapper) -> None:
    report = mapper.integrate(frame())
    snapshot = mapper.snapshot()
    assert report.voxels_touched == len(snapshot) == mapper.stats().num_voxels > 50
    best = mapper.query(["ruby"])[0].objects[0]
    assert best.center_m[0] < 0.0 < mapper.query(["sapphire"])[0].objects[0].center_m[0]
    assert best.center_m[2] == pytest.approx(1.0, abs=0.05)


def test_snapshots_and_engines_are_made_again_only_when_the_map_changes(mapper: SemanticMapper) -> None:
    mapper.integrate(frame(1))
    snapshot, engine = mapper.snapshot(), mapper.engine()
    assert mapper.snapshot() is snapshot and mapper.engine() is engine
    before = snapshot.weight.copy()
    mapper.integrate(frame(2))
    assert mapper.snapshot().version > snapshot.version and mapper.engine() is not engine
    np.testing.assert_array_equal(snapshot.weight, before)


def test_a_failing_backbone_leaves_the_map_as_it_was(mapper: SemanticMapper) -> None:
    mapper.integrate(frame(1))
    version = mapper.snapshot().version
    mapper.backbone = Broken()
    with pytest.raises(BackboneError, match="out of memory"):
        mapper.integrate(frame(2))
    assert mapper.snapshot().version == version


def test_load_refuses_the_map_of_another_backbone_and_keeps_its_own(mapper: SemanticMapper) -> None:
    mapper.integrate(frame())
    other = Colours()
    other.fingerprint = "colours-2"  # type: ignore[misc]
    stranger = SemanticMapper(mapper.config, other)
    with pytest.raises(MapMismatchError, match="colours-1"):
        stranger.load(mapper.snapshot())
    assert len(stranger.snapshot()) == 0
    narrow = replace(mapper.snapshot(), features=mapper.snapshot().features[:, :-1].copy())
    with pytest.raises(MapMismatchError, match=r"map\.features.*channels"):
        mapper.load(narrow)
    assert mapper.snapshot().feature_dim == mapper.backbone.feature_dim


def test_load_then_reset(mapper: SemanticMapper) -> None:
    mapper.integrate(frame())
    restored = SemanticMapper(mapper.config, Colours())
    restored.load(mapper.snapshot())
    expected, got = mapper.query(["ruby"])[0].objects[0], restored.query(["ruby"])[0].objects[0]
    np.testing.assert_allclose(got.center_m, expected.center_m)
    restored.reset()
    assert len(restored.snapshot()) == 0 and restored.query(["ruby"])[0].objects == ()


def test_without_a_student_purification_is_off_and_says_why(mapper: SemanticMapper) -> None:
    for ask in (mapper.purify, lambda: mapper.engine(purified=True), lambda: mapper.query(["ruby"], purified=True)):
        with pytest.raises(NotAvailableError, match=r"colours-1.*--student.*raw features"):
            ask()
    assert mapper.purifier is None and not mapper.maybe_purify()
    assert mapper.purification_status.state == "off" and "colours-1" in mapper.purification_status.message


def test_only_what_can_change_may_change(mapper: SemanticMapper) -> None:
    mapper.configure(Config.from_dict({"depth": {"max_range_m": 0.5}, "query": {"min_voxels": 2}}))
    assert mapper.integrate(frame()).voxels_touched == 0
    with pytest.raises(InvalidConfigError, match="map"):
        mapper.configure(Config.from_dict({"map": {"voxel_size_m": 0.1}}))


def test_queries_go_on_while_frames_arrive(mapper: SemanticMapper) -> None:
    mapper.integrate(frame(1))
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            for _ in range(20):
                result = mapper.query(["ruby", "sapphire"])
                assert all(item.objects for item in result)
        except BaseException as error:
            errors.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    for i in range(20):
        mapper.integrate(frame(2 + i, x_m=0.05 * i))
    asking.join(60)
    assert not asking.is_alive() and not errors
