"""Weights in and out: official files, what is wrong with others, and conversion."""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geopurify_core.errors import BackboneError

torch = pytest.importorskip("torch")

from geopurify_core.vision.xdecoder import XDecoder, checkpoint  # noqa: E402
from geopurify_core.vision.xdecoder.variants import published  # noqa: E402

PREDICTOR = "sem_seg_head.predictor"
CAPTIONING = [f"{PREDICTOR}.caping_embed", f"{PREDICTOR}.pos_embed_caping.weight", "backbone_proj"]


@pytest.fixture
def state(whole_state: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """The full official key set of a small Focal-T, ``criterion.empty_weight`` included."""
    return {**whole_state("focalt"), "criterion.empty_weight": torch.cat([torch.ones(133), torch.tensor([0.1])])}


@pytest.fixture
def config(reference: Callable[[str], Any]) -> dict[str, Any]:
    return reference("focalt").config


@pytest.fixture
def official(tmp_path: Path, state: dict[str, Any]) -> Path:
    path = tmp_path / "xdecoder_small.pt"
    torch.save(state, path)
    return path


def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[key], b[key]) for key in a)


def test_an_official_checkpoint_goes_round(
    official: Path, state: dict[str, Any], config: dict[str, Any], network: Callable[..., Any]
) -> None:
    assert set(CAPTIONING) <= set(state)
    model = XDecoder.from_checkpoint(official, config)
    assert equal(model.state_dict(), state)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    image = np.random.default_rng(0).integers(0, 256, (3, 64, 64), dtype=np.uint8)
    with torch.inference_mode():
        assert torch.equal(model(image).masks, network("focalt", torch.float32)(image).masks)


def test_the_variant_may_be_a_file(official: Path, config: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "small.json"
    file.write_text(json.dumps(config))
    assert XDecoder.from_checkpoint(official, str(file)).dim == 48


def test_a_wrapped_state_dict_is_unwrapped(state: dict[str, Any], config: dict[str, Any], tmp_path: Path) -> None:
    torch.save({"model": state}, tmp_path / "wrapped.pt")
    assert equal(XDecoder.from_checkpoint(tmp_path / "wrapped.pt", config).state_dict(), state)


@pytest.mark.parametrize("absent", [*CAPTIONING, "criterion.empty_weight", f"{PREDICTOR}.self_attn_mask"])
def test_what_segmentation_does_not_use_may_be_absent(
    state: dict[str, Any], config: dict[str, Any], absent: str
) -> None:
    value = state.pop(absent)
    model = XDecoder.from_config(config, state)
    assert model.state_dict()[absent].shape == value.shape
    if absent.endswith("self_attn_mask"):
        assert torch.equal(model.state_dict()[absent], value)


def test_captioning_keys_of_another_size_are_left_out(state: dict[str, Any], config: dict[str, Any]) -> None:
    state["criterion.empty_weight"] = torch.ones(7)
    assert XDecoder.from_config(config, state).state_dict()["criterion.empty_weight"].shape == (134,)


def test_missing_unexpected_and_misshapen_are_all_listed(state: dict[str, Any], config: dict[str, Any]) -> None:
    token = f"{PREDICTOR}.lang_encoder.lang_encoder.token_embedding.weight"
    del state[token]
    state["surprise.weight"] = torch.zeros(1)
    state[f"{PREDICTOR}.class_embed"] = torch.zeros(64, 47)
    state[f"{PREDICTOR}.decoder_norm.bias"] = torch.zeros(64, dtype=torch.int64)
    with pytest.raises(BackboneError) as error:
        XDecoder.from_config(config, state)
    for part in (token, "surprise.weight", "class_embed (64, 47), not (64, 48)", "decoder_norm.bias torch.int64"):
        assert part in str(error.value)


def test_the_wrong_variant_is_named(official: Path) -> None:
    with pytest.raises(BackboneError, match="They do not fit the configuration"):
        XDecoder.from_checkpoint(official, "focall")
    with torch.device("meta"):
        tiny = XDecoder(published("focalt")).state_dict()
    with pytest.raises(BackboneError, match="the weights of focalt"):
        XDecoder.from_config(published("davitd5"), tiny)


@pytest.mark.parametrize("variant", ["focalx", "", "resnet50"])
def test_an_unknown_variant_lists_the_known(official: Path, variant: str) -> None:
    with pytest.raises(BackboneError, match="focalt, focall, davitd3, davitd5"):
        XDecoder.from_checkpoint(official, variant)


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.999])
@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_a_truncated_file_is_refused(
    official: Path, config: dict[str, Any], tmp_path: Path, keep: float, ending: str
) -> None:
    whole = official
    if ending == ".safetensors":
        whole = tmp_path / "whole.safetensors"
        checkpoint.convert(official, whole, config)
    data = whole.read_bytes()
    cut = tmp_path / f"cut{ending}"
    cut.write_bytes(data[: int(keep if keep >= 1 else keep * len(data))])
    with pytest.raises(BackboneError, match="truncated"):
        XDecoder.from_checkpoint(cut, config)


def test_a_file_that_is_not_there(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(BackboneError, match="geopurify weights"):
        XDecoder.from_checkpoint(tmp_path / "none.pt", config)


@pytest.mark.parametrize("content", [[1, 2], {"a": "text"}, {1: torch.zeros(1)}, torch.zeros(3)], ids=str)
def test_other_contents_are_refused(tmp_path: Path, config: dict[str, Any], content: Any) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(BackboneError):
        XDecoder.from_checkpoint(tmp_path / "other.pt", config)


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, config: dict[str, Any]) -> None:
    sprung = tmp_path / "sprung"
    for name, save in (("zip.pt", torch.save), ("plain.pt", lambda x, p: p.write_bytes(pickle.dumps(x)))):
        save({"weight": Trap(sprung)}, tmp_path / name)
        with pytest.raises(BackboneError):
            XDecoder.from_checkpoint(tmp_path / name, config)
    assert not sprung.exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_widened(state: dict[str, Any], config: dict[str, Any], dtype: torch.dtype) -> None:
    half = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    model = XDecoder.from_config(config, half)
    assert model.dtype == torch.float32
    assert model.state_dict()[f"{PREDICTOR}.self_attn_mask"].dtype == torch.bool


def test_arrays_and_doubles_are_taken(state: dict[str, Any], config: dict[str, Any]) -> None:
    arrays = {
        key: value.double().numpy() if value.is_floating_point() else value.numpy() for key, value in state.items()
    }
    model = XDecoder.from_config(config, arrays)
    assert model.dtype == torch.float64
    assert XDecoder.from_config(config, arrays, dtype=torch.float32).dtype == torch.float32


def test_conversion_keeps_every_tensor_and_gives_the_files_checksum(
    official: Path, config: dict[str, Any], state: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = tmp_path / "new" / "small.safetensors"
    with caplog.at_level(logging.INFO, "geopurify_core"):
        digest = checkpoint.convert(official, target, config)
    assert digest == hashlib.sha256(target.read_bytes()).hexdigest() and digest in caplog.text
    assert [path.name for path in target.parent.iterdir()] == ["small.safetensors"]
    assert equal(XDecoder.from_checkpoint(target, config).state_dict(), state)
    assert checkpoint.convert(official, target, config) == digest


def test_conversion_refuses_other_endings_and_closed_folders(
    official: Path, config: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(BackboneError, match=r"\.safetensors"):
        checkpoint.convert(official, tmp_path / "small.pt", config)
    (tmp_path / "file").touch()
    with pytest.raises(BackboneError, match="cannot be written"):
        checkpoint.convert(official, tmp_path / "file" / "small.safetensors", config)


@pytest.mark.parametrize(("name", "text"), [("a.json", "{"), ("b.yaml", "[1"), ("c.json", "[]"), ("d.yml", None)])
def test_a_configuration_file_that_cannot_be_read(tmp_path: Path, name: str, text: str | None) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(BackboneError, match="variant"):
        checkpoint.variant_config(tmp_path / name)
