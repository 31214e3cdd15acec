"""``geopurify eval``: how well a map answers, against what is known to be there."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True, help="Measure answers against known objects.")


@app.command("targets")
def targets() -> None:
    """Count how often a known object is among the first answers."""
