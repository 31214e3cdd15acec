"""PLY files of scans: meshes or clouds, ASCII or binary, with colours and any other fields of vertices and faces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopurify_core.errors import DatasetError, NotAvailableError

_GREY = 128  # of a scan without colours
_MEND = "Copy or download it again."


@dataclass(frozen=True)
class Mesh:
    """N vertices and F triangles; a cloud has none.

    Attributes:
        points_m: (N, 3) float32, metres.
        rgb: (N, 3) uint8; grey where the file has no colours.
        faces: (F, 3) int64 vertex indices.
        vertex_fields: Every other field stored for each vertex, such as ``label``: name → (N,).
        face_fields: The same for each face, such as Matterport3D's ``category_id``: name → (F,).
    """

    points_m: NDArray[np.float32]
    rgb: NDArray[np.uint8]
    faces: NDArray[np.int64]
    vertex_fields: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    face_fields: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.points_m)

    def vertex_field(self, name: str, path: Path) -> NDArray[np.int64]:
        """(N,) int64 values of an integer field. Raises DatasetError, naming ``path``, where there is none."""
        if name not in self.vertex_fields:
            known = ", ".join(self.vertex_fields) or "none"
            raise DatasetError(f"vertex field {name}", str(path), f"The file has no such field (others: {known}).")
        return np.asarray(self.vertex_fields[name], dtype=np.int64)


def read_ply(path: str | Path) -> Mesh:
    """Read a PLY file through trimesh, vertices in the file's order and none of them merged.

    Raises:
        NotAvailableError: trimesh is not installed.
        DatasetError: The file is missing, damaged, empty, or holds coordinates or faces that are none.
    """
    path = Path(path)
    raw, triangles = _load(path)
    vertex = _fields(raw.get("vertex"))
    if not {"x", "y", "z"} <= vertex.keys() or len(vertex["x"]) == 0:
        raise DatasetError(f"mesh {path.name}", str(path), "It holds no points.")
    points = np.stack([vertex.pop(axis) for axis in "xyz"], axis=1).astype(np.float32)
    if not np.isfinite(points).all():
        bad = int((~np.isfinite(points).all(axis=1)).sum())
        raise DatasetError(f"mesh {path.name}", str(path), f"{bad} of its {len(points)} points are not finite.")
    if len(triangles) and not 0 <= triangles.min() <= triangles.max() < len(points):
        raise DatasetError(
            f"mesh {path.name}", str(path), f"A face names vertex {triangles.max()} of {len(points)}. {_MEND}"
        )
    faces = _fields(raw.get("face"))
    own = {name: values for name, values in faces.items() if values.ndim == 1 and len(values) == len(triangles)}
    return Mesh(points, _colours(vertex), triangles, vertex, own)


def _load(path: Path) -> tuple[Mapping[str, Any], NDArray[np.int64]]:
    """What trimesh read element by element, and the triangles it made of the faces."""
    try:
        import trimesh
    except ImportError as error:
        raise NotAvailableError("trimesh", None, "Install it: pip install geopurify_ros[training]") from error
    if not path.is_file():
        raise DatasetError(f"mesh {path.name}", str(path), "There is no such file.")
    try:
        loaded = trimesh.load(path, file_type="ply", process=False)
        raw: Mapping[str, Any] = loaded.metadata["_ply_raw"]
        triangles = np.asarray(getattr(loaded, "faces", np.zeros((0, 3))), dtype=np.int64).reshape(-1, 3)
    except MemoryError:
        raise
    except Exception as error:  # the parser fails in many ways on a damaged file; all of them mean the same
        raise DatasetError(f"mesh {path.name}", str(path), f"It cannot be read ({error}). {_MEND}") from error
    return raw, triangles


def _fields(element: Mapping[str, Any] | None) -> dict[str, NDArray[Any]]:
    """Name → values of one PLY element; binary files come as one structured array, ASCII ones as columns."""
    data = (element or {}).get("data")
    if data is None:
        return {}
    names = data.dtype.names or () if isinstance(data, np.ndarray) else tuple(data)
    columns = {name: np.asarray(data[name]) for name in names}
    return {name: values[:, 0] if values.shape[1:] == (1,) else values for name, values in columns.items()}


def _colours(vertex: dict[str, NDArray[Any]]) -> NDArray[np.uint8]:
    """(N, 3) colours, taken out of the vertex fields; fractions of one become bytes."""
    count = len(next(iter(vertex.values()))) if vertex else 0
    names = ("red", "green", "blue")
    vertex.pop("alpha", None)
    if not set(names) <= vertex.keys():
        return np.full((count, 3), _GREY, dtype=np.uint8)
    stacked = np.stack([vertex.pop(name) for name in names], axis=1)
    if stacked.dtype.kind == "f":
        stacked = np.clip(stacked * 255.0 + 0.5, 0, 255)
    return stacked.astype(np.uint8)
