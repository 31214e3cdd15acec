"""Pooling of some rows only: the rows whose result is wanted, and around them what they listen to on the way.

A wanted row listens T hops far, but to most of what is there it listens very little. Around the wanted rows W lies a
*halo*: a row at hop distance s, in the sense that what W sends back in s hops is still worth something there, need be
right only for the first T − s steps. So the rows at work shrink from step to step, and what lies beyond keeps the value
that it had. How far the halo must reach for a given accuracy is found by trying, on a sketch of the features
(``partial.py``).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import embedding_bag

from geopurify_core.jit import HAVE_NUMBA, compiled, num_threads, run_each
from geopurify_core.purification.affinity.build import Affinity
from geopurify_core.purification.pooling.engines import vectors_for
from geopurify_core.purification.pooling.packed import MergedRows

if HAVE_NUMBA:
    from geopurify_core.purification.pooling import kernels

Rows = NDArray[np.int64]
Floats = NDArray[np.float32]

_STAGES = 4  # times that the rows at work shrink
_PIECES = 8
_NEGLIGIBLE = 1e-2
_GROUP = 4


def arrivals(affinity: Affinity, wanted: NDArray[np.bool_], steps: int, threshold: float) -> NDArray[np.uint16]:
    """(N,) uint16, hops after which the wanted rows together listen to a row with a weight of ``threshold`` or more.

    That is the first s with ((A^T)^s 1)_j ≥ threshold, the 1 standing on the wanted rows: 0 for these, ``steps`` where
    there is none below ``steps``. What is left out adds up, so this is a guess, to be checked by whoever uses it.
    """
    heard = wanted.astype(np.float32)
    arrival = np.where(wanted, 0, steps).astype(np.uint16)
    floor = np.float32(threshold * _NEGLIGIBLE)
    for hop in range(1, steps):
        speakers = np.flatnonzero(heard > floor)
        following = np.zeros_like(heard)
        if HAVE_NUMBA:
            _spread(speakers, affinity.neighbors, affinity.weights, heard, following)
        else:
            shares = affinity.weights[speakers] * heard[speakers, None]
            following[:] = np.bincount(affinity.neighbors[speakers].ravel(), shares.ravel(), minlength=len(heard))
        heard = following
        arrival[(heard >= threshold) & (arrival > hop)] = hop
    return arrival


@compiled()
def _spread(rows: Any, neighbors: Any, weights: Any, values: Any, out: Any) -> None:
    for i in rows:
        value = values[i]
        for j in range(neighbors.shape[1]):
            out[neighbors[i, j]] += weights[i, j] * value


class SubGraph:
    """Some rows of a map, made ready to be pooled.

    Args:
        affinity: Of the whole map, N rows.
        arrival: (N,) from :func:`arrivals`.
        steps: T.
        device: "cpu" or a torch device.

    Attributes:
        rows: (m,) the rows of the map that take part: wanted ones first, then the halo, then the fringe that is read
            but never computed.
        num_wanted: How many are wanted.
        row_steps: Rows computed, summed over all steps.
    """

    def __init__(self, affinity: Affinity, arrival: NDArray[np.uint16], steps: int, device: str) -> None:
        levels = np.unique([steps * stage // _STAGES for stage in range(_STAGES)] + [steps - 1])
        stage = np.searchsorted(levels, arrival)  # 0: wanted; the last: out
        rank = np.arange(len(arrival))
        if affinity.order is not None:
            rank[affinity.order] = np.arange(len(arrival))
        work = np.flatnonzero(arrival < steps)
        work = work[np.lexsort((rank[work], stage[work]))]
        counts = np.cumsum(np.bincount(stage[work], minlength=len(levels)))
        read = np.zeros(len(arrival), dtype=bool)
        read[affinity.neighbors[work]] = True
        read[work] = False
        fringe = np.flatnonzero(read)
        self._room = -(-len(work) // _GROUP) * _GROUP  # computed rows come in groups of four
        self._computed = len(work)
        self.rows: Rows = np.concatenate([work, fringe])
        self.num_wanted = int(counts[0])
        self.steps, self.device = steps, device
        self._rows_at_step = [int(counts[np.searchsorted(levels, steps - t)]) for t in range(1, steps + 1)]
        self.row_steps = sum(self._rows_at_step)
        self._place = np.zeros(len(arrival), dtype=np.int32)
        self._place[work] = np.arange(len(work))
        self._place[fringe] = self._room + np.arange(len(fringe))
        self._compiled = HAVE_NUMBA and device == "cpu"
        self._affinity = affinity
        self._pieces: list[MergedRows] = self._merged() if self._compiled else []
        self._parts = None if self._compiled else self._tensors()
        self._blocks: tuple[Floats, Floats] | None = None

    def _merged(self) -> list[MergedRows]:
        work = self.rows[: self._computed].astype(np.int32)
        groups = self._room // _GROUP
        count = max(1, min(num_threads() * _PIECES, groups // 64))
        bounds = [groups * i // count for i in range(count + 1)]
        own = (work, self._place, self._affinity.neighbors, self._affinity.weights)
        merged = run_each(kernels.merge_rows, [(low, high, *own) for low, high in pairwise(bounds)])
        return [MergedRows(low, *parts) for low, parts in zip(bounds[:-1], merged, strict=True)]

    def _tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        work = self.rows[: self._computed]
        nearest = torch.from_numpy(self._place[self._affinity.neighbors[work]]).to(self.device)
        return nearest, torch.from_numpy(self._affinity.weights[work]).to(self.device)

    def pool(self, raw: Floats, held: Floats) -> Floats:
        """(num_wanted, n) float32, T steps on columns.

        Args:
            raw: (len(rows), n) float32 columns of ``rows`` before pooling.
            held: (fringe, n) what the fringe is taken to hold from the second step on.
        """
        if not self._compiled:
            return self._pool_torch(raw, held)
        columns, computed = raw.shape[1], self._computed
        width = -(-columns // kernels.LANES) * kernels.LANES
        if self._blocks is None or self._blocks[0].shape[1] != width:
            shape = (self._room + len(held), width)
            self._blocks = (np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32))
        source, target = self._blocks
        source[:computed, :columns] = raw[:computed]
        source[self._room :, :columns] = raw[computed:]
        vectors = vectors_for(width)
        for step, active in enumerate(self._rows_at_step):
            run_each(kernels.multiply, [(vectors, *piece, source, target) for piece in self._active(active)])
            source, target = target, source
            if step < 2:  # each of the two
                source[self._room :, :columns] = held
        return source[: self.num_wanted, :columns]

    def _active(self, rows: int) -> list[MergedRows]:
        """The merged groups that cover the first ``rows`` rows."""
        groups = -(-rows // _GROUP)
        found = []
        for piece in self._pieces:
            if piece.begin < groups:
                stop = groups - piece.begin + 1
                found.append(piece._replace(first=piece.first[:stop], fresh_first=piece.fresh_first[:stop]))
        return found

    def _pool_torch(self, raw: Floats, held: Floats) -> Floats:
        assert self._parts is not None
        nearest, weights = self._parts
        columns, computed = raw.shape[1], self._computed
        spare = np.zeros((self._room - computed, columns), dtype=np.float32)
        block = torch.from_numpy(np.concatenate([raw[:computed], spare, raw[computed:]])).to(self.device)
        for step, active in enumerate(self._rows_at_step):
            block[:active] = embedding_bag(nearest[:active], block, per_sample_weights=weights[:active], mode="sum")
            if step == 0:
                block[self._room :] = torch.from_numpy(np.ascontiguousarray(held)).to(self.device)
        result: Floats = block[: self.num_wanted].cpu().numpy()
        return result

    @property
    def computed(self) -> Rows:
        """Rows of the map that are computed, wanted ones first."""
        return self.rows[: self._computed]

    @property
    def fringe(self) -> Rows:
        """Rows of the map that are read only."""
        return self.rows[self._computed :]
