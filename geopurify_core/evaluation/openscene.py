"""OpenScene's scores at scan points: what counts, what does not, and every mean that the papers print.

* Points whose true label is 255 do not count, whatever was predicted there.
* A point without a feature is predicted ``NO_FEATURE``. It is no hit and nobody's false alarm; it is **dropped from the
  false negatives, hence from the IoU**, but stays in the denominator of the accuracy.
* A class that the ground truth does not hold has IoU and accuracy 0 and stays in the mean over all classes. The means
  over the classes that are present are given beside it.
* Counts are summed over all scenes before anything is divided.

GeoPurify's code does the same, except that points without a feature copy their nearest neighbour's (so there are none),
and that ScanNet's ``otherfurniture`` is neither named nor counted (19 classes). Source: ``evaluation.md`` F (OpenScene
``util/metric.py``), ``geopurify.md`` A.12.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopurify_core.errors import InvalidConfigError
from geopurify_core.evaluation.metrics import IGNORE, confusion_matrix
from geopurify_core.labels import LabelSet

NO_FEATURE = 256


@dataclass(frozen=True)
class Reading:
    """The classes of a label set that are named and counted; points of the others are ignored.

    Attributes:
        name: As it is printed: the number of classes.
        classes: Their indices in the label set.
    """

    name: str
    classes: tuple[int, ...]

    def names(self, labels: LabelSet) -> tuple[str, ...]:
        """Names of the classes."""
        return tuple(labels.names[i] for i in self.classes)


def readings_of(labels: LabelSet) -> tuple[Reading, ...]:
    """All classes (OpenScene), and where there is a catch-all class, all but that (GeoPurify): 20 and 19 in ScanNet."""
    everything = tuple(range(len(labels)))
    found = [Reading(str(len(labels)), everything)]
    if labels.catch_all:
        other = labels.names.index(labels.catch_all)
        found.append(Reading(str(len(labels) - 1), tuple(i for i in everything if i != other)))
    return tuple(found)


def predict(scores: NDArray[np.floating[Any]], reading: Reading, featureless: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The best class of each point as a position in ``reading.classes``, or ``NO_FEATURE``.

    Args:
        scores: (N, C), one column for each class of the label set.
        reading: Which columns may win; the first of equals does.
        featureless: (N,) which points have no feature.
    """
    best: NDArray[np.int64] = scores[:, list(reading.classes)].argmax(axis=1).astype(np.int64)
    best[featureless] = NO_FEATURE
    return best


def tally(truth: NDArray[np.integer[Any]], predicted: NDArray[np.int64], reading: Reading) -> NDArray[np.int64]:
    """Counts (n, n + 1): true class by predicted class, the last column for points without a feature.

    Args:
        truth: (N,) classes of the label set, 255 unknown.
        predicted: (N,) of :func:`predict`.
        reading: The n classes.

    Raises:
        InvalidConfigError: Lengths differ.
    """
    place = np.full(256, IGNORE, dtype=np.int64)
    place[list(reading.classes)] = np.arange(len(reading.classes))
    return confusion_matrix(place[np.asarray(truth, dtype=np.int64)], predicted, len(reading.classes))


@dataclass(frozen=True)
class ClassScores:
    """Scores of each of n classes, in [0, 1].

    Attributes:
        names: Class names.
        iou, acc: (n,) float64; 0 for a class that is absent.
        points: (n,) int64 labelled points.
        featureless: (n,) int64, how many of them have no feature.
        accuracy: Share of all labelled points that are right.
    """

    names: tuple[str, ...]
    iou: NDArray[np.float64]
    acc: NDArray[np.float64]
    points: NDArray[np.int64]
    featureless: NDArray[np.int64]
    accuracy: float

    @property
    def absent(self) -> tuple[str, ...]:
        """Classes that the ground truth does not hold."""
        return tuple(name for name, count in zip(self.names, self.points, strict=True) if not count)

    def means(self, classes: Sequence[int] | None = None) -> dict[str, float]:
        """``miou`` and ``macc`` over all classes, an absent one counting 0, and ``*_present`` over those that occur.

        Args:
            classes: Positions of the classes to average over; by default all. A mean over nothing is 0.
        """
        chosen = np.arange(len(self.names)) if classes is None else np.asarray(classes, dtype=np.int64)
        there = chosen[self.points[chosen] > 0]
        return {
            "miou": _mean(self.iou[chosen]),
            "macc": _mean(self.acc[chosen]),
            "miou_present": _mean(self.iou[there]),
            "macc_present": _mean(self.acc[there]),
        }


def class_scores(confusion: NDArray[np.int64], names: Sequence[str]) -> ClassScores:
    """IoU = TP / (TP + FP + FN) without the points that have no feature, accuracy = TP / all points of the class.

    Args:
        confusion: (n, n + 1) of :func:`tally`, summed over scenes.
        names: n class names.

    Raises:
        InvalidConfigError: The shape does not fit the names.
    """
    if confusion.shape != (len(names), len(names) + 1):
        raise InvalidConfigError("confusion", confusion.shape, f"Expected {(len(names), len(names) + 1)}.")
    hits = np.diag(confusion).astype(np.float64)
    seen, predicted = confusion[:, :-1].sum(axis=1), confusion[:, :-1].sum(axis=0)
    points = confusion.sum(axis=1)
    union = np.where(points > 0, seen + predicted - hits, 0)  # an absent class scores 0, whatever was taken for it
    return ClassScores(
        names=tuple(names),
        iou=hits / np.maximum(union, 1),
        acc=hits / np.maximum(points, 1),
        points=points,
        featureless=confusion[:, -1].copy(),
        accuracy=float(hits.sum() / max(points.sum(), 1)),
    )


def summary(confusion: NDArray[np.int64], labels: LabelSet, reading: Reading) -> dict[str, Any]:
    """Everything that is reported of one confusion matrix, as plain values.

    ``miou``, ``macc``, ``miou_present``, ``macc_present``, ``accuracy``; ``groups`` with the same four means for each
    group of the label set (``foreground`` gives f-mIoU and f-mAcc) and, over all classes, for ``without <catch-all>``,
    which names the catch-all class but leaves it out of the mean; ``classes`` with iou, acc, points and featureless;
    ``absent``; ``points``; ``featureless``.
    """
    result = class_scores(confusion, reading.names(labels))
    place = {index: position for position, index in enumerate(reading.classes)}
    groups = {name: [place[i] for i in members if i in place] for name, members in labels.groups.items()}
    if labels.catch_all in result.names:
        kept = [i for i, name in enumerate(result.names) if name != labels.catch_all]
        groups[f"without {labels.catch_all}"] = kept
    return {
        **result.means(),
        "accuracy": result.accuracy,
        "groups": {name: {**result.means(members), "classes": len(members)} for name, members in groups.items()},
        "classes": {
            name: {
                "iou": float(result.iou[i]),
                "acc": float(result.acc[i]),
                "points": int(result.points[i]),
                "featureless": int(result.featureless[i]),
            }
            for i, name in enumerate(result.names)
        },
        "absent": list(result.absent),
        "points": int(result.points.sum()),
        "featureless": int(result.featureless.sum()),
    }


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else 0.0
