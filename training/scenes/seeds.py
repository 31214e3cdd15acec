"""Which procedural apartments serve for what, so that nothing is trained on what it is scored by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from geopurify_core.errors import DatasetError
from training.nano.views import FIRST_TRAINING_SEED, VALIDATION_SEEDS

# Below nano's training seeds, so that nano errs on these apartments as on any other, and apart from everything scored.
TRAINING_SEEDS = range(300, 400)
CHOICE_SEEDS = range(200, 210)
EVALUATION_SEEDS = range(10, 30)
_DEMO_SEEDS = range(10)
_EVALUATION_FRAMES = 120


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuse apartments on which nano was trained or on which anything is scored or shown.

    Raises:
        DatasetError: With the first such seed.
    """
    taken = (*_DEMO_SEEDS, *EVALUATION_SEEDS, *VALIDATION_SEEDS)
    for seed in seeds:
        if seed >= FIRST_TRAINING_SEED or seed in taken:
            raise DatasetError("seeds", seed, f"Take seeds below {FIRST_TRAINING_SEED} that nobody scores, as 300.")


def check_evaluation_seeds(seeds: Sequence[int]) -> None:
    """Refuse apartments that something was, or may be, trained on. Raises DatasetError with the first such seed."""
    for seed in seeds:
        if seed not in EVALUATION_SEEDS and seed not in CHOICE_SEEDS:
            known = f"{EVALUATION_SEEDS[0]} to {EVALUATION_SEEDS[-1]}, or {CHOICE_SEEDS[0]} to {CHOICE_SEEDS[-1]}"
            raise DatasetError("seeds", seed, f"Apartments to score by have seeds {known}.")


def walk_of(seed: int, walk: int = 0) -> tuple[int, int]:
    """Length and used part of a walk, a function of its numbers.

    50 to 130 frames, of which 45 to 100 % are walked, so that maps are as partial as a robot's; evaluation rooms are
    walked through in full.
    """
    if seed in EVALUATION_SEEDS:
        return _EVALUATION_FRAMES, _EVALUATION_FRAMES
    rng = np.random.default_rng([seed, walk, 31])
    length = int(rng.integers(50, 131))
    return length, max(20, round(length * rng.uniform(0.45, 1.0)))
