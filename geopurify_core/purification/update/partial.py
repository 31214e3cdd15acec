"""Pooled features after a change: only the rows that have moved are pooled again, and how far rows move is measured.

Pooling is linear, so a random projection of the features onto S = 31 columns, pooled over the whole map, is the same
projection of the pooled features (the *sketch*, see ``whole.py``). It costs a sixteenth of pooling 512 channels and
tells of every row d = F'_new − F'_held how long it is: |sketch of d|² / S is |d|² times a chi-squared number of S
degrees of freedom over S, which falls below a quarter once in 140 000 directions, and below 0.16 once in 40 million;
for a d in a single channel it never does, whatever the channel. From that follow

* which rows to pool again: those whose sketch has moved by more than half the tolerance since they were last pooled.
  The others keep their values *and their sketch*, so small movements cannot add up unseen;
* how much of the map must be worked on for it: the sub-graph is tried on the sketch first, where the right result is
  known, and its halo grown around the rows that came out wrong. A row's sketch is from then on the one that was tried,
  that of the values it got and not of those it should have: what the halo left out counts as movement next time.

A row's every channel is off by no more than |d|, in practice by a small part of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geopurify_core.mapping.snapshot import MapSnapshot
from geopurify_core.purification.affinity.build import Affinity
from geopurify_core.purification.update.subgraph import SubGraph, arrivals
from geopurify_core.purification.update.whole import CHANNEL_BLOCK

TOLERANCE = 1e-4  # of |F'_incremental − F'_full|, for features of about unit length
_SAFETY = 2.0
_THRESHOLDS = (2e-5, 1e-6, 1e-8)  # the first serves most maps; each further one costs a walk and a trial

Mask = NDArray[np.bool_]
Rows = NDArray[np.int64]
Floats = NDArray[np.float32]
Halves = NDArray[np.float16]


@dataclass(frozen=True)
class Held:
    """What the previous purification knows of each row now, aligned with the map of now.

    Attributes:
        source: (N,) rows of the previous one, -1 for new voxels.
        features: (M, C) float16 pooled, or None.
        length: (M,) float32.
        sketch: (M, S) float32.
    """

    source: Rows
    features: Halves | None
    length: Floats
    sketch: Floats


def allowed(sketch: Floats) -> float:
    """How far a row's sketch may be off, as a root mean square: the tolerance, smaller where all features are."""
    squares = np.einsum("ij,ij->i", sketch, sketch) / max(1, sketch.shape[1])
    longest = float(np.sqrt(squares.max(initial=0.0)))
    return TOLERANCE * min(1.0, longest) / _SAFETY


def moved_rows(sketch: Floats, held: Held) -> Mask:
    """(N,) bool: rows whose pooled features have moved by more than allowed since they were computed; new rows too."""
    moved = held.source < 0
    kept = np.flatnonzero(~moved)
    moved[kept] = _off(sketch[kept] - held.sketch[held.source[kept]]) > allowed(sketch)
    return moved


def _off(difference: Floats) -> Floats:
    result: Floats = np.sqrt(np.einsum("ij,ij->i", difference, difference) / max(1, difference.shape[1]))
    return result


def find_subgraph(
    affinity: Affinity,
    steps: int,
    device: str,
    moved: Mask,
    raw_sketch: Floats,
    sketch: Floats,
    held: Held,
    worthwhile: Callable[[int], bool],
) -> tuple[SubGraph, Floats] | None:
    """The sub-graph on which pooling gives the moved rows as accurately as allowed, and their (num_wanted, S) sketch as
    it gives it; None where that is not worthwhile.

    Args:
        raw_sketch, sketch: (N, S) before and after pooling the whole map.
        worthwhile: Whether to go on, given the rows to be computed summed over all steps.
    """
    limit = allowed(sketch)
    arrival = np.full(len(moved), steps, dtype=np.uint16)
    wrong = moved
    for threshold in _THRESHOLDS:
        arrival = np.minimum(arrival, arrivals(affinity, wrong, steps, threshold))
        graph = SubGraph(affinity, arrival, steps, device)
        if not worthwhile(graph.row_steps):
            return None
        fringe = raw_sketch[graph.fringe] if held.features is None else held.sketch[held.source[graph.fringe]]
        tried = graph.pool(raw_sketch[graph.rows], fringe)
        rows = graph.computed[: graph.num_wanted]
        bad = rows[_off(tried - sketch[rows]) > limit]
        if not len(bad):
            return graph, tried.copy()  # the graph will use that memory again
        wrong = np.zeros(len(moved), dtype=bool)
        wrong[bad] = True
    return None


def pool_moved(
    snapshot: MapSnapshot, order: Rows, graph: SubGraph, held: Held, tick: Callable[[float], None]
) -> tuple[Halves | None, Floats]:
    """(N, C) float16 F' (None in score space) and (N,) float32 |F'|: moved rows pooled anew, the others as held.

    New voxels count as moved, so every row is either.
    """
    features, length = keep_rows(held)
    rows = graph.computed[: graph.num_wanted]
    squared = np.zeros(len(rows), dtype=np.float32)
    channels = snapshot.feature_dim
    for low in range(0, channels, CHANNEL_BLOCK):
        part = slice(low, min(low + CHANNEL_BLOCK, channels))
        raw = snapshot.features[order[graph.rows], part].astype(np.float32)
        if held.features is None:
            fringe = raw[len(graph.computed) :]
        else:
            fringe = held.features[held.source[graph.fringe], part].astype(np.float32)
        pooled = graph.pool(raw, fringe)
        squared += np.einsum("ij,ij->i", pooled, pooled)
        if features is not None:
            features[rows, part] = pooled
        tick(part.stop / channels)
    length[rows] = np.sqrt(squared)
    return features, length


def keep_rows(held: Held) -> tuple[Halves | None, Floats]:
    """Pooled rows as they were, for the voxels that were there; rows of new ones hold anything."""
    rows = np.maximum(held.source, 0)
    return None if held.features is None else held.features.take(rows, axis=0), held.length.take(rows)


def keep_sketch(held: Held, rows: Rows, pooled: Floats) -> Floats:
    """(N, S) sketch of the values that rows have now: ``pooled`` (n, S) for ``rows`` (n,), as before for the others."""
    result = held.sketch.take(np.maximum(held.source, 0), axis=0)
    result[rows] = pooled
    return result
