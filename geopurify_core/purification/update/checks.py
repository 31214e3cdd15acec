"""What must hold before a purification starts: the map fits the student, the numbers are numbers, memory suffices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from geopurify_core.config import PurificationConfig
from geopurify_core.errors import MapMismatchError, PurificationError
from geopurify_core.mapping.keys import NO_KEY, pack_keys
from geopurify_core.mapping.snapshot import MapSnapshot
from geopurify_core.purification.update.whole import CHANNEL_BLOCK, COLUMNS_AT_ONCE

if TYPE_CHECKING:
    from geopurify_core.purification.student.checkpoint import Student

_ROWS_AT_ONCE = 16_384
_HALF_EXPONENT = np.uint16(0x7C00)  # all ones where a half is infinite or not a number
_BASE_BYTES = 32 << 20  # buffers of search and convolution, whatever the size of the map
_PACKED_BYTES = 8  # for each entry of A, while it is being pooled


def check_fit(snapshot: MapSnapshot, student: Student) -> None:
    """The student was made for this map.

    Raises:
        MapMismatchError: The map is purified already.
        StudentError: The student was trained for another backbone, or takes features of another width.
    """
    if snapshot.purified:
        raise MapMismatchError("map.purified", snapshot.purified, "Purify the raw map; this one is purified already.")
    student.check_fits(snapshot)


def check_features(snapshot: MapSnapshot) -> None:
    """Every feature is a finite half, every weight finite.

    Raises:
        PurificationError: Some are not.
    """
    if snapshot.features.dtype != np.float16:
        raise PurificationError("map.features", str(snapshot.features.dtype), "A map holds them as float16.")
    lost = int((~np.isfinite(snapshot.weight)).sum())
    if lost:
        raise PurificationError("map.weight", f"{lost} of {len(snapshot)} voxels", "NaN or infinite: map again.")
    bad = 0
    for low in range(0, len(snapshot), _ROWS_AT_ONCE):
        bits = np.ascontiguousarray(snapshot.features[low : low + _ROWS_AT_ONCE]).view(np.uint16)
        bad += int(((bits & _HALF_EXPONENT) == _HALF_EXPONENT).any(axis=1).sum())
    if bad:
        raise PurificationError(
            "map.features", f"{bad} of {len(snapshot)} rows", "They hold NaN or infinite values: map again."
        )


def key_order(snapshot: MapSnapshot) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(keys ascending, order) such that ``pack_keys(coords)[order] == keys``; both (N,) int64.

    Raises:
        PurificationError: A voxel out of reach, or there twice.
    """
    keys = pack_keys(snapshot.coords)
    order = np.argsort(keys, kind="stable").astype(np.int64, copy=False)
    keys = keys[order]
    if len(keys) and (keys[0] == NO_KEY or bool((keys[1:] == keys[:-1]).any())):
        raise PurificationError("map.coords", "a voxel out of reach or held twice", "Save the map again at its source.")
    return keys, order


def needed_bytes(snapshot: MapSnapshot, student: Student, config: PurificationConfig) -> int:
    """Most memory a full purification takes beside the snapshot and the student's parameters: an estimate from above.

    What stays (affinity, embeddings, features, sketch), twice, because the previous one serves queries until it is
    replaced; plus the larger of what passes: the student's inputs and activations, or the affinity prepared for pooling
    with some blocks of channels.
    """
    rows, channels = len(snapshot), snapshot.feature_dim
    network = student.network
    stays = 4 * network.out + 8 * config.neighbors + 4 * COLUMNS_AT_ONCE + 64
    stays += 2 * channels if config.pool == "features" else 0
    student_passes = 4 * network.in_channels * rows + network.workspace_bytes(rows)
    pooling_passes = (4 * 4 * max(CHANNEL_BLOCK, COLUMNS_AT_ONCE) + _PACKED_BYTES * config.neighbors) * rows
    return 2 * rows * stays + max(student_passes, pooling_passes) + _BASE_BYTES


def check_budget(snapshot: MapSnapshot, student: Student, config: PurificationConfig) -> None:
    """Purification fits into ``config.budget_mb``.

    Raises:
        PurificationError: It does not; says how much is needed.
    """
    need_mb = -(-needed_bytes(snapshot, student, config) // (1 << 20))
    if need_mb > config.budget_mb:
        raise PurificationError(
            "purification.budget_mb",
            config.budget_mb,
            f"{len(snapshot)} voxels need about {need_mb} MiB: raise it, lower map.budget_mb, use larger voxels, a "
            "narrower student, or purification.pool: scores.",
        )


def fingerprint(student: Student, config: PurificationConfig) -> str:
    """Student and settings as one text; equal texts mean comparable purifications."""
    return (
        f"{student.fingerprint}|k={config.neighbors}|steps={config.resolved_steps}"
        f"|sharpening={config.resolved_sharpening:g}"
    )
