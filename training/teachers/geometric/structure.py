"""Floor, ceiling and walls: the large flat surfaces of a building, which furniture stands on and against."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.teachers.geometric.segments import COLOUR, POSITION, Segments, planes_of

THING, FLOOR, CEILING, WALL = 0, 1, 2, 3
_ROUNDS = 5


@dataclass(frozen=True)
class Structure:
    """What counts as part of the building.

    Attributes:
        flat_m: Highest standard deviation across a flat segment.
        level: Least |z| of the normal of a level segment.
        upright: Highest |z| of the normal of an upright one.
        band_m: How far from the level of the floor or the ceiling.
        piece_m2: Least area of a piece of floor, ceiling or wall that is found by its place.
        wall_top_m: How far below the ceiling a wall may end at the top.
        wall_width_m, wall_height_m: A larger upright surface is a wall wherever it ends; 0 for the width: none is.
        more_m2: Least area of a piece of wall that is found by its likeness to another; 0: none is.
        tint: Highest difference of tint between two such pieces.
        light: Highest ratio of their lightness.
        apart_m: How far from one plane they may lie.
    """

    flat_m: float = 0.06
    level: float = 0.9
    upright: float = 0.2
    band_m: float = 0.12
    piece_m2: float = 0.6
    wall_top_m: float = 0.35
    wall_width_m: float = 2.2
    wall_height_m: float = 1.4
    more_m2: float = 0.1
    tint: float = 0.03
    light: float = 1.6
    apart_m: float = 0.12


def kinds_of(segments: Segments, cell_m: float, settings: Structure) -> NDArray[np.int64]:
    """(S,) THING, FLOOR, CEILING or WALL.

    Floor and ceiling are the large level segments near the lowest and the highest level at which there is much level
    surface; without any, nothing is floor or wall. A wall is a large upright segment that ends near the ceiling or is
    wider than furniture, and what continues it in the same tint.
    """
    spread, direction = planes_of(segments)
    up, area, middle = np.abs(direction[:, 2]), segments.size * cell_m**2, segments.mean[:, 2]
    flat = spread[:, 0] < settings.flat_m
    kind = np.full(len(segments), THING, dtype=np.int64)
    broad = flat & (up > settings.level) & (area > settings.piece_m2)
    if not broad.any():
        return kind
    upright = flat & (up < settings.upright)
    large = upright & (area > settings.piece_m2)
    floor = _floor_level(middle[broad], area[broad], settings.band_m)
    top = _top(segments, area, large | broad)
    kind[broad & (np.abs(middle - floor) < settings.band_m)] = FLOOR
    if top > floor + 1.2:
        kind[broad & (middle > top - 2 * settings.band_m) & (middle > floor + 1.8)] = CEILING
        wide = np.zeros(len(segments), dtype=bool)
        if settings.wall_width_m > 0:
            extent = segments.high - segments.low
            wide = np.hypot(extent[:, 0], extent[:, 1]) > settings.wall_width_m
            wide &= extent[:, 2] > settings.wall_height_m
        kind[large & (wide | (segments.high[:, 2] > top - settings.wall_top_m))] = WALL
        if settings.more_m2 > 0:
            _continue_walls(kind, segments, direction, upright & (area > settings.more_m2), settings)
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


def tint_of(colour: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 2) what shade leaves unchanged of (n, 3) CIELAB / 100, about."""
    return np.asarray(colour[:, 1:] / (colour[:, :1] + 0.16))


def _continue_walls(
    kind: NDArray[np.int64],
    segments: Segments,
    direction: NDArray[np.float64],
    candidate: NDArray[np.bool_],
    settings: Structure,
) -> None:
    """Make walls, in ``kind``, of candidates that touch a wall or lie in its plane, and have its tint."""
    colour, place = segments.mean[:, COLOUR], segments.mean[:, POSITION]
    tint, light = tint_of(colour), np.log(np.maximum(colour[:, 0], 0.02))
    touching = np.concatenate([segments.borders, segments.borders[:, ::-1]])
    for _ in range(_ROUNDS):
        walls, rest = np.flatnonzero(kind == WALL), np.flatnonzero(candidate & (kind == THING))
        if not len(walls) or not len(rest):
            return
        alike = np.linalg.norm(tint[rest][:, None] - tint[walls], axis=2) < settings.tint
        alike &= np.abs(light[rest][:, None] - light[walls]) < np.log(settings.light)
        away = np.abs(np.einsum("rwk,wk->rw", place[rest][:, None] - place[walls], direction[walls]))
        near = (away < settings.apart_m) & (np.abs(direction[rest] @ direction[walls].T) > 0.95)
        row, column = np.full((2, len(segments)), -1)
        row[rest], column[walls] = np.arange(len(rest)), np.arange(len(walls))
        pair = np.stack([row[touching[:, 0]], column[touching[:, 1]]])
        near[tuple(pair[:, (pair >= 0).all(axis=0)])] = True
        found = rest[(alike & near).any(axis=1)]
        if not len(found):
            return
        kind[found] = WALL
