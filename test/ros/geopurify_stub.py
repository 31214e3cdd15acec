"""A backbone for tests of the ROS side: colours are its features, so it is fast and exactly repeatable."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from geopurify_core.vision.base import FeatureMap

CELL = 4
DIM = 16
_CORNERS = np.array([[r, g, b] for r in (0, 1) for g in (0, 1) for b in (0, 1)], dtype=np.float32)


def held(compute: Callable[..., Any], path: Path) -> Callable[..., Any]:
    """Purification that obeys a file: with the word ``wait`` it does not go on until the file has gone (but can be
    stopped), with ``stuck`` it does not even look whether it is to stop, with ``fail`` it fails."""

    def purify(*arguments: Any, progress: Any, cancelled: Any, **more: Any) -> Any:
        while (word := path.read_text() if path.exists() else "") in ("wait", "stuck"):
            if word == "wait":
                progress("student", 0.25)
            time.sleep(0.01)
        if word == "fail":
            raise RuntimeError("the student fails on purpose")
        return compute(*arguments, progress=progress, cancelled=cancelled, **more)

    return purify


class StubBackbone:
    """Features: nearness to the eight corners of the colour cube. Texts: ``corner N``, or anything (hashed).

    Args:
        fail_every: Raise on every n-th image; 0 never.
        delay_s: Time for each image.
        load_s: Time to load.
        nan_every: Answer with NaN on every n-th image; 0 never.
        hold: A file that rules purification while it exists, see :func:`held`; empty: none.
    """

    name = "stub"
    feature_dim = DIM
    licence = "Apache-2.0"
    fingerprint = "stub-1"
    text_fingerprint = "stub-1"

    def __init__(
        self,
        fail_every: int = 0,
        delay_s: float = 0.0,
        load_s: float = 0.0,
        nan_every: int = 0,
        refuse: bool = False,
        hold: str = "",
    ) -> None:
        time.sleep(load_s)
        if refuse:
            raise RuntimeError("no weights")
        if hold:
            from geopurify_core.purification.update import compute

            compute.purify_snapshot = held(compute.purify_snapshot, Path(hold))
        self._fail_every, self._delay_s, self._nan_every = fail_every, delay_s, nan_every
        self._count = 0

    def encode_image(self, rgb: np.ndarray, depth_m: np.ndarray | None = None) -> FeatureMap:
        time.sleep(self._delay_s)
        self._count += 1
        if self._fail_every and self._count % self._fail_every == 0:
            raise RuntimeError("the stub fails on purpose")
        small = rgb[::CELL, ::CELL].astype(np.float32) / 255
        rows = np.zeros((*small.shape[:2], DIM), dtype=np.float32)
        rows[..., :8] = np.exp(-4 * ((small[:, :, None] - _CORNERS) ** 2).sum(axis=-1))
        if self._nan_every and self._count % self._nan_every == 0:
            rows[0, 0, 0] = np.nan
        return FeatureMap.from_rows(rows, np.ones(small.shape[:2], dtype=np.float32))

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        out = np.zeros((len(texts), DIM), dtype=np.float32)
        for row, text in zip(out, texts, strict=True):
            if text.startswith("corner "):
                row[int(text.split()[1])] = 1
            else:
                seed = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:4], "little")
                row[:] = np.random.default_rng(seed).normal(size=DIM)
        return out / np.linalg.norm(out, axis=1, keepdims=True)
