"""Sonata's weights on disk: what loads, and how everything else is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from training.teachers.sonata import Sonata, TeacherError
from training.teachers.sonata.checkpoint import fingerprint_of, read_checkpoint

from ._sonata import CONFIG, network_input, small


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A file in the authors' format."""
    path = tmp_path / "sonata.pth"
    torch.save({"config": CONFIG, "state_dict": small().state_dict()}, path)
    return path


def test_the_authors_format_and_safetensors_hold_the_same_network(published: Path, tmp_path: Path) -> None:
    other = tmp_path / "sonata.safetensors"
    weights = {name: value.contiguous() for name, value in small().state_dict().items()}
    save_file(weights, other, {"config": json.dumps(CONFIG)})
    answers, prints = [], []
    for path in (published, other):
        read = read_checkpoint(path)
        model = Sonata.from_config(read.config, read.state_dict)
        answers.append(model.stages(*network_input(100))["upcast2"])
        prints.append(fingerprint_of(model.state_dict()))
    assert torch.equal(*answers) and prints[0] == prints[1] != fingerprint_of(small(1).state_dict())


def test_a_file_without_architecture_needs_one(tmp_path: Path) -> None:
    path = tmp_path / "bare.safetensors"
    save_file({name: value.contiguous() for name, value in small().state_dict().items()}, path)
    with pytest.raises(TeacherError, match="give config"):
        read_checkpoint(path)
    assert read_checkpoint(path, CONFIG).config == CONFIG


def test_missing_unexpected_and_misshapen_keys_are_all_listed() -> None:
    weights = dict(small().state_dict())
    del weights["enc.enc0.block0.norm1.0.bias"]
    weights["dec.up"] = torch.zeros(1)
    weights["embedding.stem.linear.weight"] = torch.zeros(8, 6)
    weights["enc.enc1.down.proj.bias"] = "text"  # type: ignore[assignment]
    with pytest.raises(TeacherError) as caught:
        Sonata.from_config(CONFIG, weights)
    for told in (
        "1 missing: enc.enc0.block0.norm1.0.bias", "1 unexpected: dec.up",
        "1 misshapen: embedding.stem.linear.weight (8, 6) instead of (8, 9)", "1 no tensor: enc.enc1.down.proj.bias",
    ):  # fmt: skip
        assert told in str(caught.value)


def test_another_networks_weights_are_told_by_number() -> None:
    prefixed = {f"module.{name}": value for name, value in small().state_dict().items()}
    with pytest.raises(TeacherError, match=r"missing: embedding.mask_token, .* and \d+ more; .* unexpected: module"):
        Sonata.from_config(CONFIG, prefixed)


def test_damaged_values_are_refused() -> None:
    weights = dict(small().state_dict())
    weights["enc.enc4.block0.mlp.0.fc1.weight"] = weights["enc.enc4.block0.mlp.0.fc1.weight"] * torch.nan
    with pytest.raises(TeacherError, match=r"1 not finite: enc\.enc4\.block0\.mlp\.0\.fc1\.weight"):
        Sonata.from_config(CONFIG, weights)


def test_half_precision_weights_are_widened() -> None:
    half = {name: value.half() for name, value in small().state_dict().items()}
    model = Sonata.from_config(CONFIG, half)
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert torch.allclose(
        model.stages(*network_input(60))["upcast2"], small().stages(*network_input(60))["upcast2"], atol=0.1
    )


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("executed",)


@pytest.mark.parametrize("content", [[1, 2], {"model": {}}, {"state_dict": 3}, torch.zeros(2), Malicious()])
def test_other_contents_are_refused(tmp_path: Path, content: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(TeacherError, match="checkpoint"):
        read_checkpoint(path)
    assert "executed" not in capsys.readouterr().out


def test_damaged_files_are_refused(published: Path, tmp_path: Path) -> None:
    whole = published.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        for suffix in (".pth", ".safetensors"):
            path = tmp_path / f"cut{suffix}"
            path.write_bytes(whole[:size])
            with pytest.raises(TeacherError, match="no whole"):
                read_checkpoint(path)
    with pytest.raises(TeacherError, match="no such file"):
        read_checkpoint(tmp_path / "lost.pth")
    torch.save({"config": "v3m2", "state_dict": {}}, published)
    with pytest.raises(TeacherError, match="dictionary"):
        read_checkpoint(published)
