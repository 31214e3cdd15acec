"""Patches to things: neighbours of like colour that bulge towards each other merge, rounds of mutual best first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.teachers.geometric.segments import COLOUR, Segments, merged
from training.teachers.geometric.structure import tint_of

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
        alone: The same without borders with floor, ceiling and walls: legs of a chair touch nothing else; taken
            off.
        small: Taken off where the smaller one has few cells: half of it at ``small_cells``.
        light, tint: Differences of logarithmic lightness and of tint that count as clear.
    """

    colour: float = 0.95
    step: float = 0.27
    bend: float = 0.3
    concave: float = 0.5
    convex: float = 0.5
    share: float = 0.28
    alone: float = 0.06
    small: float = 0.45
    small_cells: float = 80.0
    light: float = 0.4
    tint: float = 0.05


_LIGHT = 0.15  # CIELAB / 100: a clear step in lightness; shade makes smaller ones


def border_cost(segments: Segments, costs: MergeCosts, kind: NDArray[np.int64]) -> NDArray[np.float64]:
    """(B,) cost of merging across each border; only those between segments of one ``kind`` (S,) mean something."""
    first, second = segments.borders.T
    number = segments.touch[:, 0]
    colour = segments.mean[:, COLOUR]
    across = segments.touch[:, 1:] / number[:, None]
    share = number / _smaller_perimeter(segments, number)
    alone = number / np.maximum(_smaller_perimeter(segments, np.where(kind[first] == kind[second], number, 0)), 1)
    smaller = np.minimum(segments.size[first], segments.size[second])
    look = np.concatenate([np.log(colour[:, :1].clip(0.03)) / costs.light, tint_of(colour) / costs.tint], axis=1)
    apart = np.square(look[first] - look[second]).sum(axis=1)
    return np.asarray(
        costs.colour * (1 - np.exp(-apart))
        + costs.step * (1 - np.exp(-np.square(across[:, 0] / _LIGHT)))
        + costs.bend * across[:, 1]
        + costs.concave * np.clip(-across[:, 2], 0, 1)
        - costs.convex * np.clip(across[:, 2], 0, 1)
        - costs.share * share
        - costs.alone * alone
        - costs.small / (1 + smaller / costs.small_cells)
    )


def _smaller_perimeter(segments: Segments, number: NDArray[np.float64]) -> NDArray[np.float64]:
    """(B,) edges to others, of that of the two that has fewer; ``number`` (B,) of edges across each border."""
    total = np.bincount(segments.borders.ravel(), weights=np.repeat(number, 2), minlength=len(segments))
    return np.asarray(np.minimum(total[segments.borders[:, 0]], total[segments.borders[:, 1]]))


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
        pairs = _mutual_best(segments, border_cost(segments, costs, kind), limit, kind)
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
