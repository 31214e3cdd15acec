"""The student in training: activations computed twice to save memory, three learning rates, schedule, average."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from geopurify_core.purification.student.network import ResidualBlock, StudentAffinityNetwork
from training.distillation.recipe import Recipe

_ROOMY = 512 << 20  # bytes that kept activations may take before ``auto`` computes them twice
_KEPT_PER_BLOCK = 6  # (V, hidden) tensors that autograd holds for a residual block


class Learner(nn.Module):
    """A student whose forward pass may drop activations.

    Args:
        network: The student.
        checkpointing: ``on``, ``off``, or ``auto``: when activations would take more than 512 MiB.
        anywhere: Tells whether any process says so. Synchronised batch normalisation talks to the other processes each
            time it is computed, so all of them must compute it equally often.
    """

    def __init__(
        self, network: StudentAffinityNetwork, checkpointing: str = "auto", anywhere: Callable[[bool], bool] = bool
    ) -> None:
        super().__init__()
        self.network, self.checkpointing, self._anywhere = network, checkpointing, anywhere

    def forward(self, coords: Tensor, inputs: Tensor) -> Tensor:
        """(V, 3) and (V, R + 6) → (V, out) float32, as ``StudentAffinityNetwork.forward`` in the order of the rows."""
        if not self._recomputes(len(coords)):
            embeddings: Tensor = self.network(coords, inputs)
            return embeddings.float()
        x, back = self.network._prepared(coords, inputs)
        x = self.network.input_layer(x)
        for block in self.network.res_blocks:
            assert isinstance(block, ResidualBlock)
            x = x.replace(_recomputed(block, x))
        out: Tensor = self.network.output_layer(x).features.float()
        return out if back is None else out[back]

    def _recomputes(self, voxels: int) -> bool:
        if not (self.training and torch.is_grad_enabled()) or self.checkpointing == "off":
            return False
        kept = 4 * voxels * self.network.hidden * _KEPT_PER_BLOCK * self.network.blocks
        return self.checkpointing == "on" or self._anywhere(kept > _ROOMY)


def _recomputed(block: ResidualBlock, x: Any) -> Tensor:
    def run(features: Tensor) -> Tensor:
        out: Tensor = block(x.replace(features)).features
        return out

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_kept(block)

    out: Tensor = checkpoint(run, x.features, use_reentrant=False, context_fn=contexts, preserve_rng_state=False)
    return out


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Whatever runs within leaves running statistics alone: the second time must not count."""
    kept = {name: value.clone() for name, value in block.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in block.named_buffers():
                value.copy_(kept[name])


def make_optimiser(network: StudentAffinityNetwork, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW with a group for the input layer, the residual blocks, and the output layer (GeoPurify, table 7)."""
    parts = (
        (network.input_layer, recipe.lr_input), (network.res_blocks, recipe.lr_blocks),
        (network.output_layer, recipe.lr_output),
    )  # fmt: skip
    groups = [
        {"params": list(part.parameters()), "lr": recipe.lr * factor, "peak": recipe.lr * factor}
        for part, factor in parts
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=recipe.weight_decay)


def set_learning_rates(optimiser: torch.optim.Optimizer, step: int, steps: int, warmup: int, recipe: Recipe) -> float:
    """Set each group's rate for a step; the base rate.

    Linear from ``warmup_start`` times the peak over ``warmup`` steps, then a cosine. It ends at ``lr_floor`` times the
    base rate ``lr`` in every group, as in the released code.
    """
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(step, steps, warmup, group["peak"], recipe)
    return learning_rate(step, steps, warmup, recipe.lr, recipe)


def learning_rate(step: int, steps: int, warmup: int, peak: float, recipe: Recipe) -> float:
    """Of one group whose peak is ``peak``."""
    import math

    if step < warmup:
        return peak * (recipe.warmup_start + (1 - recipe.warmup_start) * step / warmup)
    floor = min(recipe.lr_floor * recipe.lr, peak)
    share = (step - warmup) / max(1, steps - warmup)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * share))


class Average:
    """Exponentially averaged weights and statistics; early steps count more, so that it never lags at the start."""

    def __init__(self, network: StudentAffinityNetwork, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self._decay = decay

    def update(self, network: nn.Module, step: int) -> None:
        """After ``step`` steps are done."""
        decay = min(self._decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for kept, new in zip(self.network.state_dict().values(), network.state_dict().values(), strict=True):
                if kept.dtype.is_floating_point:
                    kept.lerp_(new, 1 - decay)
                else:
                    kept.copy_(new)
