"""How good the geometric teacher is: ``python -m training.teachers.geometric.measure FOLDER [SCENE…] [--variants]``.

On prepared procedural scenes, whose instances are known: how pure its segments are, how well cosines tell neighbours of
the same thing from others, and what ScanNet's 20 names score on a map pooled with its affinity. ``--scan FILE``
measures the first two on a labelled scan (PLY with label and instance of each point, NYU40 ids). Tables are Markdown.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from geopurify_core.cli.common import out
from training.scenes.prepared import PreparedScene, load_scene, scene_names
from training.teachers.base import PointCloud
from training.teachers.geometric.graph import geometry_of
from training.teachers.geometric.picture import picture, segment_colours
from training.teachers.geometric.scores import PooledScores, calibration, groups, pair_scores, segment_scores
from training.teachers.geometric.teacher import GeometricTeacher

log = logging.getLogger(__name__)

_NO_COLOUR = {"colour": 0.0, "step": 0.0}
_NO_BEND = {"bend": 0.0, "concave": 0.0, "convex": 0.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "no colour": {"colour_weight": 0.0, "surface": _NO_COLOUR, "thing": _NO_COLOUR},
    "no normals": {"normal_weight": 0.0, "surface": _NO_BEND, "thing": _NO_BEND},
    "surfaces, not merged to things": {"thing_limits": (-9.0,), "level_weights": (0.9, 0.0)},
    "no floor, ceiling, walls": {"structure": None},
    "one scale": {"scales_m": (0.16,)},
    "three levels, graded": {"thing_limits": (0.4, 0.65, 0.8), "level_weights": (0.1, 0.2, 0.35, 0.2)},
}
_NYU40_STRUCTURE = (1, 2, 22)


def truth_of(scene: PreparedScene) -> NDArray[np.int64]:
    """Groups of a procedural scene: instances, all walls, all floor, all ceiling."""
    from geopurify_core.datasets.synthetic.kinds import CLASS_NAMES

    if scene.labels is None or scene.instances is None:
        raise typer.BadParameter(f"{scene.name} has no labels and instances to compare with")
    return groups(scene.labels, scene.instances, [CLASS_NAMES.index(name) for name in ("wall", "floor", "ceiling")])


def teacher_scores(
    teacher: GeometricTeacher, cloud: PointCloud, truth: NDArray[np.int64], pooled: PooledScores | None = None
) -> dict[str, dict[str, float]]:
    """Scores of patches, surfaces and things as segments, and of the cosines."""
    cells = teacher.cells(cloud)
    own = teacher.settings
    hierarchy = teacher.hierarchy(cells, geometry_of(cells, own.scales_m, own.smoothing))
    parts: dict[str, NDArray[Any]] = {
        "patches": hierarchy.patches,
        "surfaces": hierarchy.surfaces,
        "things": hierarchy.levels[0],
    }
    result = {name: segment_scores(label[cells.index], truth) for name, label in parts.items()}
    features = teacher.describe(cloud)
    result["pairs"] = pair_scores(features, truth, cloud.points_m, teacher.SAME)
    if pooled is not None:
        result["pooled"] = {"mIoU": pooled.pooled(features.dense())}
    return result


def scan_cloud(path: Path) -> tuple[PointCloud, NDArray[np.int64]]:
    """A labelled scan, without normals, and its groups."""
    from geopurify_core.scans.mesh import read_ply

    mesh = read_ply(path)
    label, instance = (mesh.vertex_fields[name].astype(np.int64) for name in ("label", "instance"))
    known = np.where(label > 0, instance, 0)
    return PointCloud(mesh.points_m, mesh.rgb, np.zeros_like(mesh.points_m)), groups(label, known, _NYU40_STRUCTURE)


def table(rows: dict[str, dict[str, float]]) -> str:
    """Markdown, a line for each row."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        lines.append(" | ".join([f"| {name}", *(f"{row[c]:.1f}" if c in row else "" for c in columns)]) + " |")
    return "\n".join(lines)


def mean(rows: Iterable[dict[str, float]]) -> dict[str, float]:
    """Of each column."""
    rows = list(rows)
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def baselines(scene: PreparedScene, truth: NDArray[np.int64], pooled: PooledScores) -> dict[str, dict[str, float]]:
    """mIoU of the raw map, and pooled by colour and normal, and within the true groups."""
    colour = scene.rgb.astype(np.float32) / 255 - 0.5
    plain = np.concatenate([1.5 * colour, scene.normals.astype(np.float32), np.full((len(scene), 1), 1e-3)], axis=1)
    return {
        "raw": {"mIoU": pooled.raw()},
        "colour and normal": {"mIoU": pooled.pooled(plain.astype(np.float32))},
        "true objects": {"mIoU": pooled.pooled_within(truth)},
    }


def _text() -> NDArray[np.float32]:
    from geopurify_core.datasets.synthetic.kinds import SCANNET20
    from geopurify_core.vision.nano import NanoBackbone

    text = np.asarray(NanoBackbone().encode_text(list(SCANNET20)), dtype=np.float32)
    return np.asarray(text / np.linalg.norm(text, axis=1, keepdims=True), dtype=np.float32)


def _draw(cloud: PointCloud, target: Path) -> None:
    from PIL import Image

    teacher = GeometricTeacher()
    cells = teacher.cells(cloud)
    geometry = geometry_of(cells, teacher.settings.scales_m, teacher.settings.smoothing)
    things = teacher.hierarchy(cells, geometry).levels[0]
    first = np.unique(cells.index, return_index=True)[1]
    Image.fromarray(picture(cells, [cloud.rgb[first], segment_colours(things)])).save(target)


def main(
    folder: Annotated[Path, typer.Argument(help="Prepared scenes with instances; features of nano.")],
    scenes: Annotated[list[str] | None, typer.Argument(help="Which; by default all.")] = None,
    variants: Annotated[bool, typer.Option(help="Also the teacher with parts of it taken away.")] = False,
    pool: Annotated[bool, typer.Option(help="Also pool the maps.")] = True,
    scan: Annotated[Path | None, typer.Option(help="A labelled scan, PLY.")] = None,
    draw: Annotated[Path | None, typer.Option(help="Write a picture of the first scene's things here.")] = None,
) -> None:
    """Print tables of what the geometric teacher gets right."""
    chosen = VARIANTS if variants else {"as it is": {}}
    names = scenes or scene_names(folder)
    found: dict[str, list[dict[str, dict[str, float]]]] = {}
    text = _text() if pool else None
    for name in names:
        scene = load_scene(folder, name)
        truth = truth_of(scene)
        pooled = None if text is None else PooledScores(scene, text)
        if pooled is not None:
            for other, row in baselines(scene, truth, pooled).items():
                found.setdefault(other, []).append({"pooled": row})
        for variant, options in chosen.items():
            result = teacher_scores(GeometricTeacher(**options), scene.cloud(), truth, pooled)
            found.setdefault(variant, []).append(result)
            log.info("%s, %s: %s", name, variant, result)
    for part in ("patches", "surfaces", "things", "pairs", "pooled"):
        rows = {variant: mean(row[part] for row in rows) for variant, rows in found.items() if part in rows[0]}
        if rows:
            out.print(f"\n{part}, mean of {len(names)} scenes\n\n{table(rows)}", markup=False, soft_wrap=True)
    first = load_scene(folder, names[0])
    levels = calibration(GeometricTeacher().describe(first.cloud()), truth_of(first), first.points_m)
    out.print(f"\ncosines in {first.name}\n\n{table(levels)}", markup=False, soft_wrap=True)
    if scan is not None:
        cloud, truth = scan_cloud(scan)
        for part, row in teacher_scores(GeometricTeacher(), cloud, truth).items():
            out.print(f"\n{part} of {scan.name}\n\n{table({'as it is': row})}", markup=False, soft_wrap=True)
    if draw is not None:
        _draw(first.cloud(), draw)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    typer.run(main)
