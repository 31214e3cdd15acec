"""``python -m training distil`` and ``python -m training export``."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from geopurify_core.cli.common import err, out, parse_options
from geopurify_core.errors import InvalidConfigError

Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a field of the recipe; may be repeated.")
]


def distil(
    scenes: Annotated[Path, typer.Argument(help="Folder of prepared scenes (`python -m training prepare`).")],
    run: Annotated[Path, typer.Option("--out", help="Folder of this run: checkpoints, log, pictures.")],
    preset: Annotated[str, typer.Option(help="Recipe to start from: paper, official_code or robot.")] = "robot",
    teacher: Annotated[
        str, typer.Option(help="Whose features to learn from: geometric, sonata or known.")
    ] = "geometric",
    settings: Settings = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    checkpoint: Annotated[Path | None, typer.Option(help="Go on from this checkpoint instead.")] = None,
    devices: Annotated[int, typer.Option(min=1, help="Processes, each with a GPU of its own where there are any.")] = 1,
    accelerator: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="CPU threads of each process; 0: torch's own choice.")] = 0,
    save_every: Annotated[int, typer.Option(min=1, help="Epochs between checkpoints.")] = 5,
    history: Annotated[bool, typer.Option("--history", help="Keep every checkpoint, not only the last one.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out scenes that cannot be used.")] = False,
    cache_mb: Annotated[int, typer.Option(min=1, help="Memory for scenes, MiB; at least one is kept.")] = 2048,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, TensorBoard or pictures.")] = False,
) -> None:
    """Distil a teacher into a Student Affinity Network. Ctrl-C finishes the step and saves; --resume goes on."""
    from training.distillation.recipe import Recipe
    from training.distillation.train import Interrupted
    from training.distillation.train import distil as run_distillation

    recipe = Recipe.preset(preset, **parse_options(settings or (), "--set"))
    logging.getLogger("training.distillation").setLevel(logging.INFO)
    try:
        run_distillation(
            recipe, scenes, run, teacher=teacher, resume=resume, checkpoint=checkpoint, devices=devices,
            accelerator=accelerator, threads=threads, save_every=save_every, history=history, skip_bad=skip_bad,
            cache_mb=cache_mb, quiet=quiet,
        )  # fmt: skip
    except Interrupted as stop:
        err.print(f"{stop}", style="yellow", markup=False)
        raise typer.Exit(130) from stop
    err.print(f"next: python -m training export {run}", markup=False, soft_wrap=True)


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run, or one of its checkpoints.")],
    target: Annotated[
        Path | None, typer.Option("--out", help="File to write; by default student.safetensors there.")
    ] = None,
    scenes: Annotated[
        Path | None,
        typer.Option(help="Where the run's scenes are now, to settle batch normalisation on them unaugmented."),
    ] = None,
    install: Annotated[
        bool, typer.Option("--install", help="Into the package, as the backbone's shipped student.")
    ] = False,
) -> None:
    """Make the file that purification loads from a run, finished or not."""
    from training.distillation.export import described, export_student, installed_path

    if install and target:
        raise InvalidConfigError("--out", str(target), "--install says where to: give one of the two.")
    folder = run if run.is_dir() else run.parent
    path = target or (installed_path(run) if install else folder / "student.safetensors")
    out.print(described(export_student(run, path, scenes)), markup=False, soft_wrap=True)
