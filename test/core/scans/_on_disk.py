"""A tiny room written in the formats of ScanNet and Matterport3D: a floor of 2.4 m with a table above its middle.

Cameras hang at 2 m and look straight down. The floor is red where x < 1.2 m and green elsewhere, the table blue.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

SIZE_M, STEP_M, TABLE_Z_M, EYE_Z_M = 2.4, 0.04, 0.5, 2.0
TABLE_M = (0.8, 1.6)
WIDTH, HEIGHT, FOCAL = 64, 48, 60.0
K = np.array([[FOCAL, 0, (WIDTH - 1) / 2], [0, FOCAL, (HEIGHT - 1) / 2], [0, 0, 1]])
RED, GREEN, BLUE = (200, 30, 30), (30, 200, 30), (30, 30, 200)
FLOOR, TABLE, OTHER_PROP = 2, 7, 40  # NYU40
CENTRES = {0: (1.0, 1.0), 20: (1.2, 1.2), 30: (1.4, 1.4), 40: (1.4, 1.0)}
SCANNET_TABLE = (
    "id\traw_category\tcategory\tcount\tnyu40id\n3\tfloor\tfloor\t9\t2\n4\ttable\ttable\t8\t7\n"
    "9000\tgizmo\tgizmo\t1\t40\n"
)
CATEGORY_TABLE = (
    "index\traw_category\tcategory\tcount\tnyu40id\tnyuClass\n"
    "1\twall\twall\t9\t1\twall\n2\tfloor\tfloor\t8\t2\tfloor\n3\tvoid\tvoid\t7\t0\tvoid\n"
    "4\ttable\ttable\t6\t7\ttable\n5\tfloor mat\trug\t5\t2\tfloor\n6\tgizmo\tgizmo\t1\t40\t\n"
)


def room() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Points (N, 3), colours (N, 3), NYU40 ids (N,) and faces (F, 3): the floor's grid, then the table's."""
    floor, floor_faces = _grid(0.0, SIZE_M, 0.0)
    table, table_faces = _grid(*TABLE_M, TABLE_Z_M)
    points = np.concatenate([floor, table]).astype(np.float32)
    on_table = np.arange(len(points)) >= len(floor)
    left = points[:, 0] < 1.2
    rgb = np.where(on_table[:, None], BLUE, np.where(left[:, None], RED, GREEN)).astype(np.uint8)
    ids = np.where(on_table, TABLE, np.where(left, FLOOR, OTHER_PROP))
    return points, rgb, ids, np.concatenate([floor_faces, table_faces + len(floor)])


def _grid(low: float, high: float, z: float) -> tuple[np.ndarray, np.ndarray]:
    side = round((high - low) / STEP_M) + 1
    x, y = np.meshgrid(np.linspace(low, high, side), np.linspace(low, high, side), indexing="ij")
    points = np.stack([x.ravel(), y.ravel(), np.full(side * side, z)], axis=1)
    at = np.arange(side * side).reshape(side, side)
    a, b, c, d = at[:-1, :-1].ravel(), at[1:, :-1].ravel(), at[1:, 1:].ravel(), at[:-1, 1:].ravel()
    return points, np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])  # counter-clockwise from above


def pose(x: float, y: float) -> np.ndarray:
    """(4, 4) of a camera above (x, y): x to the right, y down the image, looking along -z."""
    T = np.diag([1.0, -1.0, -1.0, 1.0])
    T[:3, 3] = x, y, EYE_Z_M
    return T


def image(x: float, y: float) -> tuple[np.ndarray, np.ndarray]:
    """(48, 64, 3) colours and (48, 64) depth in metres that the camera above (x, y) sees."""
    u, v = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    along = np.stack([(u - K[0, 2]) / FOCAL, -(v - K[1, 2]) / FOCAL], axis=-1)
    on_table_plane = along * (EYE_Z_M - TABLE_Z_M) + (x, y)
    hit = ((on_table_plane >= TABLE_M[0]) & (on_table_plane <= TABLE_M[1])).all(axis=-1)
    on_floor = along * EYE_Z_M + (x, y)
    rgb = np.where(hit[..., None], BLUE, np.where((on_floor[..., :1] < 1.2), RED, GREEN)).astype(np.uint8)
    inside = ((on_floor >= 0) & (on_floor <= SIZE_M)).all(axis=-1)
    depth = np.where(hit, EYE_Z_M - TABLE_Z_M, np.where(inside, EYE_Z_M, 0.0))
    return rgb, depth.astype(np.float32)


def write_ply(
    path: Path,
    vertex: Mapping[str, np.ndarray],
    faces: np.ndarray | None = None,
    face: Mapping[str, np.ndarray] | None = None,
    ascii_text: bool = False,
) -> Path:
    """A PLY file with any fields; ``vertex`` and ``face`` map names to columns of one of PLY's types."""
    names = {"<f4": "float", "|u1": "uchar", "<u2": "ushort", "<i4": "int"}
    face = dict(face or {})
    header = ["ply", f"format {'ascii' if ascii_text else 'binary_little_endian'} 1.0"]
    count = len(next(iter(vertex.values())))
    header.append(f"element vertex {count}")
    header += [f"property {names[column.dtype.str]} {name}" for name, column in vertex.items()]
    if faces is not None:
        header += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
        header += [f"property {names[column.dtype.str]} {name}" for name, column in face.items()]
    text = "\n".join([*header, "end_header"]) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    if ascii_text:
        rows = [" ".join(str(column[i]) for column in vertex.values()) for i in range(count)]
        for i in range(0 if faces is None else len(faces)):
            rows.append(" ".join(str(value) for value in (3, *faces[i], *(column[i] for column in face.values()))))
        path.write_text(text + "\n".join(rows) + "\n")
        return path
    kinds = [(name, column.dtype.str) for name, column in vertex.items()]
    body = np.rec.fromarrays(list(vertex.values()), dtype=kinds).tobytes()
    if faces is not None:
        kinds = [("n", "|u1"), ("abc", "<i4", 3), *((name, column.dtype.str) for name, column in face.items())]
        table = np.zeros(len(faces), dtype=kinds)
        table["n"], table["abc"] = 3, faces
        for name, column in face.items():
            table[name] = column
        body += table.tobytes()
    path.write_bytes(text.encode() + body)
    return path


def columns(points: np.ndarray, rgb: np.ndarray, **more: np.ndarray) -> dict[str, np.ndarray]:
    """Vertex columns of points and colours."""
    xyz = {name: points[:, i].astype("<f4") for i, name in enumerate("xyz")}
    return {**xyz, **{name: rgb[:, i] for i, name in enumerate(("red", "green", "blue"))}, **more}


def write_frames(folder: Path, centres: Mapping[int, tuple[float, float]] = CENTRES) -> Path:
    """ScanNet's exported layout."""
    for name in ("color", "depth", "pose", "intrinsic"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in ("color", "depth"):
        np.savetxt(folder / f"intrinsic/intrinsic_{name}.txt", K)
    for number, centre in centres.items():
        rgb, depth = image(*centre)
        Image.fromarray(rgb).save(folder / f"color/{number}.png")
        Image.fromarray(np.round(depth * 1000).astype(np.uint16)).save(folder / f"depth/{number}.png")
        np.savetxt(folder / f"pose/{number}.txt", pose(*centre))
    return folder


def write_scannet(
    folder: Path, frames: bool = True, aggregation: bool = True, label_ids: np.ndarray | None = None
) -> Path:
    """A ScanNet scene: mesh, labels, objects (floor 1, table 2, nothing for the green half), and images."""
    name = folder.name
    points, rgb, ids, faces = room()
    ids = ids if label_ids is None else label_ids
    write_ply(folder / f"{name}_vh_clean_2.ply", columns(points, rgb), faces)
    write_ply(folder / f"{name}_vh_clean_2.labels.ply", columns(points, rgb, label=ids.astype("<u2")), faces)
    if aggregation:
        segments = np.select([points[:, 2] > 0.1, points[:, 0] < 1.2], [31, 17], 5)
        (folder / f"{name}_vh_clean_2.0.010000.segs.json").write_text(json.dumps({"segIndices": segments.tolist()}))
        groups = [{"id": 0, "objectId": 0, "segments": [17], "label": "floor"}]
        groups.append({"id": 1, "objectId": 1, "segments": [31], "label": "table"})
        (folder / f"{name}.aggregation.json").write_text(json.dumps({"segGroups": groups}))
        (folder.parent / "scannetv2-labels.combined.tsv").write_text(SCANNET_TABLE)
    if frames:
        write_frames(folder)
    return folder


def write_matterport(house: Path, exported: Path | None = None) -> Path:
    """One region of a house, with its images as downloaded, or exported to ``exported``; returns the region's mesh."""
    points, rgb, ids, faces = room()
    of_face = ids[faces[:, 0]]
    category = np.select([of_face == TABLE, of_face == FLOOR], [4, 2], -1).astype("<i4")
    (house / "region_segmentations").mkdir(parents=True)
    (house.parent / "category_mapping.tsv").write_text(CATEGORY_TABLE)
    region = house / "region_segmentations" / "region0.ply"
    write_ply(region, columns(points, rgb), faces, {"material_id": category, "category_id": category})
    groups = [{"id": 0, "objectId": 0, "segments": [11, 12], "label": "floor mat"}]
    groups.append({"id": 1, "objectId": 1, "segments": [13], "label": "table"})
    segments = np.select([of_face == TABLE, of_face == FLOOR], [13, 11], 99)
    region.with_suffix(".fsegs.json").write_text(json.dumps({"segIndices": segments.tolist()}))
    region.with_suffix(".semseg.json").write_text(json.dumps({"segGroups": groups}))
    (_write_exported if exported else _write_downloaded)(exported or house)
    return region


def _shots() -> dict[str, tuple[float, float]]:
    return {f"p{number:02d}_{{}}1_{i}": centre for i, (number, centre) in enumerate(CENTRES.items())}


def _save(rgb: np.ndarray, depth: np.ndarray, color_path: Path, depth_path: Path) -> None:
    Image.fromarray(rgb).save(color_path, quality=98)
    Image.fromarray(np.round(depth * 4000).astype(np.uint16)).save(depth_path)


def _write_downloaded(house: Path) -> None:
    for name in ("undistorted_camera_parameters", "undistorted_color_images", "undistorted_depth_images"):
        (house / name).mkdir(parents=True, exist_ok=True)
    lines = ["dataset matterport", f"n_images {len(CENTRES)}", "depth_directory undistorted_depth_images", ""]
    lines.append("intrinsics_matrix " + "  ".join(f"{value:.10g}" for value in K.ravel()))
    for stem, centre in _shots().items():
        color, depth = f"{stem.format('i')}.jpg", f"{stem.format('d')}.png"
        up = pose(*centre) @ np.diag([1.0, -1, -1, 1])  # looks along -z, +y up
        lines.append(f"scan {depth} {color} " + " ".join(f"{value:.10g}" for value in up.ravel()))
        folders = house / "undistorted_color_images", house / "undistorted_depth_images"
        _save(*image(*centre), folders[0] / color, folders[1] / depth)
    (house / "undistorted_camera_parameters" / f"{house.name}.conf").write_text("\n".join(lines) + "\n")


def _write_exported(folder: Path) -> None:
    for name in ("color", "depth", "pose", "intrinsic"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for stem, centre in _shots().items():
        name = stem.format("i")
        _save(*image(*centre), folder / f"color/{name}.jpg", folder / f"depth/{stem.format('d')}.png")
        np.savetxt(folder / f"pose/{name}.txt", pose(*centre))
        np.savetxt(folder / f"intrinsic/{name}.txt", K)
