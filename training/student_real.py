"""A student on real recordings: a labelled scan, and hand-picked targets in a kitchen. See the data's own README."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from geopurify_core.config import Config, PurificationConfig
from geopurify_core.datasets import open_dataset
from geopurify_core.evaluation.metrics import IGNORE, confusion_matrix, scores
from geopurify_core.evaluation.targets import evaluate_targets, read_targets
from geopurify_core.labels import load_label_set
from geopurify_core.mapping.snapshot import MapSnapshot
from geopurify_core.pipeline import SemanticMapper
from geopurify_core.purification.student.checkpoint import Student
from geopurify_core.purification.update.compute import purify_snapshot
from geopurify_core.querying.engine import QueryEngine
from geopurify_core.vision.nano import NanoBackbone

log = logging.getLogger("training.student_real")
_REACH_M = 0.1
_VERTEX = np.dtype(
    [("xyz", "<f4", 3), ("rgb", "u1", 3), ("label", "<u2"), ("instance", "<u2")]
)  # as labelled.ply says in its header


def labelled_scan(path: Path) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """(n, 3) points, metres, and their ScanNet-20 class (255: none) of a ``labelled.ply``."""
    content = path.read_bytes()
    header, mark, body = content.partition(b"end_header\n")
    if not mark or b"binary_little_endian" not in header:
        raise ValueError(f"{path} is no binary PLY file")
    count = int(header.split(b"element vertex ")[1].split()[0])
    vertices = np.frombuffer(body, _VERTEX, count)
    table = load_label_set("scannet20").index_of_id(IGNORE)
    labels = vertices["label"]
    return vertices["xyz"].astype(np.float64), np.where(labels < 256, table[np.minimum(labels, 255)], IGNORE)


def mapped(folder: Path, backbone: NanoBackbone) -> MapSnapshot:
    """The raw map of a whole recording."""
    mapper = SemanticMapper(Config(), backbone)
    for frame in open_dataset(folder):
        mapper.integrate(frame)
    return mapper.snapshot()


def purified(snapshot: MapSnapshot, student: Student, steps: int = 0) -> MapSnapshot:
    """The purified map, as a mapper would publish it."""
    return purify_snapshot(snapshot, student, replace(PurificationConfig(), steps=steps)).as_snapshot()


def scan_scores(data: Path, views: str, student: Student, backbone: NanoBackbone) -> dict[str, Any]:
    """Raw and purified scores of the views of ``scene0000_00`` in folder ``views``, against the labelled scan."""
    names = load_label_set("scannet20").names
    points, labels = labelled_scan(data / "scan_scene0000_00" / "labelled.ply")
    tree, snapshot, result = cKDTree(points), mapped(data / views, backbone), {}
    versions = {"raw": snapshot, **{f"T={steps}": purified(snapshot, student, steps) for steps in (1, 6, 18)}}
    for name, version in versions.items():
        _, nearest = tree.query(version.centers_m, distance_upper_bound=_REACH_M)
        truth = np.append(labels, np.uint8(IGNORE))[nearest]
        predicted, _ = QueryEngine(version, backbone).segment(names)
        got = scores(confusion_matrix(truth, predicted, len(names)), names)
        percent = {"mIoU": got.miou, "mAcc": got.macc, "accuracy": got.accuracy}
        result[name] = {k: round(100 * v, 2) for k, v in percent.items()} | {"classes": len(got.iou)}
        log.info("%s %s: %s", views, name, result[name])
    return result


def target_scores(folder: Path, student: Student, backbone: NanoBackbone) -> dict[str, Any]:
    """How many of a recording's known objects are among the first answers, raw and purified."""
    snapshot, result = mapped(folder, backbone), {}
    for name, version in (("raw", snapshot), ("T=18", purified(snapshot, student, 18))):
        report = evaluate_targets(QueryEngine(version, backbone), read_targets(folder / "objects.json"))
        result[name] = {"hit_at_1": report.hits_at(1), "hit_at_3": report.hits_at(3), "targets": len(report.rows)}
        log.info("%s %s: %s", folder.name, name, result[name])
    return result


def real_scores(data: Path, student: Student, backbone: NanoBackbone) -> dict[str, Any]:
    """Everything that can be scored below ``data``."""
    result: dict[str, Any] = {}
    for views in ("rend_scene0000_00", "posed_images_scene0000_00"):
        if (data / views).is_dir() and (data / "scan_scene0000_00" / "labelled.ply").is_file():
            result[views] = scan_scores(data, views, student, backbone)
    for recording in sorted(data.glob("*/objects.json")):
        result[recording.parent.name] = target_scores(recording.parent, student, backbone)
    return result
