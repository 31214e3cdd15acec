"""From coarse cells back to fine ones: concatenated where the detail counts, copied from there on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def upcast(features: Sequence[Tensor], inverses: Sequence[Tensor], levels: int = 2) -> Tensor:
    """Features of the last stage beside those of the stages above it.

    Args:
        features: (N_s, C_s) of each stage, finest first.
        inverses: For each pooling, (N_s,) the row at stage s + 1 of each point of stage s.
        levels: How many stages up; fewer where there are not so many.

    Returns:
        (N, sum of the channels), finest first: ``[192 | 384 | 512]`` for the published encoder.
    """
    last = len(features) - 1
    rows = features[last]
    for stage in range(last - 1, max(-1, last - 1 - levels), -1):
        rows = torch.cat([features[stage], rows.index_select(0, inverses[stage])], dim=1)
    return rows


def trace(inverses: Sequence[Tensor]) -> Tensor:
    """(N,) int64 row at the coarsest side of a chain of poolings (finest first, at least one) of each finest point."""
    rows = inverses[0]
    for inverse in inverses[1:]:
        rows = inverse.index_select(0, rows)
    return rows
