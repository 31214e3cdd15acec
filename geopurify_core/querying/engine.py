"""Texts in, objects out, over one immutable snapshot of the map."""

from __future__ import annotations

import logging
import math
import numbers
import threading
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from geopurify_core.config import QueryConfig
from geopurify_core.errors import QueryError
from geopurify_core.geometry import estimate_up
from geopurify_core.mapping.snapshot import MapSnapshot
from geopurify_core.querying.colour import MapColours, ParsedText, parse_text
from geopurify_core.querying.instances import SizePrior, find_objects
from geopurify_core.querying.results import DetectedObject, QueryResult
from geopurify_core.querying.scores import ContrastBank, FeatureIndex, TextDirection, contrast_nouns
from geopurify_core.vision.base import SemanticBackbone

log = logging.getLogger(__name__)

_COLOUR_SPREAD_FLOOR = 0.15
_COLOUR_LIMIT = 3.0
_SCORE_SPREAD_FLOOR = 0.25
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

    Raises:
        QueryError: The encoder's text space is not the map's.
    """

    def __init__(self, snapshot: MapSnapshot, encoder: SemanticBackbone, config: QueryConfig | None = None) -> None:
        if len(snapshot) and snapshot.feature_dim != encoder.feature_dim:
            raise QueryError(
                "encoder.feature_dim", encoder.feature_dim, f"The map's features have {snapshot.feature_dim} channels."
            )
        self.snapshot = snapshot
        self.config = config or QueryConfig()
        self._encoder = encoder
        self._lock = threading.RLock()
        self._colours = MapColours(snapshot.rgb, snapshot.coords)

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
        checked = self._check_texts(texts)
        limit = self._check_max_objects(max_objects)
        least = self._check_min_score(min_score)
        if not len(self.snapshot):
            return [QueryResult(text, np.zeros(0, dtype=np.float32), ()) for text in checked]
        parsed = [parse_text(text) for text in checked]
        directions = self._directions([item.noun for item in parsed])
        scores = self._index.scores(directions)
        results = []
        for row, item, direction in zip(scores, parsed, directions, strict=True):
            combined = self._combine(row, item)
            objects = self._objects(item.text, combined, direction)
            kept = tuple(found for found in objects if found.score >= least)[:limit]
            results.append(QueryResult(item.text, combined, kept))
        return results

    def segment(self, labels: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """The best of ``labels`` for every voxel.

        Returns:
            (N,) int32 index into ``labels``, −1 where nothing was seen, and (N,) float32 softmax confidence in [0, 1].

        Raises:
            QueryError: As for ``query``.
        """
        checked = self._check_texts(labels)
        if not len(self.snapshot):
            return np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.float32)
        cosines = self._index.centred_cosines(self._directions(checked))
        best = np.argmax(cosines, axis=0).astype(np.int32)
        top = np.take_along_axis(cosines, best[None], axis=0)[0]
        confidence = 1.0 / np.exp((cosines - top) / _SEGMENT_TEMPERATURE).sum(axis=0)
        seen = self._index.certainty > 0
        return np.where(seen, best, np.int32(-1)), np.where(seen, confidence, 0.0).astype(np.float32)

    def _objects(self, text: str, scores: NDArray[np.float32], direction: TextDirection) -> list[DetectedObject]:
        prior = SizePrior(direction.size_m, direction.size_log_std)
        snapshot = self.snapshot
        return find_objects(text, snapshot.coords, scores, snapshot.voxel_size_m, self._up, prior, self.config)

    def _combine(self, semantic: NDArray[np.float32], item: ParsedText) -> NDArray[np.float32]:
        """Semantic score in units of its own spread over the map, plus the colour agreement in the same currency."""
        spread = max(float(semantic.std()), _SCORE_SPREAD_FLOOR)
        combined = (semantic - np.float32(np.median(semantic))) / np.float32(spread)
        if item.terms and self.config.colour_weight > 0:
            with self._lock:
                agreement = self._colours.agreement(item.terms)
            colour = (agreement - agreement.mean()) / max(float(agreement.std()), _COLOUR_SPREAD_FLOOR)
            combined += np.float32(self.config.colour_weight) * np.clip(colour, -_COLOUR_LIMIT, _COLOUR_LIMIT)
        return np.ascontiguousarray(combined, dtype=np.float32)

    def _directions(self, texts: list[str]) -> list[TextDirection]:
        with self._lock:
            embeddings = np.asarray(self._encoder.encode_text(texts), dtype=np.float32)
        bank = self._bank
        return [bank.direction(embedding) for embedding in embeddings]

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
        return FeatureIndex(self.snapshot.features, self._bank)

    @property
    def _up(self) -> NDArray[np.float64]:
        with self._lock:
            return self._lazy_up

    @cached_property
    def _lazy_up(self) -> NDArray[np.float64]:
        return np.asarray(estimate_up(self.snapshot), dtype=np.float64)

    def _check_texts(self, texts: Sequence[str]) -> list[str]:
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            raise QueryError("texts", texts, "Give a list of texts.")
        if not texts:
            raise QueryError("texts", list(texts), "Ask for something: give at least one text.")
        if len(texts) > self.config.max_texts:
            raise QueryError("texts", f"{len(texts)} texts", f"Ask for at most {self.config.max_texts} at once.")
        for index, text in enumerate(texts):
            self._check_text(f"texts[{index}]", text)
        return list(texts)

    def _check_text(self, field: str, text: str) -> None:
        if not isinstance(text, str) or not text.strip():
            raise QueryError(field, text, "Name what to look for, for example 'red chair'.")
        if "\x00" in text:
            raise QueryError(field, text, "Remove the NUL character.")
        try:
            size = len(text.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise QueryError(field, text, "The text is not valid Unicode (a lone surrogate).") from error
        if size > self.config.max_text_bytes:
            raise QueryError(
                field, text, f"It has {size} bytes; keep it to {self.config.max_text_bytes} (query.max_text_bytes)."
            )

    def _check_max_objects(self, value: int | None) -> int:
        if value is None:
            return self.config.max_objects
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
            raise QueryError("max_objects", value, "Give a whole number of at least 1, or leave it out.")
        return int(value)

    def _check_min_score(self, value: float | None) -> float:
        if value is None:
            return self.config.min_score
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or math.isnan(float(value)):
            raise QueryError("min_score", value, "Give a number, or leave it out.")
        return float(value)
