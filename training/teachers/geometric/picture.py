"""Segments as a picture: every one in a colour of its own, from above and from a corner, beside the scan's colours."""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.typing import NDArray

from geopurify_core.render import View, below_ceiling, facing_viewer, paint, rasterise
from training.teachers.geometric.cells import Cells

_UP = np.array([0.0, 0.0, 1.0])
_GREYS = {-1: (96, 80, 64), -2: (220, 220, 220), -3: (150, 158, 166)}  # floor, ceiling, wall


def segment_colours(segment: NDArray[np.integer]) -> NDArray[np.uint8]:
    """(C, 3) uint8; negative numbers, floor, ceiling and walls, are brown and grey."""
    names, place = np.unique(segment, return_inverse=True)
    rng = np.random.default_rng(7)
    hues = [colorsys.hsv_to_rgb(*(rng.uniform((0, 0.45, 0.5), (1, 1, 1)))) for _ in names]
    table = np.round(255 * np.array(hues)).astype(np.uint8)
    for number, grey in _GREYS.items():
        table[names == number] = grey
    return np.asarray(table[place.reshape(-1)])


def picture(cells: Cells, colours: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """(H, W, 3) picture: a row for each of the colourings, (C, 3) uint8, from above on the left and from a corner."""
    shown = below_ceiling(cells.centers_m, cells.normals, _UP)
    views = (View.top(_UP), View.oblique(_UP, 225))
    rows = [np.concatenate(_level([_one(cells, shown, c, view) for view in views]), axis=1) for c in colours]
    return np.concatenate(rows, axis=0)


def _one(cells: Cells, shown: NDArray[np.bool_], colour: NDArray[np.uint8], view: View) -> NDArray[np.uint8]:
    use = shown & facing_viewer(cells.normals, view)
    raster = rasterise(cells.centers_m[use], view, cells.size_m, pixels_per_voxel=2)
    painted = paint(raster, colour[use], cells.normals[use], view)
    return np.where(painted[..., 3:] > 0, painted[..., :3], np.uint8(255))


def _level(parts: list[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """All of one height, white below."""
    height = max(len(part) for part in parts)
    return [np.pad(p, ((0, height - len(p)), (0, 0), (0, 0)), constant_values=255) for p in parts]
