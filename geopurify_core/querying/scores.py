"""How well each voxel fits a text: cosine, centred and standardised against a bank of contrast nouns.

Text embeddings crowd into a narrow cone: any indoor noun is about 0.3 similar to any other, and what is left is mostly
a matter of how common a word is. So a raw cosine can be ranked but not compared with a threshold. With u = f/|f| for
a voxel's feature, unit t for the text, and μ the mean of the bank's unit embeddings b:

    cc(f, t) = (u − μ)·(t − μ) / (|u − μ| |t − μ|)          what both have beyond the generic indoor thing
    z(f, t)  = (cc(f, t) − mean_b cc(b, t)) / std_b cc(b, t)   in units of how such nouns scatter around this text
    score    = z · |f|/(|f| + τ) · w/(w + ω)                nothing seen, nothing claimed; a glimpse proves little

Subtracting the mean score over the bank from each voxel (f·t − mean_b f·b) is what f·(t − μ) computes without a single
product with the bank, so 200 contrast prompts cost no more than one. Every term needs one dot product per text, plus
f·μ and |f| once per snapshot.
"""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from geopurify_core.querying.sources import FeatureSource

_MIN_STD = 0.02
_MIN_DISTANCE = 1e-3
_CERTAINTY_QUANTILE = 0.9
_CERTAINTY_SHARE = 0.2
_WEIGHT_SHARE = 1.0
_SIZE_TEMPERATURE = 0.05


@functools.cache
def contrast_nouns() -> tuple[tuple[str, float], ...]:
    """The bank: generic indoor nouns with a typical greatest extent in metres, from ``data/contrast_nouns.csv``."""
    source = resources.files("geopurify_core.querying").joinpath("data/contrast_nouns.csv")
    rows = csv.DictReader(source.read_text(encoding="utf-8").splitlines())
    return tuple((row["noun"], float(row["size_m"])) for row in rows)


@dataclass(frozen=True)
class TextDirection:
    """A text, prepared for scoring.

    Attributes:
        vector: (C,) float32, (t − μ)/|t − μ|.
        offset: μ · vector.
        bank_mean, bank_std: Of cc(b, t) over the contrast bank.
        size_m: Typical greatest extent of such a thing, from the bank's nouns nearest in meaning.
        size_log_std: How unsure that is, natural logarithm.
    """

    vector: NDArray[np.float32]
    offset: float
    bank_mean: float
    bank_std: float
    size_m: float
    size_log_std: float


class ContrastBank:
    """The contrast nouns in one text space.

    Args:
        embeddings: (B, C) float32 unit-norm embeddings of the nouns.
        sizes_m: (B,) typical extents, metres.
    """

    def __init__(self, embeddings: NDArray[np.float32], sizes_m: NDArray[np.floating]) -> None:
        self.embeddings = np.asarray(embeddings, dtype=np.float32)
        self.mean = self.embeddings.mean(axis=0)
        self._log_sizes = np.log(np.asarray(sizes_m, dtype=np.float64))
        centred = self.embeddings - self.mean
        self._centred = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), _MIN_DISTANCE)

    def direction(self, embedding: NDArray[np.float32], head: NDArray[np.float32] | None = None) -> TextDirection:
        """Prepare a unit-norm text embedding (C,); ``head`` is that of its head noun alone, which tells the size.

        ("tiled wall" is near "tile" in meaning, but of the size of a wall.)
        """
        vector = self._centre(embedding)
        similarity = self._centred @ vector
        log_size, spread = self._typical_log_size(similarity)
        if head is not None:
            head_log_size, head_spread = self._typical_log_size(self._centred @ self._centre(head))
            log_size, spread = (log_size + head_log_size) / 2.0, float(np.hypot(spread, head_spread)) / np.sqrt(2.0)
        return TextDirection(
            vector=vector,
            offset=float(self.mean @ vector),
            bank_mean=float(similarity.mean()),
            bank_std=max(float(similarity.std()), _MIN_STD),
            size_m=float(np.exp(log_size)),
            size_log_std=spread,
        )

    def _centre(self, embedding: NDArray[np.float32]) -> NDArray[np.float32]:
        centred = embedding - self.mean
        return np.asarray(centred / max(float(np.linalg.norm(centred)), _MIN_DISTANCE), dtype=np.float32)

    def _typical_log_size(self, similarity: NDArray[np.float32]) -> tuple[float, float]:
        """Mean and standard deviation of log size over the bank, weighed towards the nouns nearest in meaning."""
        weights = np.exp((similarity - similarity.max()) / _SIZE_TEMPERATURE).astype(np.float64)
        weights /= weights.sum()
        mean = float(weights @ self._log_sizes)
        return mean, float(np.sqrt(weights @ (self._log_sizes - mean) ** 2))


class FeatureIndex:
    """What all queries of one snapshot share: the source of its products, and per voxel |u − μ| and certainty.

    Args:
        source: Products with the features of the map, and their weights.
        bank: The contrast bank in the same space.
    """

    def __init__(self, source: FeatureSource, bank: ContrastBank) -> None:
        self._source = source
        weight = source.weight
        projection, length = source.mean_dot_and_length(bank.mean)
        inverse = np.where(length > 0, 1.0 / np.maximum(length, 1e-12), 0.0).astype(np.float32)
        mean_square = float(bank.mean @ bank.mean)
        distance = np.sqrt(np.maximum(1.0 - 2.0 * projection * inverse + mean_square, _MIN_DISTANCE**2))
        strong = float(np.quantile(length, _CERTAINTY_QUANTILE)) if len(length) else 0.0
        usual = float(np.median(weight)) if len(weight) else 0.0
        certainty = length / np.maximum(length + _CERTAINTY_SHARE * strong, 1e-12)
        certainty *= weight / np.maximum(weight + _WEIGHT_SHARE * usual, 1e-12)
        self._gain = (inverse / distance).astype(np.float32)
        self._inverse_distance = (1.0 / distance).astype(np.float32)
        self.certainty = certainty.astype(np.float32)

    def centred_cosines(self, directions: list[TextDirection]) -> NDArray[np.float32]:
        """cc(f, t) for every text and voxel, (n, N) float32."""
        result = self._source.dots(np.stack([direction.vector for direction in directions]))
        for row, direction in zip(result, directions, strict=True):
            row *= self._gain
            row -= np.float32(direction.offset) * self._inverse_distance
        return result

    def scores(self, directions: list[TextDirection]) -> NDArray[np.float32]:
        """The standardised score of every text and voxel, (n, N) float32; 0 is what a generic noun would get."""
        result = self.centred_cosines(directions)
        for row, direction in zip(result, directions, strict=True):
            row -= np.float32(direction.bank_mean)
            row *= self.certainty * np.float32(1.0 / direction.bank_std)
        return result
