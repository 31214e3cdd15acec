"""The paper's result tables, and the reports of ``geopurify eval scans`` that may stand beside them.

Published figures live in ``published.json`` and are never shown as ours: a figure of ours comes from a report whose
data set, label set, backbone, training data, teacher, sampling and T are those of the cell, or there is none. In what
else it departs from the published run, and how many of its scenes it covers, is said beside it (``departures.py``).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from geopurify_core.errors import DatasetError, InvalidConfigError
from geopurify_core.evaluation.counts import ALL
from geopurify_core.evaluation.departures import departures
from geopurify_core.evaluation.points import RAW, variant_of
from geopurify_core.evaluation.report import REPORT_FORMAT

log = logging.getLogger(__name__)
# The paper says T = 18, its code does 19: either may stand in a cell that asks for no certain T.
_DEFAULT_STEPS = (18, 19)
# Which report is preferred where several fit: the protocol behind the published figure first.
_PROTOCOLS = ("geopurify", "openscene")
# The paper's teacher; students that do not name theirs, such as released checkpoints, may stand in its rows.
_TEACHERS = ("", "sonata")


@dataclass(frozen=True)
class Result:
    """A report and where it lies."""

    path: Path
    report: Mapping[str, Any]

    def matches(self, column: Mapping[str, Any], backbone: str) -> bool:
        """Whether its data set, labels, backbone and kind of protocol are those of a column."""
        return (
            self.report["dataset"] == column["dataset"]
            and self.report["labels"] == column["labels"]
            and self.report["backbone"]["name"] == backbone
            and self.report["protocol"]["name"] in _PROTOCOLS
        )

    @property
    def trained_on(self) -> str:
        """Data set behind its student; empty where unknown."""
        return str(self.report["student_about"].get("trained_on", ""))

    @property
    def sampling(self) -> str:
        """``hybrid``, ``macro``, or empty where unknown."""
        return str(self.report["student_about"].get("sampling", ""))

    @property
    def teacher(self) -> str:
        """Name of its student's teacher; empty where unknown."""
        return str(self.report["student_about"].get("teacher", ""))

    @property
    def scenes(self) -> int:
        """How many scenes it covers."""
        return len(self.report["scenes"])

    @property
    def expected(self) -> int:
        """How many the published figures cover; 0 for data sets that they do not speak of."""
        return int(published()["scenes"].get(self.report["dataset"], 0))


@dataclass(frozen=True)
class Cell:
    """A figure of ours.

    Attributes:
        value: Percent.
        result: Whence.
        variant: ``raw`` or ``T=18``.
        departures: What else differs from the published run.
    """

    value: float
    result: Result
    variant: str
    departures: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether it covers as many scenes as the published figure."""
        return self.result.scenes == self.result.expected


@dataclass(frozen=True)
class FilledRow:
    """A row of a table: what was published (percent or None) and what we have (or None), column by column."""

    method: str
    published: tuple[float | None, ...]
    ours: tuple[Cell | None, ...]
    group: str = ""
    training: str = ""
    has_ours: bool = False


@dataclass(frozen=True)
class FilledTable:
    """A published table with our figures beside it.

    Attributes:
        number: As the paper counts.
        title: In our words.
        columns: Titles.
        rows: The published ones, and after them what else our reports have for these columns.
        notes: What the published figures are.
    """

    number: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[FilledRow, ...]
    notes: tuple[str, ...]


@cache
def published() -> dict[str, Any]:
    """The data file."""
    content: dict[str, Any] = json.loads(
        resources.files("geopurify_core.evaluation").joinpath("published.json").read_text(encoding="utf-8")
    )
    return content


def read_results(paths: Sequence[Path]) -> list[Result]:
    """Reports at or below the paths; files that are no such report are named in the log and left out.

    Raises:
        DatasetError: A path does not exist.
    """
    found: list[Result] = []
    for path in paths:
        if not path.exists():
            raise DatasetError("results", str(path), "Give a report.json, or a folder that holds some.")
        files = [path] if path.is_file() else sorted(path.rglob("report.json"))
        found += [result for file in files if (result := _read(file)) is not None]
    return found


def _read(path: Path) -> Result | None:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        if report["report"] != REPORT_FORMAT:
            raise KeyError(f"format {report['report']}")
        result = Result(path, report)
        _check(result)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s is no report of `geopurify eval scans` (%s); left out", path, error)
        return None
    return result


def _check(result: Result) -> None:
    """Look at everything that tables look at, so that a damaged report is named and not met halfway."""
    report = result.report
    _ = result.trained_on, result.teacher, result.scenes, report["dataset"], report["labels"], report["results"][RAW]
    _ = report["protocol"]["name"], report["backbone"]["name"], departures(report, variant_of(1))
    for readings in report["results"].values():
        for kinds in readings.values():
            values = kinds[ALL]
            _ = float(values["miou"]), float(values["macc"])
            _ = [float(one["miou"]) for one in values["groups"].values()]
            _ = [float(one["iou"]) for one in values["classes"].values()]


def fill_table(number: str, results: Sequence[Result]) -> FilledTable:
    """A table with our figures where a report has them.

    Raises:
        InvalidConfigError: There is no such table.
    """
    tables = published()["tables"]
    if number not in tables:
        raise InvalidConfigError("table", number, f"Choose one of {', '.join(tables)}.")
    table = tables[number]
    columns = table["columns"]
    rows = [_row(row, columns, results) for row in table["rows"]]
    if table.get("extras"):
        rows += _extra_rows(columns, results)
    titles = tuple(column["title"] for column in columns)
    return FilledTable(number, table["title"], titles, tuple(rows), tuple(table["notes"]))


def _row(row: Mapping[str, Any], columns: Sequence[Mapping[str, Any]], results: Sequence[Result]) -> FilledRow:
    wanted = row.get("ours")
    cells = tuple(_find(column, wanted, results) if wanted else None for column in columns)
    values = tuple(row["values"])
    return FilledRow(row["method"], values, cells, row.get("group", ""), row.get("training", ""), wanted is not None)


def _find(column: Mapping[str, Any], wanted: Mapping[str, Any], results: Sequence[Result]) -> Cell | None:
    """The best fitting report's figure: of all scenes, by the preferred protocol, closest to it; the last of equals."""
    cells = []
    for result in results:
        if not result.matches(column, wanted["backbone"]) or not _student_fits(result, column, wanted):
            continue
        variant = _variant(result, wanted)
        value = _value(result, column, variant) if variant else None
        if variant and value is not None:
            cells.append(Cell(value, result, variant, departures(result.report, variant)))
    return max(reversed(cells), key=_preference, default=None)


def _preference(cell: Cell) -> tuple[bool, int, int, int]:
    protocol = _PROTOCOLS.index(cell.result.report["protocol"]["name"])
    return cell.complete, -protocol, -len(cell.departures), cell.result.scenes


def _student_fits(result: Result, column: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    if wanted["variant"] == RAW:
        return True
    by_sampling = result.sampling == wanted["sampling"] if "sampling" in wanted else result.sampling != "macro"
    by_teacher = result.teacher in ((wanted["teacher"],) if "teacher" in wanted else _TEACHERS)
    by_data = wanted.get("trained_on", column.get("trained_on")) in (None, result.trained_on)
    return by_sampling and by_teacher and by_data


def _variant(result: Result, wanted: Mapping[str, Any]) -> str | None:
    there = result.report["results"]
    if wanted["variant"] == RAW:
        return RAW
    return next((name for t in wanted.get("steps", _DEFAULT_STEPS) if (name := variant_of(t)) in there), None)


def _value(result: Result, column: Mapping[str, Any], variant: str) -> float | None:
    kinds = result.report["results"].get(variant, {}).get(str(column["names"]))
    if kinds is None:
        return None
    values = kinds[ALL]
    if "group" in column:
        values = values["groups"].get(column["group"], {})
    if "class" in column:
        values = values["classes"].get(column["class"], {})
    value = values.get(column["metric"])
    return None if value is None else 100 * float(value)


def _extra_rows(columns: Sequence[Mapping[str, Any]], results: Sequence[Result]) -> list[FilledRow]:
    """Rows for reports of other backbones, or with a student of other data, than the paper's."""
    asked: dict[str, dict[str, Any]] = {}
    for result in results:
        name, data, teacher = result.report["backbone"]["name"], result.trained_on, result.teacher
        purified = {"backbone": name, "variant": "purified", "trained_on": data, "teacher": teacher}
        if name != "xdecoder":
            asked[f"here: {name}, 2D features"] = {"backbone": name, "variant": RAW}
        of_paper = name == "xdecoder" and data in ("scannet", "matterport") and teacher in _TEACHERS
        if _variant(result, purified) and not of_paper:
            taught = f", teacher {teacher}" if teacher else ""
            asked[f"here: {name}, purified, student of {data or 'unnamed data'}{taught}"] = purified
    rows = []
    for method, wanted in asked.items():
        cells = tuple(_find(column, wanted, results) for column in columns)
        if any(cells):
            rows.append(FilledRow(method, (None,) * len(columns), cells, "here", has_ours=True))
    return rows
