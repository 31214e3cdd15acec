"""Purification after a change of half a metre, against purification from scratch, on a furnished room at 2 cm.

Both are timed in turns on the same map, and the best of each counts; the figures that matter are ratios.
``student_work`` is rows times layers as a share of a full run, ``student_time`` the same in seconds,
the predicted seconds what the cost model expected of the way that it took.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

CHANGE_M, _QUICK_CHANGE_M = 0.5, 0.12  # the quick room is one metre wide
_NARROW, _PUBLISHED = 64, 512


def run(quick: bool) -> dict[str, Any]:
    """Seconds, shares and differences for a narrow student and, unless quick, one of the published width."""
    voxels, channels, change_m = (20_000, 128, _QUICK_CHANGE_M) if quick else (100_000, 512, CHANGE_M)
    room = _rooms()
    _warm_up(room)
    before = room.furnished_room(voxels, channels)
    now = room.changed_room(before, change_m)
    results: dict[str, Any] = {"voxels": len(before), "channels": channels}
    results |= {"change_m": change_m, "narrow": _compared(before, now, _NARROW, rounds=3)}
    if not quick:
        results["published"] = _compared(before, now, _PUBLISHED, rounds=1)
    return results


def _rooms() -> Any:
    path = Path(__file__).with_name("_room.py")
    spec = importlib.util.spec_from_file_location("bench_room", path)
    if spec is None or spec.loader is None:
        raise ImportError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def student_of(channels: int, hidden: int) -> Any:
    """Random weights: what they are changes which rows move, hardly what a row costs."""
    import torch

    from geopurify_core.purification.student.checkpoint import Student, StudentInfo
    from geopurify_core.purification.student.network import StudentAffinityNetwork

    torch.manual_seed(0)
    network = StudentAffinityNetwork(channels + 6, hidden=hidden).eval().requires_grad_(False)
    return Student(network, StudentInfo("bench", channels, hidden, 128, 4), f"bench:{hidden}")


def _warm_up(room: Any) -> None:
    from geopurify_core.purification.update.compute import purify_snapshot

    small = room.furnished_room(4_000, 64)
    changed, student = room.changed_room(small, 0.1), student_of(64, 16)
    for pool in ("features", "scores"):
        config = _config(pool)
        purify_snapshot(changed, student, config, previous=purify_snapshot(small, student, config))


def _config(pool: str) -> Any:
    from geopurify_core.config import PurificationConfig

    return PurificationConfig(pool=pool, device="cpu", budget_mb=100_000)


def _compared(before: Any, now: Any, hidden: int, rounds: int) -> dict[str, Any]:
    """Full and incremental in turns, for both kinds of pooling."""
    from geopurify_core.purification.update.compute import purify_snapshot

    student = student_of(before.feature_dim, hidden)
    results = {}
    for pool in ("features", "scores"):
        config = _config(pool)
        first = purify_snapshot(before, student, config)
        runs = [
            (purify_snapshot(now, student, config), purify_snapshot(now, student, config, previous=first))
            for _ in range(rounds)
        ]
        full, partial = (min((pair[i] for pair in runs), key=lambda r: r.report.total_seconds) for i in (0, 1))
        results[pool] = _figures(full.report, partial.report) | _differences(full, partial)
        results[pool]["bytes_per_voxel"] = round(partial.nbytes / len(partial))
    return results


def _figures(full: Any, partial: Any) -> dict[str, Any]:
    """Of two reports."""
    return {
        "student_work": partial.student_work,
        "student_time": partial.seconds["student"] / full.seconds["student"],
        "pooling_time": partial.seconds["pooling"] / full.seconds["pooling"],
        "total_time": partial.total_seconds / full.total_seconds,
        "full_seconds": full.seconds,
        "full_predicted_seconds": full.predicted_seconds,
        "incremental_seconds": partial.seconds,
        "incremental_predicted_seconds": partial.predicted_seconds,
        "modes": partial.modes,
        "rows_recomputed": {name: rows / partial.num_voxels for name, rows in partial.rows.items()},
    }


def _differences(full: Any, partial: Any) -> dict[str, float]:
    worst = {
        "embeddings": float(np.abs(full.embeddings - partial.embeddings).max()),
        "weights": float(np.abs(full.affinity.weights - partial.affinity.weights).max()),
        "length": float(np.abs(full.length - partial.length).max()),
        "neighbor_rows": int((full.affinity.neighbors != partial.affinity.neighbors).any(axis=1).sum()),
    }
    if full.features is not None:
        apart = np.abs(full.features.astype(np.float32) - partial.features.astype(np.float32))
        worst["features"] = float(apart.max())
    return {f"worst_{name}": value for name, value in worst.items()}


if __name__ == "__main__":
    import json

    json.dump(run("--quick" in sys.argv), sys.stdout, indent=2)
