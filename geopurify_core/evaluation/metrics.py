"""Semantic segmentation scores: one confusion matrix, everything else follows from it.

A prediction that names no class counts as a miss here, as it must where a whole map is labelled; ``openscene.py``
leaves points without a feature out of the IoU, as OpenScene does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geopurify_core.errors import InvalidConfigError

IGNORE = 255


@dataclass(frozen=True)
class SegmentationScores:
    """Scores of one confusion matrix, each in [0, 1].

    Attributes:
        miou, macc: Means over the classes that the ground truth holds.
        miou_all, macc_all: Means over all classes, an absent one counting 0, as OpenScene and GeoPurify report them.
        accuracy: Share of the labelled points that are right.
        iou, acc: Class name → value; classes that the ground truth does not hold are left out.
    """

    miou: float
    macc: float
    miou_all: float
    macc_all: float
    accuracy: float
    iou: dict[str, float]
    acc: dict[str, float]


def confusion_matrix(truth: ArrayLike, predicted: ArrayLike, num_classes: int) -> NDArray[np.int64]:
    """Counts (num_classes, num_classes + 1): rows are true classes, columns predicted ones.

    The last column counts predictions outside 0..num_classes-1 (a point without a feature, say): they are no hit of any
    class, but stay in the truth's row.

    Args:
        truth: (N,) integers; 255 is ignored.
        predicted: (N,) integers.
        num_classes: Number of classes.

    Raises:
        InvalidConfigError: The lengths differ, or a true label is neither a class nor 255.
    """
    t, p = np.asarray(truth, dtype=np.int64).ravel(), np.asarray(predicted, dtype=np.int64).ravel()
    if len(t) != len(p):
        raise InvalidConfigError("predicted", len(p), f"Give one prediction for each of the {len(t)} labels.")
    keep = t != IGNORE
    t, p = t[keep], p[keep]
    if len(t) and not (t.min() >= 0 and t.max() < num_classes):
        raise InvalidConfigError(
            "truth", (int(t.min()), int(t.max())), f"Labels lie in 0..{num_classes - 1}, or are 255."
        )
    p = np.where((p >= 0) & (p < num_classes), p, num_classes)
    counts = np.bincount(t * (num_classes + 1) + p, minlength=num_classes * (num_classes + 1))
    return counts.reshape(num_classes, num_classes + 1)


def scores(confusion: NDArray[np.int64], names: Sequence[str]) -> SegmentationScores:
    """IoU = TP / (TP + FP + FN) and accuracy = TP / (TP + FN) of each class, and their means."""
    hits = np.diag(confusion).astype(np.float64)
    true, predicted = confusion.sum(axis=1), confusion[:, : len(names)].sum(axis=0)
    iou = hits / np.maximum(true + predicted - hits, 1)
    acc = hits / np.maximum(true, 1)
    there = true > 0

    def mean(values: NDArray[np.float64]) -> float:
        return float(values.mean()) if len(values) else 0.0

    return SegmentationScores(
        miou=mean(iou[there]),
        macc=mean(acc[there]),
        miou_all=mean(iou),
        macc_all=mean(acc),
        accuracy=float(hits.sum() / max(true.sum(), 1)),
        iou={name: float(iou[i]) for i, name in enumerate(names) if there[i]},
        acc={name: float(acc[i]) for i, name in enumerate(names) if there[i]},
    )
