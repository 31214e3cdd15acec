"""How good a teacher is where instances are known: purity of its segments, its pairs, and maps pooled with it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.scenes.prepared import PreparedScene
from training.teachers.base import TeacherFeatures

NEIGHBORS = 96
STRUCTURE = 1_000_000  # groups from here on are walls, floor, ceiling


def groups(labels: NDArray[np.integer], instances: NDArray[np.integer], structure: Sequence[int]) -> NDArray[np.int64]:
    """(N,) which points belong together: each instance by itself, each class in ``structure`` as a whole; 0 unknown."""
    group = np.where(np.isin(labels, structure), STRUCTURE + labels.astype(np.int64), instances.astype(np.int64))
    return np.where(instances == 0, 0, group)


def segment_scores(segment: NDArray[np.integer], truth: NDArray[np.int64]) -> dict[str, float]:
    """Purity, under-segmentation error and number of segments.

    Purity is the share of points whose group is the commonest of their segment, of all points and of those of things
    (no wall, floor, ceiling). Under-segmentation error: for each true group, how many points of other groups lie in the
    segments that overlap it, taking the smaller of inside and outside part (Neubert and Protzel 2012), over all points.
    """
    from scipy.sparse import coo_matrix

    known = truth > 0
    _, rows = np.unique(segment[known], return_inverse=True)
    names, columns = np.unique(truth[known], return_inverse=True)
    table = coo_matrix((np.ones(len(rows)), (rows.reshape(-1), columns.reshape(-1)))).tocsr()
    size = np.asarray(table.sum(axis=1)).ravel()
    commonest = np.asarray(table.argmax(axis=1)).ravel()
    right = commonest[rows.reshape(-1)] == columns.reshape(-1)
    entries = table.tocoo()
    leak = np.minimum(entries.data, size[entries.row] - entries.data).sum()
    things = names[columns.reshape(-1)] < STRUCTURE
    return {
        "segments": float(table.shape[0]),
        "purity": 100 * float(right.mean()),
        "purity of things": 100 * float(right[things].mean()) if things.any() else float("nan"),
        "under-segmentation": 100 * float(leak / len(rows)),
    }


def commonest(segment: NDArray[np.integer], truth: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) the commonest group of each point's segment: what perfect merging of whole segments would give."""
    from scipy.sparse import coo_matrix

    _, rows = np.unique(segment, return_inverse=True)
    names, columns = np.unique(truth, return_inverse=True)
    table = coo_matrix((np.ones(len(rows)), (rows.reshape(-1), columns.reshape(-1)))).tocsr()
    return np.asarray(names[np.asarray(table.argmax(axis=1)).ravel()][rows.reshape(-1)])


def nearest(points_m: NDArray[np.floating[Any]], rows: NDArray[np.int64], k: int = NEIGHBORS) -> NDArray[np.int64]:
    """(R, k) nearest other points of some."""
    from scipy.spatial import cKDTree

    _, found = cKDTree(points_m).query(points_m[rows], min(k + 1, len(points_m)))
    return np.asarray(found[:, 1:], dtype=np.int64)


def pair_scores(
    features: TeacherFeatures, truth: NDArray[np.int64], points_m: NDArray[np.floating[Any]], same: float, seed: int = 0
) -> dict[str, float]:
    """How well cosines tell "same thing" over the nearest neighbours of 5000 points.

    Besides all pairs of known points, those where at least one is of a thing: what counts, and the harder ones.
    """
    from sklearn.metrics import roc_auc_score

    cosine, one, other = _pairs(features, truth, points_m, seed)
    known, together = (one > 0) & (other > 0), one == other
    result: dict[str, float] = {}
    for name, use in (("", known), (" of things", known & ((one < STRUCTURE) | (other < STRUCTURE)))):
        truly, said = together[use], cosine[use] >= same
        result[f"AUC{name}"] = 100 * float(roc_auc_score(truly, cosine[use]))
        result[f"accuracy{name}"] = 100 * float((said == truly).mean())
        result[f"same found{name}"] = 100 * float(said[truly].mean())
        result[f"different found{name}"] = 100 * float((~said)[~truly].mean())
    return result


def calibration(
    features: TeacherFeatures, truth: NDArray[np.int64], points_m: NDArray[np.floating[Any]], seed: int = 0
) -> dict[str, dict[str, float]]:
    """How many of the pairs with cosines in a range there are, and how many of them truly are of one thing, percent."""
    cosine, one, other = _pairs(features, truth, points_m, seed)
    known = (one > 0) & (other > 0)
    cosines, together, result = cosine[known], (one == other)[known], {}
    bounds = (-1.0, 0.0, 0.2, 0.35, 0.5, 0.8, 0.97, 1.01)
    for low, high in pairwise(bounds):
        inside = (cosines >= low) & (cosines < high)
        share = float(together[inside].mean()) if inside.any() else float("nan")
        result[f"{low:g} to {min(high, 1):g}"] = {
            "share of pairs": 100 * float(inside.mean()),
            "same thing": 100 * share,
        }
    return result


def _pairs(
    features: TeacherFeatures, truth: NDArray[np.int64], points_m: NDArray[np.floating[Any]], seed: int
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Cosines (R, k) of 5000 points with their nearest, and true groups (R, 1), (R, k)."""
    rows = np.sort(np.random.default_rng(seed).permutation(len(truth))[:5000])
    near = nearest(points_m, rows)
    unit = features.rows.astype(np.float32)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-9)
    cosine = np.einsum("rkd,rd->rk", unit[features.index[near]], unit[features.index[rows]])
    return cosine, truth[rows][:, None], truth[near]


class PooledScores:
    """mIoU (ScanNet's 20 names) of one scene of a map, pooled with any affinity.

    Pooling is linear and the best of cosines does not depend on a length: scores are pooled instead of features.

    Args:
        scene: Voxels with labels in ``CLASS_NAMES`` of the procedural apartments.
        text: (20, C) float32 unit text features.
    """

    def __init__(self, scene: PreparedScene, text: NDArray[np.float32]) -> None:
        from geopurify_core.purification.affinity.neighbors import nearest_neighbors

        size = scene.voxel_size_m
        self.coords = np.rint(scene.points_m.astype(np.float64) / size - 0.5).astype(np.int64)
        self.neighbors: NDArray[np.int32] = nearest_neighbors(self.coords, NEIGHBORS)
        self._labels = scene.labels
        self._scores = scene.features.astype(np.float32) @ text.T

    def raw(self) -> float:
        """As it is."""
        return self._miou(self._scores)

    def pooled(self, embeddings: NDArray[np.float32], steps: int = 18) -> float:
        """With the affinity of (N, D) embeddings."""
        from geopurify_core.purification.affinity.build import build_affinity

        return self._with(build_affinity(self.coords, embeddings, neighbors=self.neighbors), steps)

    def pooled_within(self, truth: NDArray[np.int64], steps: int = 18) -> float:
        """With even weights within known groups: the most that pooling can reach."""
        from geopurify_core.purification.affinity.build import Affinity

        same = (truth[self.neighbors] == truth[:, None]).astype(np.float32)
        same[same.sum(axis=1) == 0] = 1
        return self._with(Affinity(self.neighbors, same / same.sum(axis=1, keepdims=True)), steps)

    def _with(self, affinity: Any, steps: int) -> float:
        from geopurify_core.purification.pooling.pool import pool

        return self._miou(pool(self._scores, affinity, steps))

    def _miou(self, values: NDArray[np.float32]) -> float:
        from geopurify_core.datasets.synthetic.kinds import SCANNET20
        from geopurify_core.evaluation.metrics import IGNORE, confusion_matrix, scores

        truth = np.where(self._labels < len(SCANNET20), self._labels, IGNORE)  # type: ignore[operator, arg-type]
        matrix = confusion_matrix(truth, values.argmax(axis=1).astype(np.uint8), len(SCANNET20))
        return 100 * float(scores(matrix, SCANNET20).miou)
