"""The tables that ``geopurify eval scans`` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from geopurify_core.cli.common import err, out
from geopurify_core.evaluation.counts import ALL
from geopurify_core.evaluation.report import headline
from geopurify_core.labels import LabelSet

_MOST_CLASSES = 45


def print_report(report: Mapping[str, Any], labels: LabelSet) -> None:
    """Means of every variant, then classes side by side, then what was left out."""
    _print_means(report)
    _print_groups(report, labels)
    _print_classes(report, labels)
    points = report["points"]
    out.print(
        f"scenes {len(report['scenes'])}, labelled points {points['labelled']:,}, of them seen {points['seen']:,}; "
        "without a feature: " + ", ".join(f"{name} {count:,}" for name, count in points["featureless"].items()),
        style="dim",
        soft_wrap=True,
    )
    absent = report["results"]["raw"][str(len(labels))][ALL]["absent"]
    if absent:
        out.print(f"absent classes (0 in the mean over all): {', '.join(absent)}", style="dim", soft_wrap=True)
    for name, reason in report["skipped"].items():
        err.print(f"skipped {name}: {reason}", style="yellow", markup=False, soft_wrap=True)


def _print_means(report: Mapping[str, Any]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("features", "classes", "points"):
        table.add_column(name)
    for name in ("mIoU", "mAcc", "mIoU present", "mAcc present", "accuracy"):
        table.add_column(name, justify="right")
    for row in headline(report):
        values = [f"{row[key]:.2f}" for key in ("miou", "macc", "miou_present", "macc_present", "accuracy")]
        table.add_row(row["variant"], str(row["classes"]), row["which"], *values)
    out.print(table)
    out.print(
        "mIoU, mAcc: over all classes, absent ones count 0; present: over those that occur. seen: only points that had "
        "a feature before purification.\n",
        style="dim",
        soft_wrap=True,
    )


def _print_groups(report: Mapping[str, Any], labels: LabelSet) -> None:
    reading = str(len(labels))
    groups = report["results"]["raw"][reading][ALL]["groups"]
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column(f"of {reading}")
    for group, first in groups.items():
        table.add_column(f"mIoU {group} ({first['classes']})", justify="right")
        table.add_column("mAcc", justify="right")
    for variant, kinds in report["results"].items():
        values = [kinds[reading][ALL]["groups"][group] for group in groups]
        table.add_row(variant, *(f"{100 * value[mean]:.2f}" for value in values for mean in ("miou", "macc")))
    out.print(table)
    out.print()


def _print_classes(report: Mapping[str, Any], labels: LabelSet) -> None:
    """IoU of each class that is present, the most frequent first."""
    reading = str(len(labels))
    variants = {name: kinds[reading][ALL]["classes"] for name, kinds in report["results"].items()}
    first = next(iter(variants.values()))
    present = sorted((name for name in first if first[name]["points"]), key=lambda name: -first[name]["points"])
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("class")
    table.add_column("points", justify="right")
    for name in variants:
        table.add_column(f"IoU {name}", justify="right")
    last = list(variants)[-1]
    if len(variants) > 1:
        table.add_column(f"{last} - raw", justify="right")
    for name in present[:_MOST_CLASSES]:
        cells = [f"{100 * rows[name]['iou']:.1f}" for rows in variants.values()]
        gain = [f"{100 * (variants[last][name]['iou'] - first[name]['iou']):+.1f}"] if len(variants) > 1 else []
        table.add_row(escape(name), f"{first[name]['points']:,}", *cells, *gain)
    out.print(table)
    if len(present) > _MOST_CLASSES:
        out.print(f"… and {len(present) - _MOST_CLASSES} more: classes.csv has them all", style="dim")
