"""``geopurify eval``: how good answers and labels are, against what is known to be there."""

from __future__ import annotations

import typer

from geopurify_core.cli.evaluate import scans, synthetic, tables, targets

app = typer.Typer(no_args_is_help=True, help="Measure answers and labels against what is known to be there.")
app.command("targets")(targets.targets)
app.command("synthetic")(synthetic.synthetic)
app.command("scans")(scans.scans)
app.command("tables")(tables.tables)
