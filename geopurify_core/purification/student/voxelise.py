"""Points to voxels as the released code does it: floor(p / size), features averaged over the points of a voxel.

Maps are voxels already; this is for clouds and meshes in training and evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geopurify_core.errors import PurificationError
from geopurify_core.mapping.keys import NO_KEY, pack_keys, unpack_keys

OFFICIAL_VOXEL_SIZE_M = 0.02
_SCALE = (0.9, 1.1)
_ROTATION_RAD = (np.pi / 64, np.pi / 64, np.pi)


class RandomSource(Protocol):
    """What ``numpy.random.RandomState`` and ``Generator`` have in common."""

    def uniform(self, low: float, high: float) -> float: ...

    def shuffle(self, x: list[NDArray[np.float64]]) -> None: ...


@dataclass(frozen=True)
class Voxelised:
    """V voxels made of N points, in key order.

    Attributes:
        coords: (V, 3) int32.
        inverse: (N,) int64, the voxel of each point: ``voxel_values[inverse]`` maps back to points.
        first: (V,) int64, the first point of each voxel.
        count: (V,) int64, its points.
    """

    coords: NDArray[np.int32]
    inverse: NDArray[np.int64]
    first: NDArray[np.int64]
    count: NDArray[np.int64]

    def mean(self, values: NDArray[np.floating]) -> NDArray[np.float32]:
        """(V, C) float32 means over the points of each voxel of (N, C) values; summed in float32, in point order."""
        import torch

        if values.ndim != 2 or len(values) != len(self.inverse):
            raise PurificationError("values", values.shape, f"Give one row for each of {len(self.inverse)} points.")
        rows = torch.from_numpy(np.array(values, dtype=np.float32))
        sums = torch.zeros(len(self.coords), rows.shape[1]).index_add_(0, torch.from_numpy(self.inverse), rows)
        means: NDArray[np.float32] = (sums / torch.from_numpy(self.count).float()[:, None]).numpy()
        return means


def voxelise_points(points: NDArray[np.floating], voxel_size_m: float = OFFICIAL_VOXEL_SIZE_M) -> Voxelised:
    """The voxels that hold (N, 3) points in metres: floor(p / voxel_size_m), not shifted.

    The released code also subtracts the smallest coordinate and orders voxels by a hash; neither changes a result here
    (the network sees differences of coordinates only).

    Raises:
        PurificationError: Points of another shape, not finite, or beyond ±2^20 voxels.
    """
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 3:
        raise PurificationError("points", points.shape, "Give (N, 3) coordinates in metres.")
    if not voxel_size_m > 0:
        raise PurificationError("voxel_size_m", voxel_size_m, "Give a positive edge length in metres.")
    # Multiplied as the released code does: dividing puts points on a voxel's border elsewhere.
    scaled = np.floor(points * (1.0 / voxel_size_m))
    with np.errstate(invalid="ignore"):
        keys = pack_keys(np.where(np.abs(scaled) < 2.0**40, scaled, 2.0**40).astype(np.int64))
    if (keys == NO_KEY).any():
        bad = int((keys == NO_KEY).sum())
        raise PurificationError("points", f"{bad} of {len(points)}", "They are not finite or beyond ±2^20 voxels.")
    unique, first, inverse, count = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    return Voxelised(unpack_keys(unique), inverse.reshape(-1), first, count)


def random_frame(rng: RandomSource) -> NDArray[np.float64]:
    """(3, 3) random rotation times scale that the released code applies before voxelising, at evaluation as well.

    Angles within ±π/64 about x and y and ±π about z, the three rotations multiplied in random order, and a scale of 0.9
    to 1.1. ``voxelise_points(points @ random_frame(rng).T)`` is its voxelisation.

    Args:
        rng: ``numpy.random.RandomState(seed)`` draws the numbers that the released code draws after
            ``numpy.random.seed(seed)``.
    """
    turns = [_rotation(axis, rng.uniform(-bound, bound)) for axis, bound in enumerate(_ROTATION_RAD)]
    rng.shuffle(turns)
    frame: NDArray[np.float64] = turns[0] @ turns[1] @ turns[2] * rng.uniform(*_SCALE)
    return frame


def _rotation(axis: int, angle_rad: float) -> NDArray[np.float64]:
    """Rotation about a coordinate axis, counter-clockwise seen against it."""
    c, s = np.cos(angle_rad), np.sin(angle_rad)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    R = np.eye(3)
    R[i, i], R[i, j], R[j, i], R[j, j] = c, -s, s, c
    return R


def mean_attributes(voxels: Voxelised, *values: ArrayLike) -> NDArray[np.float32]:
    """(V, ΣC) means of several (N, C) attributes side by side, for example semantics, colours and normals."""
    return np.concatenate([voxels.mean(np.asarray(value)) for value in values], axis=1)
