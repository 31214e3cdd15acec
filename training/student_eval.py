"""Score a student on rooms nobody trained on: ``python -m training.student_eval [--seeds 10-29] [--real DATA]``.

Every voxel is labelled with the best of ScanNet's 20 names through ``QueryEngine.segment``, as ``evaluate_map`` does,
on the raw map and on maps pooled with different affinities: the student's; an even one (a box blur), which shows what
smoothing alone is worth; two that need no learning, of the raw features themselves and of colour and normal; and one
of the true objects, which is the most that pooling could reach. Results go to stdout as JSON, tables to the log.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from geopurify_core.datasets.synthetic.kinds import SCANNET20
from geopurify_core.evaluation.metrics import IGNORE, SegmentationScores, confusion_matrix, scores
from geopurify_core.mapping.keys import pack_keys
from geopurify_core.mapping.snapshot import MapSnapshot
from geopurify_core.purification.affinity.build import Affinity, build_affinity
from geopurify_core.purification.affinity.neighbors import nearest_neighbors
from geopurify_core.purification.pooling.pool import pool
from geopurify_core.purification.student.checkpoint import Student, load_student, shipped_student
from geopurify_core.purification.student.inputs import student_inputs
from geopurify_core.querying.engine import QueryEngine
from geopurify_core.vision.nano import NanoBackbone
from training.student_data import groups_of
from training.student_scenes import EVALUATION_SEEDS, Scene, load_scene, map_apartment, save_scene

log = logging.getLogger("training.student_eval")

FRAMES = 120  # of a whole walk
STEPS = 18
SWEEP = (1, 6, 18, 36)
NEIGHBORS = 96
_PER_AXIS = ("coords", "features", "weight", "rgb", "normals", "first_seen_ns", "last_seen_ns", "geometry_weight")
Affinities = dict[str, Callable[[], Affinity]]


def in_key_order(scene: Scene) -> Scene:
    """The same scene with its rows sorted as pooling wants them."""
    order = np.argsort(pack_keys(scene.snapshot.coords), kind="stable")
    arrays = {name: getattr(scene.snapshot, name)[order] for name in _PER_AXIS}
    return replace(
        scene,
        snapshot=replace(scene.snapshot, **arrays),
        instance=scene.instance[order],
        category=scene.category[order],
    )


def evaluation_scene(folder: Path, seed: int, frames: int = FRAMES) -> Scene:
    """The map of a whole walk through an evaluation apartment, from ``folder`` where it is there already."""
    path = folder / f"{seed:05d}_{frames}.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        save_scene(map_apartment(seed, frames, frames), path)
    return in_key_order(load_scene(path))


def affinities(scene: Scene, student: Student) -> Affinities:
    """What to pool with, by name; each is made when it is called. Rows of ``scene`` are in key order."""
    snapshot, coords = scene.snapshot, scene.snapshot.coords
    neighbors = nearest_neighbors(coords, NEIGHBORS)
    even = np.full(neighbors.shape, 1.0 / neighbors.shape[1], dtype=np.float32)

    def of(embeddings: NDArray[np.float32] | torch.Tensor) -> Affinity:
        return build_affinity(coords, np.asarray(embeddings, dtype=np.float32), neighbors=neighbors)

    return {
        "student": lambda: of(student.network.embed(coords, student_inputs(snapshot))),
        "even (box blur)": lambda: Affinity(neighbors, even),
        "raw features": lambda: of(snapshot.features.astype(np.float32)),
        "colour and normal": lambda: of(_colour_and_normal(snapshot)),
        "true objects": lambda: Affinity(neighbors, _within_groups(groups_of(scene), neighbors)),
    }


def _colour_and_normal(snapshot: MapSnapshot) -> NDArray[np.float32]:
    colour = snapshot.rgb.astype(np.float32) / 255 - 0.5
    return np.concatenate([1.5 * colour, snapshot.normals.astype(np.float32), np.full((len(colour), 1), 1e-3)], axis=1)


def _within_groups(groups: NDArray[np.int32], neighbors: NDArray[np.int32]) -> NDArray[np.float32]:
    """Even weights over the neighbours of the own group, over all where there is none."""
    same = (groups[neighbors] == groups[:, None]).astype(np.float32)
    same[same.sum(axis=1) == 0] = 1.0
    return np.asarray(same / same.sum(axis=1, keepdims=True), dtype=np.float32)


def pooled_maps(snapshot: MapSnapshot, affinity: Affinity, steps: Sequence[int]) -> Iterator[tuple[int, MapSnapshot]]:
    """The map after each of the ascending ``steps``.

    Pooling is linear, so what is pooled are coordinates in a basis of all feature rows: a quarter of the columns for
    nano, and the same result within the rounding of float16.
    """
    features = snapshot.features.astype(np.float32)
    square, vectors = np.linalg.eigh(features.T.astype(np.float64) @ features)
    basis = vectors[:, square > 1e-7 * square.max()].astype(np.float32)
    columns = np.concatenate([features @ basis, snapshot.weight[:, None]], axis=1)
    done = 0
    for step in steps:
        columns = pool(columns, affinity, step - done)
        done = step
        yield (
            step,
            replace(
                snapshot,
                features=(columns[:, :-1] @ basis.T).astype(np.float16),
                weight=np.ascontiguousarray(columns[:, -1]),
                geometry_weight=snapshot.geometry_weight,
            ),
        )


def score(snapshot: MapSnapshot, category: NDArray[np.uint8], backbone: NanoBackbone) -> SegmentationScores:
    """As ``evaluate_map``, with the truth given; categories outside ScanNet's 20 do not count."""
    predicted, _ = QueryEngine(snapshot, backbone).segment(SCANNET20)
    truth = np.where(category < len(SCANNET20), category, IGNORE)
    return scores(confusion_matrix(truth, predicted, len(SCANNET20)), SCANNET20)


def in_percent(result: SegmentationScores) -> dict[str, float]:
    """mIoU, mAcc (means over the classes that occur) and accuracy, in percent."""
    values = {"mIoU": result.miou, "mAcc": result.macc, "accuracy": result.accuracy}
    return {name: round(100 * value, 2) for name, value in values.items()}


def score_room(
    scene: Scene, student: Student, backbone: NanoBackbone, others: bool = True, sweep: bool = False
) -> dict[str, dict[str, float]]:
    """Scores of the raw map and of every pooled one, by name.

    Args:
        scene: In key order.
        student: What purifies.
        backbone: What made the map; its text side asks.
        others: Also pool with what the student has to beat.
        sweep: With the student also other numbers of steps than 18.
    """
    result = {"raw": in_percent(score(scene.snapshot, scene.category, backbone))}
    for name, build in affinities(scene, student).items():
        if name != "student" and not others:
            continue
        affinity = build()
        steps = SWEEP if sweep and name == "student" else (1, STEPS) if name.startswith("even") else (STEPS,)
        for step, pooled in pooled_maps(scene.snapshot, affinity, steps):
            result[f"{name}, T={step}"] = in_percent(score(pooled, scene.category, backbone))
    return result


def summary(rooms: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, str]]:
    """Mean ± standard deviation over the rooms, and of the gain over the raw map, for what all rooms have."""
    names = [name for name in rooms[0] if all(name in room for room in rooms)]
    table: dict[str, dict[str, str]] = {}
    for name in names:
        row = {}
        for metric in ("mIoU", "mAcc", "accuracy"):
            values = np.array([room[name][metric] for room in rooms])
            row[metric] = f"{values.mean():.1f} ± {values.std(ddof=min(1, len(values) - 1)):.1f}"
        gain = np.array([room[name]["mIoU"] - room["raw"]["mIoU"] for room in rooms])
        row["gain"] = f"{gain.mean():+.1f} ± {gain.std(ddof=min(1, len(gain) - 1)):.1f}, worst {gain.min():+.1f}"
        table[name] = row
    return table


def markdown(table: dict[str, dict[str, str]]) -> str:
    """A table for the docs."""
    lines = ["| pooled with | mIoU | mAcc | accuracy | mIoU beyond raw |", "|---|---|---|---|---|"]
    lines += [f"| {name} | {r['mIoU']} | {r['mAcc']} | {r['accuracy']} | {r['gain']} |" for name, r in table.items()]
    return "\n".join(lines)


def seeds_in(text: str) -> list[int]:
    """``"10-12,15"`` → [10, 11, 12, 15]."""
    parts = [part.partition("-") for part in text.split(",")]
    return [seed for low, _, high in parts for seed in range(int(low), int(high or low) + 1)]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default=f"{EVALUATION_SEEDS.start}-{EVALUATION_SEEDS.stop - 1}", help="as 10-29")
    parser.add_argument("--sweep", type=int, default=3, help="rooms on which T is varied")
    parser.add_argument("--weights", type=Path, default=None, help="by default the shipped student")
    parser.add_argument("--maps", type=Path, default=Path("out/student/evaluation"), help="where maps are kept")
    parser.add_argument("--real", type=Path, default=None, help="folder with real recordings")
    parser.add_argument("--student-only", action="store_true", help="nothing to compare with but the raw map")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments.threads)
    backbone = NanoBackbone()
    student = load_student(arguments.weights or shipped_student(backbone.fingerprint) or "")
    report: dict[str, Any] = {"student": student.fingerprint, "rooms": {}}
    for index, seed in enumerate(seeds_in(arguments.seeds) if arguments.seeds else []):
        scene = evaluation_scene(arguments.maps, seed)
        rows = score_room(scene, student, backbone, not arguments.student_only, index < arguments.sweep)
        log.info("%d: %d voxels, %s", seed, len(scene), {name: row["mIoU"] for name, row in rows.items()})
        report["rooms"][seed] = rows
    if report["rooms"]:
        rooms = list(report["rooms"].values())
        report["mean"] = summary(rooms)
        log.info("%d rooms\n%s", len(rooms), markdown(report["mean"]))
        if arguments.sweep:
            log.info("first %d rooms\n%s", arguments.sweep, markdown(summary(rooms[: arguments.sweep])))
    if arguments.real is not None:
        from training.student_real import real_scores

        report["real"] = real_scores(arguments.real, student, backbone)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
