"""``python -m training prepare``: scans, recordings and generated rooms become shards to train on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from geopurify_core.cli.common import INTERRUPTED, err, load_config, out, parse_options

if TYPE_CHECKING:
    from training.scenes.prepare import Report
    from training.scenes.settings import Preparation, TeacherChoice
    from training.scenes.sources import Source

SOME_FAILED = 1
_Pairs = list[str] | None


def prepare(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE…",
            help="ScanNet scenes, Matterport3D houses or regions, recordings, synthetic:FIRST-LAST, "
            "table6-scannet:FOLDER (or -matterport), @LIST; "
            "none: the scenes that --out holds already, which may lack a teacher.",
        ),
    ] = None,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder for the shards.")] = Path("out/scenes"),
    backbone: Annotated[str, typer.Option(help="2D network: nano, segmenter, xdecoder, …")] = "nano",
    backbone_option: Annotated[
        _Pairs, typer.Option("--backbone-option", "-b", metavar="KEY=VALUE", help="Option of the backbone.")
    ] = None,
    teacher: Annotated[list[str] | None, typer.Option(help="geometric, sonata or known; may be repeated.")] = None,
    teacher_option: Annotated[
        _Pairs, typer.Option("--teacher-option", "-o", metavar="KEY=VALUE", help="Option of the (only) teacher.")
    ] = None,
    recipe: Annotated[
        str, typer.Option(help="How scans are lifted: robot, geopurify[_matterport], openscene[_matterport].")
    ] = "robot",
    lift: Annotated[_Pairs, typer.Option("--lift", metavar="KEY=VALUE", help="One value of the recipe.")] = None,
    as_map: Annotated[bool, typer.Option("--map", help="Map scans too: voxels instead of the scan's points.")] = False,
    config: Annotated[str | None, typer.Option(help="YAML file with mapping settings.")] = None,
    setting: Annotated[
        _Pairs, typer.Option("--set", metavar="KEY=VALUE", help="One mapping setting, as map.voxel_size_m=0.05.")
    ] = None,
    stride: Annotated[int | None, typer.Option(min=1, help="Frames whose number is a multiple of it.")] = None,
    label_set: Annotated[str, typer.Option(help="Labels to keep: scannet20, scannet200, matterport21, …")] = "",
    images: Annotated[str, typer.Option(help="Folder with Matterport3D's images, if not in each house.")] = "",
    align: Annotated[bool, typer.Option(help="Turn ScanNet scenes to their axes.")] = False,
    evaluation: Annotated[bool, typer.Option(help="Synthetic rooms are for scoring, not for training.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many scenes.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    ray: Annotated[str, typer.Option(metavar="ADDRESS", help="Ray cluster: local, auto, or HOST:PORT.")] = "",
    gpus: Annotated[float, typer.Option(min=0, help="With --ray: share of a GPU for each scene, as 0.25.")] = 0.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be done.")] = False,
) -> None:
    """Make scenes ready for distillation: points, fused 2D features and a teacher's descriptors, one shard each.

    What is whole and made with the same settings is left alone. Scenes that cannot be used are skipped and listed at
    the end; the exit code is then 1.
    """
    from training.scenes.prepare import choose_runner
    from training.scenes.settings import Preparation
    from training.scenes.sources import find_sources

    settings = Preparation(
        backbone=backbone,
        backbone_options=parse_options(backbone_option or [], "--backbone-option"),
        teachers=_teachers(teacher or [], teacher_option or []),
        recipe=recipe,
        lift=_lift(lift or []),
        config=load_config(config, setting or []),
        as_map=as_map,
        stride=stride,
        label_set=label_set,
        images=images,
        align=align,
    )
    found = find_sources(sources or [], out_folder, evaluation)[:limit]
    if not found:
        from geopurify_core.errors import DatasetError

        raise DatasetError("SOURCE", sources, f"Give one: there are no scenes in {out_folder} either.")
    runner = choose_runner(workers, ray, gpus)
    if dry_run:
        _list(found, out_folder, settings)
        return
    report = _run(found, out_folder, settings, runner)
    _tell(report, out_folder)
    if report.interrupted:
        raise typer.Exit(INTERRUPTED)
    if report.failed:
        raise typer.Exit(SOME_FAILED)


def _teachers(names: list[str], options: list[str]) -> tuple[TeacherChoice, ...]:
    from geopurify_core.errors import InvalidConfigError
    from training.scenes.settings import TeacherChoice

    if options and len(names) != 1:
        raise InvalidConfigError("--teacher-option", options, "Give it with exactly one --teacher.")
    given = parse_options(options, "--teacher-option")
    return tuple(TeacherChoice(name, given) for name in dict.fromkeys(names))


def _lift(pairs: list[str]) -> dict[str, Any]:
    """Changed values of the recipe; a size is written WIDTHxHEIGHT."""
    values = parse_options(pairs, "--lift")
    size = values.get("image_size")
    if isinstance(size, str) and size.count("x") == 1 and size.replace("x", "").isdecimal():
        width, height = size.split("x")
        values["image_size"] = int(width), int(height)
    return values


def _list(sources: list[Source], folder: Path, settings: Preparation) -> None:
    from training.scenes.one import missing

    settings.check()
    table = Table("scene", "source", "to do", box=None, pad_edge=False)
    for source in sources:
        table.add_row(source.name, source.label, ", ".join(missing(source, folder, settings)) or "nothing")
    out.print(table)


def _run(sources: list[Source], folder: Path, settings: Preparation, runner: Any) -> Report:
    from training.scenes.prepare import prepare_scenes

    columns = (
        TextColumn("[bold]{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}"), TimeRemainingColumn(compact=True),
    )  # fmt: skip
    with _sigterm_interrupts(), Progress(*columns, console=err) as bar:
        task = bar.add_task("scenes", total=len(sources), detail="")

        def after_each(report: Report) -> None:
            last, failed = report.outcomes[-1], len(report.failed)
            failures = f", {failed} failed" if failed else ""
            detail = f"{report.scenes_per_hour:.0f} scenes/h{failures}  {last.name} {last.status}"
            bar.update(task, completed=len(report.outcomes), detail=detail)

        return prepare_scenes(sources, folder, settings, runner, after_each)


def _tell(report: Report, folder: Path) -> None:
    counts = ", ".join(f"{count} {status}" for status, count in sorted(report.counts.items())) or "nothing done"
    missing = report.total - len(report.outcomes)
    stopped = f"; interrupted, {missing} left" if report.interrupted else ""
    line = f"{folder}: {counts} in {report.seconds:.0f} s ({report.scenes_per_hour:.0f} scenes/h){stopped}"
    out.print(line, markup=False, soft_wrap=True)
    _table("skipped", "why", [(o.name, o.source, f"{o.error}: {o.reason}") for o in report.failed])
    _table("incomplete", "prepared without", [(o.name, o.source, o.left_out) for o in report.incomplete])


def _table(first: str, last: str, rows: list[tuple[str, str, str]]) -> None:
    """Nothing for no rows; long words go on in the next line, so that every path can be read."""
    if not rows:
        return
    table = Table(first, "source", Column(last, overflow="fold"), box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    out.print(table)


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """A batch system's SIGTERM ends the run as Ctrl-C does: workers stopped, manifest written."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
