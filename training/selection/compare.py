"""How far choosing without labels agrees with choosing by them, and how steady both are.

``python -m training.selection.compare SCENES [--count 8] [--seeds 10]`` on prepared scenes that have labels.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from geopurify_core.cli.common import out
from training.selection.algorithm import SelectionSettings, select_scenes
from training.selection.sources import find_scenes, read_scenes
from training.selection.statistics import SceneStatistics

Chosen = frozenset[str]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", type=Path)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=10, help="of K-Means")
    arguments = parser.parse_args()
    ways = {
        without: read_scenes(find_scenes([arguments.scenes], without_labels=without))[0] for without in (False, True)
    }
    labelled, unlabelled = ways[False], ways[True]
    out.print(f"{len(labelled)} scenes, {arguments.count} chosen, seeds 0 to {arguments.seeds - 1} of K-Means")
    for name, values in (("N_c", _richness), ("H_c", _complexity)):
        rank = spearmanr(values(labelled), values(unlabelled)).statistic
        out.print(f"{name}, by labels and without: Spearman's rank correlation {rank:.2f}")
    runs = {}
    for name, scenes, shares in (
        ("labels, raw counts", labelled, False),
        ("labels, proportions", labelled, True),
        ("without labels", unlabelled, True),
    ):
        runs[name] = [chosen(scenes, arguments.count, shares, seed) for seed in range(arguments.seeds)]
        out.print(f"{name}: two seeds share {_mean_overlap(itertools.combinations(runs[name], 2)):.1f}")
    base = runs["labels, proportions"]
    both = _mean_overlap(zip(base, runs["without labels"], strict=True))
    chance = arguments.count**2 / len(labelled)
    out.print(f"labels, proportions and without labels share {both:.1f}; two random choices would share {chance:.1f}")
    for name, taken in runs.items():
        out.print(f"{name}: {_worth(labelled, taken)}")
    out.print(f"all scenes: {_worth(labelled, [frozenset(scene.name for scene in labelled)])}")


def chosen(scenes: Sequence[SceneStatistics], count: int, proportions: bool, seed: int) -> Chosen:
    """Names that Algorithm 1 picks with as many clusters as scenes."""
    settings = SelectionSettings(count=count, clusters=count, proportions=proportions, seed=seed)
    return frozenset(one.scene.name for one in select_scenes(scenes, settings).chosen)


def _mean_overlap(pairs: Iterable[tuple[Chosen, Chosen]]) -> float:
    return float(np.mean([len(a & b) for a, b in pairs]))


def _richness(scenes: Sequence[SceneStatistics]) -> list[float]:
    return [scene.richness for scene in scenes]


def _complexity(scenes: Sequence[SceneStatistics]) -> list[float]:
    return [scene.complexity_bits for scene in scenes]


def _worth(scenes: Sequence[SceneStatistics], choices: Sequence[Chosen]) -> str:
    """What labels say of the chosen scenes, on average."""
    taken = [[scene for scene in scenes if scene.name in names] for names in choices]
    means = [float(np.mean([measure(one) for one in taken])) for measure in (_richness, _complexity)]
    return f"mean N_c {means[0]:.2f}, mean H_c {means[1]:.3f} bits, by labels"


if __name__ == "__main__":
    main()
