"""What one scene adds to an evaluation: confusion matrices, which sum over scenes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopurify_core.errors import DatasetError
from geopurify_core.evaluation.metrics import IGNORE
from geopurify_core.evaluation.openscene import predict, readings_of, tally
from geopurify_core.evaluation.points import PointScores
from geopurify_core.labels import LabelSet

# Which points are judged: every labelled one, or those alone that had a feature before purification. The second
# compares raw and purified on the same points, where the first also credits purification with points it reaches.
ALL, SEEN = "all", "seen"
WHICH = (ALL, SEEN)

Confusion = NDArray[np.int64]


@dataclass(frozen=True)
class Key:
    """Names one confusion matrix of a scene.

    Attributes:
        variant: ``raw`` or ``T=18``.
        reading: Number of classes named, as ``20`` or ``19``.
        which: ``all`` or ``seen`` points.
    """

    variant: str
    reading: str
    which: str

    def __str__(self) -> str:
        return f"{self.variant}|{self.reading}|{self.which}"

    @classmethod
    def parse(cls, text: str) -> Key:
        """The inverse of ``str``."""
        return cls(*text.split("|"))


@dataclass(frozen=True)
class SceneCounts:
    """What one scene adds.

    Attributes:
        name: Of the scene.
        confusions: (n, n + 1) counts, see ``openscene.tally``.
        about: points, labelled, featureless (of each variant), seconds and the like; JSON values.
    """

    name: str
    confusions: Mapping[Key, Confusion]
    about: Mapping[str, Any] = field(default_factory=dict)


def count_scene(
    name: str,
    truth: NDArray[np.uint8],
    scores: Iterable[PointScores],
    labels: LabelSet,
    seen: NDArray[np.bool_] | None = None,
) -> SceneCounts:
    """Confusion matrices of all variants, for each reading of the label set, over all and over seen points.

    Args:
        name: Of the scene.
        truth: (N,) classes of the label set, 255 unknown.
        scores: Of each variant, (N, C) with a column for each class.
        labels: The label set.
        seen: (N,) which points had a feature before purification; by default those that the first variant has.

    Raises:
        DatasetError: No labelled point, a label outside the set, no point seen, scores of another size or not finite.
    """
    check_truth(name, truth, labels)
    confusions: dict[Key, Confusion] = {}
    featureless: dict[str, int] = {}
    for one in scores:
        _check(name, one, len(truth), len(labels))
        seen = ~one.featureless if seen is None else seen
        if not seen.any():
            raise DatasetError(name, "no point has a feature", "Are its poses, intrinsics and depth units those of it?")
        masked = np.where(seen, truth, IGNORE)
        featureless[one.variant] = int((one.featureless & (truth != IGNORE)).sum())
        for reading in readings_of(labels):
            predicted = predict(one.scores, reading, one.featureless)
            confusions[Key(one.variant, reading.name, ALL)] = tally(truth, predicted, reading)
            confusions[Key(one.variant, reading.name, SEEN)] = tally(masked, predicted, reading)
    about = {
        "points": len(truth),
        "labelled": int((truth != IGNORE).sum()),
        "seen": 0 if seen is None else int((seen & (truth != IGNORE)).sum()),
        "featureless": featureless,
    }
    return SceneCounts(name, confusions, about)


def check_truth(name: str, truth: NDArray[np.uint8], labels: LabelSet) -> None:
    """Raise DatasetError for a scene without a labelled point, or with labels outside the set."""
    if not (truth != IGNORE).any():
        raise DatasetError(name, "no labelled point", f"None of its points belongs to a class of {labels.name}.")
    worst = int(truth[truth != IGNORE].max())
    if worst >= len(labels):
        raise DatasetError(name, f"label {worst}", f"{labels.name} has {len(labels)} classes.")


def total_of(scenes: Iterable[SceneCounts]) -> dict[Key, Confusion]:
    """The sums over scenes. Raises DatasetError where they do not count the same things."""
    total: dict[Key, Confusion] = {}
    for number, scene in enumerate(scenes):
        if number and total.keys() != scene.confusions.keys():
            raise DatasetError(scene.name, sorted(map(str, scene.confusions)), "It was scored differently.")
        for key, confusion in scene.confusions.items():
            total[key] = total[key] + confusion if key in total else confusion.copy()
    return total


def _check(name: str, one: PointScores, points: int, classes: int) -> None:
    if one.scores.shape != (points, classes) or one.featureless.shape != (points,):
        raise DatasetError(name, one.scores.shape, f"Expected scores ({points}, {classes}).")
    if not np.isfinite(one.scores).all():
        raise DatasetError(name, f"{one.variant}: scores not finite", "Lift the scan again.")
