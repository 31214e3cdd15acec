"""Algorithm 1 of GeoPurify (A.2): drop poor scenes, cluster the others, take the best of each cluster.

What the paper leaves open is decided here, and each decision is tested:

* Scenes are taken in the order of their names, and of two with equal scores the first by name wins, so that the order
  of files on a disk does not matter.
* A column that is constant over the filtered scenes is scaled to zeros.
* Where a cluster has fewer scenes than its share, the free places go to the best of the remaining filtered scenes,
  whatever their cluster. Those are marked ``filled``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopurify_core.errors import DatasetError, InvalidConfigError
from training.selection.statistics import SceneStatistics, stack_histograms


@dataclass(frozen=True)
class SelectionSettings:
    """What decides a selection.

    Attributes:
        count: Scenes to choose, K_subset.
        clusters: K of K-Means, K_clusters.
        gamma: Weight of richness beside complexity, γ of eq. 6.
        proportions: Cluster the proportions of the classes; by default their raw counts as in the released code, in
            which large scenes lie far from small ones whatever is in them.
        keep_all: Leave out the median filter: for those who have few scenes.
        seed: Of K-Means; the released code's.
    """

    count: int = 20
    clusters: int = 20
    gamma: float = 0.5
    proportions: bool = False
    keep_all: bool = False
    seed: int = 42

    def __post_init__(self) -> None:
        for name in ("count", "clusters"):
            if getattr(self, name) < 1:
                raise InvalidConfigError(name, getattr(self, name), "Give a positive number.")
        if not (math.isfinite(self.gamma) and self.gamma >= 0):
            raise InvalidConfigError("gamma", self.gamma, "Give a finite number, 0 or more.")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> SelectionSettings:
        """``paper``, ``paper-matterport``, ``official_code`` or ``own``, with ``changes`` on top.

        Raises:
            InvalidConfigError: There is no such preset, or a value out of range.
        """
        if name not in PRESETS:
            raise InvalidConfigError("preset", name, f"Choose one of {', '.join(PRESETS)}.")
        return replace(PRESETS[name], **changes)


PRESETS = {
    "paper": SelectionSettings(count=20, clusters=20, gamma=0.5),  # A.2, ScanNet
    "paper-matterport": SelectionSettings(count=20, clusters=12, gamma=0.5),  # A.2
    "official_code": SelectionSettings(count=20, clusters=21, gamma=1.0),  # defaults of the released script
    "own": SelectionSettings(count=20, clusters=20, gamma=0.5, proportions=True),  # ours: scenes of all sizes
}


@dataclass(frozen=True)
class ScoredScene:
    """A scene and what became of it.

    Attributes:
        scene: Its statistics.
        passed: Whether it passed the median filter.
        cluster: 0 … K-1; -1 where it did not pass.
        score: S of eq. 6; NaN where it did not pass.
        chosen: Whether it was chosen,
        filled: and whether because a cluster was smaller than its share.
    """

    scene: SceneStatistics
    passed: bool
    cluster: int = -1
    score: float = math.nan
    chosen: bool = False
    filled: bool = False


@dataclass(frozen=True)
class Selection:
    """What Algorithm 1 chose, and from what.

    Attributes:
        scenes: All scenes, by name.
        median_richness, median_complexity_bits: Of the filter.
        settings: That it was made with.
    """

    scenes: tuple[ScoredScene, ...]
    median_richness: float
    median_complexity_bits: float
    settings: SelectionSettings

    @property
    def chosen(self) -> list[ScoredScene]:
        """The chosen scenes, by name."""
        return [scene for scene in self.scenes if scene.chosen]

    @property
    def filled(self) -> int:
        """How many were taken beyond the shares of their clusters."""
        return sum(scene.filled for scene in self.scenes)


def select_scenes(scenes: Sequence[SceneStatistics], settings: SelectionSettings | None = None) -> Selection:
    """Run Algorithm 1.

    Raises:
        DatasetError: Two scenes of one name, or fewer scenes pass the filter than are wanted, or than clusters.
    """
    settings = settings or SelectionSettings()
    ordered = sorted(scenes, key=lambda scene: scene.name)
    names = [scene.name for scene in ordered]
    if len(set(names)) < len(names):
        twice = next(a for a, b in pairwise(names) if a == b)
        raise DatasetError("scenes", twice, "Two scenes have this name; leave one out.")
    richness = np.array([scene.richness for scene in ordered], dtype=np.float64)
    complexity = np.array([scene.complexity_bits for scene in ordered], dtype=np.float64)
    _check_total(len(ordered), settings)
    medians = float(np.median(richness)), float(np.median(complexity))
    passed = (richness >= medians[0]) & (complexity >= medians[1]) | settings.keep_all
    rows = np.flatnonzero(passed)
    _check_passed(len(rows), len(ordered), settings)
    cluster = _clusters(stack_histograms([ordered[row] for row in rows]), settings)
    score = min_max(complexity[rows]) + settings.gamma * min_max(richness[rows])
    chosen, filled = pick(cluster, score, settings)
    scored = [ScoredScene(scene, bool(ok)) for scene, ok in zip(ordered, passed, strict=True)]
    for i, row in enumerate(rows):
        label, points = int(cluster[i]), float(score[i])
        scored[row] = ScoredScene(ordered[row], True, label, points, i in chosen, i in filled)
    return Selection(tuple(scored), *medians, settings)


def min_max(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(S,) scaled to [0, 1]; zeros where all are equal."""
    span = values.max() - values.min()
    scaled: NDArray[np.float64] = (values - values.min()) / span if span > 0 else np.zeros_like(values)
    return scaled


def pick(
    cluster: NDArray[np.integer], score: NDArray[np.float64], settings: SelectionSettings
) -> tuple[set[int], set[int]]:
    """Phase 5: ⌊count / K⌋ of each cluster, one more of the first count mod K of them, and what is missing by score.

    Args:
        cluster, score: (S,) of each filtered scene, in the order of their names.
        settings: ``count`` and ``clusters``.

    Returns:
        Rows that are chosen, and those of them that fill up for clusters smaller than their share.
    """
    base, remainder = divmod(settings.count, settings.clusters)
    best_first = np.lexsort((np.arange(len(score)), -score))  # equal scores: by name
    chosen: set[int] = set()
    for label in range(settings.clusters):
        members = [int(row) for row in best_first if cluster[row] == label]
        chosen.update(members[: base + (label < remainder)])
    rest = [int(row) for row in best_first if row not in chosen]
    filled = set(rest[: settings.count - len(chosen)])
    return chosen | filled, filled


def _clusters(histograms: NDArray[np.float64], settings: SelectionSettings) -> NDArray[np.intp]:
    """(S,) labels of K-Means as the released code runs it; in one thread, since sums in another order may differ."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped, unused-ignore]

    if settings.proportions:
        histograms = histograms / histograms.sum(axis=1, keepdims=True)
    model = KMeans(settings.clusters, random_state=settings.seed, n_init="auto")
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # equal histograms: empty clusters, which `pick` fills up
        labels: NDArray[np.intp] = model.fit_predict(histograms)
    return labels


def _check_total(total: int, settings: SelectionSettings) -> None:
    if not total:
        raise DatasetError("scenes", 0, "There is nothing to choose from.")
    if total <= settings.count and not settings.keep_all:
        raise DatasetError("scenes", total, f"{settings.count} are wanted: use all of them, or lower --count.")


def _check_passed(passed: int, total: int, settings: SelectionSettings) -> None:
    """As many must pass the filter as are wanted, and as there are clusters."""
    for wanted, option in ((settings.count, "--count"), (settings.clusters, "--clusters")):
        if passed < wanted:
            means = f"Only {passed} of {total} scenes can be chosen from, {wanted} are wanted by {option}"
            remedy = "" if settings.keep_all else ", or leave out the filter with --keep-all"
            raise DatasetError("scenes", passed, f"{means}: lower it to {passed} or less, give more scenes{remedy}.")
