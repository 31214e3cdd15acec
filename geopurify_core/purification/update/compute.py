"""One purification of a snapshot, step by step: inputs → student → neighbours → affinity → pooling.

Each step is done in full or, where a previous purification is at hand and the cost model says so, only for the rows
that can have changed. The two ways give the same: neighbours identical; embeddings identical beyond the student's
receptive field and within 1e-5 inside it, hence weights within 1e-6; pooled features within 1e-4 (before they are
rounded to half precision, for features of about unit length).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from geopurify_core.config import PurificationConfig
from geopurify_core.mapping.keys import unpack_keys
from geopurify_core.mapping.snapshot import MapSnapshot
from geopurify_core.purification.affinity.build import Affinity, affinity_rows
from geopurify_core.purification.affinity.neighbors import nearest_neighbors
from geopurify_core.purification.pooling.packed import PackedAffinity
from geopurify_core.purification.pooling.visiting import visit_order
from geopurify_core.purification.student.checkpoint import resolve_device
from geopurify_core.purification.student.inputs import student_inputs
from geopurify_core.purification.student.normals import fill_normals
from geopurify_core.purification.update import checks, cost, incremental, partial
from geopurify_core.purification.update.delta import Delta, map_delta
from geopurify_core.purification.update.result import FULL, INCREMENTAL, NOTHING, Purification, Report
from geopurify_core.purification.update.steps import STEPS, Cancelled, Course, Progress
from geopurify_core.purification.update.whole import (
    COLUMNS_AT_ONCE,
    SKETCH_COLUMNS,
    pool_columns,
    pool_features,
    raw_scores,
    sketch_matrix,
)

if TYPE_CHECKING:
    from geopurify_core.purification.student.checkpoint import Student

log = logging.getLogger(__name__)

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]


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
            computed; the result equals a computation from scratch (see the module's text).
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
    device = resolve_device(config.device).type
    course = Course(progress, cancelled)
    course.at(0.0)
    checks.check_features(snapshot)
    fitting = _fitting(previous, snapshot, student, config)
    checks.check_budget(snapshot, student, config)
    keys, order = checks.key_order(snapshot)
    if not len(keys):
        return _empty(snapshot, student, config, device)
    job = _Job(snapshot, keys, order, unpack_keys(keys), student, config, device, course)
    course.expect(cost.full_run(job.size, snapshot.feature_dim))
    if fitting is not None:
        job.delta = map_delta(fitting.snapshot, fitting.keys, fitting.order, snapshot, keys, order)
        if job.delta.nothing:
            return replace(fitting, snapshot=snapshot, order=order, report=_nothing_done(len(keys)))
    return _purified(job, fitting)


@dataclass
class _Job:
    """What every step needs to know, and what each leaves for the report."""

    snapshot: MapSnapshot
    keys: NDArray[np.int64]
    order: NDArray[np.int64]
    coords: NDArray[np.int32]
    student: Student
    config: PurificationConfig
    device: str
    course: Course
    delta: Delta | None = None
    modes: dict[str, str] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    predicted: dict[str, float] = field(default_factory=dict)
    student_work: float = 1.0

    @property
    def size(self) -> cost.Size:
        """For the cost model."""
        network = self.student.network
        return cost.Size(
            len(self.keys), self.snapshot.feature_dim, network.hidden, network.receptive_field, network.out,
            self.config.neighbors, self.config.resolved_steps,
        )  # fmt: skip

    def note(self, step: str, rows: int, predicted: float) -> None:
        """For the report: what a step computed."""
        self.modes[step] = FULL if rows == len(self.keys) else INCREMENTAL if rows else NOTHING
        self.rows[step], self.predicted[step] = rows, predicted


def _purified(job: _Job, previous: Purification | None) -> Purification:
    with job.course.step("inputs"):
        normals = fill_normals(job.snapshot.coords, job.snapshot.normals, rows=job.order)
    with job.course.step("student"):
        embeddings = _embeddings(job, previous, normals)
    with job.course.step("neighbors"):
        neighbors, searched = _neighbors(job, previous)
    with job.course.step("affinity"):
        affinity = _affinity(job, previous, embeddings, neighbors, searched)
    with job.course.step("pooling"):
        features, length, weight, sketch = _pooled(job, previous, affinity)
    report = Report(job.modes, job.course.seconds, job.rows, len(job.keys), job.student_work, job.predicted)
    log.debug("purified %d voxels: %s", len(job.keys), report)
    return Purification(
        job.snapshot, job.keys, job.coords, job.order, embeddings, affinity, features, length, weight,
        job.config.resolved_steps, checks.fingerprint(job.student, job.config), report, normals, sketch, job.device,
    )  # fmt: skip


def _embeddings(job: _Job, previous: Purification | None, normals: Floats) -> Floats:
    network, size = job.student.network, job.size
    full_s = cost.student_full(size)
    if previous is not None and job.delta is not None:
        changed = incremental.changed_inputs(job.delta, normals, previous.normals)
        reach = incremental.reach_of(job.keys, changed, job.delta.removed_coords, network.receptive_field)
        partial_s = cost.student_partial(size, reach.layer_rows)
        if cost.is_worthwhile(partial_s, full_s):
            job.note("inputs", int((reach.ring <= 2 * reach.field).sum()), 0.0)
            job.note("student", len(reach.outputs), partial_s)
            job.student_work = reach.work
            return incremental.update_embeddings(
                network, job.coords, reach, lambda rows: student_inputs(job.snapshot, job.order[rows]),
                job.delta, previous.embeddings, job.course.at,
            )  # fmt: skip
    job.note("inputs", len(job.keys), 0.0)
    job.note("student", len(job.keys), full_s)
    inputs = student_inputs(job.snapshot, rows=job.order)
    out: Floats = network.embed(job.coords, inputs, progress=job.course.at).cpu().numpy()
    return out


def _neighbors(job: _Job, previous: Purification | None) -> tuple[NDArray[np.int32], Mask]:
    size, k = job.size, job.config.neighbors
    full_s = cost.neighbors_full(size)
    if previous is None or job.delta is None:
        job.note("neighbors", len(job.keys), full_s)
        return nearest_neighbors(job.coords, k), np.ones(len(job.keys), dtype=bool)
    neighbors, searched = incremental.update_neighbors(
        job.coords, job.delta, previous.coords, previous.affinity.neighbors, k,
        lambda rows: cost.is_worthwhile(cost.neighbors_partial(size, rows), full_s),
    )  # fmt: skip
    rows = int(searched.sum())
    job.note("neighbors", rows, full_s if rows == len(job.keys) else cost.neighbors_partial(size, rows))
    return neighbors, searched


def _affinity(
    job: _Job, previous: Purification | None, embeddings: Floats, neighbors: NDArray[np.int32], searched: Mask
) -> Affinity:
    size, sharpening = job.size, job.config.resolved_sharpening
    full_s = cost.affinity_full(size)
    if previous is None or job.delta is None:
        job.note("affinity", len(job.keys), full_s)
        weights = affinity_rows(embeddings, neighbors, sharpening=sharpening)
    else:
        weights, dirty = incremental.update_weights(
            embeddings, neighbors, searched, job.delta, previous.embeddings, previous.affinity.weights, sharpening,
            lambda rows: cost.is_worthwhile(cost.affinity_partial(size, rows), full_s),
        )  # fmt: skip
        rows = int(dirty.sum())
        job.note("affinity", rows, full_s if rows == len(job.keys) else cost.affinity_partial(size, rows))
    same = previous is not None and job.delta is not None and job.delta.same_voxels
    order = previous.affinity.order if same and previous is not None else visit_order(job.coords)
    return Affinity(neighbors, weights, order)


def _pooled(
    job: _Job, previous: Purification | None, affinity: Affinity
) -> tuple[NDArray[np.float16] | None, Floats, Floats, Floats]:
    """(features or None, length, weight, sketch), in key order."""
    snapshot, steps, tick = job.snapshot, job.config.resolved_steps, job.course.at
    packed = PackedAffinity(affinity)
    raw = np.empty((len(job.keys), COLUMNS_AT_ONCE), dtype=np.float32)
    raw[:, :SKETCH_COLUMNS] = raw_scores(snapshot.features, sketch_matrix(snapshot.feature_dim), job.order)
    raw[:, SKETCH_COLUMNS] = snapshot.weight[job.order]
    pooled = pool_columns(raw, packed, steps, job.device)
    sketch, weight = pooled[:, :SKETCH_COLUMNS].copy(), pooled[:, SKETCH_COLUMNS].copy()
    tick(0.1)
    if previous is not None and job.delta is not None:
        held = partial.Held(job.delta.source, previous.features, previous.length, previous.sketch)
        updated = _updated(job, affinity, raw[:, :SKETCH_COLUMNS], sketch, held)
        if updated is not None:
            features, length, sketch = updated
            return features, length, weight, sketch
    job.note("pooling", len(job.keys), cost.full_run(job.size, snapshot.feature_dim)["pooling"])
    features, length = pool_features(
        snapshot.features, job.order, packed, steps, job.device,
        keep=job.config.pool == "features", tick=lambda share: tick(0.1 + 0.9 * share),
    )  # fmt: skip
    return features, length, weight, sketch


def _updated(
    job: _Job, affinity: Affinity, raw_sketch: Floats, sketch: Floats, held: partial.Held
) -> tuple[NDArray[np.float16] | None, Floats, Floats] | None:
    """(features or None, length, sketch of just these values), or None where pooling everything is the cheaper way."""
    size, channels, steps = job.size, job.snapshot.feature_dim, job.config.resolved_steps
    full_s = cost.pooling_prepared(size, channels)  # the sketch has prepared the affinity
    moved = partial.moved_rows(sketch, held)
    rows = int(moved.sum())
    if not rows:
        job.note("pooling", 0, cost.pooling_sketch(size))
        if job.delta is not None and job.delta.same_voxels:
            return held.features, held.length, held.sketch
        return *partial.keep_rows(held), held.sketch.take(held.source, axis=0)

    def worthwhile(row_steps: int) -> bool:
        return cost.is_worthwhile(cost.pooling_partial(size, channels, row_steps), full_s)

    if not worthwhile(rows * steps):
        return None
    found = partial.find_subgraph(affinity, steps, job.device, moved, raw_sketch, sketch, held, worthwhile)
    if found is None:
        return None
    graph, pooled_sketch = found
    job.note("pooling", rows, cost.pooling_sketch(size) + cost.pooling_partial(size, channels, graph.row_steps))
    features, length = partial.pool_moved(
        job.snapshot, job.order, graph, held, lambda share: job.course.at(0.2 + 0.8 * share)
    )
    return features, length, partial.keep_sketch(held, graph.computed[: graph.num_wanted], pooled_sketch)


def _fitting(
    previous: Purification | None, snapshot: MapSnapshot, student: Student, config: PurificationConfig
) -> Purification | None:
    """``previous`` where this purification can build on it."""
    if previous is None or not len(previous) or previous.fingerprint != checks.fingerprint(student, config):
        return None
    before = previous.snapshot
    same_map = (before.voxel_size_m, before.feature_dim, before.backbone, before.frame_id) == (
        snapshot.voxel_size_m, snapshot.feature_dim, snapshot.backbone, snapshot.frame_id,
    )  # fmt: skip
    same_kind = (previous.features is not None) == (config.pool == "features")
    return previous if same_map and same_kind else None


def _nothing_done(rows: int) -> Report:
    return Report(dict.fromkeys(STEPS, NOTHING), {}, dict.fromkeys(STEPS, 0), rows, 0.0)


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
