"""Means, deviations and tables of scores that were taken several times: over rooms, or over seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from training.experiments.rooms import RAW, Row, Rows

METRICS = ("mIoU", "mAcc", "accuracy")


def mean_and_deviation(values: Sequence[float], sign: str = "") -> str:
    """``"55.1 ± 0.4"``: mean and sample standard deviation; of one value without a deviation."""
    array = np.asarray(values, dtype=np.float64)
    mean = format(float(array.mean()), f"{sign}.1f")
    return mean if len(array) < 2 else f"{mean} ± {array.std(ddof=1):.1f}"


def summary(rooms: Sequence[Rows]) -> dict[str, dict[str, str]]:
    """Row's name → metric → mean ± deviation over the rooms that have the row; ``gain`` is mIoU beyond the same rooms'
    raw one."""
    table: dict[str, dict[str, str]] = {}
    for name in dict.fromkeys(name for room in rooms for name in room):
        having = [room for room in rooms if name in room]
        row = {metric: mean_and_deviation([room[name][metric] for room in having]) for metric in METRICS}
        gain = [room[name]["mIoU"] - room[RAW]["mIoU"] for room in having]
        row["gain"] = "" if name == RAW else f"{mean_and_deviation(gain, '+')}, worst {min(gain):+.1f}"
        table[name] = row | {"rooms": str(len(having))}
    return table


def markdown(table: dict[str, dict[str, str]]) -> str:
    """A table for the docs."""
    lines = ["| pooled with | rooms | mIoU | mAcc | accuracy | mIoU beyond raw |", "|---|---|---|---|---|---|"]
    for name, r in table.items():
        lines.append(f"| {name} | {r['rooms']} | {r['mIoU']} | {r['mAcc']} | {r['accuracy']} | {r['gain']} |")
    return "\n".join(lines)


def per_class(rooms: Sequence[Rows], purified: str) -> list[tuple[str, float, float, int]]:
    """(class, mean raw IoU, mean IoU of the row ``purified``, rooms that hold it), most gained first."""
    found: dict[str, list[tuple[float, float]]] = {}
    for room in rooms:
        for name, value in room[RAW]["IoU"].items():
            found.setdefault(name, []).append((value, room[purified]["IoU"][name]))
    rows: list[tuple[str, float, float, int]] = []
    for name, pairs in found.items():
        raw, got = np.mean(pairs, axis=0)
        rows.append((name, float(raw), float(got), len(pairs)))
    return sorted(rows, key=lambda row: row[1] - row[2])


def per_class_markdown(rows: Sequence[tuple[str, float, float, int]]) -> str:
    """A table for the docs."""
    lines = ["| class | rooms | raw | purified | gain |", "|---|---|---|---|---|"]
    lines += [f"| {name} | {n} | {raw:.1f} | {got:.1f} | {got - raw:+.1f} |" for name, raw, got, n in rows]
    return "\n".join(lines)


def average(rooms: Sequence[Row]) -> dict[str, float]:
    """Means over rooms of one row's metrics."""
    return {metric: float(np.mean([row[metric] for row in rooms])) for metric in METRICS}
