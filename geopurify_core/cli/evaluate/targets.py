"""``geopurify eval targets``: how often a known object is among the first answers to its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from rich.markup import escape
from rich.table import Table

from geopurify_core.cli.common import load_config, out

if TYPE_CHECKING:
    from geopurify_core.evaluation.targets import TargetReport

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def targets(
    map_path: Annotated[Path, typer.Argument(metavar="MAP", help="A map file written by `geopurify map`.")],
    known: Annotated[
        Path,
        typer.Argument(metavar="TARGETS", help='JSON: {"objects": [{"query": "red chair", "xyz": [x, y, z]}, …]}.'),
    ],
    tolerance_m: Annotated[float, typer.Option(min=0, help="How far from the box a target may lie, metres.")] = 0.3,
    config: Annotated[str | None, typer.Option(help="YAML file with query and purification settings.")] = None,
    purified: Annotated[bool, typer.Option("--purified", help="Purify a raw map before asking it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Count how often a known object is among the first answers to its name, in a raw or a purified map."""
    from geopurify_core.cli.text_side import open_engine
    from geopurify_core.evaluation.targets import evaluate_targets, read_targets

    wanted = read_targets(known)
    settings = load_config(config)
    engine = open_engine(map_path, settings.query, settings if purified else None)
    report = evaluate_targets(engine, wanted, tolerance_m)
    if as_json:
        typer.echo(json.dumps(report.as_plain(), ensure_ascii=False, indent=2))
        return
    print_targets(report)


def print_targets(report: TargetReport) -> None:
    """A row for each target, and how many were hit."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("target")
    for name in ("hit at rank", r"first box off by \[m]", "score", "objects"):
        table.add_column(name, justify="right")
    for row in report.rows:
        distance = f"{row.distance_m:.2f}" if np.isfinite(row.distance_m) else "–"
        score = f"{row.score:.2f}" if np.isfinite(row.score) else "–"
        table.add_row(escape(row.text), str(row.rank or "miss"), distance, score, str(row.num_objects))
    out.print(table)
    count = len(report.rows)
    out.print(f"hit@1 {report.hits_at(1)}/{count}   hit@3 {report.hits_at(3)}/{count}", style="bold")
    sizes = f"boxes of the first three answers: median {report.median_volume_m3:.3f} m³"
    out.print(
        f"{sizes}, largest {report.largest_volume_m3:.2f} m³, too large to count {report.oversized}",
        style="dim",
        soft_wrap=True,
    )
