"""Closed-set labelling of a whole map, scored against ground truth at its voxels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from geopurify_core.evaluation.metrics import IGNORE, SegmentationScores, confusion_matrix, scores
from geopurify_core.querying.engine import QueryEngine


class LabelledScene(Protocol):
    """A scene that knows what is where, such as the procedural apartment."""

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the classes."""
        ...

    def ground_truth(self, points_m: NDArray[np.floating]) -> NDArray[np.uint8]:
        """(n,) class of each point (n, 3), 255 where there is none."""
        ...


def evaluate_map(engine: QueryEngine, scene: LabelledScene, names: Sequence[str] = ()) -> SegmentationScores:
    """mIoU, mAcc and the rest, over every voxel near a labelled surface, each voxel labelled by its best class name.

    Args:
        engine: The map, raw or purified.
        scene: What is where.
        names: The classes to tell apart, by default the scene's; voxels of the scene's other classes do not count.
    """
    names = list(names or scene.class_names)
    number = {name: index for index, name in enumerate(names)}
    table = np.full(256, IGNORE, dtype=np.int64)
    table[: len(scene.class_names)] = [number.get(name, IGNORE) for name in scene.class_names]
    predicted, _ = engine.segment(names)
    truth = table[scene.ground_truth(engine.snapshot.centers_m)]
    return scores(confusion_matrix(truth, predicted, len(names)), names)


def difference(before: SegmentationScores, after: SegmentationScores) -> dict[str, float]:
    """What ``after`` has gained (negative: lost) in ``miou``, ``macc`` and ``accuracy``."""
    return {name: getattr(after, name) - getattr(before, name) for name in ("miou", "macc", "accuracy")}
