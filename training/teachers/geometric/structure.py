"""Floor, ceiling and walls: the large flat surfaces of a building, which furniture stands on and against."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.teachers.geometric.segments import Segments, planes_of

THING, FLOOR, CEILING, WALL = 0, 1, 2, 3


@dataclass(frozen=True)
class Structure:
    """What counts as part of the building.

    Attributes:
        flat_m: Highest standard deviation across a flat segment.
        level: Least |z| of a horizontal segment's normal, and highest 1 - |z| … of an upright one's.
        band_m: How far from the level of floor or ceiling.
        floor_m2: Least area of a piece of floor or ceiling.
        wall_m2: Least area of a piece of wall.
        wall_top_m: How far below the room's top a wall may end.
    """

    flat_m: float = 0.06
    level: float = 0.9
    band_m: float = 0.12
    floor_m2: float = 0.6
    wall_m2: float = 0.6
    wall_top_m: float = 0.35


def kinds_of(segments: Segments, cell_m: float, settings: Structure) -> NDArray[np.int64]:
    """(S,) THING, FLOOR, CEILING or WALL.

    Floor and ceiling are the large flat segments near the lowest and the highest level at which there is much level
    surface; without any, nothing is floor or wall. A wall is a large flat upright segment that ends near the top.
    """
    spread, direction = planes_of(segments)
    up = np.abs(direction[:, 2])
    area = segments.size * cell_m**2
    middle = segments.mean[:, 2]
    flat = spread[:, 0] < settings.flat_m
    level = flat & (up > settings.level)
    kind = np.zeros(len(segments), dtype=np.int64)
    broad = level & (area > settings.floor_m2)
    if not broad.any():
        return kind
    floor = _floor_level(middle[broad], area[broad], settings.band_m)
    kind[level & (area > settings.floor_m2) & (np.abs(middle - floor) < settings.band_m)] = FLOOR
    upright = flat & (up < 1 - settings.level + 0.1)
    large = upright & (area > settings.wall_m2)
    top = _top(segments, area, large | broad)
    kind[broad & (middle > top - 2 * settings.band_m) & (middle > floor + 1.8)] = CEILING
    kind[large & (segments.high[:, 2] > top - settings.wall_top_m) & (top > floor + 1.2)] = WALL
    return kind


def _floor_level(height: NDArray[np.float64], area: NDArray[np.float64], band_m: float) -> float:
    """The lowest height around which there is at least a quarter of the most level area around any."""
    near = np.abs(height[:, None] - height) < band_m
    total = near @ area
    lowest = height[total >= 0.25 * total.max()].min()
    around = np.abs(height - lowest) < band_m
    return float((height[around] * area[around]).sum() / area[around].sum())


def _top(segments: Segments, area: NDArray[np.float64], use: NDArray[np.bool_]) -> float:
    """Height that a tenth of the large surfaces, by area, reach or exceed."""
    high, weight = segments.high[use, 2], area[use]
    order = np.argsort(-high, kind="stable")
    return float(high[order][np.searchsorted(np.cumsum(weight[order]), 0.1 * weight.sum())])
