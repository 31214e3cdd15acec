"""Train ``nano`` on procedural apartments: ``python -m training.nano.train --out out/nano``.

Loss: cross-entropy over cosines to text anchors (a random synonym of each kind at every second step), a small pull of
each pixel's feature towards its own anchor, and a confidence head that learns where the answer is right. Only seeds
from 1000 on are rendered for training; 100 to 119 serve the scores.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from geopurify_core.vision.nano_net import MEAN, STD, NanoNet, count_parameters
from training.nano.augment import augment
from training.nano.run import BaseTrainer, add_recipe, recipe_of, run_to_end, warm_cosine
from training.nano.text import Anchors, load_anchors
from training.nano.views import FIRST_TRAINING_SEED, NOTHING, Views, render_views

log = logging.getLogger("training.nano.train")


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
    return warm_cosine(step, recipe.steps, recipe.lr, warm=0.04)


class Trainer(BaseTrainer):
    """``nano``, its views and its text anchors."""

    def __init__(self, recipe: Recipe, views: Views, anchors: Anchors) -> None:
        torch.manual_seed(recipe.seed)
        super().__init__(recipe, NanoNet().to(memory_format=torch.channels_last))  # type: ignore[call-overload]
        self.views, self.anchors = views, anchors
        self.weights = class_weights(views, len(anchors.words), recipe.balance)

    def learning_rate(self) -> float:
        """Of the step at hand."""
        return learning_rate(self.step, self.recipe)

    def loss(self) -> tuple[Tensor, dict[str, float]]:
        """The loss of the step's batch, and its pixel accuracy."""
        images, target = batch_at(self.views, self.step, self.recipe)
        loss, right = loss_at(self.net, images, target, self.anchors, self.weights, self.step, self.recipe)
        return loss, {"loss": float(loss.detach()), "pixel_acc": right}


def train(recipe: Recipe, views: Views, folder: Path, anchors: Anchors | None = None, save_every: int = 100) -> NanoNet:
    """Run the recipe to its end (or on from its checkpoint); the averaged network."""
    trainer = Trainer(recipe, views, anchors or load_anchors())
    run_to_end(trainer, folder, "training nano", save_every)
    return trainer.average


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/nano"), help="views, checkpoint, log, exported weights")
    parser.add_argument("--run", default="run", help="sub-folder of this run")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1, help="rendering processes, at most 2")
    add_recipe(parser, Recipe())
    arguments = vars(parser.parse_args())
    recipe = recipe_of(arguments, Recipe)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments["threads"])
    out: Path = arguments["out"]
    views = render_views(
        out / "train", FIRST_TRAINING_SEED, recipe.apartments, recipe.views, recipe.wild, arguments["processes"]
    )
    net = train(recipe, views, out / arguments["run"])
    log.info("%d parameters; next: python -m training.nano.export %s", count_parameters(net), out / arguments["run"])


if __name__ == "__main__":
    main()
