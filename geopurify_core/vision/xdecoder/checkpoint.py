"""Weights in and out: official checkpoints read safely and loaded strictly, and converted to safetensors once."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import Tensor

from geopurify_core.errors import BackboneError
from geopurify_core.vision.xdecoder.decoder import blocked_self_attention
from geopurify_core.vision.xdecoder.variants import VARIANTS, canonical, published

if TYPE_CHECKING:
    from geopurify_core.vision.xdecoder.model import XDecoder

log = logging.getLogger(__name__)

_PREDICTOR = "sem_seg_head.predictor"
_ATTENTION_MASK = f"{_PREDICTOR}.self_attn_mask"
# Only captioning and training use them: they may be absent, and their shapes may differ (then they are left out).
UNUSED = (
    "backbone_proj",
    "criterion.empty_weight",
    f"{_PREDICTOR}.caping_embed",
    f"{_PREDICTOR}.pos_embed_caping.weight",
)
# Follows from the configuration, so it may be absent; where it is there it must fit.
DERIVED = (_ATTENTION_MASK,)
_WRAPPERS = ("model", "state_dict")
_LISTED = 40
_CONFIG_FILES = (".json", ".yaml", ".yml")


def variant_config(variant: str | Path | Mapping[str, Any]) -> Mapping[str, Any]:
    """A variant's configuration: by name, from a JSON or YAML file, or as given.

    Raises:
        BackboneError: Unknown name, or the file cannot be read.
    """
    if isinstance(variant, Mapping):
        return variant
    path = Path(variant)
    if path.suffix in _CONFIG_FILES:
        return _read_config(path)
    config = published(str(variant))
    if config is None:
        raise BackboneError(
            "variant", variant, f"Known: {', '.join(VARIANTS)}; or give a configuration (a .json or .yaml file)."
        )
    return config


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        config = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise BackboneError("variant", str(path), f"The configuration cannot be read: {error}") from error
    if not isinstance(config, Mapping):
        raise BackboneError("variant", str(path), "The file holds no mapping of keys to values.")
    return config


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` or torch file, by key, on the CPU; no code in the file is run.

    Raises:
        BackboneError: No such file; truncated; or something else than tensors by name.
    """
    file = Path(path)
    if not file.is_file():
        raise BackboneError("checkpoint", str(path), "No such file; `geopurify weights` says where to get one.")
    try:
        values = _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)
    except Exception as error:  # the readers raise half a dozen kinds for a damaged file
        remedy = f"It cannot be read as a checkpoint ({_first_line(error)}); it may be truncated. Download it again."
        raise BackboneError("checkpoint", str(path), remedy) from error
    for wrapper in _WRAPPERS:
        if isinstance(values, Mapping) and isinstance(values.get(wrapper), Mapping):
            values = values[wrapper]
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        raise BackboneError("checkpoint", str(path), "It holds no tensors by name; give a state dict.")
    return dict(values)


def _read_safetensors(file: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(file)


def _read_torch(file: Path) -> Any:
    # Not memory-mapped: the network would break when somebody replaces the file.
    return torch.load(file, map_location="cpu", weights_only=True)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def fill(
    model: XDecoder,
    state_dict: Mapping[str, Any],
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    source: str = "state dict",
) -> None:
    """Put weights into a network that was built without memory (on torch's ``meta`` device), strictly.

    Args:
        model: The network; see ``XDecoder.from_config`` for the other arguments.
        state_dict: Tensors or arrays by official key.
        dtype: Of all weights.
        device: Where to put them.
        source: What to call the weights in messages.

    Raises:
        BackboneError: A key is missing or unexpected, or a shape or type differs; the message lists them.
    """
    given = {key: _tensor(key, value, source) for key, value in state_dict.items()}
    expected = {key: value.shape for key, value in model.state_dict().items()}
    problems = differences(given, expected)
    if problems:
        raise BackboneError("weights", source, _describe(problems, given))
    kind = dtype if dtype is not None else _kind(given)
    place = torch.device(device) if device is not None else given[f"{_PREDICTOR}.class_embed"].device
    ready = {
        key: value.to(device=place, dtype=kind if value.is_floating_point() else value.dtype)
        for key, value in (given | _absent(model, given, kind)).items()
    }
    model.load_state_dict(ready, strict=True, assign=True)
    model.requires_grad_(False)


def differences(given: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]]) -> dict[str, list[str]]:
    """Why tensors cannot be loaded: lists under ``missing``, ``unexpected``, ``wrong shape``, ``wrong type``."""
    optional = {*UNUSED, *DERIVED}
    shared = [key for key in expected if key in given and key not in UNUSED]
    shapes = [
        f"{key} {tuple(given[key].shape)}, not {tuple(expected[key])}"
        for key in shared
        if tuple(given[key].shape) != tuple(expected[key])
    ]
    wrong_type = [f"{key} {given[key].dtype}" for key in shared if given[key].is_floating_point() is (key in DERIVED)]
    found = {
        "missing": [key for key in expected if key not in given and key not in optional],
        "unexpected": [key for key in given if key not in expected],
        "wrong shape": shapes,
        "wrong type": wrong_type,
    }
    return {kind: keys for kind, keys in found.items() if keys}


def _tensor(key: str, value: Any, source: str) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BackboneError("weights", source, f"{key} holds no tensor but {type(value).__name__}.") from error


def _kind(given: Mapping[str, Tensor]) -> torch.dtype:
    kinds = {value.dtype for value in given.values() if value.is_floating_point()}
    return torch.float64 if kinds == {torch.float64} else torch.float32


def _absent(model: XDecoder, given: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Stand-ins for what may be absent or differ in shape: nothing here reaches a result but the attention mask."""
    expected = model.state_dict()
    config = model.predictor.config
    stand_ins: dict[str, Tensor] = {}
    for key in UNUSED:
        if key not in given or given[key].shape != expected[key].shape:
            stand_ins[key] = torch.zeros(expected[key].shape, dtype=dtype)
    if _ATTENTION_MASK not in given:
        stand_ins[_ATTENTION_MASK] = blocked_self_attention(config.queries, config.caption_length)
    return stand_ins


def _describe(problems: Mapping[str, list[str]], given: Mapping[str, Tensor]) -> str:
    parts = []
    for kind, keys in problems.items():
        more = f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
        parts.append(f"{len(keys)} {kind}: {', '.join(keys[:_LISTED])}{more}.")
    fits = recognise(given)
    hint = f"These are the weights of {fits}. " if fits else ""
    return f"{hint}They do not fit the configuration. {' '.join(parts)}"


def recognise(given: Mapping[str, Tensor]) -> str:
    """The published variant that tensors belong to; empty for none."""
    from geopurify_core.vision.xdecoder.model import XDecoder

    for variant in VARIANTS:
        with torch.device("meta"):
            model = XDecoder(variant_config(variant))
        if not differences(given, {key: value.shape for key, value in model.state_dict().items()}):
            return variant
    return ""


def convert(source: str | Path, destination: str | Path, variant: str | Mapping[str, Any]) -> str:
    """Write a checkpoint as safetensors, after loading it strictly; the destination appears only once it is whole.

    Args:
        source: Official checkpoint.
        destination: ``.safetensors`` file to write; replaced if it is there.
        variant: As for ``XDecoder.from_checkpoint``.

    Returns:
        sha256 of the file written, hexadecimal.

    Raises:
        BackboneError: The checkpoint cannot be read or does not fit, or the destination cannot be written.
    """
    from safetensors.torch import save_file

    from geopurify_core.vision.xdecoder.model import XDecoder

    target = Path(destination)
    if target.suffix != ".safetensors":
        raise BackboneError("destination", str(destination), "Give a file name that ends in .safetensors.")
    network = XDecoder.from_checkpoint(source, variant)
    tensors = {key: value.contiguous().clone() for key, value in network.state_dict().items()}
    known = canonical(variant) if isinstance(variant, str) else ""
    # One entry: safetensors writes several in random order, and equal weights should have equal checksums.
    metadata = {"variant": known} if known in VARIANTS else {"format": "pt"}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            part = Path(folder) / target.name
            save_file(tensors, part, metadata=metadata)
            checksum = sha256_of(part)
            os.replace(part, target)
    except OSError as error:
        raise BackboneError("destination", str(destination), f"It cannot be written: {error}") from error
    log.info("%s: %d tensors, sha256 %s", target, len(tensors), checksum)
    return checksum


def sha256_of(path: str | Path) -> str:
    """sha256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
