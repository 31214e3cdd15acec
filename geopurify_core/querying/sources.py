"""Where a query's dot products come from: rows of features, or scores pooled without such rows.

All that a score needs of a voxel's feature f is linear in it (f·t, f·μ), but for its length. Pooling is linear as well,
so (A^T F) t = A^T (F t): where purified features are not kept, the raw dot products are pooled instead, and |F'| and
the weight come with the purification.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from geopurify_core.mapping.snapshot import MapSnapshot
from geopurify_core.querying.products import dots, mean_dot_and_length

if TYPE_CHECKING:
    from geopurify_core.purification.update.result import Purification


class FeatureSource(Protocol):
    """Products with the features of N voxels, in the row order of a snapshot."""

    @property
    def weight(self) -> NDArray[np.float32]:
        """(N,) float32 observation weight behind each feature."""
        ...

    def dots(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, N) float32 products of vectors (n, C) with every feature; the caller may overwrite them."""
        ...

    def mean_dot_and_length(self, mean: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(f·mean, |f|) of every feature, each (N,) float32."""
        ...


class DenseRows:
    """Features held as rows, raw or purified.

    Args:
        features: (N, C) float16; referenced, not copied.
        weight: (N,) float32.
    """

    def __init__(self, features: NDArray[np.float16], weight: NDArray[np.float32]) -> None:
        self._features, self._weight = features, weight

    @property
    def weight(self) -> NDArray[np.float32]:
        return self._weight

    def dots(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        return dots(self._features, vectors)

    def mean_dot_and_length(self, mean: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return mean_dot_and_length(self._features, mean)


class PooledScores:
    """Purified features that nobody holds: raw products, pooled in score space.

    A product costs T sweeps over the neighbour lists instead of one over the features (about half a second for 10⁵
    voxels, whether for one text or for thirty), and differs from dense rows by the rounding of those to float16.

    Args:
        purification: Of either kind; only ``pool_scores``, ``length``, ``weight`` and ``order`` are used.

    Attributes:
        snapshot: What the rows are: those of the raw map, in its order, marked as purified. Its features are all zero
            (and take no memory): purified ones do not exist, and raw ones would be taken for them.
    """

    def __init__(self, purification: Purification) -> None:
        self._purification = purification
        raw = purification.snapshot
        self.snapshot: MapSnapshot = replace(
            raw,
            features=np.broadcast_to(np.float16(0), raw.features.shape),
            weight=self._in_map_order(purification.weight),
            purified=purification.fingerprint,
        )

    @property
    def weight(self) -> NDArray[np.float32]:
        return self.snapshot.weight

    def dots(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._in_map_order(self._purification.pool_scores(vectors))

    def mean_dot_and_length(self, mean: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return self.dots(mean[None])[0], self._in_map_order(self._purification.length)

    def _in_map_order(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """(…, N) from key order to the raw snapshot's."""
        out = np.empty(values.shape, dtype=np.float32)
        out[..., self._purification.order] = values
        return out
