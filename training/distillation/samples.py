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

_CHUNK_ELEMENTS = 1 << 22  # similarities at once: 16 MiB in float32
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

    def cosines_to(self, points: Tensor, others: Tensor) -> Tensor:
        """(n, k) cosines of (n,) points to (n, k) others, through their rows: some points meet all M at once."""
        chunk = max(1, _CHUNK_ELEMENTS // len(self.rows))
        return torch.cat([
            (self.rows[self.index[p]] @ self.rows.t()).gather(1, self.index[o])
            for p, o in zip(torch.split(points, chunk), torch.split(others, chunk), strict=True)
        ])  # fmt: skip


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
        chunk: Distinct rows of anchors that meet all rows at once; 0 chooses it for 16 MiB.

    Raises:
        ValueError: Fewer points than an anchor needs, or fewer neighbours than micro negatives.
    """
    if len(points.index) < choice.macro + 2 or near.shape[1] < choice.micro:
        raise ValueError(
            f"{len(points.index)} points with {near.shape[1]} neighbours each: "
            f"{choice.macro + 2} points and {choice.micro} neighbours are needed"
        )
    order = torch.argsort(points.index[anchors], stable=True)  # anchors that share a descriptor follow each other
    own, place, number = torch.unique_consecutive(points.index[anchors[order]], return_inverse=True, return_counts=True)
    chunk = chunk or max(1, _CHUNK_ELEMENTS // len(points.rows))
    parts, start = [], 0
    for some, count in zip(torch.split(own, chunk), torch.split(number, chunk), strict=True):
        stop = start + int(count.sum())
        group = _Group(
            points, some, anchors[order[start:stop]], near[order[start:stop]], place[start:stop] - place[start]
        )
        parts.append(group.chosen(choice))
        start = stop
    back = torch.argsort(order)
    positives, negatives, *cosines = (torch.cat(part)[back] for part in zip(*parts, strict=True))
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
    strangers = (points.cosines_to(candidates, near) < same_above).float().mean(1)
    weight = 0.2 + torch.minimum(strangers, 1 - strangers).clamp_min(0).sqrt()
    keys = torch.empty(len(candidates)).exponential_(generator=generator).to(weight.device) / weight
    chosen = torch.argsort(keys)[:count]
    return candidates[chosen], near[chosen]


class _Group:
    """Some distinct descriptors and all anchors that have them.

    Args:
        points: The points.
        own: (U,) rows.
        anchors: (A,) points.
        near: (A, K) their neighbours.
        of: (A,) which of ``own`` each anchor has.
    """

    def __init__(self, points: PointRows, own: Tensor, anchors: Tensor, near: Tensor, of: Tensor) -> None:
        self.points, self.anchors, self.near, self.of = points, anchors, near, of
        self.rows, self.own = own, own[of]
        self.cosine = points.rows[own] @ points.rows.t()  # (U, M)

    def chosen(self, choice: Choice) -> tuple[Tensor, ...]:
        """Positives, negatives, and the teacher's cosines to neighbours, positives and negatives."""
        positives, positive_cosine = self._positives(choice)
        macro, macro_cosine = self._macro(positives, choice)
        near_cosine = self._cosine_to(self.points.index[self.near])
        hidden = near_cosine.masked_fill(self.near == positives[:, None], torch.inf)
        micro = hidden.topk(choice.micro, dim=1, largest=False)
        negatives = torch.cat([macro, self.near.gather(1, micro.indices)], dim=1)
        return positives, negatives, near_cosine, positive_cosine, torch.cat([macro_cosine, micro.values], dim=1)

    def _cosine_to(self, rows: Tensor) -> Tensor:
        """(A, k) from (A, k) rows."""
        return self.cosine.view(-1)[self.of[:, None] * self.cosine.shape[1] + rows]

    def _positives(self, choice: Choice) -> tuple[Tensor, Tensor]:
        """The most similar other point (or one of the similar ones) of each anchor, and how similar it is."""
        points, device = self.points, self.of.device
        possible = self.cosine.masked_fill(points.size == 0, -torch.inf)
        alone = torch.nonzero(points.size[self.rows] < 2)[:, 0]
        possible[alone, self.rows[alone]] = -torch.inf
        row = possible.argmax(dim=1)[self.of]
        if choice.above is not None:
            row = self._drawn_above(choice, row)
        available = points.size[row] - (row == self.own).long()
        random = choice.tie_breaker or (choice.generator if choice.above is not None else None)
        step = (_uniform(len(row), random, device) * available).long() if random else torch.zeros_like(row)
        place = points.start[row] + step.minimum((available - 1).clamp_min(0))
        place = (
            place + ((row == self.own) & (place >= points.place[self.anchors])).long()
        )  # step over the anchor itself
        return points.order[place], self._cosine_to(row[:, None])[:, 0]

    def _drawn_above(self, choice: Choice, otherwise: Tensor) -> Tensor:
        """(A,) rows, each as likely as it has points, among those similar enough; ``otherwise`` if there are none."""
        assert choice.above is not None
        heavy = torch.where(self.cosine >= choice.above, self.points.size, 0)
        line = torch.arange(len(heavy), device=heavy.device)
        heavy[line, self.rows] -= (heavy[line, self.rows] > 0).long()  # the anchor itself
        heavy = heavy.view(-1).cumsum(0)
        last = heavy[self.cosine.shape[1] - 1 :: self.cosine.shape[1]]  # at the end of each of the U lines
        total = last.diff(prepend=last.new_zeros(1))
        drawn = (_uniform(len(self.of), choice.generator, self.of.device) * total[self.of]).long()
        ticket = (last - total)[self.of] + drawn.minimum((total[self.of] - 1).clamp_min(0))
        row = torch.searchsorted(heavy, ticket, right=True) - self.of * self.cosine.shape[1]
        return torch.where(total[self.of] > 0, row, otherwise)

    def _macro(self, positives: Tensor, choice: Choice) -> tuple[Tensor, Tensor]:
        """The least similar points: the least similar rows, each with all its points, until there are enough."""
        points, wanted = self.points, choice.macro + 2  # the anchor and its positive may be among them
        there = self.cosine if bool((points.size > 0).all()) else self.cosine.masked_fill(points.size == 0, torch.inf)
        low = there.topk(min(wanted, there.shape[1]), dim=1, largest=False)
        size = points.size[low.indices]
        end = size.cumsum(1)
        slots = torch.arange(wanted, device=size.device).expand(len(size), -1).contiguous()
        at = torch.searchsorted(end, slots, right=True).clamp_max(low.indices.shape[1] - 1)
        row, within = low.indices.gather(1, at)[self.of], (slots - (end - size).gather(1, at))[self.of]
        if choice.tie_breaker is not None:  # each anchor starts anywhere in a row's points
            turn = _uniform(len(self.of) * size.shape[1], choice.tie_breaker, size.device).view(len(self.of), -1)
            own_size = points.size[row]
            within = (within + (turn.gather(1, at[self.of]) * own_size).long()) % own_size
        found = points.order[points.start[row] + within]
        taken = (found == self.anchors[:, None]) | (found == positives[:, None])
        keep = torch.argsort(taken.byte(), dim=1, stable=True)[:, : choice.macro]
        return found.gather(1, keep), low.values.gather(1, at)[self.of].gather(1, keep)


def _uniform(count: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """(count,) float64 in [0, 1), the same on every device."""
    return torch.rand(count, generator=generator, dtype=torch.float64).to(device)
