"""What a run leaves in its folder to go on from: whole or not at all, weights and plain values only."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from geopurify_core.errors import InvalidConfigError, StudentError
from training.distillation.recipe import Recipe

FORMAT = 1
LAST = "last.pt"
_KEYS = {"format", "step", "recipe", "origin", "basis", "network", "average", "optimiser"}


def save_checkpoint(folder: Path, state: Mapping[str, Any], *, history: bool = False) -> Path:
    """Write ``last.pt``, and with ``history`` also ``step_000123.pt``, each atomically."""
    names = [LAST, f"step_{int(state['step']):06d}.pt"] if history else [LAST]
    for name in names:
        temporary = folder / f".{name}.{os.getpid()}.tmp"
        torch.save({"format": FORMAT, **state}, temporary)
        temporary.replace(folder / name)
    return folder / LAST


def checkpoint_path(run: Path) -> Path:
    """A checkpoint file itself, or the last one of a run folder. Raises StudentError where there is none."""
    path = run / LAST if run.is_dir() else run
    if not path.is_file():
        raise StudentError("run", str(run), "There is no checkpoint: train first (`python -m training distil`).")
    return path


def load_checkpoint(run: Path) -> dict[str, Any]:
    """A checkpoint on the CPU.

    Raises:
        StudentError: It is missing, damaged, of another version, or no checkpoint of a distillation.
    """
    path = checkpoint_path(run)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can fail in any way
        reason = str(error).strip().split("\n")[0][:200]
        raise StudentError("checkpoint", str(path), f"It is damaged; take an earlier one: {reason}") from error
    if not isinstance(state, dict) or not state.keys() >= _KEYS:
        raise StudentError("checkpoint", str(path), "It is no checkpoint of a distillation run.")
    if state["format"] != FORMAT:
        raise StudentError("checkpoint.format", state["format"], f"This version reads {FORMAT}.")
    return state


def recipe_of(state: Mapping[str, Any]) -> Recipe:
    """The recipe that a checkpoint was made with. Raises StudentError where this version does not know it."""
    try:
        return Recipe.from_dict(state["recipe"])
    except InvalidConfigError as error:
        raise StudentError("checkpoint.recipe", error.field, f"Another version made it: {error}") from error


def check_belongs(state: Mapping[str, Any], recipe: Recipe, origin: Mapping[str, Any], processes: int = 1) -> None:
    """Refuse to go on from a checkpoint of another recipe, of other scenes, backbone or teacher, or of more processes.

    With another number of processes a step would show other scenes, and epochs would have another length.

    Raises:
        StudentError: Naming what differs.
    """
    mine, theirs = recipe.to_dict(), dict(state["recipe"])
    for name in sorted(mine.keys() | theirs.keys()):
        if mine.get(name) != theirs.get(name):
            raise StudentError(
                f"checkpoint.{name}", theirs.get(name), f"This run has {mine.get(name)!r}: use another folder."
            )
    before = state.get("processes", processes)
    if before != processes:
        raise StudentError("checkpoint.processes", before, f"Go on with --devices {before}, not {processes}.")
    for name in sorted(origin.keys() | state["origin"].keys()):
        if origin.get(name) != state["origin"].get(name):
            raise StudentError(
                f"checkpoint.{name}", state["origin"].get(name), f"The scenes here have {origin.get(name)!r}."
            )
