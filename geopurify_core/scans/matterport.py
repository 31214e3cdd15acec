"""Matterport3D regions: one room of a house, its labels in OpenScene's four label sets, and the images that show it.

What is read, below the folder of house ``H``:

    region_segmentations/regionN.ply         the mesh; ``category_id`` of each face, index into the category table
    region_segmentations/regionN.fsegs.json, regionN.semseg.json
                                             segment of each face, objects of segments → instances, and labels where
                                             the mesh has none
    category_mapping.tsv (here or up to three folders above): index, raw_category, nyu40id, nyuClass
    images: see ``geopurify_core.datasets.matterport``; in this folder, or below a folder given as ``images``

A vertex gets the label most of its faces have (the lowest class of several equal ones), as in OpenScene's preparation.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geopurify_core.datasets.matterport import MatterportHouse, is_matterport_house
from geopurify_core.errors import DatasetError
from geopurify_core.scans.class_index import check_known, find_beside, read_table, whole_number
from geopurify_core.scans.frames import opener
from geopurify_core.scans.mesh import Mesh, read_ply
from geopurify_core.scans.normals import scan_normals
from geopurify_core.scans.objects import ScanObjects, read_objects
from geopurify_core.scans.scan import NO_LABEL, Scan

log = logging.getLogger(__name__)
CATEGORY_TABLE = "category_mapping.tsv"
# NYU40 ids of the 21 classes in their order: ScanNet's twenty, then ceiling.
MATTERPORT21_NYU40 = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 24, 28, 33, 34, 36, 39, 22)
MATTERPORT_SIZES = (40, 80, 160)
_NO_CLASS = ("void", "unknown", "")


def read_matterport(region: str | Path, *, images: str | Path | None = None, strict: bool = False) -> Scan:
    """One region: points are the mesh's vertices.

    Args:
        region: ``…/H/region_segmentations/regionN.ply``.
        images: Folder of the house's images, or one that holds it under its name; by default the house's folder.
        strict: Refuse category ids that the table does not have, instead of counting them in a warning.

    Raises:
        DatasetError: A file is missing, damaged, or does not fit the others.
        NotAvailableError: trimesh is not installed.
    """
    path = Path(region)
    house = path.resolve().parent.parent
    name = f"{house.name}_{path.stem}"
    mesh = read_ply(path)
    objects = read_objects(path.with_suffix(".fsegs.json"), path.with_suffix(".semseg.json"), len(mesh.faces))
    labels = _labels(path, mesh, objects, name, strict)
    instances = None if objects is None else _majority(mesh, objects.of_row).astype(np.int32)
    recording = _house_images(house, images, mesh)
    centres = None if recording is None else recording.centres_m
    return Scan(name, mesh.points_m, mesh.rgb, scan_normals(mesh, centres), labels, instances, opener(recording))


def _house_images(house: Path, images: str | Path | None, mesh: Mesh) -> MatterportHouse | None:
    places = [house] if images is None else [Path(images), Path(images) / house.name]
    box_m = np.stack([mesh.points_m.min(axis=0), mesh.points_m.max(axis=0)])
    for place in places:
        if is_matterport_house(place):
            return MatterportHouse(place, box_m)
    if images is not None:
        raise DatasetError("images", str(images), f"Neither this folder nor {house.name}/ in it holds the images.")
    return None


def _majority(mesh: Mesh, value_of_face: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) the value most faces of each vertex have; of several, the lowest; 0 for a vertex without faces."""
    result = np.zeros(len(mesh), dtype=np.int64)
    if not len(mesh.faces):
        return result
    vertex, value = mesh.faces.reshape(-1), np.repeat(value_of_face, 3)
    low, base = value.min(), int(value.max() - value.min()) + 1
    pair, count = np.unique(vertex * base + (value - low), return_counts=True)
    best = np.lexsort((pair, -count, pair // base))  # by vertex, then most faces, then lowest value
    first = np.unique(pair[best] // base, return_index=True)[1]
    chosen = pair[best][first]
    result[chosen // base] = chosen % base + low
    return result


# -- labels ----------------------------------------------------------------------------------------------------------


def _labels(
    path: Path, mesh: Mesh, objects: ScanObjects | None, name: str, strict: bool
) -> dict[str, NDArray[np.uint8]]:
    table_path = find_beside(path.parent, CATEGORY_TABLE)
    if table_path is None:
        log.warning("%s: no %s here or above, so no labels.", name, CATEGORY_TABLE)
        return {}
    rows = read_table(table_path, "index", "raw_category", "nyu40id", "nyuClass")
    category = _category_of_face(mesh, objects, rows)
    if category is None:
        return {}
    check_known(category, {0, *(whole_number(row["index"]) for row in rows)}, name, strict)
    values, inverse = np.unique(category, return_inverse=True)
    labels = {}
    for label_set, class_of in _class_tables(rows).items():
        table = np.array([class_of.get(int(value), -1) + 1 for value in values], dtype=np.int64)
        of_vertex = _majority(mesh, table[inverse.reshape(-1)])
        labels[label_set] = np.where(of_vertex == 0, NO_LABEL, of_vertex - 1).astype(np.uint8)
    return labels


def _category_of_face(
    mesh: Mesh, objects: ScanObjects | None, rows: list[Mapping[str, str]]
) -> NDArray[np.int64] | None:
    """(F,) ``index`` of each face in the category table, 0 none; None where nothing tells."""
    stored = mesh.face_fields.get("category_id", mesh.face_fields.get("face_category"))
    if stored is not None:
        return np.maximum(np.asarray(stored, dtype=np.int64), 0)  # -1: not annotated
    if objects is None:
        return None
    index = {row["raw_category"]: whole_number(row["index"]) for row in rows}
    return np.array([0, *(index.get(category, 0) for category in objects.categories)])[objects.of_row]


def _class_tables(rows: list[Mapping[str, str]]) -> dict[str, dict[int, int]]:
    """For each label set: class index of a category's ``index``; categories without a class are missing.

    The 21 classes go by NYU40 id. The larger sets are the first 40, 80 and 160 different ``nyuClass`` names in the
    table's order, which is that of their frequency.
    """
    position = {nyu40: i for i, nyu40 in enumerate(MATTERPORT21_NYU40)}
    ids = [whole_number(row["index"]) for row in rows]
    nyu40 = [whole_number(row["nyu40id"]) for row in rows]
    tables = {"matterport21": {i: position[n] for i, n in zip(ids, nyu40, strict=True) if n in position}}
    classes = [row["nyuClass"].strip() for row in rows]
    order = list(dict.fromkeys(name for name in classes if name not in _NO_CLASS))
    for size in MATTERPORT_SIZES:
        chosen = {name: i for i, name in enumerate(order[:size])}
        tables[f"matterport{size}"] = {i: chosen[c] for i, c in zip(ids, classes, strict=True) if c in chosen}
    return tables
