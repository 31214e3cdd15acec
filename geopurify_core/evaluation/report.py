"""From confusion matrices to the report of an evaluation: plain values, tables, and a file for each kind of reader."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from geopurify_core import __version__
from geopurify_core.evaluation.counts import ALL, SEEN, Confusion, Key, SceneCounts, total_of
from geopurify_core.evaluation.openscene import readings_of, summary
from geopurify_core.evaluation.results import ResultsFolder
from geopurify_core.labels import LabelSet

REPORT_FORMAT = 1


def build_report(
    settings: Mapping[str, Any],
    labels: LabelSet,
    scenes: Sequence[SceneCounts],
    skipped: Mapping[str, str],
) -> dict[str, Any]:
    """The report of one evaluation, as JSON values.

    Args:
        settings: Of the results folder.
        labels: The label set.
        scenes: What was scored.
        skipped: Scene → why it was left out.

    Returns:
        The settings; ``scenes``, ``skipped``; ``points`` (labelled, featureless of each variant, summed over scenes);
        ``results``: variant → number of classes named → ``all`` or ``seen`` points → what ``openscene.summary`` says.
    """
    return {
        "report": REPORT_FORMAT,
        "geopurify": __version__,
        **settings,
        "scenes": [scene.name for scene in scenes],
        "skipped": dict(skipped),
        "points": _points(scenes),
        "results": _results(total_of(scenes), labels),
    }


def _results(total: Mapping[Key, Confusion], labels: LabelSet) -> dict[str, dict[str, dict[str, Any]]]:
    readings = {reading.name: reading for reading in readings_of(labels)}
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for key, confusion in total.items():
        place = results.setdefault(key.variant, {}).setdefault(key.reading, {})
        place[key.which] = summary(confusion, labels, readings[key.reading])
    return results


def _points(scenes: Sequence[SceneCounts]) -> dict[str, Any]:
    counts = {name: sum(int(scene.about[name]) for scene in scenes) for name in ("points", "labelled", "seen")}
    variants = list(scenes[0].about["featureless"]) if scenes else []
    featureless = {name: sum(int(scene.about["featureless"][name]) for scene in scenes) for name in variants}
    return {**counts, "featureless": featureless}


def write_scene_table(path: Path, labels: LabelSet, scenes: Sequence[SceneCounts]) -> None:
    """CSV with a row for each scene, variant, reading and kind of points."""
    columns = ("miou", "macc", "miou_present", "macc_present", "accuracy", "points", "featureless")
    readings = {reading.name: reading for reading in readings_of(labels)}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["scene", "variant", "classes", "which", *columns, "seconds"])
        for scene in scenes:
            for key, confusion in scene.confusions.items():
                row = summary(confusion, labels, readings[key.reading])
                values = [f"{row[name]:.6g}" for name in columns]
                seconds = f"{scene.about.get('seconds', 0):.1f}"
                writer.writerow([scene.name, key.variant, key.reading, key.which, *values, seconds])


def write_class_table(path: Path, report: Mapping[str, Any]) -> None:
    """CSV with a row for each variant, reading, kind of points and class."""
    columns = ("iou", "acc", "points", "featureless")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["variant", "classes", "which", "class", *columns])
        for variant, readings in report["results"].items():
            for reading, kinds in readings.items():
                for which, values in kinds.items():
                    for name, row in values["classes"].items():
                        writer.writerow([variant, reading, which, name, *(f"{row[item]:.6g}" for item in columns)])


def write_all(
    folder: ResultsFolder, report: Mapping[str, Any], labels: LabelSet, scenes: Sequence[SceneCounts]
) -> None:
    """report.json, scenes.csv, classes.csv, and a confusion picture of raw and of the last variant."""
    from geopurify_core.evaluation.picture import draw_confusion

    write_scene_table(folder.path / "scenes.csv", labels, scenes)
    write_class_table(folder.path / "classes.csv", report)
    total, variants = total_of(scenes), list(report["results"])
    for variant in dict.fromkeys((variants[0], variants[-1])):
        confusion = total[Key(variant, str(len(labels)), ALL)]
        path = folder.path / f"confusion_{variant.replace('=', '')}.png"
        draw_confusion(confusion, labels.names, path, f"{labels.name}, {variant}, scenes: {len(scenes)}")
    folder.write_json("report.json", report)


def headline(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The few numbers one looks at first: a row for each variant, reading and kind of points, in percent.

    ``seen`` rows are left out where every point has a feature anyway.
    """
    rows = []
    for variant, readings in report["results"].items():
        for reading, kinds in readings.items():
            for which in (ALL, SEEN):
                values = kinds[which]
                if which == SEEN and not kinds[ALL]["featureless"] and values["points"] == kinds[ALL]["points"]:
                    continue
                means = ("miou", "macc", "miou_present", "macc_present", "accuracy")
                percent = {name: round(100 * values[name], 2) for name in means}
                present = len(values["classes"]) - len(values["absent"])
                rows.append(
                    {"variant": variant, "classes": int(reading), "which": which, "present": present, **percent}
                )
    return rows
