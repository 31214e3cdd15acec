"""``geopurify map``: a recording becomes a map file."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from geopurify_core import __version__
from geopurify_core.cli.common import INTERRUPTED, check_destination, err, load_config, out, parse_options
from geopurify_core.config import BackboneConfig, Config
from geopurify_core.errors import BackboneError, DatasetError, InvalidFrameError

if TYPE_CHECKING:
    from geopurify_core.datasets import RGBDDataset
    from geopurify_core.frame import RGBDFrame
    from geopurify_core.mapping.snapshot import MapSnapshot
    from geopurify_core.pipeline import SemanticMapper
    from geopurify_core.purification.student.trained import Student

log = logging.getLogger(__name__)


@dataclass
class _Run:
    """What happened on the way."""

    integrated: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    interrupted: bool = False
    failure: DatasetError | None = None
    last_rejection: str = "No frame was usable."


def map_dataset(
    dataset: Annotated[
        str,
        typer.Argument(help="ScanNet folder (color/ depth/ pose/ intrinsic/), .sens, rosbag2, or synthetic[:SEED]."),
    ],
    out_path: Annotated[Path, typer.Option("--out", "-o", help="The map file to write.")],
    backbone: Annotated[str | None, typer.Option(help="2D network: nano, segmenter, detector, composite, …")] = None,
    backbone_option: Annotated[
        list[str] | None, typer.Option("--backbone-option", "-b", metavar="KEY=VALUE", help="Option of the backbone.")
    ] = None,
    config: Annotated[str | None, typer.Option(help="YAML file; `geopurify config` prints one.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting, as map.voxel_size_m=0.05.")
    ] = None,
    dataset_option: Annotated[
        list[str] | None,
        typer.Option("--dataset-option", "-d", metavar="KEY=VALUE", help="Option of the reader, as depth_shift=5000."),
    ] = None,
    stride: Annotated[int, typer.Option(min=1, help="Use every n-th frame.")] = 1,
    max_frames: Annotated[int | None, typer.Option(min=1, help="Stop after so many frames.")] = None,
    image: Annotated[Path | None, typer.Option(help="Also draw the map into this picture.")] = None,
    purify: Annotated[
        bool, typer.Option("--purify", help="Also write a purified map beside it, named OUT with _purified.")
    ] = False,
) -> None:
    """Map a recording: every frame is seen by the backbone and fused into a voxel map, which is then saved."""
    from geopurify_core.cli.purify import purified_path, require_student
    from geopurify_core.datasets import open_dataset
    from geopurify_core.mapping.store import save_map
    from geopurify_core.pipeline import SemanticMapper

    settings = effective_config(config, setting or [], backbone, backbone_option or [])
    recording = open_dataset(dataset, **parse_options(dataset_option or [], "--dataset-option"))
    check_destination(out_path)
    mapper = SemanticMapper(settings)
    student = None
    if purify:
        check_destination(purified_path(out_path))
        student = require_student(settings, mapper.backbone.fingerprint, mapper.backbone.feature_dim)
    run = integrate_all(mapper, recording, stride, max_frames)
    if run.failure is not None and not run.integrated:
        raise run.failure
    if not run.integrated:
        raise DatasetError(f"dataset {dataset}", dict(run.skipped), f"No map was written. {run.last_rejection}".strip())
    snapshot = mapper.snapshot()
    extra = _provenance(settings, recording.name, run)
    save_map(out_path, snapshot, extra=extra)
    _report(mapper, run, out_path)
    if student is not None and not run.interrupted:
        _purify(snapshot, settings, student, purified_path(out_path), extra)
    if image is not None:
        from geopurify_core.viz import draw_map

        draw_map(snapshot, image, title=recording.name)
        out.print(f"picture   {image}")
    if run.failure is not None:
        raise run.failure
    if run.interrupted:
        raise typer.Exit(INTERRUPTED)


def _purify(snapshot: MapSnapshot, config: Config, student: Student, path: Path, extra: dict[str, Any]) -> None:
    from geopurify_core.cli.purify import purify_visibly, save_purified, step_seconds

    purification = purify_visibly(snapshot, config, student)
    save_purified(path, purification, extra, config)
    out.print(f"purified  {path} in {step_seconds(purification)}", markup=False, soft_wrap=True)


def effective_config(path: str | None, pairs: list[str], backbone: str | None, options: list[str]) -> Config:
    """Defaults, then the file, then ``--set``, then ``--backbone`` and its options."""
    config = load_config(path, pairs)
    given = parse_options(options, "--backbone-option")
    if backbone is None or backbone == config.backbone.name:
        return replace(config, backbone=BackboneConfig(config.backbone.name, {**config.backbone.options, **given}))
    return replace(config, backbone=BackboneConfig(backbone, given))


def integrate_all(mapper: SemanticMapper, recording: RGBDDataset, stride: int, max_frames: int | None) -> _Run:
    """Fuse frame after frame with a progress bar; Ctrl-C ends it early and keeps what is there."""
    from geopurify_core.datasets import iterate

    run, started = _Run(), time.perf_counter()
    total = len(range(0, len(recording), stride))
    total = min(total, max_frames) if max_frames is not None else total
    frames = iterate(recording, stride=stride, stop=None if max_frames is None else max_frames * stride)
    with _progress() as bar:
        task = bar.add_task(recording.name, total=total, detail="")
        try:
            for frame in frames:
                with _interrupts_wait():
                    _integrate(mapper, frame, run)
                done = run.integrated + sum(run.skipped.values()) + sum(recording.skipped.values())
                bar.update(task, completed=done, detail=_detail(mapper, run, started))
        except KeyboardInterrupt:
            run.interrupted = True
            err.print("Interrupted: keeping the frames so far.", style="yellow")
        except DatasetError as error:  # a recording that breaks off half way still gave a map of its first half
            run.failure = error
    run.skipped = recording.skipped + run.skipped
    run.seconds = time.perf_counter() - started
    return run


def _integrate(mapper: SemanticMapper, frame: RGBDFrame, run: _Run) -> None:
    """Fuse one frame; one that cannot be used is counted, and said the first time, but does not cost the others."""
    try:
        if mapper.integrate(frame).pixels_valid:
            run.integrated += 1
            return
        limits = mapper.config.depth
        where = f"between depth.min_range_m={limits.min_range_m:g} and depth.max_range_m={limits.max_range_m:g} m"
        reason, run.last_rejection = "no depth in range", f"No depth pixel lies {where}; are its units right?"
    except (InvalidFrameError, BackboneError) as error:
        reason, run.last_rejection = f"rejected: {error.field}", str(error)
    if reason not in run.skipped:
        log.warning("skipping frames (%s); first: %s", reason, run.last_rejection)
    run.skipped[reason] += 1


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back until the block has ended: a frame half fused would be saved half fused.

    Told a second time, it does not wait.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []

    def hold(signum: int, _: FrameType | None) -> None:
        if waiting:
            raise KeyboardInterrupt
        waiting.append(signum)

    before = {number: signal.signal(number, hold) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if waiting:
        raise KeyboardInterrupt


def _progress() -> Progress:
    return Progress(
        TextColumn("[bold]{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}"), TimeRemainingColumn(compact=True), console=err,
    )  # fmt: skip


def _detail(mapper: SemanticMapper, run: _Run, started: float) -> str:
    stats = mapper.stats()
    rate = run.integrated / max(time.perf_counter() - started, 1e-9)
    return f"{rate:.1f} frames/s  {stats.num_voxels:,} voxels  {stats.nbytes / 2**20:.0f} MB"


def _provenance(config: Config, dataset: str, run: _Run) -> dict[str, Any]:
    """What the map was made with; ``query`` finds its text encoder through it."""
    return {
        "backbone": {"name": config.backbone.name, "options": config.backbone.options},
        "config": config.to_dict(),
        "dataset": dataset,
        "frames": run.integrated,
        "skipped": dict(run.skipped),
        "geopurify": __version__,
    }


def _report(mapper: SemanticMapper, run: _Run, path: Path) -> None:
    stats = mapper.stats()
    table = Table.grid(padding=(0, 2))
    rate = run.integrated / max(run.seconds, 1e-9)
    table.add_row("frames", f"{run.integrated} in {run.seconds:.1f} s ({rate:.1f} frames/s)")
    if run.skipped:
        table.add_row("skipped", ", ".join(f"{count} {reason}" for reason, count in run.skipped.most_common()))
    forgotten = f", {stats.evicted:,} forgotten to stay in the budget" if stats.evicted else ""
    table.add_row("voxels", f"{stats.num_voxels:,} of {mapper.config.map.voxel_size_m * 100:g} cm{forgotten}")
    table.add_row("memory", f"{stats.nbytes / 2**20:.1f} MB")
    table.add_row("saved", f"{path} ({path.stat().st_size / 2**20:.1f} MB)")
    out.print(table)
