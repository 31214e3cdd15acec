"""One purification of a snapshot, step by step: inputs → student → neighbours → affinity → pooling."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from geopurify_core.config import PurificationConfig
from geopurify_core.mapping.keys import unpack_keys
from geopurify_core.mapping.snapshot import MapSnapshot
from geopurify_core.purification import checks
from geopurify_core.purification.affinity import Affinity, build_affinity
from geopurify_core.purification.inputs import student_inputs
from geopurify_core.purification.neighbors import nearest_neighbors
from geopurify_core.purification.normals import fill_normals
from geopurify_core.purification.result import FULL, Purification, Report
from geopurify_core.purification.steps import STEPS, Cancelled, Course, Progress
from geopurify_core.purification.whole import SKETCH_COLUMNS, pool_features, pooled_sketch

if TYPE_CHECKING:
    from geopurify_core.purification.checkpoint import Student

log = logging.getLogger(__name__)


def purify_snapshot(
    snapshot: MapSnapshot,
    student: Student,
    config: PurificationConfig,
    previous: Purification | None = None,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> Purification:
    """Purified features (or what pools scores) of every voxel of ``snapshot``.

    Args:
        snapshot: A raw map.
        student: The network and what it was trained for.
        config: K, T, sharpening, what to keep, memory budget.
        previous: The last result. Where student and settings are the same, only what can have changed since is
            computed; the result equals a computation from scratch (``incremental.py`` says how closely).
        progress: Called with (step, share of the whole done in 0..1).
        cancelled: Asked between chunks of work whether to stop.

    Returns:
        The purification; for an empty map one of no rows.

    Raises:
        StudentError: The student was made for another backbone or width.
        MapMismatchError: The map is purified already.
        PurificationError: Features that are not finite, a budget too small, or it was cancelled ("cancelled").
        NotAvailableError: ``config.device`` is not there.
    """
    checks.check_fit(snapshot, student)
    device = checks.resolve_device(config)
    course = Course(progress, cancelled)
    course.at(0.0)
    checks.check_features(snapshot)
    checks.check_budget(snapshot, student, config)
    keys, order = checks.key_order(snapshot)
    if not len(keys):
        return _empty(snapshot, student, config, device)
    return _from_scratch(snapshot, keys, order, student, config, device, course)


def _from_scratch(
    snapshot: MapSnapshot,
    keys: NDArray[np.int64],
    order: NDArray[np.int64],
    student: Student,
    config: PurificationConfig,
    device: str,
    course: Course,
) -> Purification:
    coords, steps = unpack_keys(keys), config.resolved_steps
    with course.step("inputs"):
        inputs = student_inputs(snapshot, rows=order)
        normals = fill_normals(snapshot.coords, snapshot.normals, rows=order)
    with course.step("student"):
        embeddings = embed(student, coords, inputs, device, course)
        del inputs
    with course.step("neighbors"):
        neighbors = nearest_neighbors(coords, config.neighbors)
    with course.step("affinity"):
        affinity = build_affinity(
            coords, embeddings, k=config.neighbors, sharpening=config.resolved_sharpening, neighbors=neighbors
        )
    with course.step("pooling"):
        features, length, weight, sketch = pool_whole(snapshot, order, affinity, config, device, course)
    report = Report(dict.fromkeys(STEPS, FULL), course.seconds, dict.fromkeys(STEPS, len(keys)), len(keys))
    return Purification(
        snapshot, keys, coords, order, embeddings, affinity, features, length, weight, steps,
        checks.fingerprint(student, config), report, normals, sketch, device,
    )  # fmt: skip


def embed(
    student: Student, coords: NDArray[np.int32], inputs: object, device: str, course: Course
) -> NDArray[np.float32]:
    """(N, D) float32 embeddings on the CPU."""
    network = student.network.to(device)
    out: NDArray[np.float32] = network.embed(coords, inputs, progress=lambda share: course.at(share)).cpu().numpy()
    return out


def pool_whole(
    snapshot: MapSnapshot,
    order: NDArray[np.int64],
    affinity: Affinity,
    config: PurificationConfig,
    device: str,
    course: Course,
) -> tuple[NDArray[np.float16] | None, NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """(features or None, length, weight, sketch) of the whole map, in key order."""
    steps = config.resolved_steps
    sketch, weight = pooled_sketch(snapshot.features, snapshot.weight, order, affinity, steps, device)
    course.at(0.05)
    features, length = pool_features(
        snapshot.features, order, affinity, steps, device,
        keep=config.pool == "features", tick=lambda share: course.at(0.05 + 0.95 * share),
    )  # fmt: skip
    return features, length, weight, sketch


def _empty(snapshot: MapSnapshot, student: Student, config: PurificationConfig, device: str) -> Purification:
    none = np.zeros(0, dtype=np.float32)
    features = np.zeros((0, snapshot.feature_dim), dtype=np.float16) if config.pool == "features" else None
    return Purification(
        snapshot, np.zeros(0, np.int64), np.zeros((0, 3), np.int32), np.zeros(0, np.int64),
        np.zeros((0, student.network.out), np.float32),
        Affinity(np.zeros((0, 0), np.int32), np.zeros((0, 0), np.float32)),
        features, none, none.copy(), config.resolved_steps, checks.fingerprint(student, config), Report(),
        np.zeros((0, 3), np.float32), np.zeros((0, SKETCH_COLUMNS), np.float32), device,
    )  # fmt: skip
