"""From features at scan points to class scores at scan points, raw and purified by a student.

Scores are products with unit text vectors. A point's best class is that of its cosines, because the length of its
feature is the same for all classes; so pooling may work on one column a class instead of on the features:
(A^T F) t = A^T (F t).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geopurify_core.errors import DatasetError, StudentError
from geopurify_core.evaluation.protocol import Protocol
from geopurify_core.scans.scan import LiftedScan

if TYPE_CHECKING:
    from geopurify_core.purification.student.trained import Student
    from geopurify_core.purification.student.voxelise import Voxelised

Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]
Progress = Callable[[str, float], None]

RAW = "raw"
_ROWS_AT_ONCE = 1 << 14


@dataclass(frozen=True)
class PointScores:
    """Class scores of N points.

    Attributes:
        variant: ``raw``, or ``T=18`` for 18 steps of pooling.
        scores: (N, C) float32, one column for each text.
        featureless: (N,) bool, points about which nothing is known: their rows mean nothing.
    """

    variant: str
    scores: Floats
    featureless: Flags


def variant_of(steps: int) -> str:
    """How a number of pooling steps is called."""
    return f"T={steps}"


def with_features(lifted: LiftedScan, featureless: str) -> tuple[NDArray[np.float16], Flags]:
    """(N, C) features and (N,) which points have none.

    Args:
        lifted: Features at scan points.
        featureless: ``drop``: points that no view saw stay without (rows of zeros); ``nearest``: they copy the nearest
            point that was seen (GeoPurify A.4).

    Raises:
        DatasetError: Features that are not finite, or of another length than the scan.
    """
    features, seen = lifted.features, seen_points(lifted)
    if len(features) != len(lifted.scan):
        raise DatasetError(lifted.scan.name, features.shape, f"Expected one row for each of {len(lifted.scan)} points.")
    if not np.isfinite(features).all():
        raise DatasetError(lifted.scan.name, "features not finite", "Lift the scan again.")
    if seen.all():
        return features, ~seen
    if featureless == "drop" or not seen.any():
        return np.where(seen[:, None], features, np.float16(0)), ~seen
    from scipy.spatial import cKDTree

    known = np.flatnonzero(seen)
    missing = np.flatnonzero(~seen)
    _, nearest = cKDTree(lifted.scan.points_m[known]).query(lifted.scan.points_m[missing])
    filled = features.copy()
    filled[missing] = features[known[nearest]]
    return filled, np.zeros(len(features), dtype=bool)


def seen_points(lifted: LiftedScan) -> Flags:
    """(N,) which points have a feature of their own: seen in a view, and not a row of zeros."""
    return (lifted.views > 0) & lifted.features.any(axis=1)


def products(features: NDArray[np.floating[Any]], vectors: Floats) -> Floats:
    """(N, n) float32 products of (N, C) features with (n, C) vectors, a few rows at a time."""
    out = np.empty((len(features), len(vectors)), dtype=np.float32)
    columns = np.ascontiguousarray(vectors.T, dtype=np.float32)
    for start in range(0, len(features), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        np.matmul(features[part].astype(np.float32), columns, out=out[part])
    return out


def point_scores(
    lifted: LiftedScan,
    vectors: Floats,
    protocol: Protocol,
    student: Student | None = None,
    progress: Progress | None = None,
) -> Iterator[PointScores]:
    """Scores of the raw features, and then of the purified ones for each of the protocol's numbers of steps.

    Args:
        lifted: N points.
        vectors: (n, C) unit text vectors.
        protocol: What to do with points without a feature, K, T, sharpening, voxel size, frames, repeats.
        student: Says which voxels belong together; None gives raw scores only.
        progress: Told what is done and the share of it, 0 to 1.

    Raises:
        DatasetError: Unusable features.
        StudentError: A student for another backbone or width.
        PurificationError: What the network or the pooling refuses.
    """
    features, featureless = with_features(lifted, protocol.featureless)
    yield PointScores(RAW, products(features, vectors), featureless)
    if student is not None:
        check_student(student, lifted.backbone, features.shape[1])
        yield from _purified(lifted, features, ~featureless, vectors, protocol, student, progress)


def check_student(student: Student, backbone: str, feature_dim: int) -> None:
    """Raise StudentError for a student that was made for another backbone or width."""
    student.check_backbone(backbone)
    if student.feature_dim != feature_dim:
        raise StudentError(
            "student.feature_dim", student.feature_dim, f"The features have {feature_dim} channels: use another one."
        )


def voxel_size_for(student: Student, protocol: Protocol) -> float:
    """Edge of the voxels that the student works on, metres."""
    from geopurify_core.purification.student.voxelise import OFFICIAL_VOXEL_SIZE_M

    return protocol.voxel_size_m or student.voxel_size_m or OFFICIAL_VOXEL_SIZE_M


def _purified(
    lifted: LiftedScan,
    features: NDArray[np.float16],
    has: Flags,
    vectors: Floats,
    protocol: Protocol,
    student: Student,
    progress: Progress | None,
) -> Iterator[PointScores]:
    from geopurify_core.purification.student.voxelise import random_frame, voxelise_points

    rng = np.random.RandomState(protocol.seed)  # the generator that the released code draws from
    points = lifted.scan.points_m.astype(np.float64)
    size_m = voxel_size_for(student, protocol)
    total: dict[int, Floats] = {}
    for repeat in range(protocol.repeats):
        frame = random_frame(rng) if protocol.random_frame else np.eye(3)
        voxels = voxelise_points(points @ frame.T, size_m)
        inputs, columns = _voxel_inputs(lifted, features, has, voxels, vectors)
        for steps, pooled in pooled_columns(voxels.coords, inputs, columns, student, protocol, progress):
            total[steps] = total[steps] + pooled[voxels.inverse] if steps in total else pooled[voxels.inverse]
            if repeat == protocol.repeats - 1:
                summed = total.pop(steps)
                yield PointScores(variant_of(steps), summed[:, :-1], summed[:, -1] <= 0)


def _voxel_inputs(
    lifted: LiftedScan, features: NDArray[np.float16], has: Flags, voxels: Voxelised, vectors: Floats
) -> tuple[Any, Floats]:
    """(V, C + 6) inputs of the student, and (V, n + 1) columns to pool: n scores, and whether a voxel has a feature.

    Means over the points of a voxel, features over those that have one; normals made unit, unknown ones filled in, as
    in the inputs from maps (``purification/student/inputs.py``).
    """
    import torch

    from geopurify_core.purification.student.normals import fill_normals

    share = voxels.mean(has[:, None].astype(np.float32))
    mean = voxels.mean(features) / np.maximum(share, np.float32(1e-9))
    colours = voxels.mean(lifted.scan.rgb / np.float32(255))
    normals = fill_normals(voxels.coords, voxels.mean(lifted.scan.normals))
    inputs = torch.from_numpy(np.concatenate([mean, colours, normals], axis=1))
    return inputs, np.concatenate([products(mean, vectors), (share > 0).astype(np.float32)], axis=1)


def pooled_columns(
    coords: NDArray[np.integer[Any]],
    inputs: Any,
    columns: Floats,
    student: Student,
    protocol: Protocol,
    progress: Progress | None = None,
) -> Iterator[tuple[int, Floats]]:
    """T and A^T ``columns`` for each T of the protocol, ascending; each goes on from the one before.

    Args:
        coords: (V, 3) voxel coordinates.
        inputs: (V, C + 6) inputs of the student.
        columns: (V, n) float32.
        student: The network that says which voxels belong together.
        protocol: K, T and sharpening.
        progress: Told what is done and the share of it.
    """
    import torch

    from geopurify_core.purification.affinity.build import build_affinity
    from geopurify_core.purification.pooling.packed import PackedAffinity
    from geopurify_core.purification.pooling.pool import pool

    tell = progress or (lambda what, share: None)
    embeddings = student.network.embed(coords, inputs, progress=lambda share: tell("student network", share))
    tell("affinity", 0.0)
    on_cpu = embeddings.device.type == "cpu"
    affinity = build_affinity(
        coords, embeddings.numpy() if on_cpu else embeddings, protocol.neighbors, protocol.sharpening
    )
    packed = PackedAffinity(affinity)
    state: Any = columns if on_cpu else torch.from_numpy(columns).to(embeddings.device)
    done = 0
    for steps in protocol.steps:
        state = pool(state, packed, steps - done, progress=lambda share: tell("pooling", share))
        done = steps
        yield steps, state if on_cpu else state.cpu().numpy()
