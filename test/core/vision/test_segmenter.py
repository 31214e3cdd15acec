"""Segmentation networks as backbones: known colours, known probabilities, and refusals that say why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from geopurify_core.errors import BackboneError, InvalidConfigError, InvalidFrameError
from geopurify_core.vision import load_backbone
from geopurify_core.vision.base import SemanticBackbone
from geopurify_core.vision.text import shared_encoder

MakeModel = Callable[..., Path]
MakeConfig = Callable[..., Path]
LABELS = ["tomato", "grass", "ocean"]


def two_halves(height: int = 40, width: int = 60) -> np.ndarray:
    """Left half red, right half blue."""
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[:, : width // 2, 0] = 255
    rgb[:, width // 2 :, 2] = 255
    return rgb


def test_features_are_the_labels_vectors(colour_net: MakeModel) -> None:
    backbone = load_backbone("segmenter", model=str(colour_net()), labels=LABELS)
    assert isinstance(backbone, SemanticBackbone)
    seen = backbone.encode_image(two_halves())
    assert seen.features.shape == (384, 16, 16)
    vectors = shared_encoder().encode_text(LABELS)
    # exp(25.5) to 1: the other labels have vanished.
    np.testing.assert_allclose(seen.features[:, 8, 2], vectors[0], atol=1e-4)
    np.testing.assert_allclose(seen.features[:, 8, 13], vectors[2], atol=1e-4)
    np.testing.assert_allclose(seen.confidence, 1.0, atol=1e-5)
    assert seen.features.transpose(1, 2, 0).flags.c_contiguous


def test_probabilities_equal_a_loop(colour_net: MakeModel, write_yaml: MakeConfig) -> None:
    config = write_yaml(
        {
            "model": str(colour_net(size=8, gain=0.01)),
            "labels": LABELS,
            "input": {"mean": [10, 20, 30], "std": [2, 1, 0.5]},
            "output": {"temperature": 2.0},
            "ignore": ["grass"],
        }
    )
    rgb = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    backbone = load_backbone("segmenter", config=config)
    got = backbone.encode_image(rgb)
    vectors = shared_encoder().encode_text(LABELS)
    for row in range(4):
        for column in range(4):
            x = (rgb[2 * row, 2 * column] - np.array([10.0, 20.0, 30.0])) / [2, 1, 0.5]
            e = np.exp(0.01 * x / 2.0)
            p = e / e.sum()
            expected = (p[0] * vectors[0] + p[2] * vectors[2]) / (1 - p[1])
            np.testing.assert_allclose(got.features[:, row, column], expected, atol=1e-5)
            assert got.confidence[row, column] == pytest.approx(1 - p[1], abs=1e-5)


def test_excluded_labels_leave_their_share_to_the_others(colour_net: MakeModel, write_yaml: MakeConfig) -> None:
    values = {"model": str(colour_net(size=8, gain=0.01)), "labels": LABELS, "exclude": ["ocean"]}
    rgb = np.full((8, 8, 3), 90, np.uint8)
    got = load_backbone("segmenter", config=write_yaml(values)).encode_image(rgb)
    vectors = shared_encoder().encode_text(LABELS)
    np.testing.assert_allclose(got.features[:, 0, 0], (vectors[0] + vectors[1]) / 2, atol=1e-5)
    np.testing.assert_allclose(got.confidence, 1.0, atol=1e-5)


def test_sigmoid_keeps_doubt(colour_net: MakeModel, write_yaml: MakeConfig) -> None:
    values = {
        "model": str(colour_net(size=8, gain=0.01)),
        "labels": LABELS,
        "input": {"mean": [400, 400, 400]},
        "output": {"activation": "sigmoid"},
    }
    rgb = np.zeros((8, 8, 3), np.uint8)
    rgb[..., 0] = 255
    p = 1 / (1 + np.exp(-0.01 * (rgb[0, 0] - 400.0)))
    assert p.sum() < 1
    got = load_backbone("segmenter", config=write_yaml(values)).encode_image(rgb)
    np.testing.assert_allclose(got.confidence, p.sum(), atol=1e-5)
    np.testing.assert_allclose(got.features[:, 1, 1], p @ shared_encoder().encode_text(LABELS) / p.sum(), atol=1e-5)


@pytest.mark.parametrize("kind", ["nhwc", "argmax", "bgr", "uint8"])
def test_variants_see_the_same(colour_net: MakeModel, write_yaml: MakeConfig, kind: str) -> None:
    labels = LABELS[::-1] if kind == "bgr" else LABELS
    values: dict = {"labels": labels, "grid": [4, 4]}
    values["model"] = str(colour_net(layout="nhwc" if kind == "nhwc" else "nchw", argmax=kind == "argmax"))
    values["output"] = {"nhwc": {"layout": "nhwc"}, "argmax": {"kind": "argmax"}}.get(kind, {})
    values["input"] = {"bgr": {"colour": "bgr"}, "uint8": {"dtype": "uint8"}}.get(kind, {})
    got = load_backbone("segmenter", config=write_yaml(values)).encode_image(two_halves())
    vectors = shared_encoder().encode_text(LABELS)
    np.testing.assert_allclose(got.features[:, 2, 0], vectors[0], atol=1e-4)
    np.testing.assert_allclose(got.features[:, 2, 3], vectors[2], atol=1e-4)


def test_argmax_counts_pixels_in_each_cell(colour_net: MakeModel, write_yaml: MakeConfig) -> None:
    values = {
        "model": str(colour_net(size=32, argmax=True)),
        "labels": LABELS,
        "grid": [2, 2],
        "output": {"kind": "argmax"},
    }
    rgb = np.zeros((32, 32, 3), np.uint8)
    rgb[..., 1] = 255
    rgb[:8, :8] = (255, 0, 0)  # 4x4 of the 8x8 label pixels of the first cell
    got = load_backbone("segmenter", config=write_yaml(values)).encode_image(rgb)
    vectors = shared_encoder().encode_text(LABELS)
    np.testing.assert_allclose(got.features[:, 0, 0], 0.25 * vectors[0] + 0.75 * vectors[1], atol=1e-5)


@pytest.mark.parametrize("fit", ["letterbox", "letterbox_top_left"])
def test_letterbox_bars_are_cut_away(colour_net: MakeModel, write_yaml: MakeConfig, fit: str) -> None:
    values = {"model": str(colour_net(size=64)), "labels": LABELS, "grid": [4, 8], "input": {"fit": fit, "pad": 0}}
    rgb = np.zeros((20, 40, 3), np.uint8)
    rgb[:10, :, 0] = 255
    rgb[10:, :, 2] = 255
    got = load_backbone("segmenter", config=write_yaml(values)).encode_image(rgb)
    vectors = shared_encoder().encode_text(LABELS)
    for row, label in ((0, 0), (1, 0), (2, 2), (3, 2)):
        np.testing.assert_allclose(got.features[:, row], np.repeat(vectors[label][:, None], 8, 1), atol=1e-3)


def test_aliases_stand_for_a_label(colour_net: MakeModel, write_yaml: MakeConfig) -> None:
    values = {"model": str(colour_net()), "labels": ["a", "b", "c"], "aliases": {"a": ["cup", "mug"], "b": "sofa"}}
    got = load_backbone("segmenter", config=write_yaml(values)).labels.vectors
    cup, mug, sofa = shared_encoder().encode_text(["cup", "mug", "sofa"])
    np.testing.assert_allclose(got[0], (cup + mug) / np.linalg.norm(cup + mug), atol=1e-6)
    np.testing.assert_allclose(got[1], sofa, atol=1e-6)


def test_dynamic_size_and_label_count_at_run_time(colour_net: MakeModel) -> None:
    model = str(colour_net(size="n", labels=3))
    with pytest.raises(BackboneError, match=r"input.size to \[height, width\]"):
        load_backbone("segmenter", model=model, labels=LABELS)


def test_fingerprint_follows_what_changes_features(
    colour_net: MakeModel, write_yaml: MakeConfig, tmp_path: Path
) -> None:
    values = {"model": str(colour_net()), "labels": LABELS}
    first = load_backbone("segmenter", config=write_yaml(values))
    moved = tmp_path / "elsewhere.onnx"
    moved.write_bytes(Path(values["model"]).read_bytes())
    assert (
        load_backbone("segmenter", config=write_yaml({**values, "model": str(moved)})).fingerprint == first.fingerprint
    )
    changed = load_backbone("segmenter", config=write_yaml({**values, "output": {"temperature": 2.0}}))
    renamed = load_backbone("segmenter", config=write_yaml({**values, "labels": ["x", "y", "z"]}))
    assert len({first.fingerprint, changed.fingerprint, renamed.fingerprint}) == 3
    assert changed.text_fingerprint == first.text_fingerprint
    assert first.fingerprint.endswith(first.text_fingerprint)


def test_files_are_found_beside_the_yaml_or_among_the_weights(
    colour_net: MakeModel, write_yaml: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GEOPURIFY_WEIGHTS", raising=False)
    colour_net()
    (tmp_path / "labels.txt").write_text("\ufefftomato\r\ngrass\nocean\n\n", encoding="utf-8")
    config = write_yaml({"model": "colours.onnx", "labels_file": "labels.txt"})
    assert load_backbone("segmenter", config=config).labels.names == tuple(LABELS)
    (tmp_path / "labels.txt").write_text("tomato, grass,ocean")
    assert load_backbone("segmenter", config=config).labels.names == tuple(LABELS)
    away = tmp_path / "configs" / "model.yaml"
    away.parent.mkdir()
    away.write_bytes(config.read_bytes())
    with pytest.raises(BackboneError, match=r"labels.txt.*GEOPURIFY_WEIGHTS \(now unset\)"):
        load_backbone("segmenter", config=away)
    assert load_backbone("segmenter", config=away, weights_dir=tmp_path)
    monkeypatch.setenv("GEOPURIFY_WEIGHTS", str(tmp_path))
    assert load_backbone("segmenter", config=away)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"modell": "x"}, "modell"),
        ({"input": {"sizes": [1, 2]}}, "input.sizes"),
        ({"input": {"size": [32]}}, "input.size"),
        ({"input": {"size": [0, 32]}}, "input.size"),
        ({"input": {"std": [1, 0, 1]}}, "input.std"),
        ({"input": {"layout": "hwc"}}, "input.layout"),
        ({"input": "big"}, "input"),
        ({"output": {"temperature": 0.0}}, "output.temperature"),
        ({"output": {"activation": "relu"}}, "output.activation"),
        ({"output": {"kind": 3}}, "output.kind"),
        ({"grid": [0, 4]}, "grid"),
        ({"grid": "fine"}, "grid"),
        ({"labels": ["a", "", "c"]}, "labels"),
        ({"ignore": [1]}, "ignore"),
    ],
)
def test_bad_keys_are_named(colour_net: MakeModel, write_yaml: MakeConfig, change: dict, names: str) -> None:
    config = write_yaml({"model": str(colour_net()), "labels": LABELS, **change})
    with pytest.raises(InvalidConfigError) as caught:
        load_backbone("segmenter", config=config)
    assert names in caught.value.field


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"labels": LABELS[:2]}, "has 3 channels"),
        ({"labels": []}, "labels_file"),
        ({"labels_file": "x.txt"}, "not both"),
        ({"ignore": ["sky"]}, "Known labels: tomato"),
        ({"exclude": ["sky"]}, "exclude: sky"),
        ({"aliases": {"sky": "heaven"}}, "aliases: sky"),
        ({"aliases": {"grass": 3}}, "a word or a list"),
        ({"model": "nowhere.onnx"}, "nowhere.onnx"),
        ({"model": ""}, "Name the file"),
        ({"input": {"size": [64, 64]}}, "fixed to 32"),
        ({"input": {"layout": "nhwc"}}, "other layout"),
        ({"output": {"tensor": "logits"}}, "outputs: out"),
        ({"output": {"layout": "nhwc"}}, "16 channels in layout nhwc"),
    ],
)
def test_what_does_not_fit_is_explained(colour_net: MakeModel, write_yaml: MakeConfig, change: dict, says: str) -> None:
    config = write_yaml({"model": str(colour_net()), "labels": LABELS, **change})
    with pytest.raises(BackboneError, match=says):
        load_backbone("segmenter", config=config)


@pytest.mark.parametrize("content", ["- a\n- b", "a: [", "\x00", "just text", ""])
def test_a_yaml_that_is_none(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(InvalidConfigError):
        load_backbone("segmenter", config=path)
    with pytest.raises(InvalidConfigError):
        load_backbone("segmenter", config=tmp_path / "missing.yaml")


@pytest.mark.parametrize("name", ["model.onnx", "model.tflite", "model.pt"])
def test_a_model_that_is_none(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not a network" * 10)
    with pytest.raises(BackboneError, match=name):
        load_backbone("segmenter", model=str(tmp_path / name), labels=LABELS)


@pytest.mark.parametrize(("runtime", "name"), [("onnxruntime", "m.onnx"), ("ai_edge_litert.interpreter", "m.tflite")])
def test_a_missing_runtime_names_the_pip_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str, name: str
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, runtime, None)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(BackboneError, match="pip install"):
        load_backbone("segmenter", model=str(tmp_path / name), labels=LABELS)


def test_nan_and_failing_networks(constant_net: MakeModel, broken_net: Path, write_yaml: MakeConfig) -> None:
    scores = np.zeros((1, 3, 8, 8), np.float32)
    scores[0, 1, 2, 3] = np.nan
    poisoned = load_backbone("segmenter", model=str(constant_net({"out": scores})), labels=LABELS)
    with pytest.raises(BackboneError, match="NaN"):
        poisoned.encode_image(two_halves())
    failing = load_backbone(
        "segmenter", config=write_yaml({"model": str(broken_net), "labels": LABELS, "input": {"size": [16, 16]}})
    )
    with pytest.raises(BackboneError, match="failed on this input"):
        failing.encode_image(two_halves())
    with pytest.raises(BackboneError, match="failed on this input"):
        failing.encode_image(two_halves())  # and still says so


def test_label_numbers_out_of_range(constant_net: MakeModel, write_yaml: MakeConfig) -> None:
    model = constant_net({"out": np.full((1, 8, 8), 3, np.int64)})
    config = write_yaml({"model": str(model), "labels": LABELS, "output": {"kind": "argmax"}})
    with pytest.raises(BackboneError, match=r"label numbers 3\.\.3"):
        load_backbone("segmenter", config=config).encode_image(two_halves())


@pytest.mark.parametrize(
    "bad", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_what_is_no_image(colour_net: MakeModel, bad: np.ndarray) -> None:
    with pytest.raises(InvalidFrameError):
        load_backbone("segmenter", model=str(colour_net()), labels=LABELS).encode_image(bad)


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 500, 3), (700, 3, 3)])
def test_odd_images_are_fine(colour_net: MakeModel, write_yaml: MakeConfig, shape: tuple[int, ...]) -> None:
    for fit in ("stretch", "letterbox"):
        config = write_yaml({"model": str(colour_net()), "labels": LABELS, "input": {"fit": fit}})
        got = load_backbone("segmenter", config=config).encode_image(np.zeros(shape, np.uint8))
        assert np.isfinite(got.features).all()
