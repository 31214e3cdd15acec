"""What leaves a selection: a list that ``prepare`` reads, a folder of links to shards, a table, JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from geopurify_core.errors import DatasetError, InvalidConfigError
from training.selection.algorithm import ScoredScene, Selection
from training.selection.sources import Candidate, Skipped

_SHARD = ".safetensors"


def write_list(path: Path, scenes: Iterable[tuple[str, Path | None]], heading: str) -> None:
    """One scene a line: where it lies, or its name where nobody knows. Lines that begin with # are remarks."""
    lines = [f"# {heading}", *(str(source.resolve()) if source else name for name, source in scenes)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise InvalidConfigError("--out", str(path), f"It cannot be written: {error.strerror}.") from error


def link_shards(folder: Path, scenes: Iterable[tuple[str, Path | None]]) -> int:
    """Make ``folder`` a folder of prepared scenes that holds the chosen ones alone, by links; what teachers said, too.

    Returns:
        How many links it holds.

    Raises:
        DatasetError: A scene is no prepared shard.
        InvalidConfigError: ``folder`` holds something else already, or cannot be written.
    """
    files: list[Path] = []
    for name, source in scenes:
        if source is None or source.suffix != _SHARD:
            raise DatasetError(name, str(source), "Only prepared scenes can be linked: run `prepare` first.")
        files += [source, *sorted(source.parent.glob(f"{source.stem}.*{_SHARD}"))]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if foreign := [path.name for path in folder.iterdir() if not path.is_symlink()]:
            raise InvalidConfigError("--link", str(folder), f"It holds other files ({foreign[0]}); give a new folder.")
        for old in folder.iterdir():
            old.unlink()  # links of an earlier selection
        for file in files:
            (folder / file.name).symlink_to(file.resolve())
    except OSError as error:
        raise InvalidConfigError("--link", str(folder), f"It cannot be written: {error.strerror}.") from error
    return len(files)


def published(names: Sequence[str], found: Sequence[Candidate]) -> tuple[list[tuple[str, Path | None]], list[str]]:
    """Where the scenes of a published list lie, and which of them are missing."""
    where = {candidate.name: candidate.source for candidate in found}
    return [(name, where[name]) for name in names if name in where], [name for name in names if name not in where]


def table_of(scenes: Sequence[ScoredScene]) -> Table:
    """The scenes given, best score first, then those that did not pass."""
    table = Table(box=None, header_style="bold")
    table.add_column("scene")
    for heading in ("N_c", "H_c, bits", "cluster", "score"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for one in sorted(scenes, key=lambda one: (not one.passed, -one.score if one.passed else 0.0, one.scene.name)):
        measures = one.scene.name, str(one.scene.richness), f"{one.scene.complexity_bits:.3f}"
        if one.passed:
            verdict = "chosen, to fill up" if one.filled else "chosen" if one.chosen else ""
            table.add_row(*measures, str(one.cluster), f"{one.score:.3f}", verdict)
        else:
            table.add_row(*measures, "", "", "below a median", style="dim")
    return table


def plain(selection: Selection, skipped: Sequence[Skipped]) -> dict[str, Any]:
    """For JSON."""
    return {
        "settings": dataclasses.asdict(selection.settings),
        "median_N_c": selection.median_richness,
        "median_H_c_bits": selection.median_complexity_bits,
        "chosen": [one.scene.name for one in selection.chosen],
        "scenes": [_plain_scene(one) for one in selection.scenes],
        "skipped": [dataclasses.asdict(one) for one in skipped],
    }


def _plain_scene(one: ScoredScene) -> dict[str, Any]:
    return {
        "name": one.scene.name,
        "source": None if one.scene.source is None else str(one.scene.source),
        "N_c": one.scene.richness,
        "H_c_bits": one.scene.complexity_bits,
        "passed": one.passed,
        "cluster": one.cluster if one.passed else None,
        "score": None if math.isnan(one.score) else one.score,
        "chosen": one.chosen,
        "filled": one.filled,
    }
