"""The command tree. Commands import what they need when they run, so that ``--help`` stays quick."""

from __future__ import annotations

from typing import Annotated

import typer

from geopurify_core import __version__
from geopurify_core.cli import bag, evaluate, export, info, mapping, purify, query, weights
from geopurify_core.cli.common import OneLineErrors, out, set_up_logging

app = typer.Typer(
    name="geopurify",
    cls=OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Turn an RGB-D recording into a map that answers text, and ask it.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        out.print(f"geopurify {__version__}")
        raise typer.Exit


@app.callback()
def start(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more on the way.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks instead of one-line errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the command's name."""
    set_up_logging(verbose, debug)


app.command("map")(mapping.map_dataset)
app.command("purify")(purify.purify_map)
app.command("query")(query.query_map)
app.command("export")(export.export_map)
app.command("config")(info.print_config)
app.add_typer(bag.app, name="bag")
app.add_typer(evaluate.app, name="eval")
app.add_typer(weights.app, name="weights")
