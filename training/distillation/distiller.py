"""One optimisation step after the other; a step's data is a function of seed, step and rank alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from geopurify_core.errors import StudentError
from geopurify_core.purification.student.network import StudentAffinityNetwork
from training.distillation.basis import GEOMETRY
from training.distillation.objective import loss_of, make_batch
from training.distillation.optimise import Average, Learner, make_optimiser, set_learning_rates
from training.distillation.processes import anywhere
from training.distillation.recipe import Recipe
from training.distillation.shards import Shards, TrainingScene

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_ORDERS = 1_000_000  # seeds of the scenes' order lie beyond those of steps' data


@dataclass(frozen=True)
class Plan:
    """How many steps a run has, in how many epochs, and how many of them warm up."""

    steps: int
    steps_per_epoch: int
    warmup: int

    @classmethod
    def of(cls, recipe: Recipe, scenes: int, processes: int = 1) -> Plan:
        """An epoch shows every scene once, ``crops`` of them in each process's step.

        Where ``steps`` says how long, at most a tenth of them warm up: there may be many scenes and few steps.
        """
        per_epoch = ceil(scenes / (recipe.crops * processes))
        steps = recipe.steps or recipe.epochs * per_epoch
        most = steps // 10 if recipe.steps else steps
        return cls(steps, per_epoch, min(recipe.warmup_epochs * per_epoch, most))


def new_network(recipe: Recipe, channels: int) -> StudentAffinityNetwork:
    """A student with the recipe's sizes and fresh weights for ``channels`` semantic inputs."""
    torch.manual_seed(recipe.seed)
    return StudentAffinityNetwork(channels + GEOMETRY, recipe.hidden, recipe.out, recipe.blocks)


class Distiller:
    """A student and the scenes it learns from.

    Args:
        fabric: Launched; says where to compute.
        recipe: How.
        shards: From what.
    """

    def __init__(self, fabric: Fabric, recipe: Recipe, shards: Shards) -> None:
        self.fabric, self.recipe, self.shards = fabric, recipe, shards
        self.plan = Plan.of(recipe, len(shards), fabric.world_size)
        self.network = new_network(recipe, shards.basis.shape[1] or shards.channels)
        learner: nn.Module = Learner(self.network, recipe.checkpointing, partial(anywhere, fabric))
        if fabric.world_size > 1 and fabric.device.type == "cuda":
            learner = nn.SyncBatchNorm.convert_sync_batchnorm(learner)  # type: ignore[no-untyped-call]
        optimiser = make_optimiser(self.network, recipe)
        self._learner, self.optimiser = fabric.setup(learner, optimiser)
        self.average = Average(self.network, recipe.ema) if recipe.ema else None
        self.step = 0

    @property
    def student(self) -> StudentAffinityNetwork:
        """What would be exported: the averaged network where there is one."""
        return self.average.network if self.average else self.network

    def scenes_at(self, step: int) -> list[TrainingScene]:
        """The scenes of this process's step; every scene has its turn before any comes again."""
        count, fabric = len(self.shards), self.fabric
        first = (step * fabric.world_size + fabric.global_rank) * self.recipe.crops
        names = []
        for turn in range(first, first + self.recipe.crops):
            order = np.random.default_rng([self.recipe.seed, _ORDERS + turn // count]).permutation(count)
            names.append(self.shards.names[order[turn % count]])
        return [self.shards.scene(name) for name in names]

    def advance(self) -> dict[str, float]:
        """One step; its figures.

        Raises:
            StudentError: Loss or gradient is not finite; weights and checkpoints are left as they were.
        """
        rng = np.random.default_rng([self.recipe.seed, self.step, self.fabric.global_rank])
        batch = make_batch(self.scenes_at(self.step), self.recipe, rng, self.fabric.device)
        rate = set_learning_rates(self.optimiser, self.step, self.plan.steps, self.plan.warmup, self.recipe)
        self._learner.train()
        self.optimiser.zero_grad(set_to_none=True)
        embeddings = self._learner(batch.coords, batch.inputs)
        loss, parts = loss_of(embeddings, batch.to(self.fabric.device), self.recipe)
        self.fabric.backward(loss)
        length = self._checked_gradient(loss)
        self.optimiser.step()
        self.step += 1
        if self.average:
            self.average.update(self.network, self.step)
        figures = {"loss": float(loss.detach()), **{name: float(value) for name, value in parts.items()}}
        return {**figures, "gradient": length, "lr": rate, "points": float(batch.points), "voxels": len(batch.coords)}

    def _checked_gradient(self, loss: torch.Tensor) -> float:
        longest = self.recipe.longest_gradient or float("inf")
        length = torch.nn.utils.clip_grad_norm_(self.network.parameters(), longest)
        if not bool(torch.isfinite(length)) or not bool(torch.isfinite(loss.detach())):
            raise StudentError(
                f"gradient of step {self.step}",
                float(length),
                f"It is not finite: resume from the last checkpoint with a lower lr (now {self.recipe.lr:g}).",
            )
        return float(length)

    def state(self, origin: Mapping[str, Any]) -> dict[str, Any]:
        """Everything that going on needs."""
        return {
            "step": self.step,
            "processes": self.fabric.world_size,
            "recipe": self.recipe.to_dict(),
            "origin": dict(origin),
            "basis": self.shards.basis,
            "network": self.network.state_dict(),
            "average": self.average.network.state_dict() if self.average else {},
            "optimiser": self.optimiser.state_dict(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state`` gave."""
        self.network.load_state_dict(state["network"])
        if self.average:
            self.average.network.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = int(state["step"])
