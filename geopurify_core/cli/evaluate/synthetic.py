"""``geopurify eval synthetic``: a procedural apartment, mapped and scored against what stands in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import typer
from rich.table import Table

from geopurify_core.cli.common import INTERRUPTED, out, parse_options
from geopurify_core.cli.evaluate.targets import AsJson, print_targets
from geopurify_core.cli.mapping import effective_config, integrate_all

if TYPE_CHECKING:
    from geopurify_core.datasets.synthetic import SyntheticDataset
    from geopurify_core.evaluation.metrics import SegmentationScores
    from geopurify_core.evaluation.targets import TargetReport
    from geopurify_core.mapping.snapshot import MapSnapshot
    from geopurify_core.querying.engine import QueryEngine

# nobody asks for these by name, or they are everywhere
_NOT_ASKED = ("wall", "floor", "ceiling", "otherfurniture")


def synthetic(
    seed: Annotated[int, typer.Option(min=0, help="Apartment; the built-in network was trained on seeds ≥ 1000.")] = 3,
    frames: Annotated[int, typer.Option(min=1, help="Length of the walk.")] = 120,
    backbone: Annotated[str | None, typer.Option(help="2D network, as for `geopurify map`.")] = None,
    backbone_option: Annotated[
        list[str] | None, typer.Option("--backbone-option", "-b", metavar="KEY=VALUE", help="Option of the backbone.")
    ] = None,
    dataset_option: Annotated[
        list[str] | None, typer.Option("--dataset-option", "-d", metavar="KEY=VALUE", help="Option of the apartment.")
    ] = None,
    config: Annotated[str | None, typer.Option(help="YAML file; `geopurify config` prints one.")] = None,
    purified: Annotated[bool, typer.Option("--purified", help="Score the purified map instead.")] = False,
    both: Annotated[bool, typer.Option("--both", help="Score both, side by side.")] = False,
    as_json: AsJson = False,
) -> None:
    """Map a procedural apartment and score it: labels of all voxels, and objects found by their class name."""
    from geopurify_core.cli.purify import purify_visibly, require_student
    from geopurify_core.datasets import open_dataset
    from geopurify_core.pipeline import SemanticMapper
    from geopurify_core.querying.engine import QueryEngine

    settings = effective_config(config, [], backbone, backbone_option or [])
    options = {"num_frames": frames, **parse_options(dataset_option or [], "--dataset-option")}
    recording: Any = open_dataset(f"synthetic:{seed}", **options)
    mapper = SemanticMapper(settings)
    student = None
    if purified or both:
        student = require_student(settings, mapper.backbone.fingerprint, mapper.backbone.feature_dim)
    if integrate_all(mapper, recording, 1, None).interrupted:
        raise typer.Exit(INTERRUPTED)  # the scores of half a walk would pass for those of all of it
    scored: dict[str, _Scored] = {}
    if both or not purified:
        scored["raw"] = _score(mapper.engine(), recording.source)
    if student is not None:
        purification = purify_visibly(mapper.snapshot(), settings, student)
        engine = QueryEngine.of_purification(purification, mapper.backbone, settings.query)
        scored["purified"] = _score(engine, recording.source)
    if as_json:
        plain = {"dataset": recording.name, "backbone": settings.backbone.name, **_plain(scored)}
        typer.echo(json.dumps(plain, ensure_ascii=False, indent=2))
    elif len(scored) == 2:
        _print_both(scored["raw"], scored["purified"])
    else:
        for one in scored.values():
            _print_labels(one.labels)
            print_targets(one.objects)


class _Scored(NamedTuple):
    """What one map got: labels of all voxels, and objects found by name."""

    labels: SegmentationScores
    objects: TargetReport


def _score(engine: QueryEngine, scene: SyntheticDataset) -> _Scored:
    from geopurify_core.evaluation.semantic import evaluate_map
    from geopurify_core.evaluation.targets import evaluate_targets
    from geopurify_core.labels import load_label_set

    labels = evaluate_map(engine, scene, load_label_set("scannet20").names)
    return _Scored(labels, evaluate_targets(engine, _class_targets(scene, engine.snapshot)))


def _plain(scored: Mapping[str, _Scored]) -> dict[str, Any]:
    """For JSON: one map's scores as they are; of two, the raw ones there and the purified ones beside them."""
    each = {name: {"labels": vars(one.labels), "objects": one.objects.as_plain()} for name, one in scored.items()}
    if len(each) == 1:
        ((name, only),) = each.items()
        return {"features": name, **only}
    return {
        "features": "both", **each["raw"], "purified": each["purified"], "difference": _gain(**scored),
    }  # fmt: skip


def _gain(raw: _Scored, purified: _Scored) -> dict[str, float]:
    from geopurify_core.evaluation.semantic import difference

    hits = {f"hit_at_{k}": purified.objects.hits_at(k) - raw.objects.hits_at(k) for k in (1, 3)}
    return {**difference(raw.labels, purified.labels), **hits}


def _class_targets(scene: SyntheticDataset, snapshot: MapSnapshot) -> list[Any]:
    """Name and object centres of each class that the map has seen and that people ask for."""
    from geopurify_core.evaluation.targets import Target

    seen = set(np.unique(scene.ground_truth_instances(snapshot.centers_m)).tolist())
    centers: dict[str, list[Any]] = {}
    for thing in scene.objects:
        if thing.class_name not in _NOT_ASKED and thing.instance in seen:
            centers.setdefault(thing.class_name, []).append(thing.center_m)
    return [Target(name, np.array(points, dtype=np.float64)) for name, points in sorted(centers.items())]


def _print_labels(labels: SegmentationScores) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("class")
    table.add_column("IoU", justify="right")
    table.add_column("accuracy", justify="right")
    for name, iou in sorted(labels.iou.items(), key=lambda item: -item[1]):
        table.add_row(name, f"{iou:.3f}", f"{labels.acc[name]:.3f}")
    out.print(table)
    out.print(f"mIoU {labels.miou:.3f}   mAcc {labels.macc:.3f}   voxels right {labels.accuracy:.3f}\n", style="bold")


def _print_both(raw: _Scored, purified: _Scored) -> None:
    """Classes by what purification brought them, then the means, then the objects."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("class")
    for name in ("IoU raw", "purified", "diff", "accuracy raw", "purified", "diff"):
        table.add_column(name, justify="right")
    before, after = raw.labels, purified.labels
    for name in sorted(before.iou, key=lambda name: before.iou[name] - after.iou[name]):
        table.add_row(name, *_beside(before.iou[name], after.iou[name]), *_beside(before.acc[name], after.acc[name]))
    table.add_section()
    table.add_row("mean", *_beside(before.miou, after.miou), *_beside(before.macc, after.macc), style="bold")
    out.print(table)
    gain = _gain(raw, purified)
    out.print(
        f"mIoU {before.miou:.3f} → {after.miou:.3f} ({gain['miou']:+.3f})   "
        f"mAcc {before.macc:.3f} → {after.macc:.3f} ({gain['macc']:+.3f})   "
        f"voxels right {before.accuracy:.3f} → {after.accuracy:.3f} ({gain['accuracy']:+.3f})",
        style="bold",
        soft_wrap=True,
    )
    count = len(raw.objects.rows)
    hits = (
        f"hit@{k} {raw.objects.hits_at(k)}/{count} → {purified.objects.hits_at(k)}/{count} ({gain[f'hit_at_{k}']:+d})"
        for k in (1, 3)
    )
    out.print("   ".join(hits), style="bold", soft_wrap=True)


def _beside(before: float, after: float) -> tuple[str, str, str]:
    return f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}"
