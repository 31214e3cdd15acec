"""Text vectors of X-Decoder's language encoder, remembered in memory and on disk: a text costs 81 passes."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from geopurify_core.vision.xdecoder.language import LanguageEncoder

log = logging.getLogger(__name__)

_REMEMBERED = 4096
_PER_GROUP, _BARE_PER_GROUP = 16, 1296  # as many prompts in either
_LONG_S = 20.0
_BARE = ("{}",)


class TextVectors:
    """Labels to unit vectors, each computed once. Safe to call from several threads.

    Args:
        encoder: The model's language encoder.
        folder: For small files, one for each text, named by content (weights, templates, text); None for none.
            Damaged files are ignored and written anew.

    Attributes:
        fingerprint: Names weights and templates; equal fingerprints mean equal vectors.
    """

    def __init__(self, encoder: LanguageEncoder, folder: Path | None) -> None:
        self._encoder = encoder
        self._folder = folder
        self._lock = threading.Lock()
        self._memory: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        self.fingerprint = encoder.fingerprint()[:16]

    def encode(self, labels: Sequence[str], bare: bool = False) -> NDArray[np.float32]:
        """(n, C) float32 unit vectors.

        Args:
            labels: What goes into the templates' braces; checked by the caller.
            bare: The labels as they are, without the templates: 81 times quicker.
        """
        if not labels:
            return np.empty((0, self._encoder.dim), np.float32)
        names = {label: self._name(label, bare) for label in labels}
        with self._lock:
            found = {label: self._recall(name) for label, name in names.items()}
            missing = [label for label, vector in found.items() if vector is None]
            if missing:
                found |= self._compute_all(missing, names, bare)
            return np.stack([vector for label in labels if (vector := found[label]) is not None])

    def _compute_all(self, labels: list[str], names: dict[str, str], bare: bool) -> dict[str, NDArray[np.float32]]:
        """In groups, each kept when done: the first query's 200 nouns take minutes, and may be interrupted."""
        vectors: dict[str, NDArray[np.float32]] = {}
        size = _BARE_PER_GROUP if bare else _PER_GROUP
        begun = time.monotonic()
        for start in range(0, len(labels), size):
            group = labels[start : start + size]
            for label, vector in zip(group, self._compute(group, bare), strict=True):
                vectors[label] = vector
                self._keep(names[label], vector)
            if start == 0:
                self._announce(len(labels) - len(group), (time.monotonic() - begun) / len(group))
        return vectors

    def _announce(self, count: int, each_s: float) -> None:
        if count * each_s > _LONG_S:
            where = (
                f"once: they are kept in {self._folder}"
                if self._folder
                else "at every start: no folder keeps them (text_cache)"
            )
            log.warning("encoding %d more texts takes about %.0f s, %s", count, count * each_s, where)

    def _compute(self, labels: list[str], bare: bool) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            vectors = self._encoder.embed_labels(labels, _BARE if bare else None)
        return vectors.float().cpu().numpy()

    def _name(self, label: str, bare: bool) -> str:
        return hashlib.sha256(f"{self.fingerprint}\0{int(bare)}\0{label}".encode()).hexdigest()

    def _recall(self, name: str) -> NDArray[np.float32] | None:
        if name in self._memory:
            self._memory.move_to_end(name)
            return self._memory[name]
        vector = self._read(name)
        if vector is not None:
            self._remember(name, vector)
        return vector

    def _keep(self, name: str, vector: NDArray[np.float32]) -> None:
        self._remember(name, vector)
        self._write(name, vector)

    def _remember(self, name: str, vector: NDArray[np.float32]) -> None:
        self._memory[name] = vector
        if len(self._memory) > _REMEMBERED:
            self._memory.popitem(last=False)

    def _read(self, name: str) -> NDArray[np.float32] | None:
        if self._folder is None:
            return None
        try:
            data = (self._folder / f"{name}.f32").read_bytes()
        except OSError:  # not there yet, or not ours to read: compute it anew
            return None
        if len(data) != 4 * self._encoder.dim:
            return None
        vector = np.frombuffer(data, "<f4").astype(np.float32)
        return vector if abs(float(np.linalg.norm(vector)) - 1.0) < 1e-4 else None

    def _write(self, name: str, vector: NDArray[np.float32]) -> None:
        if self._folder is None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as file:
                file.write(vector.astype("<f4").tobytes())
            os.replace(file.name, self._folder / f"{name}.f32")
        except OSError as error:
            log.warning("text cache %s cannot be written (%s); going on without", self._folder, error)
            self._folder = None
