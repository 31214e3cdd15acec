"""``geopurify eval tables``: the paper's tables, with our figures beside the published ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import JustifyMethod
from rich.markup import escape
from rich.table import Table

from geopurify_core.cli.common import out
from geopurify_core.cli.evaluate.targets import AsJson
from geopurify_core.evaluation.points import RAW

if TYPE_CHECKING:
    from geopurify_core.evaluation.published import Cell, FilledRow, FilledTable

NOTHING = "n/a"
_Key = tuple[Path, str]  # a report's path, and the variant taken from it
_MOST_COLUMNS = 4  # wider tables are printed with their columns as rows


def tables(
    results: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RESULTS…", help="Folders of `geopurify eval scans --out`, or folders of such folders."),
    ] = None,
    table: Annotated[
        list[str] | None, typer.Option("--table", "-t", help="Only this one, as 4; may be given several times.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the paper's Tables 1, 2, 3, 4, 8, 9 and 10: published / ours, n/a where no report has the figure."""
    from geopurify_core.evaluation.published import fill_table, published, read_results

    found = read_results(results or [])
    filled = [fill_table(number, found) for number in table or published()["tables"]]
    if as_json:
        typer.echo(json.dumps({"tables": [_plain(one) for one in filled]}, ensure_ascii=False, indent=1))
        return
    for one in filled:
        if markdown:
            typer.echo(_markdown(one))
        else:
            _print(one)


def _sources(table: FilledTable) -> dict[_Key, Cell]:
    """Reports and variants behind a table's cells with one cell each, in order of appearance."""
    return {_key(cell): cell for row in table.rows for cell in row.ours if cell is not None}


def _key(cell: Cell) -> _Key:
    return cell.result.path, cell.variant


def _cells(table: FilledTable, row: FilledRow, sources: Sequence[_Key]) -> list[str]:
    """``published / ours [source]`` of each column; the published figure alone in rows of others.

    Ours bears a star where its run departs from the published one in more than numbers, and its share of the scenes
    where these are not as many.
    """
    texts = []
    for value, cell in zip(row.published, row.ours, strict=True):
        before = "-" if value is None else f"{value:.1f}"
        ours = NOTHING if cell is None else f"{_figure(cell)} [{sources.index(_key(cell)) + 1}]"
        texts.append(f"{before} / {ours}" if row.has_ours else before)
    return texts


def _figure(cell: Cell) -> str:
    share = "" if cell.complete else f" ({cell.result.scenes}/{cell.result.expected} scenes)"
    return f"{cell.value:.1f}{'*' if cell.departures else ''}{share}"


def _grid(table: FilledTable) -> tuple[list[str], list[list[str]]]:
    """Header and rows as texts; wide tables turned."""
    sources = list(_sources(table))
    names = [f"{row.method}{f' ({row.training})' if row.training else ''}" for row in table.rows]
    body = [_cells(table, row, sources) for row in table.rows]
    if len(table.columns) <= _MOST_COLUMNS:
        return ["method", *table.columns], [[name, *cells] for name, cells in zip(names, body, strict=True)]
    turned = [[title, *(cells[i] for cells in body)] for i, title in enumerate(table.columns)]
    return ["", *names], turned


def _footnotes(table: FilledTable) -> list[str]:
    notes = [f"[{number}] {_source(cell)}" for number, cell in enumerate(_sources(table).values(), start=1)]
    return [*notes, *table.notes]


def _source(cell: Cell) -> str:
    """Where a figure comes from, and in what its run is not the published one."""
    result, report = cell.result, cell.result.report
    count = str(result.scenes) if cell.complete else f"{result.scenes} of {result.expected}"
    text = f"{result.path}: {cell.variant}, protocol {report['protocol']['name']}, {count} scenes"
    if cell.variant != RAW and report.get("student"):
        text += f", {report['student']} ({report['student_about'].get('description', '')})"
    return text + (f"; * unlike the published run: {', '.join(cell.departures)}" if cell.departures else "")


def _print(table: FilledTable) -> None:
    header, rows = _grid(table)
    shown = Table(box=None, header_style="bold", pad_edge=False, title_justify="left", title_style="bold")
    shown.title = f"Table {table.number}: {table.title} (percent, published / ours)"
    for i, name in enumerate(header):
        turned = len(table.columns) > _MOST_COLUMNS  # then the first column holds the titles, which must stay readable
        justify: JustifyMethod = "right" if i else "left"
        shown.add_column(escape(name), justify=justify, overflow="fold", no_wrap=turned and not i)
    for row in rows:
        shown.add_row(*map(escape, row))
    out.print(shown)
    for note in _footnotes(table):
        out.print(f"  {escape(note)}", style="dim", soft_wrap=True)
    out.print()


def _markdown(table: FilledTable) -> str:
    header, rows = _grid(table)
    lines = [f"**Table {table.number}: {table.title}** (percent, published / ours)", ""]
    lines += [_line(header), _line(["---", *["---:"] * (len(header) - 1)]), *map(_line, rows), ""]
    lines += [f"* {note}" for note in _footnotes(table)]
    return "\n".join([*lines, ""])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _plain(table: FilledTable) -> dict[str, Any]:
    rows = []
    for row in table.rows:
        ours = [None if cell is None else round(cell.value, 4) for cell in row.ours]
        source = [None if cell is None else f"{cell.result.path}#{cell.variant}" for cell in row.ours]
        rows.append(
            {
                "method": row.method,
                "group": row.group,
                "training": row.training,
                "published": list(row.published),
                "ours": ours,
                "source": source,
            }
        )
    return {
        "table": table.number,
        "title": table.title,
        "columns": list(table.columns),
        "rows": rows,
        "sources": {
            f"{path}#{variant}": {
                "scenes": cell.result.scenes,
                "expected": cell.result.expected,
                "departures": list(cell.departures),
            }
            for (path, variant), cell in _sources(table).items()
        },
        "notes": list(table.notes),
    }
