"""From a robot's map to class scores at scan points: each point gets those of the nearest voxel within reach."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from geopurify_core.errors import MapMismatchError
from geopurify_core.evaluation.points import (
    RAW,
    Floats,
    PointScores,
    Progress,
    check_student,
    pooled_columns,
    products,
    variant_of,
)
from geopurify_core.evaluation.protocol import Protocol
from geopurify_core.mapping.snapshot import MapSnapshot

if TYPE_CHECKING:
    from geopurify_core.purification.student.trained import Student


def voxel_of_points(snapshot: MapSnapshot, points_m: NDArray[np.floating], reach_m: float) -> NDArray[np.int64]:
    """(N,) row of the voxel whose centre is nearest to each of (N, 3) points; -1 where none lies within ``reach_m``."""
    from scipy.spatial import cKDTree

    if not len(snapshot):
        return np.full(len(points_m), -1, dtype=np.int64)
    _, nearest = cKDTree(snapshot.centers_m).query(points_m, distance_upper_bound=reach_m)
    return np.where(nearest < len(snapshot), nearest, -1)


def map_scores(
    snapshot: MapSnapshot,
    points_m: NDArray[np.floating],
    vectors: Floats,
    protocol: Protocol,
    student: Student | None = None,
    progress: Progress | None = None,
) -> Iterator[PointScores]:
    """Scores of the raw map at scan points, and then of the purified one for each of the protocol's numbers of steps.

    Args:
        snapshot: A raw map.
        points_m: (N, 3) scan points in the map's frame, metres.
        vectors: (n, C) unit text vectors.
        protocol: K, T, sharpening and reach.
        student: Says which voxels belong together; None gives raw scores only.
        progress: Told what is done and the share of it.

    Raises:
        MapMismatchError: The map is purified already.
        StudentError: A student for another backbone or width.
    """
    if snapshot.purified:
        raise MapMismatchError("map.purified", snapshot.purified, "Give the raw map: it is purified here.")
    nearest = voxel_of_points(snapshot, points_m, protocol.reach_m)
    far, row = nearest < 0, np.maximum(nearest, 0)
    has = snapshot.weight > 0
    scores = products(snapshot.features, vectors)
    yield _at_points(RAW, scores, ~has, row, far)
    if student is None or not len(snapshot):
        return
    check_student(student, snapshot.backbone, snapshot.feature_dim)
    from geopurify_core.purification.student.inputs import student_inputs

    columns = np.concatenate([scores, has[:, None].astype(np.float32)], axis=1)
    inputs = student_inputs(snapshot)
    for steps, pooled in pooled_columns(snapshot.coords, inputs, columns, student, protocol, progress):
        yield _at_points(variant_of(steps), pooled[:, :-1], pooled[:, -1] <= 0, row, far)


def _at_points(
    variant: str, scores: Floats, without: NDArray[np.bool_], row: NDArray[np.int64], far: NDArray[np.bool_]
) -> PointScores:
    if not len(scores):
        return PointScores(variant, np.zeros((len(row), scores.shape[1]), dtype=np.float32), far)
    return PointScores(variant, scores[row], far | without[row])
