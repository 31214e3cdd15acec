"""Texts in, objects out, over one immutable snapshot of the map."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from geopurify_core.config import QueryConfig
from geopurify_core.errors import QueryError
from geopurify_core.geometry import estimate_up
from geopurify_core.mapping.snapshot import MapSnapshot
from geopurify_core.querying.checks import check_max_objects, check_min_score, check_texts
from geopurify_core.querying.colour import MapColours, ParsedText, parse_text
from geopurify_core.querying.instances import SizePrior, find_objects
from geopurify_core.querying.results import DetectedObject, QueryResult
from geopurify_core.querying.scores import ContrastBank, FeatureIndex, TextDirection, contrast_nouns
from geopurify_core.querying.sources import DenseRows, FeatureSource, PooledScores
from geopurify_core.vision.base import SemanticBackbone

if TYPE_CHECKING:
    from geopurify_core.purification.update.result import Purification

_COLOUR_SPREAD_FLOOR = 0.15
_COLOUR_LIMIT = 3.0
_COLOUR_SHARE = 0.5  # a colour that stands out counts half as much as a noun that does
_UP_SAMPLE = 5000
_PEAK_QUANTILE = 0.999
_UNKNOWN, _KNOWN = 1.0, 3.0
_NEAR_PEAK = 0.8
_SEGMENT_TEMPERATURE = 0.05

_bank_lock = threading.Lock()
_banks: dict[tuple[str, int], ContrastBank] = {}


class QueryEngine:
    """Answers texts from one snapshot; safe to use from several threads.

    What depends on the snapshot alone is computed once, on first use: per-voxel feature statistics (one pass over the
    features), the map's vertical, and, for texts with colour words, its colours.

    Args:
        snapshot: The map to ask.
        encoder: Only ``encode_text``, ``feature_dim`` and ``text_fingerprint`` are used.
        config: Limits and weights.
        source: Products with the map's features, in the snapshot's order; by default with the rows it holds.

    Raises:
        QueryError: The encoder's text space is not the map's.
    """

    def __init__(
        self,
        snapshot: MapSnapshot,
        encoder: SemanticBackbone,
        config: QueryConfig | None = None,
        source: FeatureSource | None = None,
    ) -> None:
        if len(snapshot) and snapshot.feature_dim != encoder.feature_dim:
            raise QueryError(
                "encoder.feature_dim", encoder.feature_dim, f"The map's features have {snapshot.feature_dim} channels."
            )
        self.snapshot = snapshot
        self.config = config or QueryConfig()
        self._encoder = encoder
        self._source = source or DenseRows(snapshot.features, snapshot.weight)
        self._lock = threading.RLock()
        self._colours = MapColours(snapshot.rgb, snapshot.coords)

    @classmethod
    def of_purification(
        cls, purification: Purification, encoder: SemanticBackbone, config: QueryConfig | None = None
    ) -> QueryEngine:
        """An engine over purified features, kept as rows or (``pool: scores``) pooled text by text.

        Its ``snapshot`` has the rows in key order in the first case, in the raw map's order in the second.
        """
        if purification.features is not None:
            return cls(purification.as_snapshot(), encoder, config)
        pooled = PooledScores(purification)
        return cls(pooled.snapshot, encoder, config, pooled)

    def query(
        self, texts: Sequence[str], max_objects: int | None = None, min_score: float | None = None
    ) -> list[QueryResult]:
        """Scores and objects for each text, in the order asked.

        Args:
            texts: What to look for, such as "red cabinet"; colour words are compared with the map's colours.
            max_objects: Most objects per text; by default the configuration's.
            min_score: Leave out objects below; by default the configuration's.

        Raises:
            QueryError: No, empty, oversized or too many texts, a NUL in a text, or limits out of range.
        """
        checked = check_texts(texts, self.config)
        limit = check_max_objects(max_objects, self.config)
        least = check_min_score(min_score, self.config)
        if not len(self.snapshot):
            return [QueryResult(text, np.zeros(0, dtype=np.float32), (), self.snapshot) for text in checked]
        parsed = [parse_text(text) for text in checked]
        directions = self._directions(parsed)
        scores = self._index.scores(directions)
        results = []
        for row, item, direction in zip(scores, parsed, directions, strict=True):
            combined = self._combine(row, item)
            objects = self._objects(item.text, combined, direction)
            kept = tuple(found for found in objects if found.score >= least)[:limit]
            results.append(QueryResult(item.text, combined, kept, self.snapshot))
        return results

    def segment(self, labels: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """The best of ``labels`` for every voxel of ``snapshot``.

        Returns:
            (N,) int32 index into ``labels``, −1 where nothing was seen, and (N,) float32 softmax confidence in [0, 1].

        Raises:
            QueryError: As for ``query``.
        """
        checked = check_texts(labels, self.config)
        if not len(self.snapshot):
            return np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.float32)
        embeddings = self._encode(checked)
        cosines = self._index.centred_cosines([self._bank.direction(embedding) for embedding in embeddings])
        best = np.argmax(cosines, axis=0).astype(np.int32)
        top = np.take_along_axis(cosines, best[None], axis=0)[0]
        confidence = 1.0 / np.exp((cosines - top) / _SEGMENT_TEMPERATURE).sum(axis=0)
        seen = self._index.certainty > 0
        return np.where(seen, best, np.int32(-1)), np.where(seen, confidence, 0.0).astype(np.float32)

    def _objects(self, text: str, scores: NDArray[np.float32], direction: TextDirection) -> list[DetectedObject]:
        prior = SizePrior(direction.size_m, direction.size_log_std)
        return find_objects(text, self.snapshot, scores, self._up, prior, self.config)

    def _combine(self, semantic: NDArray[np.float32], item: ParsedText) -> NDArray[np.float32]:
        """Meaning above the map's median, plus λ/2 · g · (colour agreement, standardised over the map).

        The gate g keeps a brown table from standing in for a brown chair: where the map surely holds the noun (its
        best voxels score above ``_KNOWN``), colour only counts on voxels that come near those; where it does not, the
        noun is beyond the backbone and colour leads.
        """
        combined = semantic - np.float32(min(float(np.median(semantic)), 0.0))
        if item.terms and self.config.colour_weight > 0:
            with self._lock:
                agreement = self._colours.agreement(item.terms)
            colour = (agreement - agreement.mean()) / max(float(agreement.std()), _COLOUR_SPREAD_FLOOR)
            peak = max(float(np.quantile(combined, _PEAK_QUANTILE)), 1e-6)
            known = np.clip((peak - _UNKNOWN) / (_KNOWN - _UNKNOWN), 0.0, 1.0)
            gate = 1.0 - known * (1.0 - np.clip(combined / (_NEAR_PEAK * peak), 0.0, 1.0))
            weight = np.float32(self.config.colour_weight * _COLOUR_SHARE)
            combined += weight * gate * np.clip(colour, -_COLOUR_LIMIT, _COLOUR_LIMIT)
        return np.ascontiguousarray(combined, dtype=np.float32)

    def _directions(self, parsed: list[ParsedText]) -> list[TextDirection]:
        embeddings = self._encode([item.noun for item in parsed] + [item.head for item in parsed])
        pairs = zip(embeddings[: len(parsed)], embeddings[len(parsed) :], strict=True)
        return [self._bank.direction(embedding, head) for embedding, head in pairs]

    def _encode(self, texts: list[str]) -> NDArray[np.float32]:
        with self._lock:
            return np.asarray(self._encoder.encode_text(texts), dtype=np.float32)

    @property
    def _bank(self) -> ContrastBank:
        """The contrast bank in the encoder's text space, embedded once per process."""
        key = (self._encoder.text_fingerprint, self._encoder.feature_dim)
        with _bank_lock:
            if key not in _banks:
                nouns = contrast_nouns()
                embeddings = self._encoder.encode_text([noun for noun, _ in nouns])
                _banks[key] = ContrastBank(embeddings, np.array([size for _, size in nouns]))
            return _banks[key]

    @property
    def _index(self) -> FeatureIndex:
        with self._lock:
            return self._lazy_index

    @cached_property
    def _lazy_index(self) -> FeatureIndex:
        return FeatureIndex(self._source, self._bank)

    @property
    def _up(self) -> NDArray[np.float64]:
        with self._lock:
            return self._lazy_up

    @cached_property
    def _lazy_up(self) -> NDArray[np.float64]:
        return np.asarray(estimate_up(_thinned(self.snapshot)), dtype=np.float64)


def _thinned(snapshot: MapSnapshot) -> MapSnapshot:
    """Every so many-th voxel: enough to tell where up is, without a look at all of them."""
    step = max(1, len(snapshot) // _UP_SAMPLE)
    arrays = ("coords", "features", "weight", "rgb", "normals", "first_seen_ns", "last_seen_ns")
    return replace(snapshot, **{name: getattr(snapshot, name)[::step] for name in arrays})
