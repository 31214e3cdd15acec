"""From a trained network to the two files ``nano`` loads: half-precision weights and their metadata."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from geopurify_core.vision.nano_net import NanoNet, count_parameters, deployable
from geopurify_core.vision.text import SentenceEncoder


def export(net: NanoNet, recipe: Any, folder: Path, scores: dict[str, Any] | None = None) -> Path:
    """Write ``nano.safetensors`` (normalisation folded in, float16) and ``nano.json``; the path of the former."""
    folder.mkdir(parents=True, exist_ok=True)
    folded = deployable(copy.deepcopy(net))
    state = {name: value.to(torch.float16).contiguous() for name, value in folded.state_dict().items()}
    path = folder / "nano.safetensors"
    save_file(state, str(path))
    data = {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "parameters": count_parameters(folded),
        "text_fingerprint": SentenceEncoder().text_fingerprint,
        "licence": "Apache-2.0",
        "recipe": asdict(recipe) if is_dataclass(recipe) and not isinstance(recipe, type) else dict(recipe),
        "scores": scores or {},
    }
    (folder / "nano.json").write_text(json.dumps(data, indent=1) + "\n")
    return path
