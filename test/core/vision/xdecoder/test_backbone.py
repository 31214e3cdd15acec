"""The backbone `xdecoder` from options to feature maps, with small networks of random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from geopurify_core.config import settings
from geopurify_core.errors import BackboneError, GeoPurifyError, InvalidConfigError, QueryError
from geopurify_core.vision import load_backbone
from geopurify_core.vision.xdecoder.backbone import XDecoderBackbone, fill_by_depth, reference_words, spread
from geopurify_core.vision.xdecoder.settings import XDecoderSpec, read_settings
from geopurify_core.vision.xdecoder.text_vectors import TextVectors

torch = pytest.importorskip("torch")


@pytest.fixture
def tiny_variant() -> Path:
    """A configuration of 1.7 million parameters, nearly all of them token vectors."""
    return Path(__file__).with_name("tiny.json")


@pytest.fixture
def load(tiny_variant: Path, tmp_path: Path) -> Any:
    def make(**options: Any) -> XDecoderBackbone:
        common = {"weights": "random", "variant": str(tiny_variant), "text_cache": str(tmp_path / "texts")}
        backbone = load_backbone("xdecoder", **common | options)
        assert isinstance(backbone, XDecoderBackbone)
        return backbone

    return make


def picture(seed: int = 0, height: int = 96, width: int = 128) -> np.ndarray:
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    return np.kron(blocks, np.ones((16, 16, 1), np.uint8))[:height, :width]


def test_open_features_lie_at_stride_four_and_are_mixtures_of_unit_vectors(load: Any) -> None:
    backbone = load()
    feature_map = backbone.encode_image(picture())
    assert feature_map.features.shape == (backbone.feature_dim, 24, 32) and feature_map.features.dtype == np.float32
    length = np.linalg.norm(feature_map.rows, axis=1)
    assert (length <= 1 + 1e-5).all() and length.max() > 0.05
    assert feature_map.confidence.min() >= 0 and 0 < feature_map.confidence.max() <= 1
    assert feature_map.features.transpose(1, 2, 0).flags.c_contiguous
    odd = backbone.encode_image(picture(height=70, width=101))
    assert odd.features.shape[1:] == (18, 25)  # cells of about 4 pixels that cover just the image


def test_the_vocabulary_decides_in_its_assignment_and_not_in_the_open_one(load: Any) -> None:
    one, other = (load(assignment="vocabulary", labels=labels) for labels in (["chair", "wall"], ["sofa"]))
    assert one.fingerprint != other.fingerprint and one.text_fingerprint == other.text_fingerprint
    assert not np.array_equal(one.encode_image(picture()).features, other.encode_image(picture()).features)
    exact = load(assignment="vocabulary", labels=["chair", "wall"], stride=1).encode_image(picture())
    assert exact.features.shape[1:] == (96, 128) and exact.features.dtype == np.float16
    assert set(np.unique(exact.confidence)) <= {0.0, 1.0}
    coarse = one.encode_image(picture())
    assert coarse.features.shape[1:] == (24, 32)
    np.testing.assert_allclose(coarse.confidence, exact.confidence.reshape(24, 4, 32, 4).mean((1, 3)), atol=1e-6)


def test_depth_fills_what_no_mask_covers(load: Any) -> None:
    backbone = load(assignment="vocabulary", labels=["chair", "wall"], stride=1)
    bare = backbone.encode_image(picture())
    assert 0 < bare.confidence.mean() < 1
    depth_m = np.full((48, 64), 2.0, np.float32)
    depth_m[:10] = 0
    filled = backbone.encode_image(picture(), depth_m)
    assert (filled.confidence[20:] == 1).all() and np.array_equal(filled.confidence[:20], bare.confidence[:20])
    known = bare.confidence == 1
    np.testing.assert_array_equal(filled.features[:, known], bare.features[:, known])
    unfilled = load(assignment="vocabulary", labels=["chair", "wall"], stride=1, fill=False)
    np.testing.assert_array_equal(unfilled.encode_image(picture(), depth_m).confidence, bare.confidence)


def test_filling_takes_the_nearest_in_space_not_in_the_image() -> None:
    depth_m = np.array([[1.0, 5.0, 1.0, 0.0]], np.float32).repeat(2, 0)
    query = np.array([[7, 3, 9, 9], [7, 3, 9, 9]])
    own = np.array([[True, True, False, False], [True, True, False, False]])
    filled, known = fill_by_depth(query, own, depth_m, focal_px=4.0)
    assert (filled[:, 2] == 7).all()  # its neighbour in the image lies four metres behind
    np.testing.assert_array_equal(known, [[True, True, True, False]] * 2)
    same, none = fill_by_depth(query, np.zeros_like(own), depth_m)
    assert same is query and not none.any()


def test_spreading_means_over_owned_pixels_only() -> None:
    vectors = np.eye(3, dtype=np.float32)
    query, own = np.array([[0, 1, 2, 2]] * 2), np.array([[True, True, True, False]] * 2)
    feature_map = spread(vectors, query, own, 2)
    np.testing.assert_allclose(feature_map.confidence, [[1.0, 0.5]])
    np.testing.assert_allclose(feature_map.rows, [[0.5, 0.5, 0], [0, 0, 1]], atol=1e-6)


def test_several_images_in_one_pass_give_what_each_gives(load: Any) -> None:
    backbone = load()
    both = backbone.encode_images([picture(0), picture(1)])
    for seed, together in enumerate(both):
        alone = backbone.encode_image(picture(seed))
        np.testing.assert_allclose(together.features, alone.features, atol=2e-5)
        np.testing.assert_allclose(together.confidence, alone.confidence, atol=2e-5)
    with pytest.raises(BackboneError, match="one size"):
        backbone.encode_images([picture(), picture(height=64)])


def test_bfloat16_stays_near(load: Any) -> None:
    exact, rough = (load(precision=p).encode_image(picture()) for p in ("fp32", "bf16"))
    assert rough.features.dtype == np.float32 and np.isfinite(rough.features).all()
    difference = np.abs(rough.features - exact.features)
    assert 0 < np.median(difference) < 0.05  # an attention mask that flips changes a query here and there


def test_texts_are_unit_vectors_kept_on_disk(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = load()
    vectors = backbone.encode_text(["chair", "red mug", " chair "])
    assert vectors.shape == (3, backbone.feature_dim) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    np.testing.assert_array_equal(vectors[0], vectors[2])
    assert len(list((tmp_path / "texts").glob("*.f32"))) == 2
    again = load()
    monkeypatch.setattr("geopurify_core.vision.xdecoder.text_vectors.TextVectors._compute", None)
    np.testing.assert_array_equal(again.encode_text(["red mug"])[0], vectors[1])
    assert backbone.encode_text([]).shape == (0, backbone.feature_dim)


def test_many_texts_are_kept_as_they_come_and_a_long_wait_is_announced(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is done when encoding is interrupted need not be done again."""
    texts = [f"thing {i}" for i in range(20)]
    module = "geopurify_core.vision.xdecoder.text_vectors"
    backbone, compute = load(), TextVectors._compute

    def interrupted(self: TextVectors, labels: list[str], bare: bool) -> Any:
        if "thing 19" in labels[-1]:
            raise KeyboardInterrupt
        return compute(self, labels, bare)

    caplog.set_level("WARNING", "geopurify_core")  # a command run before may have left another
    monkeypatch.setattr(f"{module}._LONG_S", 0.0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(f"{module}.TextVectors._compute", interrupted)
        backbone.encode_text(texts)
    assert len(list((tmp_path / "texts").glob("*.f32"))) == 16
    assert "encoding 4 more texts takes" in caplog.text and str(tmp_path / "texts") in caplog.text
    vectors = load().encode_text(texts)
    np.testing.assert_allclose(vectors[[3, 19]], load(text_cache="none").encode_text([texts[3], texts[19]]), atol=1e-6)


def test_a_damaged_text_cache_is_written_anew(load: Any, tmp_path: Path) -> None:
    want = load().encode_text(["chair"])
    (file,) = (tmp_path / "texts").glob("*.f32")
    for damage in (b"", b"\0" * file.stat().st_size, file.read_bytes()[:-1]):
        file.write_bytes(damage)
        np.testing.assert_array_equal(load().encode_text(["chair"]), want)
    assert len(file.read_bytes()) == 4 * want.shape[1]
    (tmp_path / "a file").write_text("")
    np.testing.assert_array_equal(load(text_cache=str(tmp_path / "a file")).encode_text(["chair"]), want)
    np.testing.assert_array_equal(load(text_cache="none").encode_text(["chair"]), want)


def test_identity_follows_from_what_decides_about_features(load: Any) -> None:
    base = load()
    assert load(precision="bf16").fingerprint == base.fingerprint == load(stride=2).fingerprint
    assert base.fingerprint.endswith(base.text_fingerprint) and base.licence
    for options in ({"seed": 1}, {"prompt": "{}"}, {"padding": "official_code"}, {"objectness": "mask"}):
        assert load(**options).fingerprint != base.fingerprint, options
    assert load(seed=1).text_fingerprint != base.text_fingerprint != load(prompt="{}").text_fingerprint
    assert load(objectness="mask").text_fingerprint == base.text_fingerprint


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"assignment": "vocabulary"}, "at least one"),
        ({"assignment": "vocabulary", "labels": []}, "at least one"),
        ({"labels": ["chair"]}, "assignment: vocabulary"),
        ({"assignment": "vocabulary", "labels": ["a"], "label_set": "scannet20"}, "not both"),
        ({"assignment": "vocabulary", "labels": ["a", "a"]}, "once"),
        ({"assignment": "vocabulary", "labels": ["background"]}, "added by itself"),
        ({"assignment": "vocabulary", "label_set": "scannet99"}, "scannet20"),
        ({"assignment": "soft"}, "open, vocabulary"),
        ({"labels": [""]}, "non-empty"),
        ({"prompt": "a"}, "{} once"),
        ({"weights": ""}, "geopurify weights"),
        ({"variant": "focalx"}, "focalt"),
        ({"variant": "no/such.json"}, "no/such.json"),
        ({"precision": "fp16", "device": "cpu"}, "GPU"),
        ({"stride": 0}, "stride"),
        ({"colour": 1}, "option colour"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], says: str, load: Any) -> None:
    with pytest.raises(GeoPurifyError, match=says):
        load(**options)


def test_a_gpu_that_is_not_there(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(BackboneError, match=r"device.*cpu"):
        load(device="cuda")


def test_missing_weights_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GEOPURIFY_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(BackboneError, match="geopurify weights download xdecoder_focall_last"):
        load_backbone("xdecoder")


def test_texts_are_checked(load: Any) -> None:
    with pytest.raises(QueryError, match="empty"):
        load().encode_text(["chair", " "])


def test_settings_come_from_yaml_and_options(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("assignment: vocabulary\nlabels: [chair]\nstride: 2\n")
    spec = read_settings(path, {"stride": 8, "seed": None})
    assert (spec.assignment, spec.labels, spec.stride, spec.seed) == ("vocabulary", ["chair"], 8, 0)
    path.write_text("strides: 2\n")
    with pytest.raises(InvalidConfigError, match=r"strides.*stride"):
        read_settings(path, {})


def test_shipped_yamls(repository: Path) -> None:
    folder = repository / "config" / "backbones"
    assert read_settings(folder / "xdecoder.yaml", {}) == XDecoderSpec()
    assert list(yaml.safe_load((folder / "xdecoder.yaml").read_text())) == [item.key for item in settings(XDecoderSpec)]
    official = read_settings(folder / "xdecoder_official_code.yaml", {})
    assert len(official.vocabulary()) == 19 and official.padding == "official_code" and official.stride == 1


def test_every_setting_is_documented(repository: Path) -> None:
    lines = (repository / "docs" / "xdecoder.md").read_text(encoding="utf-8").splitlines()
    for item in settings(XDecoderSpec):
        row = next((line for line in lines if line.startswith(f"| `{item.key}` |")), "")
        assert item.description in row and all(choice in row for choice in item.choices), item.key


def test_reference_words_are_cocos() -> None:
    words = reference_words()
    assert len(words) == len(set(words)) == 133 and {"chair", "wall", "window"} < set(words)


def test_the_small_variant_is_a_configuration(tiny_variant: Path) -> None:
    assert json.loads(tiny_variant.read_text())["MODEL"]["BACKBONE"]["NAME"] == "focal_dw"
