"""From a point cloud to Sonata's input: centred, one point for each 2 cm cell, position | colour | normal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from geopurify_core.errors import DatasetError
from training.teachers.base import PointCloud

GRID_M = 0.02
_COLOUR_SCALE = np.float32(255)


@dataclass(frozen=True)
class SonataInput:
    """N cells of a cloud of P points.

    Attributes:
        coord: (N, 3) float32 positions of the cells' points, metres: middle of the cloud's extent in x and y, lowest
            point in z are 0.
        grid_coord: (N, 3) int64 cells from 0 on, in order of x, then y, then z.
        feat: (N, 9) float32: coord, colour in [0, 1] (or a 255th of that), normal.
        inverse: (P,) int64 cell of each point.
        chosen: (N,) int64 point that stands for each cell.
    """

    coord: NDArray[np.float32]
    grid_coord: NDArray[np.int64]
    feat: NDArray[np.float32]
    inverse: NDArray[np.int64]
    chosen: NDArray[np.int64]


def prepare(
    cloud: PointCloud,
    *,
    grid_m: float = GRID_M,
    double_division: bool = False,
    generator: torch.Generator | None = None,
) -> SonataInput:
    """Sonata's published input transform.

    Args:
        cloud: Points, colours 0 … 255 and normals (zero where unknown).
        grid_m: Edge of the cells; the published network knows 2 cm.
        double_division: Divide the colours by 255 twice, as GeoPurify's released code does by passing colours that are
            already in [0, 1] to a transform that divides again. The network was trained with one division.
        generator: Draw the point that stands for a cell, as the reference does. None: the one nearest to the cell's
            middle, which does not depend on the order of the points (the first one where two are equally near).

    Raises:
        DatasetError: No points, arrays that do not belong together, or values that are not finite.
    """
    _check(cloud)
    coord = _centred(cloud.points_m)
    with np.errstate(over="ignore"):
        cells = np.floor(coord / np.float32(grid_m))
    if not np.isfinite(cells).all() or np.abs(cells).max() >= 2**20:
        raise DatasetError("points_m", float(np.abs(coord).max()), "The scan is too large: remove stray points.")
    grid = cells.astype(np.int64)
    grid -= grid.min(axis=0)
    keys, inverse = np.unique((grid[:, 0] << 42) | (grid[:, 1] << 21) | grid[:, 2], return_inverse=True)
    inverse = inverse.reshape(-1).astype(np.int64)
    if generator is None:
        chosen = _nearest(coord / np.float32(grid_m) - cells, inverse, len(keys))
    else:
        chosen = _drawn(inverse, len(keys), generator)
    colour = cloud.rgb[chosen].astype(np.float32) / _COLOUR_SCALE
    if double_division:
        colour /= _COLOUR_SCALE
    normals = cloud.normals[chosen].astype(np.float32)
    feat = np.concatenate([coord[chosen], colour, normals], axis=1)
    return SonataInput(coord[chosen], grid[chosen], feat, inverse, chosen)


def _check(cloud: PointCloud) -> None:
    count = len(cloud)
    if not count:
        raise DatasetError("points_m", (0, 3), "There is no point in this cloud.")
    for name in ("points_m", "rgb", "normals"):
        value = getattr(cloud, name)
        if value.shape != (count, 3):
            raise DatasetError(name, value.shape, f"Give one row of three for each of the {count} points.")
        bad = int((~np.isfinite(value)).any(axis=1).sum())
        if bad:
            remedy = "Remove these points." if name == "points_m" else "Set unknown ones to zero."
            raise DatasetError(name, f"{bad} rows not finite", remedy)


def _centred(points_m: NDArray[np.float32]) -> NDArray[np.float32]:
    points = points_m.astype(np.float32)
    low, high = points.min(axis=0), points.max(axis=0)
    shift: NDArray[np.float32] = (low + high) / np.float32(2)
    shift[2] = low[2]
    return np.asarray(points - shift, dtype=np.float32)


def _nearest(within: NDArray[np.float32], inverse: NDArray[np.int64], cells: int) -> NDArray[np.int64]:
    """(cells,) the point nearest to the middle of its cell; ``within`` (P, 3) are places in the cell, 0 … 1."""
    distance = np.square(within - np.float32(0.5)).sum(axis=1)
    order = np.lexsort((distance, inverse))
    first: NDArray[np.int64] = order[np.searchsorted(inverse[order], np.arange(cells))]
    return first


def _drawn(inverse: NDArray[np.int64], cells: int, generator: torch.Generator) -> NDArray[np.int64]:
    """(cells,) one point of each cell, each with the same probability."""
    order = np.argsort(inverse, kind="stable")
    counts = np.bincount(inverse, minlength=cells)
    draws = torch.rand(cells, generator=generator, dtype=torch.float64).numpy()
    drawn: NDArray[np.int64] = order[np.cumsum(counts) - counts + (draws * counts).astype(np.int64)]
    return drawn
