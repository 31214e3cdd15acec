"""Train a Student Affinity Network: ``python -m training.student --out out/student --run first``.

Until a geometric teacher exists (offline distillation), procedural rooms stand in for one: which voxels belong together
is known. A step shows the student a square column cut from a mapped apartment and lowers the cross-entropy of the very
affinity that pooling will use, InfoNCE over known groups, or both. Scenes come from ``training.student_scenes``.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from geopurify_core.purification.student.network import StudentAffinityNetwork
from training.losses import affinity_loss, info_nce
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
        basis = torch.load(Path(recipe.start_from) / "checkpoint.pt", weights_only=True)["basis"].numpy()
    else:
        basis = semantic_basis(paths[:: max(1, len(paths) // 10)], recipe.rank)
    return Scenes(tuple(prepare(load_scene(path), basis) for path in paths), basis)


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up over 5 % of the steps, then a cosine down to 1 % of the peak."""
    warm = max(1, int(0.05 * recipe.steps))
    if step < warm:
        return recipe.lr * (step + 1) / warm
    fall = 0.5 * (1 + float(np.cos(np.pi * (step - warm) / max(1, recipe.steps - warm))))
    return recipe.lr * (0.01 + 0.99 * fall)


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


class Trainer:
    """Holds what a checkpoint must hold, so that an interrupted run goes on as if nothing had happened."""

    def __init__(self, recipe: Recipe, scenes: Scenes) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.scenes = recipe, scenes
        channels = scenes.basis.shape[1] + GEOMETRY
        self.net = StudentAffinityNetwork(channels, recipe.hidden, recipe.embedding, recipe.blocks)
        if recipe.start_from:
            earlier = torch.load(Path(recipe.start_from) / "checkpoint.pt", weights_only=True)
            self.net.load_state_dict(earlier["average"])
        self.average = copy.deepcopy(self.net)
        decay = [p for p in self.net.parameters() if p.ndim > 1]
        plain = [p for p in self.net.parameters() if p.ndim <= 1]
        groups = [{"params": decay, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=recipe.lr)
        self.step = 0

    def advance(self) -> dict[str, float]:
        """One optimisation step; the parts of its loss."""
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step, self.recipe)
        self.net.train()
        loss, parts = loss_at(self.net, self.scenes, self.step, self.recipe)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        length = torch.nn.utils.clip_grad_norm_(self.net.parameters(), 5.0)
        if not bool(torch.isfinite(length)):
            raise FloatingPointError(f"step {self.step}: the gradient is not finite; lower --lr (now {self.recipe.lr})")
        self.optimiser.step()
        self.step += 1
        self._update_average()
        return parts

    def _update_average(self) -> None:
        decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for kept, new in zip(self.average.state_dict().values(), self.net.state_dict().values(), strict=True):
                if kept.dtype.is_floating_point:
                    kept.lerp_(new, 1 - decay)
                else:
                    kept.copy_(new)

    def save(self, folder: Path) -> None:
        """Write the checkpoint into the folder, atomically."""
        state = {
            "net": self.net.state_dict(), "average": self.average.state_dict(), "step": self.step,
            "optimiser": self.optimiser.state_dict(), "recipe": asdict(self.recipe),
            "basis": torch.from_numpy(self.scenes.basis),
        }  # fmt: skip
        temporary = folder / "checkpoint.tmp"
        torch.save(state, temporary)
        temporary.replace(folder / "checkpoint.pt")

    def resume(self, folder: Path) -> bool:
        """Take up the checkpoint in the folder if it belongs to this recipe."""
        file = folder / "checkpoint.pt"
        if not file.exists():
            return False
        state = torch.load(file, weights_only=True)
        if state["recipe"] != asdict(self.recipe):
            log.warning("The checkpoint in %s belongs to another recipe; starting anew.", folder)
            return False
        self.net.load_state_dict(state["net"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = int(state["step"])
        return True


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
    from rich.progress import Progress

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1))
    trainer = Trainer(recipe, scenes)
    resumed = trainer.resume(folder)
    log.info("%s at step %d of %d", "resuming" if resumed else "starting", trainer.step, recipe.steps)
    began, recent = time.perf_counter(), []
    with Progress() as progress, (folder / "log.jsonl").open("a") as record:
        bar = progress.add_task("training the student", total=recipe.steps, completed=trainer.step)
        while trainer.step < recipe.steps:
            recent.append(trainer.advance())
            progress.update(bar, completed=trainer.step)
            if trainer.step % 20 == 0 or trainer.step == recipe.steps:
                means = {name: round(float(np.mean([r[name] for r in recent])), 5) for name in recent[0]}
                seconds = round(time.perf_counter() - began, 1)
                record.write(json.dumps({"step": trainer.step, **means, "seconds": seconds}) + "\n")
                record.flush()
                recent.clear()
            if trainer.step % save_every == 0 or trainer.step == recipe.steps:
                trainer.save(folder)
    return trainer.average


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/student"), help="scenes and runs")
    parser.add_argument("--run", default="run", help="sub-folder of this run")
    parser.add_argument("--threads", type=int, default=1)
    defaults = Recipe()
    for name, value in asdict(defaults).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    arguments = vars(parser.parse_args())
    recipe = Recipe(**{name: arguments[name] for name in asdict(defaults)})
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments["threads"])
    out: Path = arguments["out"]
    scenes = load_scenes(out, recipe)
    train(recipe, scenes, out / arguments["run"])
    log.info("next: python -m training.student_export %s", out / arguments["run"])


if __name__ == "__main__":
    main()
