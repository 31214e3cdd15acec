"""Patches to things: neighbours of like colour that bulge towards each other merge, rounds of mutual best first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.teachers.geometric.segments import COLOUR, Segments, merged

_ROUNDS = 60


@dataclass(frozen=True)
class MergeCosts:
    """What keeps two touching segments apart, each part between 0 and about 1 before its weight.

    Attributes:
        colour: Difference of mean colours, saturating.
        step: Difference of colour across the border itself, saturating.
        bend: Angle at the border.
        concave: Border lies in a hollow, as that of a cup and its table.
        convex: Border lies on a ridge, as that of two sides of a box; taken off.
        share: Part of the smaller one's border that they share; taken off.
        small: Taken off where the smaller one has few cells: halves with every e-fold beyond ``small_cells``.
    """

    colour: float = 1.0
    step: float = 0.5
    bend: float = 0.5
    concave: float = 1.0
    convex: float = 0.6
    share: float = 0.5
    small: float = 0.3
    small_cells: float = 20.0


_CHROMA, _LIGHT = 0.06, 0.15  # CIELAB / 100: a clear difference of paint; light varies with shade


def border_cost(segments: Segments, costs: MergeCosts) -> NDArray[np.float64]:
    """(B,) cost of merging across each border."""
    first, second = segments.borders.T
    number = segments.touch[:, 0]
    colour = segments.mean[:, COLOUR]
    across = segments.touch[:, 1:] / number[:, None]
    perimeter = np.bincount(segments.borders.ravel(), weights=np.repeat(number, 2), minlength=len(segments))
    share = number / np.minimum(perimeter[first], perimeter[second])
    smaller = np.minimum(segments.size[first], segments.size[second])
    apart = np.square((colour[first] - colour[second]) / (_LIGHT, _CHROMA, _CHROMA)).sum(axis=1)
    return np.asarray(
        costs.colour * (1 - np.exp(-apart))
        + costs.step * (1 - np.exp(-np.square(across[:, 0] / _LIGHT)))
        + costs.bend * across[:, 1]
        + costs.concave * np.clip(-across[:, 2], 0, 1)
        - costs.convex * np.clip(across[:, 2], 0, 1)
        - costs.share * share
        - costs.small / (1 + smaller / costs.small_cells)
    )


def merge(
    segments: Segments, costs: MergeCosts, limit: float, kind: NDArray[np.int64] | None = None
) -> tuple[Segments, NDArray[np.int64]]:
    """Merge until no border costs less than ``limit``.

    Args:
        segments: Where to start.
        costs: See there.
        limit: Highest cost at which two merge.
        kind: (S,) segments of different kinds never merge; by default all are of one.

    Returns:
        The merged segments, and (S,) which of them each given one became part of.
    """
    label = np.arange(len(segments))
    kind = np.zeros(len(segments), dtype=np.int64) if kind is None else kind
    for _ in range(_ROUNDS):
        if not len(segments.borders):
            break
        pairs = _mutual_best(segments, border_cost(segments, costs), limit, kind)
        if not len(pairs):
            break
        target = np.arange(len(segments))
        target[pairs[:, 1]] = pairs[:, 0]
        kept, target = np.unique(target, return_inverse=True)
        segments, kind = merged(segments, target.reshape(-1)), kind[kept]
        label = target.reshape(-1)[label]
    return segments, label


def _mutual_best(
    segments: Segments, cost: NDArray[np.float64], limit: float, kind: NDArray[np.int64]
) -> NDArray[np.int64]:
    """(P, 2) borders below the limit that are the cheapest of both their segments."""
    first, second = segments.borders.T
    use = np.flatnonzero((cost < limit) & (kind[first] == kind[second]))
    order = use[np.argsort(np.rint(cost[use] * 1e6), kind="stable")]
    best = np.full(len(segments), len(cost), dtype=np.int64)
    rank = np.arange(len(order))
    np.minimum.at(best, first[order], rank)
    np.minimum.at(best, second[order], rank)
    mutual = (best[first[order]] == rank) & (best[second[order]] == rank)
    return np.asarray(segments.borders[order[mutual]])
