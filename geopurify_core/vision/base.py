"""What every 2D backbone promises: pixels and texts in one space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from geopurify_core.errors import BackboneError


@dataclass(frozen=True)
class FeatureMap:
    """Text-aligned features on a coarse grid that covers the whole image.

    Cell (i, j) of a (h, w) grid covers image rows [i·H/h, (i+1)·H/h) and columns [j·W/w, (j+1)·W/w).

    Attributes:
        features: (C, h, w) float32 or float16. Rows are not normalised: length carries certainty.
            Memory order is channels-last: ``features.transpose(1, 2, 0)`` is C-contiguous, so fusion reads whole rows.
        confidence: (h, w) float32 in [0, 1], the weight of each cell in fusion; 0 leaves the cell out.
    """

    features: NDArray[np.floating]
    confidence: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.features.ndim != 3 or self.features.dtype not in (np.float32, np.float16):
            raise BackboneError(
                "features", f"{self.features.dtype}{self.features.shape}", "Return (C, h, w) float32 or float16."
            )
        if self.confidence.shape != self.features.shape[1:] or self.confidence.dtype != np.float32:
            raise BackboneError(
                "confidence",
                f"{self.confidence.dtype}{self.confidence.shape}",
                f"Return {self.features.shape[1:]} float32 in [0, 1].",
            )

    @classmethod
    def from_rows(cls, rows: NDArray[np.floating], confidence: NDArray[np.float32]) -> FeatureMap:
        """From channels-last features (h, w, C) and confidence (h, w)."""
        return cls(np.ascontiguousarray(rows).transpose(2, 0, 1), np.ascontiguousarray(confidence, dtype=np.float32))

    @property
    def rows(self) -> NDArray[np.floating]:
        """(h·w, C) C-contiguous view (a copy only if the producer was channels-first)."""
        channels, height, width = self.features.shape
        return np.ascontiguousarray(self.features.transpose(1, 2, 0)).reshape(height * width, channels)


@runtime_checkable
class SemanticBackbone(Protocol):
    """A frozen vision-language model. Implementations are safe to call from one worker thread at a time.

    Attributes:
        name: Registry name (``"nano"``, ``"segmenter"``, …).
        feature_dim: C.
        licence: SPDX identifier of the weights.
        fingerprint: Identity of weights and text space; maps built with another fingerprint cannot be mixed.
        text_fingerprint: Identity of the text space alone; a map can be queried by any encoder that shares it.
    """

    name: str
    feature_dim: int
    licence: str
    fingerprint: str
    text_fingerprint: str

    def encode_image(self, rgb: NDArray[np.uint8], depth_m: NDArray[np.float32] | None = None) -> FeatureMap:
        """Features of one (H, W, 3) uint8 RGB image. Raises BackboneError where the model fails.

        ``depth_m`` is the registered depth (any resolution, metres, 0 = none). It may sharpen object outlines; most
        backbones ignore it, and all work without.
        """
        ...

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, C) unit-norm embeddings of ``texts``. Raises QueryError for empty or oversized text."""
        ...
