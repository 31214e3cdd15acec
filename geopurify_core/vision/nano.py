"""The built-in backbone: small, offline, trained on procedural rooms only. docs/nano.md says what to expect of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geopurify_core.errors import BackboneError
from geopurify_core.frame import check_rgb
from geopurify_core.vision.base import FeatureMap
from geopurify_core.vision.text import SentenceEncoder

if TYPE_CHECKING:
    import torch

    from geopurify_core.vision.nano_net import NanoNet

WEIGHTS = Path(__file__).parent / "weights" / "nano.safetensors"
_PIXELS = 320 * 240
_SIDE_STEP = 16


class NanoBackbone:
    """A network of about a million parameters whose features lie in the sentence-embedding space of all-MiniLM-L6-v2.

    Args:
        weights: A ``.safetensors`` file with its ``.json`` beside it; by default the one of this package.
        templates: Prompt templates of the text side (see ``prompts.py``).
        threads: CPU threads one image may use; 0 leaves it to torch. The network is small: on a busy machine waiting
            for a second thread costs more than it brings (measured with two other busy processes on two cores:
            53 ms with one thread, 170 to 1300 ms with two).

    Attributes:
        name: ``"nano"``; feature_dim: 384; licence: ``"Apache-2.0"``.

    Raises:
        BackboneError: The weights are missing, damaged, or of another architecture.
    """

    name = "nano"
    feature_dim = SentenceEncoder.dim
    licence = "Apache-2.0"

    def __init__(self, weights: str | Path | None = None, templates: str = "plain", threads: int = 1) -> None:
        path = Path(weights) if weights is not None else WEIGHTS
        self._text = SentenceEncoder(templates)
        self.text_fingerprint = self._text.text_fingerprint
        self.metadata = read_metadata(path)
        self._net = load_network(path)
        self._limited = _thread_limit(threads)
        digest = self.metadata["sha256"][:16]
        self.fingerprint = f"nano:{digest}+{self.text_fingerprint}"

    def encode_image(self, rgb: NDArray[np.uint8], depth_m: NDArray[np.float32] | None = None) -> FeatureMap:
        """Unit-length features on a grid of a quarter of the working size (60 x 80 for a 4:3 image).

        Args:
            rgb: (H, W, 3) uint8; it is resized to about 320 x 240 pixels, keeping its shape.
            depth_m: Not used.

        Returns:
            (384, h, w) float32 features, each of length 1, and the network's own estimate of being right.

        Raises:
            InvalidFrameError: Not an RGB image.
        """
        import torch

        check_rgb(rgb)
        with torch.inference_mode(), self._limited():
            features, confidence = self._net(prepare(rgb))
            return FeatureMap.from_rows(features[0].numpy(), confidence[0].numpy())

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, 384) unit-norm sentence embeddings. Raises QueryError for empty or oversized text."""
        return self._text.encode_text(texts)


def _thread_limit(threads: int) -> Callable[[], AbstractContextManager[Any]]:
    """A context in which the calling thread, and no other, gives torch at most so many threads."""
    if threads < 0:
        raise BackboneError("nano threads", threads, "Give the number of CPU threads, or 0 for torch's own choice.")
    try:
        from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        return nullcontext
    if threads == 0:
        return nullcontext
    # torch is loaded by now; its OpenMP keeps this number for each thread, so other users of torch keep theirs.
    return partial(ThreadpoolController().select(user_api="openmp").limit, limits=threads)


def working_size(height: int, width: int) -> tuple[int, int]:
    """Height and width the network sees: about 320 x 240 pixels in all, multiples of 16, in the image's proportions."""
    scale = (_PIXELS / (height * width)) ** 0.5
    return _rounded(height * scale), _rounded(width * scale)


def _rounded(side: float) -> int:
    return max(2, round(side / _SIDE_STEP)) * _SIDE_STEP


def prepare(rgb: NDArray[np.uint8]) -> torch.Tensor:
    """(1, 3, h, w) float32 normalised network input of a (H, W, 3) uint8 image."""
    import torch
    from torch.nn.functional import interpolate

    from geopurify_core.vision.nano_net import MEAN, STD

    x = torch.from_numpy(np.require(rgb, requirements=["C", "W"])).permute(2, 0, 1)[None].float()
    size = working_size(rgb.shape[0], rgb.shape[1])
    if x.shape[2:] != size:
        x = interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=True)
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    return ((x / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def read_metadata(weights: Path) -> dict[str, Any]:
    """The JSON beside a weights file, after checking the file against its checksum."""
    try:
        data: dict[str, Any] = json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    except (OSError, ValueError) as error:
        raise BackboneError("nano weights", str(weights), f"Reinstall the package: {error}") from error
    if data.get("sha256") != digest:
        raise BackboneError(
            "nano weights", digest, f"The file differs from its description ({data.get('sha256')}); reinstall."
        )
    return data


def load_network(weights: Path) -> NanoNet:
    """The network in float32, evaluation mode, channels last."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from geopurify_core.vision.nano_net import NanoNet, deployable

    net = deployable(NanoNet(SentenceEncoder.dim))
    try:
        net.load_state_dict({name: value.float() for name, value in load_file(str(weights)).items()})
    except (SafetensorError, RuntimeError, OSError) as error:
        raise BackboneError("nano weights", str(weights), f"They do not fit this version's network: {error}") from error
    net.requires_grad_(False)
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
