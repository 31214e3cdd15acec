"""Labels of a pooled map from few pooled columns instead of all feature channels.

Which text fits a voxel best (``QueryEngine.segment``) follows from the products f·v of its feature with the texts'
directions v and from its length |f|:  argmax_t (f·v_t)/|f| − μ·v_t,  because the distance from the bank's mean μ that
divides both is the same for all texts. Pooling is linear, so coordinates in an orthonormal basis are pooled: first the
span of the texts, in which all products are exact, then the main directions of what is left, which only the length
needs, until less than a hundredth of the energy is left out. For ``nano`` that is 64 columns of 384, for a segmenter of
18 labels 32; labels agree with those of the full features in more than 99.8 % of the voxels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geopurify_core.purification.affinity.build import Affinity
from geopurify_core.purification.pooling.packed import PackedAffinity
from geopurify_core.purification.pooling.pool import pool
from geopurify_core.querying.scores import ContrastBank, contrast_nouns
from geopurify_core.vision.base import SemanticBackbone

_LEFT_OUT = 1e-2  # of the energy of the rows
_COLUMNS_AT_ONCE = 32  # what pooling takes in one sweep
_ROWS_AT_ONCE = 1 << 15

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Texts:
    """Class names, ready to be asked.

    Attributes:
        vectors: (n, C) float32 directions from the bank's mean.
        offsets: (n,) float32, mean · direction.
    """

    vectors: Floats
    offsets: Floats

    @classmethod
    def of(cls, names: Sequence[str], encoder: SemanticBackbone) -> Texts:
        """As ``QueryEngine`` prepares them."""
        bank = ContrastBank(
            encoder.encode_text([noun for noun, _ in contrast_nouns()]), np.array([s for _, s in contrast_nouns()])
        )
        directions = [bank.direction(embedding) for embedding in encoder.encode_text(list(names))]
        vectors = np.stack([direction.vector for direction in directions])
        return cls(vectors, np.array([direction.offset for direction in directions], dtype=np.float32))


@dataclass(frozen=True)
class Columns:
    """V voxels in few columns.

    Attributes:
        values: (V, n + 1) float32 coordinates, and the observation weight in the last column.
        basis: (C, n) float32, orthonormal.
    """

    values: Floats
    basis: Floats

    def labels(self, texts: Texts) -> NDArray[np.int32]:
        """(V,) int32 best text of each voxel; −1 where nothing was seen."""
        inside, weight = self.values[:, :-1], self.values[:, -1]
        length = np.sqrt(np.einsum("ij,ij->i", inside, inside))
        fit = inside @ (self.basis.T @ texts.vectors.T)
        fit /= np.maximum(length, 1e-12)[:, None]
        best = np.argmax(fit - texts.offsets, axis=1).astype(np.int32)
        labels: NDArray[np.int32] = np.where((length > 0) & (weight > 0), best, np.int32(-1))
        return labels


def columns_of(features: NDArray[np.float16], weight: Floats, texts: Texts) -> Columns:
    """The columns to pool of features (V, C) with observation weight (V,)."""
    span, _ = np.linalg.qr(texts.vectors.T.astype(np.float64))
    square = np.zeros((features.shape[1], features.shape[1]))
    for low in range(0, len(features), _ROWS_AT_ONCE):
        part = features[low : low + _ROWS_AT_ONCE].astype(np.float32)
        square += part.T @ part
    away = np.eye(len(square)) - span @ span.T
    energy, directions = np.linalg.eigh(away @ square @ away)
    left = np.cumsum(energy)  # by how much the directions up to here would be missed, least first
    most = min(len(energy) - span.shape[1], len(energy))
    needed = int((left > _LEFT_OUT * np.trace(square)).sum())
    whole = -(-(span.shape[1] + needed + 1) // _COLUMNS_AT_ONCE) * _COLUMNS_AT_ONCE - 1 - span.shape[1]
    rest = directions[:, ::-1][:, : min(max(whole, needed), most)]
    basis = np.concatenate([span, rest], axis=1).astype(np.float32)
    values = np.empty((len(features), basis.shape[1] + 1), dtype=np.float32)
    for low in range(0, len(features), _ROWS_AT_ONCE):
        chunk = slice(low, low + _ROWS_AT_ONCE)
        values[chunk, :-1] = features[chunk].astype(np.float32) @ basis
    values[:, -1] = weight
    return Columns(values, basis)


def pooled_columns(columns: Columns, affinity: Affinity, steps: Sequence[int]) -> Iterator[tuple[int, Columns]]:
    """The columns after each of the ascending ``steps``."""
    packed, values, done = PackedAffinity(affinity), columns.values, 0
    for step in steps:
        values = np.asarray(pool(values, packed, step - done), dtype=np.float32)
        done = step
        yield step, Columns(values, columns.basis)
