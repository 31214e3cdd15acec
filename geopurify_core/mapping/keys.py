"""Voxel coordinates as single 64-bit keys: 21 bits for each axis, so a map spans ±2^20 voxels (±42 km at 4 cm)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

COORD_LIMIT = 1 << 20
_BITS = 21
_MASK = (1 << _BITS) - 1
NO_KEY = -1


def pack_keys(coords: NDArray[np.integer]) -> NDArray[np.int64]:
    """(N,) int64 keys of (N, 3) integer coordinates; NO_KEY where a coordinate leaves [-2^20, 2^20).

    Keys sort like the coordinates: by x, then y, then z.
    """
    shifted = np.asarray(coords, dtype=np.int64) + COORD_LIMIT
    keys = (shifted[..., 0] << (2 * _BITS)) | (shifted[..., 1] << _BITS) | shifted[..., 2]
    inside = ((shifted >= 0) & (shifted < 2 * COORD_LIMIT)).all(axis=-1)
    return np.where(inside, keys, NO_KEY).astype(np.int64, copy=False)


def unpack_keys(keys: NDArray[np.int64]) -> NDArray[np.int32]:
    """(N, 3) int32 coordinates of (N,) keys; the inverse of :func:`pack_keys`."""
    coords = np.empty((*np.shape(keys), 3), dtype=np.int32)
    coords[..., 0] = (keys >> (2 * _BITS)) - COORD_LIMIT
    coords[..., 1] = ((keys >> _BITS) & _MASK) - COORD_LIMIT
    coords[..., 2] = (keys & _MASK) - COORD_LIMIT
    return coords


def voxel_of(points_m: NDArray[np.floating], voxel_size_m: float) -> NDArray[np.int64]:
    """(N,) keys of the voxels that hold (N, 3) map-frame points; NO_KEY for points not finite or out of reach."""
    with np.errstate(invalid="ignore", over="ignore"):
        scaled: NDArray[np.float64] = np.floor(np.asarray(points_m, dtype=np.float64) * (1.0 / voxel_size_m))
        inside: NDArray[np.bool_] = np.all((scaled >= -COORD_LIMIT) & (scaled < COORD_LIMIT), axis=-1)
    keys = pack_keys(np.where(inside[..., None], scaled, 0).astype(np.int64))
    return np.where(inside, keys, NO_KEY).astype(np.int64, copy=False)


def key_centers(keys: NDArray[np.int64], voxel_size_m: float) -> NDArray[np.float64]:
    """(N, 3) float64 centres of voxels, metres in the map frame."""
    centers: NDArray[np.float64] = (unpack_keys(keys).astype(np.float64) + 0.5) * voxel_size_m
    return centers
