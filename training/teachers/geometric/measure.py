"""How good the geometric teacher is: ``python -m training.teachers.geometric.measure FOLDER [SCENE…] [--variants]``.

On prepared procedural scenes, whose instances are known: how pure its segments are, how well cosines tell neighbours of
the same thing from others, and what ScanNet's 20 names score on a map pooled with its affinity. ``--scan FILE``
measures the first two on a labelled scan (PLY with label and instance of each point, NYU40 ids). Tables are Markdown.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from geopurify_core.cli.common import out
from training.scenes.prepared import PreparedScene, load_scene, scene_names
from training.teachers.base import PointCloud, TeacherFeatures
from training.teachers.geometric.graph import geometry_of
from training.teachers.geometric.picture import picture, segment_colours
from training.teachers.geometric.scores import PooledScores, calibration, commonest, groups, pair_scores, segment_scores
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
Rows = dict[str, dict[str, float]]
_NYU40_STRUCTURE = (1, 2, 22)


def truth_of(scene: PreparedScene) -> NDArray[np.int64]:
    """Groups of a procedural scene: instances, all walls, all floor, all ceiling."""
    from geopurify_core.datasets.synthetic.kinds import CLASS_NAMES

    if scene.labels is None or scene.instances is None:
        raise typer.BadParameter(f"{scene.name} has no labels and instances to compare with")
    return groups(scene.labels, scene.instances, [CLASS_NAMES.index(name) for name in ("wall", "floor", "ceiling")])


def teacher_scores(
    teacher: GeometricTeacher, cloud: PointCloud, truth: NDArray[np.int64], pooled: PooledScores | None = None
) -> Rows:
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
    start = time.process_time()
    features = teacher.describe(cloud)
    seconds = time.process_time() - start  # everything is compiled by now
    result["time"] = {"thousand points": len(cloud) / 1000, "CPU seconds": seconds, "rows": len(features.rows)}
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


def table(rows: Rows) -> str:
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


def plain(rgb: NDArray[np.uint8], normals: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """(N, 7) colour and normal as descriptors: what a teacher has to beat."""
    colour = 1.5 * (rgb.astype(np.float32) / 255 - 0.5)
    return np.concatenate([colour, normals, np.full((len(rgb), 1), 1e-3)], axis=1).astype(np.float32)


def plain_pairs(cloud: PointCloud, truth: NDArray[np.int64]) -> dict[str, float]:
    """AUC of colour and normal; normals that the cloud lacks are the teacher's."""
    normals = cloud.normals
    if not normals.any():
        teacher = GeometricTeacher()
        cells = teacher.cells(cloud)
        normals = geometry_of(cells, teacher.settings.scales_m, 0).normals[cells.index]
    features = TeacherFeatures(plain(cloud.rgb, normals), np.arange(len(cloud), dtype=np.int32))
    scores = pair_scores(features, truth, cloud.points_m, GeometricTeacher.SAME)
    return {name: value for name, value in scores.items() if name.startswith("AUC")}  # of another scale than SAME


def baselines(scene: PreparedScene, truth: NDArray[np.int64], pooled: PooledScores) -> Rows:
    """mIoU of the raw map, and pooled by colour and normal, within the true groups, and within truly merged patches."""
    teacher = GeometricTeacher()
    cells = teacher.cells(scene.cloud())
    geometry = geometry_of(cells, teacher.settings.scales_m, teacher.settings.smoothing)
    patches = teacher.hierarchy(cells, geometry).patches[cells.index]
    return {
        "raw": {"mIoU": pooled.raw()},
        "colour and normal": {"mIoU": pooled.pooled(plain(scene.rgb, scene.normals.astype(np.float32)))},
        "patches, truly merged": {"mIoU": pooled.pooled_within(commonest(patches, truth))},
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


def scene_rows(
    scene: PreparedScene, variants: dict[str, dict[str, Any]], text: NDArray[np.float32] | None
) -> dict[str, Rows]:
    """Scores of one scene: of the baselines and of each variant."""
    truth = truth_of(scene)
    pooled = None if text is None else PooledScores(scene, text)
    plain_maps = {} if pooled is None else baselines(scene, truth, pooled)
    rows: dict[str, Rows] = {name: {"pooled": row} for name, row in plain_maps.items()}
    rows.setdefault("colour and normal", {})["pairs"] = plain_pairs(scene.cloud(), truth)
    for name, options in variants.items():
        rows[name] = teacher_scores(GeometricTeacher(**options), scene.cloud(), truth, pooled)
        log.info("%s, %s: %s", scene.name, name, rows[name])
    return rows


def _show(title: str, rows: Rows) -> None:
    out.print(f"\n{title}\n\n{table(rows)}", markup=False, soft_wrap=True)


def _show_scan(path: Path) -> None:
    cloud, truth = scan_cloud(path)
    _show(f"pairs of {path.name}", {"colour and normal": plain_pairs(cloud, truth)})
    for part, row in teacher_scores(GeometricTeacher(), cloud, truth).items():
        _show(f"{part} of {path.name}", {"as it is": row})


def main(
    folder: Annotated[Path, typer.Argument(help="Prepared scenes with instances; features of nano.")],
    scenes: Annotated[list[str] | None, typer.Argument(help="Which; by default all.")] = None,
    variants: Annotated[bool, typer.Option(help="Also the teacher with parts of it taken away.")] = False,
    pool: Annotated[bool, typer.Option(help="Also pool the maps.")] = True,
    scan: Annotated[Path | None, typer.Option(help="A labelled scan, PLY.")] = None,
    draw: Annotated[Path | None, typer.Option(help="Write a picture of the first scene's things here.")] = None,
) -> None:
    """Print tables of what the geometric teacher gets right."""
    names = scenes or scene_names(folder)
    text = _text() if pool else None
    chosen = VARIANTS if variants else {"as it is": {}}
    found = [scene_rows(load_scene(folder, name), chosen, text) for name in names]
    for part in ("patches", "surfaces", "things", "pairs", "pooled", "time"):
        rows = {name: mean(scene[name][part] for scene in found) for name, row in found[0].items() if part in row}
        if rows:
            _show(f"{part}, mean of {len(names)} scenes", rows)
    first = load_scene(folder, names[0])
    levels = calibration(GeometricTeacher().describe(first.cloud()), truth_of(first), first.points_m)
    _show(f"cosines in {first.name}", levels)
    if scan is not None:
        _show_scan(scan)
    if draw is not None:
        _draw(first.cloud(), draw)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    typer.run(main)
