"""The hybrid sampler of GeoPurify (section 3.3): which points an anchor is drawn to, and which it is pushed from.

For an anchor, over a teacher's features: the positive is the most similar other point of the scene; macro negatives are
the least similar points of the whole scene; micro negatives the least similar among the nearest points in space. Paper
and released code disagree about the number of micro negatives; both readings are in ``NEGATIVES``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# (macro, micro) negatives of an anchor.
NEGATIVES: dict[str, tuple[int, int]] = {"paper": (48, 16), "official_code": (48, 15)}
MAX_ANCHORS = 4096
_CHUNK_ELEMENTS = 1 << 26  # similarities at once: 256 MiB in float32


@dataclass(frozen=True)
class Samples:
    """Rows of points.

    Attributes:
        anchors, positives: (A,) int64.
        negatives: (A, macro + micro) int64, macro first, each part from the least similar on; the parts may overlap.
    """

    anchors: Tensor
    positives: Tensor
    negatives: Tensor

    def rows(self) -> Tensor:
        """The distinct rows that occur, ascending: what the official code shows the student in training."""
        return torch.unique(torch.cat([self.anchors, self.positives, self.negatives.reshape(-1)]))


def draw_anchors(count: int, limit: int = MAX_ANCHORS, generator: torch.Generator | None = None) -> Tensor:
    """The first ``min(limit, count // 3)`` of a random permutation of ``count`` points, (A,) int64."""
    return torch.randperm(count, generator=generator)[: min(limit, count // 3)]


def hybrid_sample(
    features: Tensor,
    neighbors: Tensor,
    num_macro: int = 48,
    num_micro: int = 16,
    max_anchors: int = MAX_ANCHORS,
    generator: torch.Generator | None = None,
    anchors: Tensor | None = None,
    chunk: int = 0,
) -> Samples:
    """Anchors with their positives and negatives (the released code's recipe; numbers of ``NEGATIVES["paper"]``).

    Memory is bounded by the chunk of anchors that meets all points at once, not by anchors times points.

    Args:
        features: (N, D) teacher features, float32, any length.
        neighbors: (N, K) int64 nearest other points of each point, or (A, K) of the given ``anchors``, K ≥ num_micro.
        num_macro, num_micro: Negatives of each kind.
        max_anchors: At most so many, and at most a third of the points.
        generator: Source of the anchors; by default torch's global one, as in the released code.
        anchors: (A,) int64 to use instead of drawing them.
        chunk: Anchors compared with all points at once; 0 chooses it for 256 MiB.

    Raises:
        ValueError: Fewer points than an anchor needs, fewer neighbours than micro negatives, or features not finite.
    """
    count = len(features)
    if count < num_macro + 2 or neighbors.shape[1] < num_micro:
        raise ValueError(
            f"{count} points with {neighbors.shape[1]} neighbours each: "
            f"{num_macro + 2} points and {num_micro} neighbours are needed"
        )
    if not bool(torch.isfinite(features).all()):
        raise ValueError("teacher features must be finite")
    if anchors is None:
        anchors = draw_anchors(count, max_anchors, generator)
    near = (neighbors if len(neighbors) == len(anchors) and len(anchors) != count else neighbors[anchors]).long()
    unit = F.normalize(features, dim=1)
    chunk = chunk or max(1, _CHUNK_ELEMENTS // count)
    parts = [
        _of_anchors(unit, a, n, num_macro, num_micro)
        for a, n in zip(anchors.split(chunk), near.split(chunk), strict=True)
    ]
    if not parts:
        return Samples(anchors, anchors.clone(), anchors.new_zeros((0, num_macro + num_micro)))
    return Samples(anchors, torch.cat([p for p, _ in parts]), torch.cat([n for _, n in parts]))


def _of_anchors(unit: Tensor, anchors: Tensor, near: Tensor, macro: int, micro: int) -> tuple[Tensor, Tensor]:
    """Positives (a,) and negatives (a, macro + micro) of a chunk of anchors."""
    similarity = unit[anchors] @ unit.t()
    line = torch.arange(len(anchors), device=unit.device)
    similarity[line, anchors] = -torch.inf
    positives = similarity.argmax(dim=1)
    similarity[line, anchors] = torch.inf
    similarity[line, positives] = torch.inf
    far = similarity.topk(macro, dim=1, largest=False).indices
    close = similarity.gather(1, near).topk(micro, dim=1, largest=False).indices
    return positives, torch.cat([far, near.gather(1, close)], dim=1)
