"""An affinity with what compiled pooling prepares once and uses in every step."""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from geopurify_core.errors import PurificationError
from geopurify_core.jit import HAVE_NUMBA, num_threads, run_each
from geopurify_core.purification.affinity.build import Affinity
from geopurify_core.purification.kinds import to_numpy

if HAVE_NUMBA:
    from geopurify_core.purification.pooling import kernels

_PIECES_PER_THREAD = 8
_LEAST_GROUPS = 64


class MergedRows(NamedTuple):
    """Some groups of four rows, from group ``begin`` on; see :func:`kernels.merge_rows`."""

    begin: int
    first: NDArray[np.int64]
    columns: NDArray[np.int32]
    shares: NDArray[np.float32]
    fresh_first: NDArray[np.int64]
    fresh: NDArray[np.int32]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        parts = (self.first, self.columns, self.shares, self.fresh_first, self.fresh)
        return sum(part.nbytes for part in parts)


class PackedAffinity:
    """An affinity that is applied more than once: what pooling has to prepare is prepared the first time only.

    Every pooling function takes one in place of an :class:`Affinity`. It holds about 750 bytes for each voxel (K = 96)
    beside the affinity itself.
    """

    def __init__(self, affinity: Affinity) -> None:
        self.affinity = affinity

    def __len__(self) -> int:
        return len(self.affinity)

    @property
    def nbytes(self) -> int:
        """Bytes prepared so far, those of the affinity not included."""
        made: dict[str, Any] = self.__dict__  # cached properties appear here once they have been asked for
        parts = [*made.get("merged", ()), *(made[name] for name in ("order", "rank") if name in made)]
        return sum(int(part.nbytes) for part in parts)

    @cached_property
    def merged(self) -> list[MergedRows]:
        """All rows in visiting order; columns are places in that order too. Needs numba, and k ≥ 1."""
        return self.merge(self.order)

    @cached_property
    def order(self) -> NDArray[np.int32]:
        """(V,) rows in visiting order."""
        given, total = self.affinity.order, len(self)
        return np.arange(total, dtype=np.int32) if given is None else to_numpy(given).astype(np.int32, copy=False)

    @cached_property
    def rank(self) -> NDArray[np.int32]:
        """(V,) place of each row in the visiting order."""
        total = len(self)
        rank = np.full(total, -1, dtype=np.int32)
        if len(self.order) == total and (not total or (self.order.min() >= 0 and self.order.max() < total)):
            rank[self.order] = np.arange(total, dtype=np.int32)
        if total and rank.min() < 0:
            raise PurificationError("affinity.order", self.order.shape, f"Give each of the {total} rows once, or None.")
        return rank

    def parts(self) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Neighbours and weights as compiled code may use them, or PurificationError."""
        nearest, weights = to_numpy(self.affinity.neighbors), to_numpy(self.affinity.weights)
        if nearest.ndim != 2 or nearest.shape != weights.shape:
            shapes = (nearest.shape, weights.shape)
            raise PurificationError("affinity", shapes, "Neighbours and weights are both (V, k).")
        if nearest.size and not (nearest.min() >= 0 and nearest.max() < len(nearest)):
            worst, last = int(nearest.max()), len(nearest) - 1
            raise PurificationError("affinity.neighbors", worst, f"Give row numbers from 0 to {last}.")
        if not np.isfinite(weights).all():
            raise PurificationError("affinity.weights", "NaN or infinity", "Give finite weights.")
        return np.ascontiguousarray(nearest, dtype=np.int32), np.ascontiguousarray(weights, dtype=np.float32)

    def merge(self, rows: NDArray[np.int32]) -> list[MergedRows]:
        """These rows in groups of four, in pieces for threads; columns are places in the visiting order."""
        nearest, weights = self.parts()
        groups = -(-len(rows) // kernels.GROUP)
        pieces = max(1, min(num_threads() * _PIECES_PER_THREAD, groups // _LEAST_GROUPS))
        bounds = pairwise([groups * i // pieces for i in range(pieces + 1)])
        calls: list[tuple[Any, ...]] = [(low, high, rows, self.rank, nearest, weights) for low, high in bounds]
        merged = run_each(kernels.merge_rows, calls)
        return [MergedRows(call[0], *piece) for call, piece in zip(calls, merged, strict=True)]
