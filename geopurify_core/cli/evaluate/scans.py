"""``geopurify eval scans``: labels at the points of ScanNet's and Matterport3D's scans, raw and purified."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from geopurify_core.cli.common import INTERRUPTED, err, load_config, parse_options
from geopurify_core.cli.evaluate.scan_tables import print_report
from geopurify_core.cli.evaluate.targets import AsJson
from geopurify_core.config import BackboneConfig, Config
from geopurify_core.errors import DatasetError, InvalidConfigError

if TYPE_CHECKING:
    from geopurify_core.evaluation.counts import SceneCounts
    from geopurify_core.evaluation.evaluator import Evaluator, Source
    from geopurify_core.evaluation.results import ResultsFolder
    from geopurify_core.labels import LabelSet
    from geopurify_core.mapping.snapshot import MapSnapshot
    from geopurify_core.purification.student.trained import Student
    from geopurify_core.scans.lift_settings import LiftSettings
    from geopurify_core.vision.base import SemanticBackbone

DATASETS = ("scannet", "matterport", "cloud")
_NO_STUDENT = "none"


def scans(
    scenes: Annotated[
        list[Path],
        typer.Argument(
            metavar="SCENE…",
            help="ScanNet scene folders, Matterport3D region_segmentations/*.ply, or clouds with labels (.ply).",
        ),
    ],
    dataset: Annotated[str, typer.Option(help="scannet, matterport, or cloud.")] = "scannet",
    labels: Annotated[str, typer.Option(help="scannet20, scannet200, matterport21, -40, -80 or -160.")] = "scannet20",
    protocol: Annotated[str, typer.Option(help="openscene, geopurify, or map (a robot's).")] = "openscene",
    backbone: Annotated[str | None, typer.Option(help="2D network, as for `geopurify map`.")] = None,
    backbone_option: Annotated[
        list[str] | None, typer.Option("--backbone-option", "-b", metavar="KEY=VALUE", help="Option of the backbone.")
    ] = None,
    student: Annotated[
        str, typer.Option(help="Student checkpoint; left out, the shipped one if there is one; none: raw only.")
    ] = "",
    steps: Annotated[str | None, typer.Option(help="Pooling steps T, as 1,6,18,36.")] = None,
    repeats: Annotated[int | None, typer.Option(help="Random frames whose scores are summed.")] = None,
    random_frame: Annotated[
        bool | None, typer.Option("--random-frame/--fixed-frame", help="Turn and scale points before voxelising.")
    ] = None,
    voxel_size_m: Annotated[float | None, typer.Option(help="Of purification; left out, the student's own.")] = None,
    featureless: Annotated[
        str | None, typer.Option(help="What points that no view saw get: drop (nothing) or nearest (a copy).")
    ] = None,
    wording: Annotated[str | None, typer.Option(help="Of class names: names, scene or openscene_code.")] = None,
    lifting: Annotated[
        str | None, typer.Option("--lift", help="How features get to points: robot, openscene, geopurify.")
    ] = None,
    stride: Annotated[int | None, typer.Option(min=1, help="Frames whose number is a multiple of it.")] = None,
    views: Annotated[Path | None, typer.Option(help="Posed images of a cloud, or Matterport3D's images.")] = None,
    map_path: Annotated[
        Path | None, typer.Option("--map", help="A saved map in the frame of the one SCENE; implies --protocol map.")
    ] = None,
    scene_list: Annotated[
        Path | None, typer.Option("--list", help="File with a scene's name a line; SCENE is the folder they are in.")
    ] = None,
    trained_on: Annotated[
        str | None,
        typer.Option(
            "--trained-on", "--cross", help="Data set the student was trained on, for `geopurify eval tables`."
        ),
    ] = None,
    sampling: Annotated[str | None, typer.Option(help="Negatives it was trained with: hybrid or macro.")] = None,
    folder: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the results; run again, it goes on where it was.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget the results that --out holds.")] = False,
    config: Annotated[str | None, typer.Option(help="YAML file; `geopurify config` prints one.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score labelled scans by a published protocol: class by class, both means, raw beside purified."""
    from geopurify_core.evaluation.evaluator import Evaluator
    from geopurify_core.evaluation.protocol import Protocol
    from geopurify_core.evaluation.provenance import student_about
    from geopurify_core.evaluation.results import ResultsFolder
    from geopurify_core.labels import load_label_set
    from geopurify_core.vision import load_backbone

    settings = load_config(config)
    snapshot = _saved_map(map_path, scenes)
    protocol = "map" if snapshot is not None else protocol
    chosen = Protocol.preset(
        protocol, steps=_steps(steps), repeats=repeats, random_frame=random_frame, voxel_size_m=voxel_size_m,
        featureless=featureless, wording=wording,
    )  # fmt: skip
    label_set = load_label_set(labels)
    sources = _sources(scenes, dataset, views, scene_list)
    lift_settings = _lift_settings(lifting, protocol, dataset, stride)
    picked = _backbone(settings, backbone, backbone_option or [])
    network = load_backbone(picked.name, **picked.options)
    purifier = _student(student, network, settings)
    evaluator = Evaluator(label_set, chosen, network, purifier, lift_settings, settings, snapshot)
    about = {
        "backbone_options": dict(picked.options), "student_about": student_about(purifier, trained_on, sampling)
    }  # fmt: skip
    results = None
    if folder is not None:
        results = ResultsFolder(folder, {"dataset": dataset, **evaluator.settings()}, fresh=fresh)
    run = _score_visibly(evaluator, sources, results)
    report = _report(evaluator, about, label_set, run, results)
    if as_json:
        typer.echo(json.dumps(report, ensure_ascii=False, indent=1))
    else:
        print_report(report, label_set)
    if results is not None:
        err.print(f"report    {results.path / 'report.json'}", markup=False, soft_wrap=True)
    if run.interrupted:
        raise typer.Exit(INTERRUPTED)


# -- what was asked for ----------------------------------------------------------------------------------------------


def _steps(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError as error:
        raise InvalidConfigError("--steps", text, "Give whole numbers with commas between, as 1,6,18,36.") from error


def _sources(scenes: list[Path], dataset: str, views: Path | None, scene_list: Path | None) -> list[Source]:
    from geopurify_core.evaluation.evaluator import folder_sources
    from geopurify_core.scans import read_labelled_cloud, read_matterport, read_scannet

    readers: dict[str, Callable[[Path], Any]] = {
        "scannet": read_scannet,
        "matterport": lambda path: read_matterport(path, images=views),
        "cloud": lambda path: read_labelled_cloud(path, views),
    }
    if dataset not in readers:
        raise InvalidConfigError("--dataset", dataset, f"Choose one of {', '.join(DATASETS)}.")
    if scene_list is not None:
        scenes = _listed(scene_list, scenes, dataset)
    return folder_sources(scenes, readers[dataset])


def _listed(scene_list: Path, scenes: list[Path], dataset: str) -> list[Path]:
    if len(scenes) != 1:
        raise InvalidConfigError("SCENE", len(scenes), "With --list give one folder, the one that holds the scenes.")
    try:
        names = [line.strip() for line in scene_list.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError("--list", str(scene_list), f"It cannot be read: {error}") from error
    if dataset == "matterport":  # HOUSE_regionN, as OpenScene and GeoPurify list them
        parts = [name.removesuffix(".pth").rpartition("_") for name in names]
        return [scenes[0] / house / "region_segmentations" / f"{region}.ply" for house, _, region in parts]
    return [scenes[0] / name.removesuffix(".pth").removesuffix("_vh_clean_2") for name in names]


def _saved_map(path: Path | None, scenes: list[Path]) -> MapSnapshot | None:
    if path is None:
        return None
    from geopurify_core.mapping.store import load_map

    if len(scenes) != 1:
        raise InvalidConfigError("--map", str(path), "Give the one scene that it is a map of.")
    return load_map(path)


def _lift_settings(name: str | None, protocol: str, dataset: str, stride: int | None) -> LiftSettings:
    from geopurify_core.scans.lift_settings import LiftSettings

    preset = name or ("robot" if protocol == "map" else protocol)
    if dataset == "matterport" and preset in ("openscene", "geopurify"):
        preset += "_matterport"
    if stride is None and protocol == "map":
        stride = 1
    return LiftSettings.preset(preset, **({} if stride is None else {"stride": stride}))


def _backbone(settings: Config, name: str | None, options: list[str]) -> BackboneConfig:
    given = parse_options(options, "--backbone-option")
    if name is None or name == settings.backbone.name:
        return BackboneConfig(settings.backbone.name, {**settings.backbone.options, **given})
    return BackboneConfig(name, given)


def _student(path: str, backbone: SemanticBackbone, settings: Config) -> Student | None:
    if path == _NO_STUDENT:
        return None
    from geopurify_core.purification.student.checkpoint import find_student

    wanted = path or settings.purification.student
    found = find_student(
        wanted, backbone.fingerprint, device=settings.purification.device, engine=settings.sparse.engine
    )
    if found is None:
        err.print(f"No student is shipped for {backbone.name}: raw features only.", style="yellow")
    return found


# -- doing it --------------------------------------------------------------------------------------------------------


@dataclass
class _Run:
    """What a run brought."""

    counts: list[SceneCounts] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    scored: int = 0
    known: int = 0
    seconds: float = 0.0
    interrupted: bool = False


def _score_visibly(evaluator: Evaluator, sources: list[Source], results: ResultsFolder | None) -> _Run:
    from geopurify_core.evaluation.evaluator import score_all

    run, started = _Run(), time.monotonic()
    with _bar(len(sources)) as tell:
        try:
            for step in score_all(evaluator, sources, results, lambda what, share: tell(what, 0)):
                if step.counts is None:
                    run.skipped[step.name] = step.reason
                    err.print(f"skipped {step.name}: {step.reason}", style="yellow", markup=False, soft_wrap=True)
                else:
                    run.scored += not step.known
                    run.known += step.known
                    if results is None:  # otherwise they are on disk
                        run.counts.append(step.counts)
                tell("", 1)
        except KeyboardInterrupt:
            run.interrupted = True
            err.print("Interrupted: reporting the scenes so far.", style="yellow")
    run.seconds = time.monotonic() - started
    return run


@contextmanager
def _bar(total: int) -> Iterator[Callable[[str, int], None]]:
    columns = (
        TextColumn("[bold]scenes"), BarColumn(bar_width=30), MofNCompleteColumn(), TextColumn("{task.fields[step]}"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(compact=True),
    )  # fmt: skip
    with Progress(*columns, console=err) as bar:
        task = bar.add_task("scenes", total=total, step="")
        yield lambda what, done: bar.update(task, advance=done, step=what)


def _report(
    evaluator: Evaluator, about: dict[str, Any], labels: LabelSet, run: _Run, results: ResultsFolder | None
) -> dict[str, Any]:
    """The report, and with a results folder, of all scenes in it, its files."""
    from geopurify_core.evaluation.report import build_report, write_all

    counts = run.counts if results is None else results.scenes()
    if not len(counts):
        raise DatasetError("scenes", run.skipped or None, "None could be scored.")
    settings = evaluator.settings() if results is None else results.settings
    report = build_report({**settings, **about}, labels, counts, run.skipped)
    report["run"] = {"scored": run.scored, "known": run.known, "seconds": round(run.seconds, 1)}
    if results is not None:
        write_all(results, report, labels, counts)
    return report
