"""``geopurify purify``: a saved map with purified features; and what the other commands need to purify on the way."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from geopurify_core.cli.common import check_destination, err, load_config, out
from geopurify_core.config import Config, PurificationConfig
from geopurify_core.errors import InvalidConfigError, MapMismatchError

if TYPE_CHECKING:
    from geopurify_core.mapping.snapshot import MapSnapshot
    from geopurify_core.purification.student.trained import Student
    from geopurify_core.purification.update.result import Purification

# The steps as a person reads them.
_STEPS = {
    "inputs": "normals and colours",
    "student": "student network",
    "neighbors": "nearest voxels",
    "affinity": "affinity",
    "pooling": "pooling",
}


def purify_map(
    map_path: Annotated[Path, typer.Argument(metavar="MAP", help="A map file written by `geopurify map`.")],
    out_path: Annotated[Path, typer.Option("--out", "-o", help="The purified map to write; MAP itself stays.")],
    student: Annotated[
        str | None, typer.Option(help="Student checkpoint; by default the one shipped for the map's backbone.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Reading of the disputed constants: paper, official_code or paper_literal.")
    ] = None,
    config: Annotated[str | None, typer.Option(help="YAML file; `geopurify config` prints one.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting, as purification.neighbors=64.")
    ] = None,
) -> None:
    """Purify a map: voxels that belong together agree on what they are. The result can be asked, but not mapped on."""
    from geopurify_core.mapping.store import load_map, read_extra

    settings = with_options(load_config(config, setting or []), student, preset)
    if out_path.exists() and map_path.exists() and os.path.samefile(out_path, map_path):
        raise InvalidConfigError("--out", str(out_path), "It would replace the raw map; give another name.")
    check_destination(out_path)
    snapshot, extra = load_map(map_path), read_extra(map_path)
    purification = purify_visibly(snapshot, settings)
    save_purified(out_path, purification, extra, settings)
    _report(purification, settings.purification, out_path)


def with_options(config: Config, student: str | None, preset: str | None) -> Config:
    """The configuration with ``--student`` and ``--preset`` on top. Raises InvalidConfigError for an unknown preset."""
    given = {name: value for name, value in (("student", student), ("preset", preset)) if value is not None}
    values = config.to_dict()
    return Config.from_dict({**values, "purification": {**values["purification"], **given}})


def require_student(config: Config, backbone: str, feature_dim: int) -> Student:
    """The student, found before the work that needs it. Errors: as :func:`student_for`."""
    from geopurify_core.purification.policy import student_for

    return student_for(config.purification, backbone, feature_dim, config.sparse.engine)


def purify_visibly(
    snapshot: MapSnapshot, config: Config, student: Student | None = None, *, pool: str = "features"
) -> Purification:
    """Purify with a progress bar that names the steps.

    Args:
        snapshot: A raw map.
        config: Settings; ``purification.pool`` is overruled.
        student: The student where it is loaded already.
        pool: ``features``, or ``scores`` where a few texts are all that will be asked.

    Raises:
        MapMismatchError: The map is purified already.
        GeoPurifyError: No student, or one that does not fit; too little memory; features that are not finite.
    """
    if snapshot.purified:
        raise MapMismatchError("map.purified", snapshot.purified, "It is purified already: ask it as it is.")
    student = student or require_student(config, snapshot.backbone, snapshot.feature_dim)
    from geopurify_core.purification.update.compute import purify_snapshot

    with _bar() as bar:
        task = bar.add_task("purify", total=1.0, step="")

        def show(step: str, share: float) -> None:
            bar.update(task, completed=share, step=_STEPS.get(step, step))

        result = purify_snapshot(snapshot, student, replace(config.purification, pool=pool), progress=show)
        bar.update(task, completed=1.0, step="done")
    return result


def save_purified(path: Path, purification: Purification, extra: dict[str, Any], config: Config) -> None:
    """Write the purified map; ``extra`` is the raw map's, and says besides how it was purified."""
    from geopurify_core.mapping.store import save_map

    settings = config.to_dict()["purification"]
    described = {"student": purification.fingerprint, "seconds": purification.report.seconds, "settings": settings}
    save_map(path, purification.as_snapshot(), extra={**extra, "purification": described})


def purified_path(path: Path) -> Path:
    """Where the purified map goes beside the raw one: ``room.map`` → ``room_purified.map``."""
    return path.with_name(f"{path.stem}_purified{path.suffix}")


def _bar() -> Progress:
    return Progress(
        TextColumn("[bold]{task.description}"), BarColumn(bar_width=30), TaskProgressColumn(),
        TextColumn("{task.fields[step]}"), TimeElapsedColumn(), TimeRemainingColumn(compact=True), console=err,
    )  # fmt: skip


def _report(purification: Purification, config: PurificationConfig, path: Path) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_row("voxels", f"{len(purification):,}")
    table.add_row("student", purification.fingerprint.partition("|")[0])
    table.add_row("settings", f"K={config.neighbors} T={config.resolved_steps} α={config.resolved_sharpening:g}")
    table.add_row("steps", step_seconds(purification))
    table.add_row("saved", f"{path} ({path.stat().st_size / 2**20:.1f} MB)")
    out.print(table)


def step_seconds(purification: Purification) -> str:
    """How long each step took, in one line."""
    seconds = purification.report.seconds
    each = ", ".join(f"{_STEPS.get(name, name)} {value:.1f}" for name, value in seconds.items())
    return f"{sum(seconds.values()):.1f} s ({each})" if seconds else "nothing to do"
