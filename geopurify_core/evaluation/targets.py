"""How often a known object is among a query's first answers.

A target is a text and one or more points on the object's surface. It counts as hit@k when one of its points lies within
``tolerance_m`` (0.3 m) of the box of one of the first k objects. A box as large as the room would hit everything, so
the report also tells how large the boxes are, and boxes above ``max_box_share`` of the map's own box never count.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopurify_core.errors import DatasetError
from geopurify_core.querying.boxes import distance_to_box
from geopurify_core.querying.engine import QueryEngine
from geopurify_core.querying.results import DetectedObject, QueryResult

TOLERANCE_M = 0.3
_MAX_BOX_SHARE = 0.25


@dataclass(frozen=True)
class Target:
    """A known object.

    Attributes:
        text: The query.
        points_m: (n, 3) float64 points on its surface, map frame, metres.
    """

    text: str
    points_m: NDArray[np.float64]


@dataclass(frozen=True)
class TargetRow:
    """What one target got.

    Attributes:
        text: The query.
        rank: Of the first object that hits (1 is the best), or None.
        distance_m: From the target to the box of the best-ranked object; infinity where nothing was found.
        score: Of the best-ranked object, or NaN.
        num_objects: How many objects were returned.
    """

    text: str
    rank: int | None
    distance_m: float
    score: float
    num_objects: int


@dataclass(frozen=True)
class TargetReport:
    """All rows, and what the boxes of the first three answers measure.

    Attributes:
        rows: One for each target, in order.
        median_volume_m3, largest_volume_m3: Of the boxes of the first three objects of each target.
        oversized: How many of those boxes were too large to count.
    """

    rows: tuple[TargetRow, ...]
    median_volume_m3: float
    largest_volume_m3: float
    oversized: int

    def hits_at(self, k: int) -> int:
        """How many targets were hit by one of their first k objects."""
        return sum(row.rank is not None and row.rank <= k for row in self.rows)

    def as_plain(self) -> dict[str, Any]:
        """Plain values for JSON: hit_at_1, hit_at_3, targets, misses, box volumes, and the rows."""
        return {
            "targets": len(self.rows),
            "hit_at_1": self.hits_at(1),
            "hit_at_3": self.hits_at(3),
            "misses": [row.text for row in self.rows if row.rank is None or row.rank > 3],
            "median_volume_m3": round(self.median_volume_m3, 4),
            "largest_volume_m3": round(self.largest_volume_m3, 4),
            "oversized": self.oversized,
            "rows": [
                {
                    "text": row.text,
                    "rank": row.rank,
                    "distance_m": round(row.distance_m, 3) if np.isfinite(row.distance_m) else None,
                    "score": round(row.score, 3) if np.isfinite(row.score) else None,
                    "num_objects": row.num_objects,
                }
                for row in self.rows
            ],
        }


def read_targets(path: str | Path) -> list[Target]:
    """Targets of a JSON file: ``{"objects": [{"query": text, "xyz": [x, y, z]}, …]}``; ``xyz`` may list several points.

    Raises:
        DatasetError: The file cannot be read, or an entry lacks its text or finite coordinates.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError("targets", str(path), f"It cannot be read as JSON: {error}") from error
    entries = content.get("objects") if isinstance(content, dict) else content
    if not isinstance(entries, list) or not entries:
        raise DatasetError("targets", str(path), 'Give {"objects": [{"query": "red chair", "xyz": [x, y, z]}, …]}.')
    return [_target(f"objects[{index}]", entry) for index, entry in enumerate(entries)]


def _target(field: str, entry: Any) -> Target:
    if not isinstance(entry, dict) or not isinstance(entry.get("query"), str):
        raise DatasetError(f"{field}.query", entry, "Name what to ask for, as 'red chair'.")
    try:
        points = np.atleast_2d(np.asarray(entry.get("xyz"), dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{field}.xyz", entry.get("xyz"), "Give three coordinates in metres.") from error
    if points.ndim != 2 or points.shape[1] != 3 or not np.isfinite(points).all():
        raise DatasetError(f"{field}.xyz", entry.get("xyz"), "Give three finite coordinates in metres.")
    return Target(entry["query"], points)


def evaluate_targets(
    engine: QueryEngine,
    targets: Sequence[Target],
    tolerance_m: float = TOLERANCE_M,
    max_box_share: float = _MAX_BOX_SHARE,
) -> TargetReport:
    """Ask the engine for every target and see where the answers lie."""
    room_m3 = _map_volume_m3(engine)
    rows, volumes = [], []
    for target in targets:  # one by one: an engine refuses long lists, and every answer holds a score for each voxel
        (result,) = engine.query([target.text])
        volumes += [float(np.prod(found.size_m)) for found in result.objects[:3]]
        rows.append(_row(target, result, tolerance_m, max_box_share * room_m3))
    return TargetReport(
        rows=tuple(rows),
        median_volume_m3=float(np.median(volumes)) if volumes else 0.0,
        largest_volume_m3=max(volumes, default=0.0),
        oversized=sum(volume > max_box_share * room_m3 for volume in volumes),
    )


def _row(target: Target, result: QueryResult, tolerance_m: float, max_volume_m3: float) -> TargetRow:
    distances = [_distance_m(target, found) for found in result.objects]
    rank = next(
        (
            index + 1
            for index, (found, distance) in enumerate(zip(result.objects, distances, strict=True))
            if distance <= tolerance_m and np.prod(found.size_m) <= max_volume_m3
        ),
        None,
    )
    return TargetRow(
        text=target.text,
        rank=rank,
        distance_m=distances[0] if distances else float("inf"),
        score=result.objects[0].score if result.objects else float("nan"),
        num_objects=len(distances),
    )


def _distance_m(target: Target, found: DetectedObject) -> float:
    return float(distance_to_box(target.points_m, found.center_m, found.size_m, found.R_map_box).min())


def _map_volume_m3(engine: QueryEngine) -> float:
    """Volume of the box that holds nearly all of the map (1 % trimmed on each side), m³."""
    centers = engine.snapshot.centers_m
    if not len(centers):
        return 0.0
    return float(np.prod(np.ptp(np.percentile(centers, (1, 99), axis=0), axis=0) + engine.snapshot.voxel_size_m))
