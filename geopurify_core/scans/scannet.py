"""ScanNet scenes: mesh, labels and posed images of one scene's folder.

What is read, ``S`` being the scene (``scene0000_00``):

    S_vh_clean_2.ply                      the mesh: points, colours, faces
    S_vh_clean_2.labels.ply               NYU40 id of each vertex (field ``label``)         → scannet20
    S.aggregation.json (or S_vh_clean.aggregation.json), S_vh_clean_2.0.010000.segs.json,
    scannetv2-labels.combined.tsv (here or up to three folders above)                       → scannet200, instances
    S.txt                                 ``axisAlignment``, only on request
    color/ depth/ pose/ intrinsic/ (here or in exported/), or S.sens                        → frames
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geopurify_core.camera import check_pose
from geopurify_core.errors import DatasetError, InvalidPoseError
from geopurify_core.labels import available_label_sets, load_label_set
from geopurify_core.scans.class_index import class_index, find_beside, read_table, whole_number
from geopurify_core.scans.frames import camera_centres, find_frames, opener
from geopurify_core.scans.mesh import Mesh, read_ply
from geopurify_core.scans.normals import scan_normals
from geopurify_core.scans.objects import ScanObjects, read_objects
from geopurify_core.scans.scan import Scan

log = logging.getLogger(__name__)
LABEL_TABLE = "scannetv2-labels.combined.tsv"
NYU40_IDS = range(41)  # 0: not annotated
_MESH_SUFFIX = "_vh_clean_2.ply"


def is_scannet_scene(folder: Path) -> bool:
    """Whether ``folder`` holds the mesh of a ScanNet scene."""
    return folder.is_dir() and any(folder.glob(f"*{_MESH_SUFFIX}"))


def read_scannet(folder: str | Path, *, align: bool = False, strict: bool = False) -> Scan:
    """One scene: points are the mesh's vertices; whatever of labels, instances and images is there.

    Args:
        folder: The scene's folder.
        align: Turn points and cameras by the scene's ``axisAlignment``. OpenScene and GeoPurify do not.
        strict: Refuse label ids that ScanNet does not have, instead of counting them in a warning.

    Raises:
        DatasetError: There is no mesh, or a file is damaged or does not fit the others.
        NotAvailableError: trimesh is not installed.
    """
    folder = Path(folder)
    name = _scene_name(folder)
    mesh = read_ply(folder / f"{name}{_MESH_SUFFIX}")
    labels, instances = _annotations(folder, name, mesh, strict)
    points, normals = mesh.points_m, scan_normals(mesh, camera_centres(folder))
    T = _axis_alignment(folder / f"{name}.txt") if align else None
    if T is not None:
        points, normals = _turned(points, normals, T)
    return Scan(name, points, mesh.rgb, normals, labels, instances, opener(find_frames(folder, name), T))


def read_labelled_cloud(path: str | Path, views: str | Path | None = None, *, strict: bool = False) -> Scan:
    """A cloud with ScanNet's labels in one file: PLY with NYU40 ids in ``label`` and, if there, ``instance``.

    Args:
        path: The file; the scan is named after its folder.
        views: Folder in ScanNet's exported layout, or ``.sens`` file, with the posed images.
        strict: As in :func:`read_scannet`.

    Raises:
        DatasetError: A file is missing, damaged, or lacks the field ``label``.
    """
    path = Path(path)
    mesh = read_ply(path)
    labels = {"scannet20": _scannet20(mesh.vertex_field("label", path), path.name, strict)}
    instances = mesh.vertex_fields.get("instance")
    if views is None:
        recording, centres = None, None
    else:
        from geopurify_core.datasets import open_dataset

        recording, centres = open_dataset(views), camera_centres(Path(views))
    return Scan(
        path.resolve().parent.name,
        mesh.points_m,
        mesh.rgb,
        scan_normals(mesh, centres),
        labels,
        None if instances is None else instances.astype(np.int32),
        opener(recording),
    )


def _scene_name(folder: Path) -> str:
    meshes = sorted(folder.glob(f"*{_MESH_SUFFIX}")) if folder.is_dir() else []
    if not meshes:
        raise DatasetError("ScanNet scene", str(folder), f"It holds no SCENE{_MESH_SUFFIX}.")
    names = [path.name[: -len(_MESH_SUFFIX)] for path in meshes]
    wanted = folder.resolve().name
    if len(names) > 1 and wanted not in names:
        raise DatasetError("ScanNet scene", str(folder), f"It holds the meshes of several scenes: {', '.join(names)}.")
    return wanted if wanted in names else names[0]


# -- labels ----------------------------------------------------------------------------------------------------------


def _annotations(
    folder: Path, name: str, mesh: Mesh, strict: bool
) -> tuple[dict[str, NDArray[np.uint8]], NDArray[np.int32] | None]:
    labels: dict[str, NDArray[np.uint8]] = {}
    instances = None
    objects = _objects(folder, name, len(mesh))
    if objects is not None:
        instances = objects.of_row.astype(np.int32)
        labels |= _from_table(folder, objects, name, strict)
    path = folder / f"{name}_vh_clean_2.labels.ply"
    if path.is_file():
        labelled = read_ply(path)
        if len(labelled) != len(mesh):
            raise DatasetError(path.name, f"{len(labelled)} points", f"The mesh has {len(mesh)}; download both again.")
        labels["scannet20"] = _scannet20(labelled.vertex_field("label", path), path.name, strict)
    return labels, instances


def _scannet20(nyu40: NDArray[np.int64], what: str, strict: bool) -> NDArray[np.uint8]:
    return class_index(nyu40, load_label_set("scannet20").ids, NYU40_IDS, what, strict)


def _objects(folder: Path, name: str, count: int) -> ScanObjects | None:
    places = [folder / f"{stem}.aggregation.json" for stem in (name, f"{name}_vh_clean")]
    groups = next((path for path in places if path.is_file()), places[0])
    return read_objects(folder / f"{name}_vh_clean_2.0.010000.segs.json", groups, count)


def _from_table(folder: Path, objects: ScanObjects, name: str, strict: bool) -> dict[str, NDArray[np.uint8]]:
    """Labels by way of the raw categories; nothing without the table that translates them."""
    path = find_beside(folder, LABEL_TABLE)
    if path is None:
        log.warning("%s: no %s here or above, so no ScanNet200 labels.", name, LABEL_TABLE)
        return {}
    rows = read_table(path, "id", "raw_category", "nyu40id")
    result = {}
    for label_set, column in (("scannet20", "nyu40id"), ("scannet200", "id")):
        if label_set not in available_label_sets():
            continue
        ids = {row["raw_category"]: whole_number(row[column]) for row in rows}
        unknown = -1  # a category that the table does not have
        of_object = np.array([0, *(ids.get(category, unknown) for category in objects.categories)], dtype=np.int64)
        known = {0, *ids.values()}
        class_ids = load_label_set(label_set).ids
        what = f"{name} in {path.name}"
        result[label_set] = class_index(of_object[objects.of_row], class_ids, known, what, strict)
    return result


# -- axes ------------------------------------------------------------------------------------------------------------


def _axis_alignment(path: Path) -> NDArray[np.float64] | None:
    """(4, 4) from the file's line ``axisAlignment = …``; None (no turning) where the scene has no such file or line."""
    if not path.is_file():
        return None
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "axisAlignment":
            try:
                return check_pose(np.array(value.split(), dtype=np.float64).reshape(4, 4), "axisAlignment")
            except (ValueError, InvalidPoseError) as error:
                raise DatasetError("axisAlignment", str(path), f"It is no rigid 4x4 matrix: {error}") from error
    return None


def _turned(
    points: NDArray[np.float32], normals: NDArray[np.float32], T: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    moved = points.astype(np.float64) @ T[:3, :3].T + T[:3, 3]
    return moved.astype(np.float32), (normals.astype(np.float64) @ T[:3, :3].T).astype(np.float32)
