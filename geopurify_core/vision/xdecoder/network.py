"""X-Decoder made ready for a stream of images: weights found and loaded, on its device, in its precision."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geopurify_core.errors import BackboneError
from geopurify_core.vision.xdecoder.assignment import QueryOutputs
from geopurify_core.vision.xdecoder.checkpoint import variant_config
from geopurify_core.vision.xdecoder.model import Decoded, XDecoder
from geopurify_core.vision.xdecoder.random_weights import random_network
from geopurify_core.vision.xdecoder.settings import RANDOM, XDecoderSpec
from geopurify_core.vision.xdecoder.text_vectors import TextVectors
from geopurify_core.vision.xdecoder.weights import find_weights, variant_of

log = logging.getLogger(__name__)

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Network:
    """A loaded model and its text side.

    Args:
        model: In float32; moved to the device and laid out channels last.
        digest: Identity of its weights.
        licence: SPDX identifier of them.
        device: ``cpu`` or ``cuda``.
        precision: ``fp32``, ``bf16`` or ``fp16``. Weights stay in float32; backbone and pixel
            decoder multiply in the precision.
        text_folder: For text vectors; None keeps none on disk.
    """

    def __init__(
        self, model: XDecoder, digest: str, licence: str, device: str, precision: str, text_folder: Path | None
    ) -> None:
        # Convolutions and the channels-last layers between them then read one layout; no copies at the seams.
        self.model = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device = torch.device(device)
        self.digest, self.licence, self.dim = digest, licence, model.dim
        self._precision = _DTYPES[precision]
        self.texts = TextVectors(self.model.language, text_folder)
        self.text_fingerprint = f"xdecoder-text:{self.texts.fingerprint}"

    @classmethod
    def load(cls, spec: XDecoderSpec, config: str | Path, weights_dir: str | Path | None) -> Network:
        """The network that the settings name.

        Raises:
            BackboneError: No such weights, variant or device, or weights that do not fit.
        """
        device = _device(spec)
        if spec.weights == RANDOM:
            tree = variant_config(_beside(spec.variant, config) or "focalt")
            model = random_network(tree, spec.seed)
            shape = hashlib.sha256(json.dumps(tree, sort_keys=True, default=str).encode()).hexdigest()[:12]
            log.warning("X-Decoder runs with random weights: its answers mean nothing")
            return cls(model, f"{RANDOM}:{spec.seed}:{shape}", "CC0-1.0", device, spec.precision, _text_folder(spec))
        path = find_weights(spec.weights, config, weights_dir)
        variant = _beside(spec.variant, config) or variant_of(spec.weights, path)
        model = XDecoder.from_checkpoint(path, variant, dtype=torch.float32)
        return cls(model, weights_digest(model), "NOASSERTION", device, spec.precision, _text_folder(spec))

    def queries(self, rgbs: Sequence[NDArray[np.uint8]]) -> list[QueryOutputs]:
        """Object queries of each (H, W, 3) image, in float32; all images have one size.

        Raises:
            BackboneError: They have not, or the device runs out of memory.
        """
        sizes = {rgb.shape[:2] for rgb in rgbs}
        if len(sizes) != 1:
            raise BackboneError("images", sorted(sizes), "Give images of one size, at least one.")
        batch = torch.from_numpy(np.stack(rgbs)).permute(0, 3, 1, 2)  # channels last without a copy
        try:
            with torch.inference_mode():
                decoded = self._decode(batch.to(self.device))
        except torch.OutOfMemoryError as error:
            shape = tuple(batch.shape)
            raise BackboneError("images", shape, f"{self.device} is out of memory; fewer or smaller ones.") from error
        return [
            QueryOutputs(embeds.float(), masks.float(), decoded.image_size, decoded.padded_size)
            for embeds, masks in zip(decoded.class_embed[:, :-1], decoded.masks[:, :-1], strict=True)
        ]

    def _decode(self, batch: Tensor) -> Decoded:
        if self._precision == torch.float32:
            return self.model(batch)  # type: ignore[no-any-return]
        padded = self.model.prepare(batch)
        with torch.autocast(self.device.type, self._precision):
            mask_features, _, scales = self.model.sem_seg_head.pixel_decoder(self.model.backbone(padded))
        # The masked decoder is a small part of the work and thresholds its own masks: in float32 always.
        (last,) = self.model.predictor([scale.float() for scale in scales], mask_features.float())
        image, whole = ((int(x.shape[-2]), int(x.shape[-1])) for x in (batch, padded))
        return Decoded(last.class_embed, last.masks, image, whole)


def weights_digest(model: XDecoder) -> str:
    """16 hexadecimal digits over every tensor of the state dict, whatever file it came from."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _device(spec: XDecoderSpec) -> str:
    there = torch.cuda.is_available()
    if spec.device == "cuda" and not there:
        raise BackboneError("device", "cuda", "torch sees no GPU here; set device: cpu or auto.")
    device = "cuda" if there and spec.device != "cpu" else "cpu"
    if spec.precision == "fp16" and device == "cpu":
        raise BackboneError("precision", "fp16", "It needs a GPU: on a CPU it is many times slower; use fp32 or bf16.")
    return device


def _beside(variant: str, config: str | Path) -> str:
    """A configuration file named in a YAML lies beside that YAML, if it lies there."""
    near = Path(config).parent / variant if config and variant else None
    return str(near) if near is not None and near.is_file() else variant


def _text_folder(spec: XDecoderSpec) -> Path | None:
    if spec.text_cache == "none":
        return None
    if spec.text_cache:
        return Path(spec.text_cache)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "geopurify" / "text"
