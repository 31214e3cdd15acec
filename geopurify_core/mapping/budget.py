"""How many voxels fit a byte budget, and which ones to forget when it is full."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopurify_core.errors import InvalidConfigError
from geopurify_core.mapping.keys import key_centers

# Bytes for each voxel beside its 2·C bytes of features.
LIVING_BYTES = 8 + 4 + 4 + 12 + 6 + 8 + 8  # key, weight, geometry weight, colour, normal, first and last stamp
HASH_BYTES = 10  # int32 slots at 44 % to 67 % load: 6 to 9.1, rounded up
SNAPSHOT_BYTES = 12 + 4 + 4 + 3 + 6 + 8 + 8  # coordinates, weights, colour, normal, stamps
EVICT_SHARE = 0.05
MIN_CAPACITY = 256
_MAX_ROWS = 1 << 30
_CHUNK = 1 << 16


def capacity_for(budget_mb: int, feature_dim: int) -> int:
    """Voxels of ``feature_dim`` channels for which the living map and one snapshot fit ``budget_mb`` MiB.

    Raises:
        InvalidConfigError: Fewer than 256 voxels would fit.
    """
    per_voxel = 2 * (2 * feature_dim) + LIVING_BYTES + HASH_BYTES + SNAPSHOT_BYTES
    capacity = min(int(budget_mb) * (1 << 20) // per_voxel, _MAX_ROWS)
    if capacity < MIN_CAPACITY:
        need = -(-MIN_CAPACITY * per_voxel // (1 << 20))
        raise InvalidConfigError(
            "map.budget_mb",
            budget_mb,
            f"Voxels of {feature_dim} channels take {per_voxel} B: give at least {need} MiB.",
        )
    return capacity


def pick_victims(
    keys: NDArray[np.int64],
    last_seen_ns: NDArray[np.int64],
    protected: NDArray[np.bool_],
    count: int,
    *,
    policy: str,
    voxel_size_m: float,
    camera_m: NDArray[np.float64],
) -> NDArray[np.int64]:
    """Sorted rows of up to ``count`` voxels to forget, never a protected one; the same input gives the same rows.

    Args:
        keys, last_seen_ns, protected: (N,) for each voxel.
        policy: ``oldest`` forgets what was last seen longest ago, and of those the farthest; ``farthest`` the reverse.
        camera_m: (3,) where the camera is, map frame.
    """
    candidates = np.flatnonzero(~protected)
    count = min(count, len(candidates))
    if count == 0:
        return np.empty(0, dtype=np.int64)
    first: NDArray[Any] = last_seen_ns[candidates]
    second: NDArray[Any] | None = None
    if policy == "farthest":
        first, second = -_squared_distance(keys[candidates], voxel_size_m, camera_m), first
    threshold = np.partition(first, count - 1)[count - 1]
    surely = candidates[first < threshold]
    tied = candidates[first == threshold]
    tie_break = -_squared_distance(keys[tied], voxel_size_m, camera_m) if second is None else second[first == threshold]
    chosen = tied[np.argsort(tie_break, kind="stable")[: count - len(surely)]]
    return np.sort(np.concatenate([surely, chosen]))


def _squared_distance(
    keys: NDArray[np.int64], voxel_size_m: float, camera_m: NDArray[np.float64]
) -> NDArray[np.float32]:
    out = np.empty(len(keys), dtype=np.float32)
    for start in range(0, len(keys), _CHUNK):  # in pieces: eviction happens when there is no memory to spare
        part = slice(start, start + _CHUNK)
        out[part] = ((key_centers(keys[part], voxel_size_m) - camera_m) ** 2).sum(axis=1)
    return out
