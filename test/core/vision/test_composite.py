"""Several backbones as one: the weighted mean against a loop, and members that cannot be mixed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geopurify_core import vision
from geopurify_core.errors import BackboneError, InvalidConfigError
from geopurify_core.vision import FeatureMap, load_backbone
from geopurify_core.vision.base import SemanticBackbone
from geopurify_core.vision.mixture import VectorMixture, mix_maps, mix_vectors, on_grid
from geopurify_core.vision.text import shared_encoder

MakeModel = Callable[..., Path]
MakeConfig = Callable[..., Path]


def random_mixture(seed: int, vectors: int, grid: tuple[int, int] = (3, 4)) -> VectorMixture:
    rng = np.random.default_rng(seed)
    confidence = rng.random(grid, dtype=np.float32)
    confidence[rng.random(grid) < 0.3] = 0.0
    return VectorMixture(
        rng.random((*grid, vectors), dtype=np.float32), rng.standard_normal((vectors, 5)).astype(np.float32), confidence
    )


@pytest.mark.parametrize("powers", [(1.0, 1.0, 1.0), (0.5, 2.0, 0.0)])
def test_the_mean_equals_a_loop_both_ways(powers: tuple[float, ...]) -> None:
    mixtures = [random_mixture(seed, vectors) for seed, vectors in ((0, 4), (1, 2), (2, 7))]
    maps = [mixture.feature_map() for mixture in mixtures]
    weights = (1.0, 3.0, 0.5)
    by_vectors, by_maps = mix_vectors(mixtures, weights, powers), mix_maps(maps, weights, powers)
    for row in range(3):
        for column in range(4):
            total, feature = 0.0, np.zeros(5)
            for m, w, p in zip(maps, weights, powers, strict=True):
                c = float(m.confidence[row, column])
                evidence = w * c**p if c > 0 else 0.0
                total += evidence
                feature += evidence * m.features[:, row, column]
            feature = feature / total if total > 0 else feature
            for got in (by_vectors, by_maps):
                np.testing.assert_allclose(got.features[:, row, column], feature, atol=1e-5)
                assert got.confidence[row, column] == pytest.approx(min(total / 4.5, 1.0), abs=1e-6)


def test_inputs_are_left_as_they_were() -> None:
    maps = [random_mixture(seed, 3).feature_map() for seed in (0, 1)]
    before = [m.features.copy() for m in maps]
    mix_maps(maps, (1.0, 2.0), (1.0, 1.0))
    for m, b in zip(maps, before, strict=True):
        np.testing.assert_array_equal(m.features, b)


def test_resampling_does_not_dilute_with_empty_cells() -> None:
    rows = np.zeros((2, 2, 3), np.float32)
    rows[0, 0] = [1, 2, 3]
    confidence = np.array([[0.8, 0], [0, 0]], np.float32)
    fine = on_grid(FeatureMap.from_rows(rows, confidence), (4, 4))
    seen = fine.confidence > 0
    assert seen[:2, :2].all() and not seen[3].any() and fine.confidence[0, 0] == pytest.approx(0.8)
    np.testing.assert_allclose(fine.features[:, seen], np.repeat([[1], [2], [3]], seen.sum(), axis=1), atol=1e-5)
    assert on_grid(fine, (4, 4)) is fine


def members(colour_net: MakeModel, constant_net: MakeModel) -> list[dict[str, Any]]:
    boxes = {"boxes": np.array([[[8, 24, 24, 40]]], np.float32), "scores": np.array([[[0.5]]], np.float32)}
    return [
        {"backbone": "segmenter", "options": {"model": str(colour_net()), "labels": ["tomato", "grass", "ocean"]}},
        {"backbone": "detector", "weight": 3.0, "options": {"model": str(constant_net(boxes)), "labels": ["cup"]}},
    ]


def test_a_detector_outvotes_the_segmenter_where_it_sees_something(
    colour_net: MakeModel, constant_net: MakeModel
) -> None:
    backbone = load_backbone("composite", members=members(colour_net, constant_net), grid=[16, 16])
    assert isinstance(backbone, SemanticBackbone)
    rgb = np.zeros((64, 64, 3), np.uint8)
    rgb[..., 0] = 255
    got = backbone.encode_image(rgb)
    tomato, cup = shared_encoder().encode_text(["tomato", "cup"])
    np.testing.assert_allclose(got.features[:, 8, 15], tomato, atol=1e-4)
    assert got.confidence[8, 15] == pytest.approx(0.25, abs=1e-5)
    s = float(got.confidence[8, 4] * 4 - 1)
    np.testing.assert_allclose(got.features[:, 8, 4], (tomato + s * cup) / (1 + s), atol=1e-4)
    assert s == pytest.approx(3 * 0.5 * np.exp(-2 * 0.25**2), abs=1e-4)  # weight, score, half a cell off the middle


def test_yaml_members_are_found_beside_it(
    colour_net: MakeModel, constant_net: MakeModel, write_yaml: MakeConfig, tmp_path: Path
) -> None:
    listed = members(colour_net, constant_net)
    for name, member in zip(("seg.yaml", "det.yaml"), listed, strict=True):
        write_yaml(member["options"], name)
        member["options"] = {"config": name}
    config = write_yaml({"name": "both", "members": listed}, "composite.yaml")
    backbone = load_backbone("composite", config=config, num_threads=1)
    assert backbone.encode_image(np.zeros((48, 64, 3), np.uint8)).features.shape == (384, 120, 160)
    listed[1]["weight"] = 2.0
    other = load_backbone("composite", config=write_yaml({"name": "both", "members": listed}, "composite.yaml"))
    assert other.fingerprint != backbone.fingerprint and other.text_fingerprint == backbone.text_fingerprint


class Foreign:
    """A backbone with a text space and grid of its own."""

    name, feature_dim, licence, fingerprint, text_fingerprint = "foreign", 384, "MIT", "foreign", "other-space"

    def encode_image(self, rgb: np.ndarray, depth_m: np.ndarray | None = None) -> FeatureMap:
        return FeatureMap(np.ones((384, 5, 6), np.float32), np.ones((5, 6), np.float32))

    def encode_text(self, texts: list[str]) -> np.ndarray:
        return np.zeros((len(texts), 384), np.float32)


def test_text_spaces_must_agree(
    colour_net: MakeModel, constant_net: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = type("Point", (), {"name": "foreign", "value": "here", "load": staticmethod(lambda: Foreign)})()
    monkeypatch.setattr(vision, "_entry_points", lambda: [point])
    listed = [members(colour_net, constant_net)[0], {"backbone": "foreign", "weight": 1.0}]
    with pytest.raises(BackboneError, match="different text spaces"):
        load_backbone("composite", members=listed)
    monkeypatch.setattr(Foreign, "text_fingerprint", shared_encoder().text_fingerprint)
    got = load_backbone("composite", members=listed, grid=[8, 8]).encode_image(np.zeros((20, 20, 3), np.uint8))
    assert got.features.shape == (384, 8, 8)
    np.testing.assert_allclose(got.confidence, 1.0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ([], InvalidConfigError, "two or more"),
        ([{"backbone": "composite"}] * 2, InvalidConfigError, r"members\[0\]"),
        ([{"backbone": "clip"}] * 2, BackboneError, "Known backbones"),
        ([{"backbone": "segmenter", "wait": 1}] * 2, InvalidConfigError, r"members\[0\].wait"),
        ([{"backbone": "segmenter", "weight": -1}] * 2, InvalidConfigError, "weight"),
        ([{"backbone": "segmenter", "weight": 0}] * 2, InvalidConfigError, "above 0"),
        (["segmenter"] * 2, InvalidConfigError, "mapping"),
    ],
)
def test_bad_members(change: list[Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        load_backbone("composite", members=change)


def test_a_member_that_fails_is_reported(colour_net: MakeModel, constant_net: MakeModel) -> None:
    listed = members(colour_net, constant_net)
    poison = {"boxes": np.full((1, 1, 4), np.nan, np.float32), "scores": np.ones((1, 1, 1), np.float32)}
    listed[1]["options"]["model"] = str(constant_net(poison))
    with pytest.raises(BackboneError, match="NaN"):
        load_backbone("composite", members=listed).encode_image(np.zeros((8, 8, 3), np.uint8))


def test_mixtures_are_values() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        random_mixture(0, 2).confidence = np.zeros((1, 1), np.float32)  # type: ignore[misc]
