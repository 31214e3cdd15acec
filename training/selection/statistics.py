"""What Algorithm 1 knows about a scene: how many points each class has, and what follows from that."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geopurify_core.errors import DatasetError

NO_LABEL = 255


@dataclass(frozen=True)
class SceneStatistics:
    """One scene as Algorithm 1 sees it.

    Attributes:
        name: Unique among the scenes to choose from.
        histogram: (C,) int64, points of each class. Points without a label are in none of them.
        source: Where the scene lies, as ``python -m training prepare`` takes it; empty where nobody knows.
    """

    name: str
    histogram: NDArray[np.int64]
    source: Path | None = field(default=None, compare=False)

    @property
    def richness(self) -> int:
        """N_c, the number of classes that occur."""
        return richness(self.histogram)

    @property
    def complexity_bits(self) -> float:
        """H_c, the entropy of the classes' proportions, bits (eq. 5)."""
        return entropy_bits(self.histogram)


def richness(histogram: ArrayLike) -> int:
    """Number of classes with at least one point."""
    return int(np.count_nonzero(histogram))


def entropy_bits(histogram: ArrayLike) -> float:
    """Shannon entropy of a (C,) histogram: -Σ p log2 p over what occurs (GeoPurify, eq. 5); 0 for an empty one."""
    counts = np.asarray(histogram, dtype=np.float64)
    counts = counts[counts > 0]
    if not len(counts):
        return 0.0
    p = counts / counts.sum()
    return max(0.0, float(-(p * np.log2(p)).sum()))


def count_labels(labels: NDArray[np.integer], classes: int | None, scene: str) -> NDArray[np.int64]:
    """(C,) points of each class.

    Args:
        labels: (N,) class indices; 255 and negative numbers mean none.
        classes: Size of the label set, or None where it is not known: then C is the largest index + 1.
        scene: For the message.

    Raises:
        DatasetError: No point, no labelled point, or a label outside the set.
    """
    values = np.asarray(labels).astype(np.int64).ravel()
    if not len(values):
        raise DatasetError(scene, "no points", "The scene is empty; leave it out.")
    values = values[(values >= 0) & (values != NO_LABEL)]
    if not len(values):
        raise DatasetError(scene, "no labelled point", "Choose with --without-labels, or leave the scene out.")
    highest = int(values.max())
    if highest >= (classes if classes is not None else NO_LABEL):
        limit = "a byte" if classes is None else f"a set of {classes}"
        raise DatasetError(scene, f"label {highest}", f"It is outside {limit}; name the right one with --label-set.")
    return np.bincount(values, minlength=classes or 0).astype(np.int64)


def stack_histograms(scenes: list[SceneStatistics]) -> NDArray[np.float64]:
    """(S, C) histograms, one row a scene; shorter ones are filled up with zeros."""
    matrix = np.zeros((len(scenes), max((len(scene.histogram) for scene in scenes), default=0)))
    for row, scene in zip(matrix, scenes, strict=True):
        row[: len(scene.histogram)] = scene.histogram
    return matrix
