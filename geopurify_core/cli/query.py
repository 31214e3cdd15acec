"""``geopurify query``: texts in, objects out."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from geopurify_core.cli.common import err, load_config, out, parse_up
from geopurify_core.querying.checks import check_texts
from geopurify_core.querying.results import DetectedObject, QueryResult


def query_map(
    map_path: Annotated[Path, typer.Argument(metavar="MAP", help="A map file written by `geopurify map`.")],
    texts: Annotated[list[str], typer.Argument(metavar="TEXT…", help="What to look for, as 'red chair'.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: for each text its objects, best first.")] = False,
    max_objects: Annotated[int | None, typer.Option(help="Most objects for each text.")] = None,
    min_score: Annotated[float | None, typer.Option(help="Leave out objects below this score.")] = None,
    image: Annotated[
        Path | None, typer.Option(help="Draw the answer; with several texts, one picture each, named NAME_<text>.")
    ] = None,
    up: Annotated[str | None, typer.Option(help='Up direction of the map for the pictures, as "0 0 1".')] = None,
    config: Annotated[str | None, typer.Option(help="YAML file with query and purification settings.")] = None,
    purified: Annotated[
        bool, typer.Option("--purified", help="Purify first, for these texts only; `geopurify purify` keeps the work.")
    ] = False,
) -> None:
    """Ask a map for objects by name."""
    from geopurify_core.cli.text_side import open_engine

    direction = parse_up(up)
    settings = load_config(config)
    check_texts(texts, settings.query)  # before the work, not after it
    engine = open_engine(map_path, settings.query, settings if purified else None)
    results = engine.query(texts, max_objects=max_objects, min_score=min_score)
    if as_json:
        typer.echo(json.dumps(as_plain(results), ensure_ascii=False, indent=2))
    else:
        print_table(results)
    if image is not None:
        from geopurify_core.viz import draw_query

        for result, path in zip(results, picture_paths(image, texts), strict=True):
            draw_query(engine.snapshot, result, path, up=direction)
            err.print(f"picture  {path}", markup=False)


def as_plain(results: Sequence[QueryResult]) -> dict[str, list[dict[str, Any]]]:
    """Text → list of objects, best first, as plain values for JSON."""
    return {result.text: [_plain_object(found) for found in result.objects] for result in results}


def _plain_object(found: DetectedObject) -> dict[str, Any]:
    return {
        "score": round(float(found.score), 4),
        "center_m": [round(float(value), 4) for value in found.center_m],
        "size_m": [round(float(value), 4) for value in found.size_m],
        "yaw_rad": round(float(found.yaw_rad), 4),
        "num_voxels": found.num_voxels,
    }


def print_table(results: Sequence[QueryResult]) -> None:
    """One table for all texts, best objects first."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("text")
    for name in ("#", "score", r"center x y z \[m]", r"size \[m]", "voxels"):
        table.add_column(name, justify="right")
    for result in results:
        if not result.objects:
            table.add_row(escape(result.text), "–", "", "not found", "", "")
        for rank, found in enumerate(result.objects):
            table.add_row(
                escape(result.text) if rank == 0 else "",
                str(rank + 1),
                f"{found.score:.2f}",
                " ".join(f"{value:6.2f}" for value in found.center_m),
                " ".join(f"{value:.2f}" for value in found.size_m),
                str(found.num_voxels),
            )
    out.print(table)


def picture_paths(image: Path, texts: Sequence[str]) -> list[Path]:
    """``image`` itself for one text; else one name for each, made of its letters and digits, never twice the same."""
    if len(texts) == 1:
        return [image]
    paths: list[Path] = []
    for text in texts:
        stem = f"{image.stem}_{slug(text)}"
        path, number = image.with_name(f"{stem}{image.suffix}"), 2
        while path in paths:
            path, number = image.with_name(f"{stem}_{number}{image.suffix}"), number + 1
        paths.append(path)
    return paths


def slug(text: str) -> str:
    """A text as part of a file name: its letters and digits, joined by underscores, at most 60 characters."""
    return re.sub(r"\W+", "_", text.strip().lower())[:60].strip("_") or "text"
