"""The commands of offline distillation, in the order one uses them: ``python -m training --help``."""

from __future__ import annotations

from typing import Annotated

import typer

from geopurify_core.cli.common import OneLineErrors, set_up_logging
from training.distillation import command as distillation
from training.experiments import command as experiments
from training.scenes import command as scenes
from training.selection import command as selection

app = typer.Typer(
    name="python -m training",
    cls=OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="From raw scans to a trained Student Affinity Network, and how good it is.",
)


@app.callback()
def start(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more on the way.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks instead of one-line errors.")] = False,
) -> None:
    """Options before the command's name."""
    set_up_logging(verbose, debug)


app.command("select")(selection.select)
app.command("prepare")(scenes.prepare)
app.command("distil")(distillation.distil)
app.command("export")(distillation.export)
app.command("rooms")(experiments.rooms)
app.command("ablate")(experiments.ablate)
