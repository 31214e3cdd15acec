"""Weights for trying the machinery without a checkpoint: the same for the same seed, and of sensible scale.

torch's own initialisation would leave the layer scales at 1e-4, so that deep blocks say almost nothing. Every tensor is
drawn by its key instead, so that the values depend neither on the order of the modules nor on their number.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from geopurify_core.vision.xdecoder.model import XDecoder

_BY_INPUT = ("lang_proj", "class_embed", "caping_embed", "backbone_proj")  # stored as (in, out)
_EMBEDDINGS = ("embedding", "query_", "level_embed", "pos_embed")


def random_network(config: Mapping[str, Any], seed: int = 0) -> XDecoder:
    """The network that ``config`` describes, in float32 on the CPU. Raises InvalidConfigError."""
    with torch.device("meta"):
        empty = XDecoder(config)
    state = {
        key: _draw(key, value.shape, seed) for key, value in empty.state_dict().items() if value.is_floating_point()
    }
    return XDecoder.from_config(config, state)


def _draw(key: str, shape: torch.Size, seed: int) -> Tensor:
    last = key.rsplit(".", 1)[-1]
    if last == "logit_scale":
        return torch.tensor(math.log(1 / 0.07))
    generator = torch.Generator().manual_seed((zlib.crc32(key.encode()) ^ seed) & 0x7FFFFFFF)
    noise = torch.randn(shape, generator=generator)
    if last.startswith("gamma"):
        return 0.5 + 0.1 * noise
    if len(shape) <= 1:
        return 0.1 * noise + float(len(shape) == 1 and last == "weight")
    if any(part in key for part in _EMBEDDINGS):
        return noise / 2
    fan = shape[0] if last in _BY_INPUT else math.prod(shape[1:])
    return noise / math.sqrt(fan)
