"""Train ``nano`` on procedural apartments: ``python -m training.nano --out out/nano``.

Loss: cross-entropy over cosines to text anchors (a random synonym of each kind at every second step), a small pull of
each pixel's feature towards its own anchor, and a confidence head that learns where the answer is right. Only seeds
from 1000 on are rendered for training; 100 to 119 serve the scores.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from geopurify_core.vision.nano_net import MEAN, STD, NanoNet, count_parameters
from training.nano_augment import augment
from training.nano_text import Anchors, load_anchors
from training.nano_views import FIRST_TRAINING_SEED, NOTHING, Views, render_views

log = logging.getLogger("training.nano")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result, besides the code.

    Attributes:
        apartments, views, wild: Rendered training set (see ``render_views``).
        steps, batch, lr, weight_decay: Optimisation (AdamW, one-cycle).
        temperature: Divides the cosines before the softmax.
        pull: Weight of 1 - cos to the pixel's own anchor.
        pixels: Share of the output cells that enter the loss.
        balance: A kind's weight is its share of the pixels to minus this power.
        crop, least: Width of a training crop, pixels, and the smallest share of the picture it keeps.
        ema: Decay of the averaged weights that are kept.
        start_from: Folder of an earlier run whose averaged weights to start with; empty for random ones.
        seed: Of initial weights, order and augmentation.
    """

    apartments: int = 260
    views: int = 12
    wild: float = 0.25
    steps: int = 2000
    batch: int = 16
    lr: float = 3e-3
    weight_decay: float = 0.02
    temperature: float = 0.06
    pull: float = 0.3
    pixels: float = 0.4
    balance: float = 0.5
    crop: int = 192
    least: float = 0.42
    ema: float = 0.995
    start_from: str = ""
    seed: int = 0


def batch_at(views: Views, step: int, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """The augmented batch of a step, a function of seed and step.

    Returns:
        (B, 3, 3/4 crop, crop) normalised images and kinds at a quarter of that size.
    """
    rng = np.random.default_rng([recipe.seed, step])
    per_epoch = max(1, len(views) // recipe.batch)
    order = np.random.default_rng([recipe.seed, 1_000_000 + step // per_epoch]).permutation(len(views))
    rows = np.resize(order[(step % per_epoch) * recipe.batch :], recipe.batch)
    pairs = [augment(views.rgb[i], views.kind[i], rng, recipe.crop, recipe.least) for i in rows]
    return normalise(np.stack([p[0] for p in pairs])), torch.from_numpy(np.stack([p[1] for p in pairs])).long()


def normalise(rgb: NDArray[np.uint8]) -> Tensor:
    """(B, H, W, 3) uint8 → (B, 3, H, W) float32 around zero, channels last in memory."""
    x = torch.from_numpy(rgb).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return ((x - mean) / std).contiguous(memory_format=torch.channels_last)


def class_weights(views: Views, kinds: int, balance: float) -> Tensor:
    """(K,) weights that soften the rule of walls and floors: share to the power of -balance, within 0.3 to 3."""
    counts = np.bincount(views.kind[:, ::8, ::8].ravel(), minlength=256)[:kinds].astype(np.float64)
    share = counts / counts.sum()
    weight = np.maximum(share, 1e-5) ** -balance
    weight = weight / (weight * share).sum()
    return torch.tensor(np.clip(weight, 0.3, 3.0), dtype=torch.float32)


def _thinned(shape: torch.Size, recipe: Recipe, step: int) -> Tensor:
    """Mask of the output cells that enter the loss of a step."""
    source = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    return torch.rand(shape, generator=source) < recipe.pixels


def loss_at(
    net: NanoNet, images: Tensor, target: Tensor, anchors: Anchors, weights: Tensor, step: int, recipe: Recipe
) -> tuple[Tensor, float]:
    """The loss of one batch and the share of pixels whose class comes out right.

    Every other step draws synonyms; then kinds of the same class do not compete, since they share words ("wardrobe" and
    "sideboard" may both be called "cabinet"). The other steps use each kind's own name and let all kinds compete.
    """
    synonyms = step % 2 == 0
    texts = torch.from_numpy(anchors.pick(np.random.default_rng([recipe.seed, 7, step]) if synonyms else None))
    classes = torch.from_numpy(anchors.class_of_kind)
    with torch.autocast("cpu", torch.bfloat16):
        neck = net.neck(images)
    picked = (target != NOTHING) & (_thinned(target.shape, recipe, step))  # neighbours say nearly the same
    wanted = target[picked]
    cosine = net.cosines(neck.permute(0, 2, 3, 1)[picked].float(), texts)
    logits = cosine / recipe.temperature
    if synonyms:
        rivals = classes[None, :] == classes[wanted][:, None]
        own = F.one_hot(wanted, len(classes)).bool()
        logits = logits.masked_fill(rivals & ~own, -1e4)
    own_cosine = cosine.gather(1, wanted[:, None])[:, 0]
    weight = weights[wanted]
    loss = (F.cross_entropy(logits, wanted, reduction="none") * weight).sum() / weight.sum()
    loss = loss + recipe.pull * ((1 - own_cosine) * weight).sum() / weight.sum()
    right = (classes[logits.argmax(1)] == classes[wanted]).float()
    trust = net.trust(neck.detach().float())[:, 0][picked]
    return loss + 0.2 * F.binary_cross_entropy_with_logits(trust, right), float(right.mean())


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up over 4 % of the steps, then a cosine down to zero."""
    warm = max(1, int(0.04 * recipe.steps))
    if step < warm:
        return recipe.lr * (step + 1) / warm
    return recipe.lr * 0.5 * (1 + float(np.cos(np.pi * (step - warm) / max(1, recipe.steps - warm))))


class Trainer:
    """Holds what a checkpoint must hold, so that an interrupted run goes on as if nothing had happened."""

    def __init__(self, recipe: Recipe, views: Views, anchors: Anchors) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.views, self.anchors = recipe, views, anchors
        self.net = NanoNet().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if recipe.start_from:
            earlier = torch.load(Path(recipe.start_from) / "checkpoint.pt", weights_only=True)
            self.net.load_state_dict(earlier["average"])
        self.average = copy.deepcopy(self.net).eval()
        decay = [p for p in self.net.parameters() if p.ndim > 1]
        plain = [p for p in self.net.parameters() if p.ndim <= 1]
        groups = [{"params": decay, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=recipe.lr)
        self.weights = class_weights(views, len(anchors.words), recipe.balance)
        self.step = 0

    def advance(self) -> tuple[float, float]:
        """One optimisation step; its loss and pixel accuracy."""
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step, self.recipe)
        self.net.train()
        images, target = batch_at(self.views, self.step, self.recipe)
        loss, right = loss_at(self.net, images, target, self.anchors, self.weights, self.step, self.recipe)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 5.0)
        self.optimiser.step()
        self.step += 1
        self._update_average()
        return float(loss.detach()), right

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
            "net": self.net.state_dict(), "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(), "step": self.step, "recipe": asdict(self.recipe),
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


def train(recipe: Recipe, views: Views, folder: Path, anchors: Anchors | None = None, save_every: int = 100) -> NanoNet:
    """Run the recipe to its end (or on from its checkpoint); the averaged network."""
    from rich.progress import Progress

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1))
    trainer = Trainer(recipe, views, anchors or load_anchors())
    resumed = trainer.resume(folder)
    log.info("%s at step %d of %d", "resuming" if resumed else "starting", trainer.step, recipe.steps)
    began, recent = time.perf_counter(), []
    with Progress() as progress, (folder / "log.jsonl").open("a") as record:
        bar = progress.add_task("training nano", total=recipe.steps, completed=trainer.step)
        while trainer.step < recipe.steps:
            recent.append(trainer.advance())
            progress.update(bar, completed=trainer.step)
            if trainer.step % 20 == 0 or trainer.step == recipe.steps:
                loss, right = np.mean(recent, axis=0)
                line = {"step": trainer.step, "loss": round(float(loss), 4), "pixel_acc": round(float(right), 4)}
                record.write(json.dumps({**line, "seconds": round(time.perf_counter() - began, 1)}) + "\n")
                record.flush()
                recent.clear()
            if trainer.step % save_every == 0 or trainer.step == recipe.steps:
                trainer.save(folder)
    return trainer.average


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/nano"), help="views, checkpoint, log, exported weights")
    parser.add_argument("--run", default="run", help="sub-folder of this run")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1, help="rendering processes, at most 2")
    defaults = Recipe()
    for name, value in asdict(defaults).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    arguments = vars(parser.parse_args())
    recipe = Recipe(**{name: arguments[name] for name in asdict(defaults)})
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments["threads"])
    out: Path = arguments["out"]
    views = render_views(
        out / "train", FIRST_TRAINING_SEED, recipe.apartments, recipe.views, recipe.wild, arguments["processes"]
    )
    net = train(recipe, views, out / arguments["run"])
    log.info("%d parameters; next: python -m training.nano_export %s", count_parameters(net), out / arguments["run"])


if __name__ == "__main__":
    main()
