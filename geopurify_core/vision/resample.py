"""Grids of cells onto grids of cells. Cell (i, j) of an (h, w) grid covers its share of the whole image."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def crop_resize(values: Array, top: float, left: float, height: float, width: float, grid: tuple[int, int]) -> Array:
    """Bilinear samples (h, w, L) of ``values`` (H, W, L) inside a window given in cells, at a new grid's centres.

    The same array comes back when the window is everything and the grid is the same.
    """
    if grid == values.shape[:2] and (top, left, height, width) == (0, 0, *values.shape[:2]):
        return values
    rows, row_weight = _taps(top, height, grid[0], values.shape[0])
    columns, column_weight = _taps(left, width, grid[1], values.shape[1])
    across = _mix(values, columns, column_weight, axis=1)
    return _mix(across, rows, row_weight, axis=0)


def _mix(values: Array, taps: NDArray[np.intp], weight: Array, axis: int) -> Array:
    shape = [1] * values.ndim
    shape[axis] = len(weight)
    w = weight.reshape(shape)
    return np.asarray(values.take(taps[0], axis=axis) * (1 - w) + values.take(taps[1], axis=axis) * w)


@lru_cache(maxsize=64)
def _taps(start: float, length: float, count: int, size: int) -> tuple[NDArray[np.intp], Array]:
    """For each of ``count`` cell centres on [start, start + length): two source cells and the second's weight."""
    position = np.clip(start + (np.arange(count) + 0.5) * length / count - 0.5, 0, size - 1)
    low = np.floor(position).astype(np.intp)
    return np.stack([low, np.minimum(low + 1, size - 1)]), (position - low).astype(np.float32)


def bin_labels(
    labels: NDArray[np.integer], top: float, left: float, height: float, width: float, grid: tuple[int, int], count: int
) -> Array:
    """(h, w, count) share of each label in every cell, from per-pixel label numbers (H, W) inside a window."""
    rows = _bins(top, height, grid[0], labels.shape[0])
    columns = _bins(left, width, grid[1], labels.shape[1])
    inside = np.ix_(rows >= 0, columns >= 0)
    cells = rows[rows >= 0][:, None] * grid[1] + columns[columns >= 0][None, :]
    keys = cells * count + labels[inside].astype(np.int64)
    counts = np.bincount(keys.ravel(), minlength=grid[0] * grid[1] * count).astype(np.float32)
    shares = counts.reshape(grid[0], grid[1], count)
    return np.asarray(shares / np.maximum(shares.sum(axis=-1, keepdims=True), 1.0))


def _bins(start: float, length: float, count: int, size: int) -> NDArray[np.int64]:
    """The cell of each of ``size`` pixels, -1 outside of the window."""
    cell = np.floor((np.arange(size) + 0.5 - start) * count / length).astype(np.int64)
    return np.where((cell >= 0) & (cell < count), cell, -1)
