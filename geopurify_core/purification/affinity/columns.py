"""Voxels as vertical columns over a grid of (x, y), to be searched by the compiled stencil."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from geopurify_core.jit import HAVE_NUMBA, run_chunks

if HAVE_NUMBA:
    from geopurify_core.purification.affinity import neighbor_kernels as kernels

_CELLS_PER_VOXEL, _FEW_CELLS = 32, 1 << 20
_MIN_CHUNK, _PER_THREAD = 256, 4


@dataclass(frozen=True)
class Stencil:
    """The columns within a radius, nearest first.

    Attributes:
        across: (S, 2) steps in x and y.
        square: (S,) int32 squared lengths of those.
        root: (radius² + 1,) int32 integer square roots.
        most: Voxels within the radius.
    """

    radius: int
    across: NDArray[np.int64]
    square: NDArray[np.int32]
    root: NDArray[np.int32]
    most: int


@lru_cache(maxsize=8)
def stencil_for(k: int) -> Stencil:
    """A radius within which surfaces hold K voxels with room to spare: twice that of a flat disc of K."""
    radius = int(np.ceil(2.0 * np.sqrt(k / np.pi))) + 2
    reach = np.arange(-radius, radius + 1, dtype=np.int64)
    across = np.stack(np.meshgrid(reach, reach, indexing="ij"), axis=-1).reshape(-1, 2)
    square = (across**2).sum(axis=1)
    order = np.argsort(square, kind="stable")
    order = order[square[order] <= radius**2]
    root = np.floor(np.sqrt(np.arange(radius**2 + 1))).astype(np.int32)
    most = int((2 * root[radius**2 - square[order]] + 1).sum())
    return Stencil(radius, across[order], square[order].astype(np.int32), root, most)


@dataclass(frozen=True)
class Columns:
    """Voxels in key order by the grid cell of their column.

    Attributes:
        cell: (V,) int64, ascending.
        height: (V,) int32.
        first: (cells + 1,) int32, where each cell's voxels begin.
        width: Cells in y.
    """

    stencil: Stencil
    cell: NDArray[np.int64]
    height: NDArray[np.int32]
    first: NDArray[np.int32]
    width: int

    def search(self, places: NDArray[np.int64], found: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Fills ``found`` (n, k) for the voxels at these places; says for which of them the radius was enough."""
        complete = np.zeros(len(places), dtype=bool)
        s = self.stencil
        step = s.across[:, 0] * self.width + s.across[:, 1]
        most = min(s.most, len(self.cell))
        run_chunks(
            kernels.nearest, len(places), places, self.cell, self.height, self.first, step, s.square, s.root,
            found.shape[1], most, found, complete, min_chunk=_MIN_CHUNK, per_thread=_PER_THREAD,
        )  # fmt: skip
        return complete


def columns_for(points: NDArray[np.int64], k: int) -> Columns | None:
    """Columns of voxels (V, 3) in key order, or None where they lie so scattered that the grid would be mostly empty.

    Empty stretches of an axis longer than the stencil's radius are shortened to that, so a few strays far away cost
    next to nothing.
    """
    stencil = stencil_for(k)
    margin = stencil.radius
    x, y = (_shortened(points[:, axis], margin + 1) + margin for axis in (0, 1))
    width = int(y.max()) + margin + 1
    cells = (int(x.max()) + margin + 1) * width
    if cells > _CELLS_PER_VOXEL * len(points) + _FEW_CELLS:
        return None
    cell = x * width + y
    first = np.empty(cells + 1, dtype=np.int32)
    kernels.column_starts(cell, first)
    return Columns(stencil, cell, points[:, 2].astype(np.int32), first, width)


def _shortened(values: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """The same values from 0 on, with gaps between neighbouring distinct values cut to ``most``."""
    distinct, inverse = np.unique(values, return_inverse=True)
    gaps = np.minimum(np.diff(distinct, prepend=distinct[0]), most)
    return np.asarray(np.cumsum(gaps)[inverse], dtype=np.int64)
