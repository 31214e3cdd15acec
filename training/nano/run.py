"""What a training run needs besides its loss: schedule, averaged weights, checkpoints to go on from, progress, log."""

from __future__ import annotations

import argparse
import copy
import json
import logging
import time
from abc import ABC, abstractmethod
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

log = logging.getLogger("training.nano.run")
R = TypeVar("R")

_CHECKPOINT = "checkpoint.pt"
_LONGEST_GRADIENT = 5.0
_LOG_EVERY = 20


def warm_cosine(step: int, steps: int, lr: float, warm: float, floor: float = 0.0) -> float:
    """Linear warm-up over the share ``warm`` of the steps, then a cosine down to ``floor`` times the peak ``lr``."""
    rising = max(1, int(warm * steps))
    if step < rising:
        return lr * (step + 1) / rising
    fall = 0.5 * (1 + float(np.cos(np.pi * (step - rising) / max(1, steps - rising))))
    return lr * (floor + (1 - floor) * fall)


def load_checkpoint(folder: str | Path) -> dict[str, Any]:
    """The checkpoint that an earlier run left in ``folder``; weights and plain values only."""
    state: dict[str, Any] = torch.load(Path(folder) / _CHECKPOINT, weights_only=True)
    return state


class BaseTrainer(ABC):
    """Holds what a checkpoint must hold, so that an interrupted run goes on as if nothing had happened.

    Args:
        recipe: Frozen dataclass of the run with at least lr, weight_decay, ema, steps and start_from.
        net: The network, freshly made; takes the averaged weights of ``recipe.start_from`` where that names a run.
        extra: Tensors to store with each checkpoint.
    """

    def __init__(self, recipe: Any, net: nn.Module, extra: dict[str, Tensor] | None = None) -> None:
        self.recipe, self.net, self._extra = recipe, net, extra or {}
        if recipe.start_from:
            self.net.load_state_dict(load_checkpoint(recipe.start_from)["average"])
        self.average = copy.deepcopy(self.net).eval()
        decay = [p for p in self.net.parameters() if p.ndim > 1]
        plain = [p for p in self.net.parameters() if p.ndim <= 1]
        groups = [{"params": decay, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=recipe.lr)
        self.step = 0

    @abstractmethod
    def loss(self) -> tuple[Tensor, dict[str, float]]:
        """The loss of the step at hand, and its figures for the log."""

    @abstractmethod
    def learning_rate(self) -> float:
        """Of the step at hand."""

    def advance(self) -> dict[str, float]:
        """One optimisation step; its figures.

        Raises:
            FloatingPointError: The gradient is not finite; the weights are left as they were.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate()
        self.net.train()
        loss, figures = self.loss()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        length = torch.nn.utils.clip_grad_norm_(self.net.parameters(), _LONGEST_GRADIENT)
        if not bool(torch.isfinite(length)):
            raise FloatingPointError(f"step {self.step}: the gradient is not finite; lower --lr (now {self.recipe.lr})")
        self.optimiser.step()
        self.step += 1
        self._update_average()
        return figures

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
            "optimiser": self.optimiser.state_dict(), "recipe": asdict(self.recipe), **self._extra,
        }  # fmt: skip
        temporary = folder / "checkpoint.tmp"
        torch.save(state, temporary)
        temporary.replace(folder / _CHECKPOINT)

    def resume(self, folder: Path) -> bool:
        """Take up the checkpoint in the folder if it belongs to this recipe."""
        if not (folder / _CHECKPOINT).exists():
            return False
        state = load_checkpoint(folder)
        if state["recipe"] != asdict(self.recipe):
            log.warning("The checkpoint in %s belongs to another recipe; starting anew.", folder)
            return False
        self.net.load_state_dict(state["net"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = int(state["step"])
        return True


def run_to_end(trainer: BaseTrainer, folder: Path, title: str, save_every: int) -> None:
    """Run the recipe to its end, or on from its checkpoint, with progress, ``recipe.json`` and ``log.jsonl``."""
    from rich.progress import Progress

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.json").write_text(json.dumps(asdict(trainer.recipe), indent=1))
    resumed, steps = trainer.resume(folder), trainer.recipe.steps
    log.info("%s at step %d of %d", "resuming" if resumed else "starting", trainer.step, steps)
    began, recent = time.perf_counter(), []
    with Progress() as progress, (folder / "log.jsonl").open("a") as record:
        bar = progress.add_task(title, total=steps, completed=trainer.step)
        while trainer.step < steps:
            recent.append(trainer.advance())
            progress.update(bar, completed=trainer.step)
            if trainer.step % _LOG_EVERY == 0 or trainer.step == steps:
                means = {name: round(float(np.mean([r[name] for r in recent])), 5) for name in recent[0]}
                seconds = round(time.perf_counter() - began, 1)
                record.write(json.dumps({"step": trainer.step, **means, "seconds": seconds}) + "\n")
                record.flush()
                recent.clear()
            if trainer.step % save_every == 0 or trainer.step == steps:
                trainer.save(folder)


def add_recipe(parser: argparse.ArgumentParser, defaults: Any) -> None:
    """An option for every field of a recipe."""
    for name, value in asdict(defaults).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)


def recipe_of(arguments: dict[str, Any], kind: type[R]) -> R:
    """The recipe that the parsed options describe."""
    return kind(**{name: arguments[name] for name in asdict(kind())})  # type: ignore[call-overload]
