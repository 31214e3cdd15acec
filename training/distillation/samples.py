"""The hybrid sampler where many points share a descriptor: anchors meet M distinct rows, not N points.

Gives what ``training.sampling.hybrid_sample`` gives for the dense features, up to which of several equally similar
points is taken; and on top of it what the recipe asks for: positives among all points that belong to the anchor, and
the teacher's cosines, by which the objective leaves out negatives that the teacher takes for the same thing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from training.sampling import Samples, draw_anchors

_CHUNK_ELEMENTS = 1 << 24  # similarities at once: 64 MiB in float32
NearOf = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class RowSamples(Samples):
    """Samples with the teacher's cosines.

    Attributes:
        near: (A, K) int64 nearest points.
        near_cosine: (A, K) float32, anchor to neighbour.
        positive_cosine: (A,) float32.
        negative_cosine: (A, macro + micro) float32.
    """

    near: Tensor
    near_cosine: Tensor
    positive_cosine: Tensor
    negative_cosine: Tensor


class PointRows:
    """N points that share M descriptors.

    Args:
        rows: (M, D) float32, of unit length or zero.
        index: (N,) int64, the row of each point.
    """

    def __init__(self, rows: Tensor, index: Tensor) -> None:
        self.rows, self.index = rows, index
        self.size = torch.bincount(index, minlength=len(rows))

    @cached_property
    def order(self) -> Tensor:
        """(N,) points sorted by row, each row's points ascending."""
        return torch.argsort(self.index, stable=True)

    @cached_property
    def place(self) -> Tensor:
        """(N,) where each point stands in ``order``."""
        place = torch.empty_like(self.order)
        place[self.order] = torch.arange(len(place), device=place.device)
        return place

    @cached_property
    def start(self) -> Tensor:
        """(M,) where each row begins in ``order``."""
        return self.size.cumsum(0) - self.size

    def cosines(self, points: Tensor) -> Tensor:
        """(n, M) cosines of these points to every row."""
        return self.rows[self.index[points]] @ self.rows.t()


@dataclass(frozen=True)
class Choice:
    """How to choose.

    Attributes:
        macro, micro: Negatives of each kind.
        above: Draw the positive among points at least this similar; None takes the most similar one.
        tie_breaker: Which of several equally similar points is random, from here; None takes the first.
        generator: Source of positives drawn ``above``.
    """

    macro: int = 48
    micro: int = 16
    above: float | None = None
    tie_breaker: torch.Generator | None = None
    generator: torch.Generator | None = None


def sample_rows(points: PointRows, anchors: Tensor, near: Tensor, choice: Choice, chunk: int = 0) -> RowSamples:
    """Positives and negatives of anchors.

    Args:
        points: The points.
        anchors: (A,) int64 points.
        near: (A, K) int64 nearest other points of each, K ≥ micro.
        choice: How to choose.
        chunk: Anchors that meet all rows at once; 0 chooses it for 64 MiB.

    Raises:
        ValueError: Fewer points than an anchor needs, or fewer neighbours than micro negatives.
    """
    if len(points.index) < choice.macro + 2 or near.shape[1] < choice.micro:
        raise ValueError(
            f"{len(points.index)} points with {near.shape[1]} neighbours each: "
            f"{choice.macro + 2} points and {choice.micro} neighbours are needed"
        )
    chunk = chunk or max(1, _CHUNK_ELEMENTS // len(points.rows))
    parts = [_of_anchors(points, a, n, choice) for a, n in zip(anchors.split(chunk), near.split(chunk), strict=True)]
    positives, negatives, *cosines = (torch.cat(part) for part in zip(*parts, strict=True))
    return RowSamples(anchors, positives, negatives, near, *cosines)


def anchors_of(
    points: PointRows, near_of: NearOf, count: int, same_above: float | None, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(A,) anchors and their (A, K) neighbours.

    Args:
        points: The points.
        near_of: Neighbours of given points.
        count: Most anchors; at most a third of the points.
        same_above: Draw three times as many and prefer those with neighbours less similar than this; None: all alike.
        generator: Source of randomness.
    """
    if same_above is None:
        anchors = draw_anchors(len(points.index), count, generator).to(points.index.device)
        return anchors, near_of(anchors)
    count = min(count, len(points.index) // 3)
    candidates = torch.randperm(len(points.index), generator=generator)[: 3 * count]
    candidates = candidates.to(points.index.device)
    near = near_of(candidates)
    strangers = torch.cat([
        (points.cosines(a).gather(1, points.index[n]) < same_above).float().mean(1)
        for a, n in zip(candidates.split(_rows_at_once(points)), near.split(_rows_at_once(points)), strict=True)
    ])  # fmt: skip
    weight = 0.2 + torch.minimum(strangers, 1 - strangers).clamp_min(0).sqrt()
    keys = torch.empty(len(candidates)).exponential_(generator=generator).to(weight.device) / weight
    chosen = torch.argsort(keys)[:count]
    return candidates[chosen], near[chosen]


def _rows_at_once(points: PointRows) -> int:
    return max(1, _CHUNK_ELEMENTS // len(points.rows))


def _of_anchors(points: PointRows, anchors: Tensor, near: Tensor, choice: Choice) -> tuple[Tensor, ...]:
    cosine = points.cosines(anchors)
    if bool((points.size == 0).any()):
        cosine.masked_fill_(points.size == 0, torch.inf)
    positives, positive_cosine = _positives(points, anchors, cosine, choice)
    macro, macro_cosine = _macro(points, anchors, positives, cosine, choice)
    near_cosine = cosine.gather(1, points.index[near])
    hidden = near_cosine.masked_fill(near == positives[:, None], torch.inf)
    micro = hidden.topk(choice.micro, dim=1, largest=False)
    negatives = torch.cat([macro, near.gather(1, micro.indices)], dim=1)
    return positives, negatives, near_cosine, positive_cosine, torch.cat([macro_cosine, micro.values], dim=1)


def _positives(points: PointRows, anchors: Tensor, cosine: Tensor, choice: Choice) -> tuple[Tensor, Tensor]:
    """The most similar other point (or one of the similar ones) of each anchor, and how similar it is."""
    own = points.index[anchors]
    others = points.size.expand(len(anchors), -1).clone()
    line = torch.arange(len(anchors), device=own.device)
    others[line, own] -= 1
    row = cosine.masked_fill((others == 0) | ~torch.isfinite(cosine), -torch.inf).argmax(dim=1)
    if choice.above is not None:
        heavy = torch.where((cosine >= choice.above) & torch.isfinite(cosine), others, 0).cumsum(1)
        total = heavy[:, -1]
        ticket = (_uniform(len(anchors), choice.generator, own.device) * total).long().minimum((total - 1).clamp_min(0))
        drawn = torch.searchsorted(heavy, ticket[:, None], right=True)[:, 0].clamp_max(len(points.rows) - 1)
        row = torch.where(total > 0, drawn, row)
    available = others[line, row]
    random = choice.tie_breaker or (choice.generator if choice.above is not None else None)
    step = (_uniform(len(anchors), random, own.device) * available).long() if random else torch.zeros_like(row)
    place = points.start[row] + step.minimum((available - 1).clamp_min(0))
    place = place + ((row == own) & (place >= points.place[anchors])).long()  # step over the anchor itself
    return points.order[place], cosine[line, row]


def _macro(
    points: PointRows, anchors: Tensor, positives: Tensor, cosine: Tensor, choice: Choice
) -> tuple[Tensor, Tensor]:
    """The least similar points: the least similar rows, each with all its points, until there are enough."""
    wanted = choice.macro + 2  # the anchor and its positive may be among them
    low = cosine.topk(min(wanted, cosine.shape[1]), dim=1, largest=False)
    size = points.size[low.indices]
    end = size.cumsum(1)
    slots = torch.arange(wanted, device=cosine.device).expand(len(anchors), -1).contiguous()
    at = torch.searchsorted(end, slots, right=True).clamp_max(low.indices.shape[1] - 1)
    row, own_size = low.indices.gather(1, at), size.gather(1, at)
    within = slots - (end - size).gather(1, at)
    if choice.tie_breaker is not None:
        turn = (_uniform(size.numel(), choice.tie_breaker, size.device).view(size.shape) * size).long()
        within = (within + turn.gather(1, at)) % own_size
    found = points.order[points.start[row] + within]
    taken = (found == anchors[:, None]) | (found == positives[:, None])
    keep = torch.argsort(taken.long(), dim=1, stable=True)[:, : choice.macro]
    return found.gather(1, keep), low.values.gather(1, at).gather(1, keep)


def _uniform(count: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """(count,) float64 in [0, 1), the same on every device."""
    return torch.rand(count, generator=generator, dtype=torch.float64).to(device)
