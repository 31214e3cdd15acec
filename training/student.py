"""Train a Student Affinity Network: ``python -m training.student --out out/student --run first``.

Until a geometric teacher exists (offline distillation), procedural rooms stand in for one: which voxels belong together
is known. A step shows the student a square column cut from a mapped apartment and lowers the cross-entropy of the very
affinity that pooling will use, InfoNCE over known groups, or both. Scenes come from ``training.student_scenes``.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from geopurify_core.purification.student.network import StudentAffinityNetwork
from training.losses import affinity_loss, info_nce
from training.run import BaseTrainer, add_recipe, load_checkpoint, recipe_of, run_to_end, warm_cosine
from training.student_data import (
    GEOMETRY,
    Crop,
    Prepared,
    augment,
    draw_crop,
    draw_rows,
    group_samples,
    joined,
    nearest,
    prepare,
    semantic_basis,
)
from training.student_scenes import TRAINING_SEEDS, collect, load_scene

log = logging.getLogger("training.student")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result, besides the code.

    Attributes:
        apartments, walks: Training set (see ``student_scenes``).
        rank: Directions of the backbone's features that training looks at (nano's span 96).
        hidden, embedding, blocks: The network; ``embedding`` is the width of what it gives out.
        steps, lr, weight_decay: Optimisation (AdamW, warm-up, cosine).
        crop, crops: Voxels of a crop, and crops of a step.
        rows: Anchors of a step.
        neighbors, sharpening: K and the factor before the cosine, as pooling will use them.
        affinity, pull, contrast: Weights of the loss's parts: cross-entropy of the mass on the own group; the same for
            an even spread over the own group; InfoNCE over known groups.
        semantic_drop, semantic_noise: See ``student_data.augment``.
        ema: Decay of the averaged weights that are kept.
        start_from: Folder of an earlier run whose averaged weights, and whose basis, to start with; empty for random.
        seed: Of initial weights, order and augmentation.
    """

    apartments: int = 40
    walks: int = 1
    rank: int = 96
    hidden: int = 64
    embedding: int = 64
    blocks: int = 4
    steps: int = 1000
    lr: float = 3e-3
    weight_decay: float = 1e-2
    crop: int = 5_000
    crops: int = 2
    rows: int = 2048
    neighbors: int = 96
    sharpening: float = 20.0
    affinity: float = 1.0
    pull: float = 0.02
    contrast: float = 0.0
    semantic_drop: float = 0.1
    semantic_noise: float = 0.5
    ema: float = 0.99
    start_from: str = ""
    seed: int = 0


@dataclass(frozen=True)
class Scenes:
    """Prepared training scenes, and the basis of their semantic channels."""

    scenes: tuple[Prepared, ...]
    basis: NDArray[np.float32]


def load_scenes(folder: Path, recipe: Recipe) -> Scenes:
    """Collect what is missing below ``folder`` and prepare it."""
    paths = collect(folder / "train", TRAINING_SEEDS[: recipe.apartments], recipe.walks)
    if recipe.start_from:
        basis = load_checkpoint(recipe.start_from)["basis"].numpy()
    else:
        basis = semantic_basis(paths[:: max(1, len(paths) // 10)], recipe.rank)
    return Scenes(tuple(prepare(load_scene(path), basis) for path in paths), basis)


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up over 5 % of the steps, then a cosine down to 1 % of the peak."""
    return warm_cosine(step, recipe.steps, recipe.lr, warm=0.05, floor=0.01)


def crop_at(scenes: Scenes, step: int, recipe: Recipe, rng: np.random.Generator) -> Crop:
    """The augmented crops of a step; every scene has its turn before any comes again."""
    count, pieces = len(scenes.scenes), []
    for turn in range(step * recipe.crops, (step + 1) * recipe.crops):
        order = np.random.default_rng([recipe.seed, 1_000_000 + turn // count]).permutation(count)
        crop = draw_crop(scenes.scenes[order[turn % count]], recipe.crop, rng)
        pieces.append(augment(crop, rng, recipe.semantic_drop, recipe.semantic_noise))
    return joined(pieces)


def loss_at(net: nn.Module, scenes: Scenes, step: int, recipe: Recipe) -> tuple[Tensor, dict[str, float]]:
    """The loss of a step and its parts; crop, augmentation and samples are a function of seed and step alone."""
    rng = np.random.default_rng([recipe.seed, step])
    crop = crop_at(scenes, step, recipe, rng)
    rows = draw_rows(crop.groups, recipe.rows, rng)
    neighbors = nearest(crop.coords, rows, recipe.neighbors)
    samples = group_samples(crop.groups, rows, neighbors, 48, 16, rng)
    embeddings = net(crop.coords, crop.inputs)
    own, spread = affinity_loss(embeddings, rows, neighbors, crop.groups, recipe.sharpening)
    parts = {"affinity": own, "pull": spread}
    if recipe.contrast:
        parts["contrast"] = info_nce(embeddings, samples.anchors, samples.positives, samples.negatives)
    loss = torch.stack([getattr(recipe, name) * value for name, value in parts.items()]).sum()
    return loss, {name: float(value.detach()) for name, value in parts.items()}


class Trainer(BaseTrainer):
    """A student and the scenes it learns from."""

    def __init__(self, recipe: Recipe, scenes: Scenes) -> None:
        torch.manual_seed(recipe.seed)
        channels = scenes.basis.shape[1] + GEOMETRY
        net = StudentAffinityNetwork(channels, recipe.hidden, recipe.embedding, recipe.blocks)
        super().__init__(recipe, net, {"basis": torch.from_numpy(scenes.basis)})
        self.scenes = scenes

    def learning_rate(self) -> float:
        """Of the step at hand."""
        return learning_rate(self.step, self.recipe)

    def loss(self) -> tuple[Tensor, dict[str, float]]:
        """The loss of the step's crops, and its parts."""
        return loss_at(self.net, self.scenes, self.step, self.recipe)


def settle(net: nn.Module, scenes: Sequence[Prepared], recipe: Recipe, crops: int = 40) -> None:
    """Batch normalisation's statistics anew, for the weights as they are, from crops that were not augmented."""
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the crops
    net.train()
    rng = np.random.default_rng([recipe.seed, 2_000_000])
    with torch.no_grad():
        for i in range(crops):
            crop = draw_crop(scenes[i % len(scenes)], recipe.crop, rng)
            net(crop.coords, crop.inputs)
    net.eval()
    for norm in norms:
        norm.momentum = 0.1


def train(recipe: Recipe, scenes: Scenes, folder: Path, save_every: int = 50) -> StudentAffinityNetwork:
    """Run the recipe to its end (or on from its checkpoint); the averaged network, on compact inputs."""
    trainer = Trainer(recipe, scenes)
    run_to_end(trainer, folder, "training the student", save_every)
    return trainer.average


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/student"), help="scenes and runs")
    parser.add_argument("--run", default="run", help="sub-folder of this run")
    parser.add_argument("--threads", type=int, default=1)
    add_recipe(parser, Recipe())
    arguments = vars(parser.parse_args())
    recipe = recipe_of(arguments, Recipe)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments["threads"])
    out: Path = arguments["out"]
    scenes = load_scenes(out, recipe)
    train(recipe, scenes, out / arguments["run"])
    log.info("next: python -m training.student_export %s", out / arguments["run"])


if __name__ == "__main__":
    main()
