"""Texts to unit vectors: the sentence-embedding space that the built-in, segmenter and detector backbones share."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geopurify_core.errors import BackboneError, QueryError
from geopurify_core.vision.minilm import MiniLM, folder_digest, packaged_folder
from geopurify_core.vision.prompts import DEFAULT_TEMPLATES, templates_named

log = logging.getLogger(__name__)

MAX_TEXT_BYTES = 4096
TEXT_DIM = 384


def check_texts(texts: Sequence[str], max_bytes: int = MAX_TEXT_BYTES) -> list[str]:
    """The texts, stripped. Any language, direction or emoji is fine.

    Raises:
        QueryError: Not a list of strings, or one is empty, longer than ``max_bytes``, or holds NUL or broken Unicode.
    """
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Sequence):
        raise QueryError("texts", texts, "Give a list of strings.")
    return [_check_text(f"texts[{i}]", text, max_bytes) for i, text in enumerate(texts)]


def _check_text(field: str, text: object, max_bytes: int) -> str:
    if not isinstance(text, str):
        raise QueryError(field, text, "Give a string.")
    if "\0" in text:
        raise QueryError(field, text, "Remove the NUL character.")
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise QueryError(field, text, "Remove the lone surrogate: the text is not valid Unicode.") from error
    if size > max_bytes:
        raise QueryError(field, text, f"It has {size} bytes; the limit is {max_bytes}.")
    stripped = text.strip()
    if not stripped:
        raise QueryError(field, text, "The text is empty; name what to look for.")
    return stripped


class SentenceEncoder:
    """Sentence embeddings of all-MiniLM-L6-v2, offline, cached, safe to call from several threads.

    A text's vector is the mean over its prompt templates, normalised again. The first text that no cache knows loads
    the model.

    Args:
        templates: Name of a template set (see ``prompts.py``).
        max_bytes: Longer texts are refused.
        cache_size: Texts remembered in memory, least recently used dropped first.
        cache_dir: Folder for an on-disk cache, one small file for each text, named by content; None for none.
            Damaged files are ignored and written anew.

    Attributes:
        dim: 384.
        text_fingerprint: Names model and templates; equal fingerprints mean equal vectors.
    """

    dim = TEXT_DIM

    def __init__(
        self,
        templates: str = DEFAULT_TEMPLATES,
        *,
        max_bytes: int = MAX_TEXT_BYTES,
        cache_size: int = 4096,
        cache_dir: str | Path | None = None,
    ) -> None:
        self._templates = templates_named(templates)
        self._folder = packaged_folder()
        self._max_bytes = max_bytes
        self._cache_size = cache_size
        self._cache_dir = Path(cache_dir) if cache_dir is not None else None
        self._cache: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        self._lock = threading.RLock()
        self._model: MiniLM | None = None
        self.text_fingerprint = f"all-minilm-l6-v2:{folder_digest(self._folder)}+{templates}"

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, 384) float32 unit-norm embeddings. Raises QueryError as ``check_texts`` does, before any is computed."""
        checked = check_texts(texts, self._max_bytes)
        if not checked:
            return np.empty((0, self.dim), dtype=np.float32)
        with self._lock:
            return np.stack([self._recall(text) for text in checked])

    def _recall(self, text: str) -> NDArray[np.float32]:
        if text in self._cache:
            self._cache.move_to_end(text)
            return self._cache[text]
        vector = self._read_file(text)
        if vector is None:
            vector = self._embed(text)
            self._write_file(text, vector)
        self._cache[text] = vector
        if len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)
        return vector

    def _embed(self, text: str) -> NDArray[np.float32]:
        if self._model is None:
            self._model = MiniLM(self._folder)
            if self._model.dim != self.dim:
                raise BackboneError("text model", self._model.dim, f"Expected {self.dim} dimensions.")
        if len(self._model.token_ids(text)) <= 2:  # only [CLS] and [SEP]
            raise QueryError("text", text, "It holds no readable word; name what to look for.")
        total = np.zeros(self.dim, dtype=np.float32)
        for template in self._templates:
            total += self._model.embed(self._model.token_ids(template.format(text)))
        return np.asarray(total / np.linalg.norm(total), dtype=np.float32)

    def _path(self, text: str) -> Path | None:
        if self._cache_dir is None:
            return None
        key = hashlib.sha256(f"{self.text_fingerprint}\0{text}".encode()).hexdigest()
        return self._cache_dir / f"{key}.f32"

    def _read_file(self, text: str) -> NDArray[np.float32] | None:
        path = self._path(text)
        if path is None:
            return None
        try:
            vector = np.frombuffer(path.read_bytes()[: 4 * self.dim + 1], dtype=np.uint8)
        except OSError:  # not there yet, or not ours to read: embed it anew
            return None
        if vector.size != 4 * self.dim:
            return None
        values = vector.view("<f4").astype(np.float32)
        return values if abs(float(np.linalg.norm(values)) - 1.0) < 1e-4 else None

    def _write_file(self, text: str, vector: NDArray[np.float32]) -> None:
        path = self._path(text)
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
                file.write(vector.astype("<f4").tobytes())
            os.replace(file.name, path)
        except OSError as error:
            log.warning("text cache %s cannot be written (%s); going on without", self._cache_dir, error)
            self._cache_dir = None


_shared: dict[str, SentenceEncoder] = {}
_shared_lock = threading.Lock()


def shared_encoder(templates: str = DEFAULT_TEMPLATES) -> SentenceEncoder:
    """One encoder for the whole process, so that several backbones load the model once."""
    with _shared_lock:
        if templates not in _shared:
            _shared[templates] = SentenceEncoder(templates)
        return _shared[templates]
