"""A distillation run from its first step (or its checkpoint) to its last, with all that it leaves in its folder.

``recipe.json`` what was run on what; ``last.pt`` and ``step_*.pt`` checkpoints; ``log.csv`` and ``tensorboard/``;
``loss.png`` and ``affinity.png``.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from geopurify_core.errors import InvalidConfigError, NotAvailableError
from training.distillation.checkpoints import LAST, check_belongs, load_checkpoint, save_checkpoint
from training.distillation.distiller import Distiller
from training.distillation.processes import Flag, anywhere, launched, noted_here
from training.distillation.recipe import Recipe
from training.distillation.record import Progress, Record, versions
from training.distillation.shards import Shards

if TYPE_CHECKING:
    from lightning_fabric import Fabric

log = logging.getLogger("training.distillation")


class Interrupted(KeyboardInterrupt):
    """Stopped by the user between two steps; the checkpoint is written."""


@dataclass(frozen=True)
class Options:
    """What does not change the result.

    Attributes:
        teacher: Whose shards to learn from.
        resume: Go on from the run's last checkpoint; an empty folder starts anew.
        checkpoint: Go on from this file instead.
        devices: How many processes or GPUs.
        accelerator: ``auto``, ``cpu`` or ``cuda``.
        threads: Of torch in each process; 0 leaves them.
        save_every: Epochs between checkpoints.
        history: Keep each checkpoint, not only the last one.
        skip_bad: Leave out scenes that cannot be used.
        cache_mb: Scenes kept in memory.
        stop_at: Stop (and save) after so many steps, as an interruption would; 0 runs to the end.
        quiet: No progress bar, no TensorBoard, no pictures.
    """

    teacher: str = "geometric"
    resume: bool = False
    checkpoint: Path | None = None
    devices: int = 1
    accelerator: str = "auto"
    threads: int = 0
    save_every: int = 5
    history: bool = False
    skip_bad: bool = False
    cache_mb: int = 2048
    stop_at: int = 0
    quiet: bool = False


def distil(recipe: Recipe, scenes: Path, out: Path, **options: Any) -> Path:
    """Train a student.

    Args:
        recipe: How.
        scenes: Folder of prepared scenes with a teacher's shards.
        out: The run's folder; made.
        options: Fields of :class:`Options`.

    Returns:
        ``out``, with at least ``last.pt`` and ``recipe.json``.

    Raises:
        DatasetError: Scenes that cannot be used.
        StudentError: A checkpoint that does not belong, or a gradient that is not finite.
        InvalidConfigError: The folder holds a run and ``resume`` was not asked for.
        NotAvailableError: The device is not there.
        Interrupted: Ctrl-C; the step was finished and the checkpoint written.
    """
    chosen, out = Options(**options), Path(out)
    if (out / LAST).exists() and not (chosen.resume or chosen.checkpoint):
        raise InvalidConfigError("--out", str(out), "It holds a run already: add --resume, or take another folder.")
    out.mkdir(parents=True, exist_ok=True)
    fabric = _fabric(recipe, chosen)
    work = partial(_run, recipe=recipe, folder=Path(scenes), out=out, options=chosen)
    stopped = launched(fabric, work)
    if stopped:
        raise Interrupted(stopped)
    return out


def _fabric(recipe: Recipe, options: Options) -> Fabric:
    from lightning_fabric import Fabric

    _check_devices(options)
    strategy = "ddp_spawn" if options.devices > 1 else "auto"
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    precision: Any = recipe.precision
    return Fabric(accelerator=options.accelerator, devices=options.devices, strategy=strategy, precision=precision)


def _check_devices(options: Options) -> None:
    if options.accelerator not in ("auto", "cpu", "cuda"):
        raise InvalidConfigError("--accelerator", options.accelerator, "Choose auto, cpu or cuda.")
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if options.accelerator == "cuda" and not cards:
        raise NotAvailableError("--accelerator", "cuda", "torch finds no CUDA here: take auto or cpu.")
    if options.accelerator != "cpu" and cards and options.devices > cards:
        raise NotAvailableError("--devices", options.devices, f"There are {cards} GPUs: ask for so many, or for cpu.")


def _run(fabric: Fabric, recipe: Recipe, folder: Path, out: Path, options: Options, *, stop: Flag) -> str:
    """In every process; says where it was interrupted, or nothing."""
    if options.threads:
        torch.set_num_threads(options.threads)
    state = _state_to_resume(out, options)
    basis = state["basis"] if state else None
    most_bytes = options.cache_mb << 20
    shards = Shards(folder, options.teacher, recipe, basis=basis, skip_bad=options.skip_bad, most_bytes=most_bytes)
    for name, reason in shards.refused.items():
        log.warning("left out: %s: %s", name, reason)
    distiller = Distiller(fabric, recipe, shards)
    if state:
        check_belongs(state, recipe, shards.provenance, fabric.world_size)
        distiller.load(state)
    record = Record(out, distiller, quiet=options.quiet) if fabric.is_global_zero else None
    if record:
        _write_recipe(out, distiller)
    try:
        with noted_here(stop) as interrupted:
            return _steps(distiller, out, options, record, interrupted)
    finally:
        if record:
            record.close()


def _steps(
    distiller: Distiller, out: Path, options: Options, record: Record | None, interrupted: Callable[[], bool]
) -> str:
    plan, origin, fabric = distiller.plan, distiller.shards.provenance, distiller.fabric
    log.info("step %d of %d", distiller.step, plan.steps)
    every = max(1, options.save_every) * plan.steps_per_epoch
    with Progress(distiller, hidden=options.quiet or record is None) as progress:
        while distiller.step < plan.steps:
            figures = distiller.advance()
            progress.show(figures)
            if record:
                record.add(distiller.step, figures)
            stop = anywhere(fabric, interrupted()) or distiller.step == options.stop_at
            if distiller.step % every == 0 or distiller.step == plan.steps or stop:
                if record:
                    save_checkpoint(out, distiller.state(origin), history=options.history)
                    record.flush()
                fabric.barrier()
            if stop and distiller.step < plan.steps:
                return f"stopped after step {distiller.step} of {plan.steps}; go on with --resume"
    return ""


def _state_to_resume(out: Path, options: Options) -> dict[str, Any] | None:
    if options.checkpoint:
        return load_checkpoint(options.checkpoint)
    return load_checkpoint(out) if options.resume and (out / LAST).exists() else None


def _write_recipe(out: Path, distiller: Distiller) -> None:
    plan = distiller.plan
    document = {
        "recipe": distiller.recipe.to_dict(),
        "steps": plan.steps,
        "steps_per_epoch": plan.steps_per_epoch,
        "warmup_steps": plan.warmup,
        "scenes_folder": os.path.relpath(distiller.shards.folder, out),
        "origin": distiller.shards.provenance,
        "refused": distiller.shards.refused,
        "processes": distiller.fabric.world_size,
        "device": str(distiller.fabric.device),
        "versions": versions(),
    }
    temporary = out / ".recipe.tmp"
    temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    temporary.replace(out / "recipe.json")
