"""What students learn from: InfoNCE over sampled voxels, and cross-entropy of the affinity itself."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 0.07
_CHUNK_ELEMENTS = 1 << 25  # gathered negatives at once: 128 MiB in float32


def info_nce(
    embeddings: Tensor,
    anchors: Tensor,
    positives: Tensor,
    negatives: Tensor,
    temperature: float = TEMPERATURE,
    chunk: int = 0,
    usable: Tensor | None = None,
) -> Tensor:
    """InfoNCE over cosines, the mean over anchors of -log softmax of the positive (GeoPurify, equation 2).

    Args:
        embeddings: (N, D) of any length, float32; a row of zeros has cosine 0 to everything.
        anchors, positives: (A,) int64 rows.
        negatives: (A, M) int64 rows.
        temperature: Divides the cosines, > 0.
        chunk: Anchors whose negatives are gathered at once; 0 chooses it for 128 MiB.
        usable: (A, M) bool, which negatives count; anchors left without any are left out. By default all do.

    Returns:
        Scalar float32; 0 (with gradient) where there are no anchors.

    Raises:
        ValueError: Shapes that do not belong together, or a temperature that is not positive.
    """
    if positives.shape != anchors.shape or negatives.ndim != 2 or len(negatives) != len(anchors):
        shapes = tuple(anchors.shape), tuple(positives.shape), tuple(negatives.shape)
        raise ValueError(f"anchors (A,), positives (A,) and negatives (A, M) expected, got {shapes}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if usable is None:
        usable = torch.ones_like(negatives, dtype=torch.bool)
    else:
        some = usable.any(dim=1)
        anchors, positives, negatives, usable = anchors[some], positives[some], negatives[some], usable[some]
    if not len(anchors):
        return embeddings.sum() * 0
    unit = F.normalize(embeddings, dim=1)
    chunk = chunk or max(1, _CHUNK_ELEMENTS // max(1, negatives.shape[1] * unit.shape[1]))
    total = unit.new_zeros(())
    rows = zip(*(part.split(chunk) for part in (anchors, positives, negatives, usable)), strict=True)
    for a, p, n, counts in rows:
        anchor, positive = unit.index_select(0, a), unit.index_select(0, p)
        own = (anchor * positive).sum(1, keepdim=True)
        others = torch.bmm(unit.index_select(0, n.reshape(-1)).view(*n.shape, -1), anchor[:, :, None])[..., 0]
        others = others.masked_fill(~counts, -torch.inf)
        logits = torch.cat([own, others], dim=1) / temperature
        total = total + (torch.logsumexp(logits, dim=1) - logits[:, 0]).sum()
    return total / len(anchors)


def affinity_loss(
    embeddings: Tensor,
    rows: Tensor,
    neighbors: Tensor,
    groups: Tensor,
    sharpening: float = 20.0,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of affinity rows, through the softmax of equation 3, against which voxels belong together.

    The first part is -log of the mass that a pooling step takes from a voxel's own group: 0.01 means that 1 % comes
    from strangers. The second one is -log A_ij averaged over the neighbours of the own group, less the logarithm of
    their number: 0 where the mass is spread evenly over all of them and over nobody else.

    Neighbours of group 0 (unknown) count neither way. Rows of group 0 and rows without a neighbour of their own group
    are left out, from the first part also rows that have no strangers for neighbours.

    Args:
        embeddings: (N, D) of any length, float32.
        rows: (R,) int64, the voxels whose rows are scored.
        neighbors: (R, K) int64, their neighbours.
        groups: (N,) integers; what belongs together has one number.
        sharpening: Factor before the cosine.

    Returns:
        Two scalars, each the mean over the rows that count; 0 (with gradient) where there are none.
    """
    own, near = groups[rows], groups[neighbors]
    same, known = near == own[:, None], near != 0
    same &= (own != 0)[:, None]
    return affinity_terms(embeddings, rows, neighbors, same, known, sharpening)


def affinity_terms(
    embeddings: Tensor, rows: Tensor, neighbors: Tensor, same: Tensor, known: Tensor, sharpening: float = 20.0
) -> tuple[Tensor, Tensor]:
    """:func:`affinity_loss` where it is said of each neighbour whether it belongs to its row.

    Args:
        embeddings: (N, D) of any length, float32.
        rows: (R,) int64.
        neighbors: (R, K) int64.
        same: (R, K) bool, belongs to the row.
        known: (R, K) bool, counts at all; whatever is ``same`` is known.
        sharpening: Factor before the cosine.
    """
    known = known | same
    counts = same.any(1)
    if not bool(counts.any()):
        return embeddings.sum() * 0, embeddings.sum() * 0
    rows, neighbors, same, known = rows[counts], neighbors[counts], same[counts], known[counts]
    unit = F.normalize(embeddings, dim=1)
    near_rows = unit.index_select(0, neighbors.reshape(-1)).view(*neighbors.shape, -1)
    logits = sharpening * torch.bmm(near_rows, unit[rows][:, :, None])[..., 0]
    total = torch.logsumexp(logits.masked_fill(~known, -torch.inf), dim=1)
    inside = torch.logsumexp(logits.masked_fill(~same, -torch.inf), dim=1)
    number = same.sum(1)
    spread = total - (logits * same).sum(1) / number - number.log()
    contested = (known & ~same).any(1).float()
    return ((total - inside) * contested).sum() / contested.sum().clamp_min(1), spread.mean()
