"""From a hierarchy of segments to descriptors whose cosine says how much two points belong together.

A level of the hierarchy gives each of its segments a random direction of its own. Directions of different segments are
nearly orthogonal, so the cosine of two descriptors is the weight of all levels at which they share a segment, plus what
colour and shape say.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from training.teachers.geometric.cells import unit
from training.teachers.geometric.segments import COLOUR, Segments, planes_of

_SEED = 20_24


def descriptors(
    levels: list[NDArray[np.int64]],
    weights: tuple[float, ...],
    look: NDArray[np.float32],
    look_weight: float,
    width: int,
) -> NDArray[np.float32]:
    """(S, width L + looks) unit rows.

    Args:
        levels: L times (S,), the segment at that level of each of S fine segments.
        weights: (L,) share of each level in the cosine.
        look: (S, A) unit rows of what segments look like.
        look_weight: Its share.
        width: Dimensions of a level's directions.
    """
    total = sum(weights) + look_weight
    blocks = []
    for number, (level, weight) in enumerate(zip(levels, weights, strict=True)):
        rng = np.random.default_rng((_SEED, number))
        _, place = np.unique(level, return_inverse=True)
        codes = unit(rng.standard_normal((int(place.max()) + 1, width)))
        blocks.append(codes[place.reshape(-1)] * np.sqrt(weight / total))
    blocks.append(look * np.sqrt(look_weight / total))
    return np.concatenate(blocks, axis=1).astype(np.float32)


def looks(segments: Segments, shape: NDArray[np.float64]) -> NDArray[np.float32]:
    """(S, 4 + F) unit rows: colour and geometry, centred and scaled over the scene, so that unlike ones are negative.

    Args:
        segments: S segments.
        shape: (S, F) mean eigenvalue features.
    """
    _, direction = planes_of(segments)
    middle = segments.mean
    colour = middle[:, COLOUR] / (0.2, 0.08, 0.08)
    upright = 2 * np.abs(direction[:, 2:]) - 1
    columns = np.concatenate([colour, upright, 2 * shape], axis=1)
    share = segments.size / segments.size.sum()
    return unit(columns - share @ columns)
