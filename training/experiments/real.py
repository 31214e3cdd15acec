"""Students on real recordings: views and photographs of a labelled scan, and hand-picked targets in a kitchen.

What can be scored is found by its layout below one folder: ``scan_scene0000_00/labelled.ply`` with
``rend_scene0000_00`` (36 views *rendered* from that scan: its geometry and colours are real, its images are not) and
``posed_images_scene0000_00`` (3 photographs); and recordings with an ``objects.json``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from geopurify_core.config import Config, PurificationConfig
from geopurify_core.datasets import open_dataset
from geopurify_core.errors import DatasetError
from geopurify_core.evaluation.metrics import IGNORE
from geopurify_core.evaluation.targets import evaluate_targets, read_targets
from geopurify_core.frame import RGBDFrame
from geopurify_core.labels import load_label_set
from geopurify_core.mapping.snapshot import MapSnapshot
from geopurify_core.pipeline import SemanticMapper
from geopurify_core.purification.student.normals import fill_normals
from geopurify_core.purification.student.trained import Student
from geopurify_core.purification.update.compute import purify_snapshot
from geopurify_core.querying.engine import QueryEngine
from geopurify_core.vision.base import SemanticBackbone
from training.experiments.room import Room, room_of
from training.experiments.rooms import STEPS, score_rooms
from training.scenes.prepared import PreparedScene

log = logging.getLogger(__name__)

SCAN = Path("scan_scene0000_00", "labelled.ply")
VIEWS = ("rend_scene0000_00", "posed_images_scene0000_00")
_REACH_M = 0.1  # a voxel farther from every labelled point has no truth
_VERTEX = np.dtype(
    [("xyz", "<f4", 3), ("rgb", "u1", 3), ("label", "<u2"), ("instance", "<u2")]
)  # as labelled.ply says in its header


def labelled_scan(path: Path) -> tuple[NDArray[np.float64], NDArray[np.uint8], NDArray[np.int32]]:
    """(n, 3) points, metres, their ScanNet-20 class (255: none) and their instance (0: none) of a ``labelled.ply``.

    Raises:
        DatasetError: It is missing, cut off, or no binary PLY file.
    """
    try:
        header, mark, body = path.read_bytes().partition(b"end_header\n")
        if not mark or b"binary_little_endian" not in header:
            raise ValueError("it is no binary PLY file")
        vertices = np.frombuffer(body, _VERTEX, int(header.split(b"element vertex ")[1].split()[0]))
    except (OSError, ValueError, IndexError) as error:
        raise DatasetError("labelled scan", str(path), f"Fetch it again: {error}") from error
    table = load_label_set("scannet20").index_of_id(IGNORE)
    ids = vertices["label"]
    labels = np.where(ids < 256, table[np.minimum(ids, 255)], IGNORE).astype(np.uint8)
    return vertices["xyz"].astype(np.float64), labels, vertices["instance"].astype(np.int32)


def mapped(frames: Iterable[RGBDFrame], backbone: SemanticBackbone) -> MapSnapshot:
    """The raw map of these frames, with the default configuration."""
    mapper = SemanticMapper(Config(), backbone)
    for frame in frames:
        mapper.integrate(frame)
    return mapper.snapshot()


def prepared_map(
    snapshot: MapSnapshot, name: str, labels: NDArray[np.uint8], instances: NDArray[np.int32]
) -> PreparedScene:
    """A raw map with what is known about each voxel, as a prepared scene."""
    about = {
        "backbone": snapshot.backbone, "text_fingerprint": snapshot.text_fingerprint,
        "voxel_size_m": snapshot.voxel_size_m, "source": name,
    }  # fmt: skip
    normals = fill_normals(snapshot.coords, snapshot.normals.astype(np.float32)).astype(np.float16)
    return PreparedScene(
        name, snapshot.centers_m.astype(np.float32), snapshot.rgb, normals, snapshot.features, snapshot.weight,
        labels, instances, about,
    )  # fmt: skip


def scan_room(snapshot: MapSnapshot, scan: Path, name: str) -> Room:
    """A map as a room to score on; each voxel has label and instance of the nearest scan point within 10 cm."""
    points, labels, instances = labelled_scan(scan)
    _, nearest = cKDTree(points).query(snapshot.centers_m, distance_upper_bound=_REACH_M)
    labels, instances = np.append(labels, np.uint8(IGNORE)), np.append(instances, np.int32(0))
    return room_of(prepared_map(snapshot, name, labels[nearest], instances[nearest]))


def target_scores(
    folder: Path, student: Student, backbone: SemanticBackbone, steps: Sequence[int] = (1, STEPS)
) -> dict[str, Any]:
    """How many of a recording's known objects are among the first answers, raw and purified."""
    snapshot, targets, result = mapped(open_dataset(folder), backbone), read_targets(folder / "objects.json"), {}
    versions = {"raw": snapshot}
    for step in steps:
        config = replace(PurificationConfig(), steps=step)
        versions[f"student, T={step}"] = purify_snapshot(snapshot, student, config).as_snapshot()
    for name, version in versions.items():
        report = evaluate_targets(QueryEngine(version, backbone), targets)
        result[name] = {"hit_at_1": report.hits_at(1), "hit_at_3": report.hits_at(3), "targets": len(report.rows)}
        log.info("%s %s: %s", folder.name, name, result[name])
    return result


def real_scores(data: Path, student: Student, backbone: SemanticBackbone) -> dict[str, Any]:
    """Everything that can be scored below ``data``: recording → row → scores.

    Raises:
        DatasetError: There is nothing to score.
    """
    scan, result = data / SCAN, {}
    views = [name for name in VIEWS if (data / name).is_dir()] if scan.is_file() else []
    rooms = [scan_room(mapped(open_dataset(data / name), backbone), scan, name) for name in views]
    if rooms:
        result.update(score_rooms(rooms, student, backbone, sweep=len(rooms), others=len(rooms)))
    for recording in sorted(data.glob("*/objects.json")):
        result[recording.parent.name] = target_scores(recording.parent, student, backbone)
    if not result:
        raise DatasetError("real recordings", str(data), f"There is neither {SCAN} with its views nor an objects.json.")
    return result
