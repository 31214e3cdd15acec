"""Sonata's weights on disk: the published ``{config, state_dict}`` (.pth), and safetensors."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.teachers.sonata.errors import TeacherError

_MOST_NAMES_SHOWN = 4


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Attributes:
        config: The architecture, as the file or the caller says it.
        state_dict: The weights.
    """

    config: Mapping[str, Any]
    state_dict: Mapping[str, Tensor]


def read_checkpoint(path: str | Path, config: Mapping[str, Any] | None = None) -> Checkpoint:
    """Read a file of weights; nothing in it is executed.

    Args:
        path: ``.safetensors`` (its metadata may have an entry ``config``, JSON), or anything else that ``torch.save``
            wrote with the entries ``config`` and ``state_dict``.
        config: The architecture, where the file does not say it, or instead of what it says.

    Raises:
        TeacherError: No file, truncated, no such entries, or no architecture.
    """
    path = Path(path)
    if not path.is_file():
        raise TeacherError("checkpoint", str(path), "There is no such file.")
    told, weights = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    chosen = config if config is not None else told
    if chosen is None:
        raise TeacherError("checkpoint", str(path), "It does not say its architecture: give config.")
    return Checkpoint(chosen, weights)


def _read_torch(path: Path) -> tuple[Mapping[str, Any] | None, dict[str, Tensor]]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, AttributeError, pickle.UnpicklingError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise TeacherError("checkpoint", str(path), f"It is no whole file of weights: {first_line}") from error
    if not isinstance(content, Mapping) or not isinstance(content.get("state_dict"), Mapping):
        kind = sorted(map(str, content))[:_MOST_NAMES_SHOWN] if isinstance(content, Mapping) else type(content).__name__
        raise TeacherError("checkpoint", kind, f"{path.name} should hold the entries config and state_dict.")
    told = content.get("config")
    if told is not None and not isinstance(told, Mapping):
        raise TeacherError("checkpoint.config", type(told).__name__, f"{path.name} should hold a dictionary there.")
    return told, dict(content["state_dict"])


def _read_safetensors(path: Path) -> tuple[Mapping[str, Any] | None, dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            told = json.loads((file.metadata() or {}).get("config", "null"))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise TeacherError("checkpoint", str(path), f"It is no whole safetensors file: {error}") from error
    return told if isinstance(told, Mapping) else None, weights


def load_strictly(model: nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Put weights into a network: every key, no other, every shape, finite.

    Raises:
        TeacherError: What is missing, unexpected and of another shape, with the first names of each and their number.
    """
    own = model.state_dict()
    problems = {
        "missing": [key for key in own if key not in state_dict],
        "unexpected": [str(key) for key in state_dict if key not in own],
        "no tensor": [key for key in own if key in state_dict and not isinstance(state_dict[key], Tensor)],
    }
    wrong = [key for key, value in state_dict.items() if key in own and isinstance(value, Tensor)]
    problems["misshapen"] = [
        f"{key} {tuple(state_dict[key].shape)} instead of {tuple(own[key].shape)}"
        for key in wrong
        if state_dict[key].shape != own[key].shape
    ]
    told = "; ".join(_listed(kind, names) for kind, names in problems.items() if names)
    if told:
        raise TeacherError("state_dict", told, f"These weights are not of this architecture. {told}.")
    broken = [key for key in own if not bool(torch.isfinite(state_dict[key]).all())]
    if broken:
        raise TeacherError("state_dict", _listed("not finite", broken), "The file is damaged: fetch it again.")
    model.load_state_dict(dict(state_dict))


def _listed(kind: str, names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES_SHOWN} more" if len(names) > _MOST_NAMES_SHOWN else ""
    return f"{len(names)} {kind}: {', '.join(names[:_MOST_NAMES_SHOWN])}{more}"


def fingerprint_of(state_dict: Mapping[str, Tensor]) -> str:
    """Sixteen hexadecimal digits that follow from names, shapes and values, not from the kind of file."""
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        value = state_dict[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        raw: Any = value.reshape(-1).view(torch.uint8).numpy()
        digest.update(raw)
    return digest.hexdigest()[:16]
