"""A prepared scene and its files: ``NAME.safetensors``, and ``NAME.TEACHER.safetensors`` for what a teacher says of it.

A shard bears its name only once it is whole; what it is made of stands in its own header, so that the manifest beside
it can always be made again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from geopurify_core.errors import DatasetError
from geopurify_core.geometry import level_rotation
from training.teachers.base import PointCloud, TeacherFeatures

FORMAT = 1
LEFT_OUT = "frames_left_out"  # in ``about``: reason → number of frames that could not be used
_SUFFIX = ".safetensors"
_ARRAYS = ("points_m", "rgb", "normals", "features", "weight", "labels", "instances")


@dataclass(frozen=True)
class PreparedScene:
    """N points with everything but the teacher.

    Attributes:
        name: Unique within a folder of shards; no dot in it.
        points_m: (N, 3) float32, metres: scan points, or centres of map voxels. z is up, unless ``about`` names an up.
        rgb: (N, 3) uint8.
        normals: (N, 3) float16, unit; zero where nothing can be said.
        features: (N, C) float16, fused 2D features, not normalised; zero where no view saw the point.
        weight: (N,) float32, what is behind ``features`` (views or observation weight); 0 where they are missing.
        labels: (N,) uint8 class in ``about["label_set"]``, 255 none; or None. Never looked at in training.
        instances: (N,) int32, 0 unknown; or None. Only the ``known`` teacher looks at them.
        about: backbone, text_fingerprint (of the features), voxel_size_m (0 for scan points), source, label_set, up
            (three numbers, where z is not), and whatever else the preparation wants to remember; JSON values.
    """

    name: str
    points_m: NDArray[np.float32]
    rgb: NDArray[np.uint8]
    normals: NDArray[np.float16]
    features: NDArray[np.float16]
    weight: NDArray[np.float32]
    labels: NDArray[np.uint8] | None = None
    instances: NDArray[np.int32] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.points_m)

    @property
    def voxel_size_m(self) -> float:
        """Edge of the map's voxels whose centres the points are, metres; 0 for scan points."""
        return float(self.about.get("voxel_size_m", 0.0))

    @property
    def backbone(self) -> str:
        """Fingerprint of the backbone behind ``features``."""
        return str(self.about.get("backbone", ""))

    def cloud(self) -> PointCloud:
        """What a teacher may see, upright: z is up even where it is not in the map."""
        points_m, normals = self.points_m, self.normals.astype(np.float32)
        if "up" in self.about:
            turn = level_rotation(self.about["up"]).T.astype(np.float32)
            points_m, normals = points_m @ turn, normals @ turn
        return PointCloud(points_m, self.rgb, normals, self.instances)


def scene_path(folder: Path, name: str) -> Path:
    """Where a scene's shard lies."""
    return folder / f"{name}{_SUFFIX}"


def teacher_path(folder: Path, name: str, teacher: str) -> Path:
    """Where what a teacher says of a scene lies."""
    return folder / f"{name}.{teacher}{_SUFFIX}"


def scene_names(folder: Path) -> list[str]:
    """Names of the scenes with a whole shard in ``folder``, sorted."""
    return sorted(path.stem for path in folder.glob(f"*{_SUFFIX}") if "." not in path.stem)


def save_scene(folder: Path, scene: PreparedScene) -> Path:
    """Write a scene's shard, atomically.

    Raises:
        DatasetError: The name has a dot or a slash, or arrays of different lengths.
    """
    if not scene.name or "." in scene.name or "/" in scene.name:
        raise DatasetError("scene name", scene.name, "Use letters, digits, - and _.")
    arrays = {name: value for name in _ARRAYS if (value := getattr(scene, name)) is not None}
    lengths = {name: len(value) for name, value in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise DatasetError(scene.name, lengths, "Every array needs one row for each point.")
    return _write(scene_path(folder, scene.name), arrays, {"name": scene.name, **scene.about})


def load_scene(folder: Path, name: str) -> PreparedScene:
    """Read a scene's shard. Raises DatasetError where it is missing, damaged or of another format."""
    arrays, about = _read(scene_path(folder, name))
    return PreparedScene(name, **arrays, about={k: v for k, v in about.items() if k not in ("name", "format")})


def save_teacher(folder: Path, name: str, teacher: str, features: TeacherFeatures, about: Mapping[str, Any]) -> Path:
    """Write what a teacher says of a scene, atomically. ``about`` holds at least fingerprint and licence."""
    arrays = {"rows": features.rows, "index": features.index}
    return _write(teacher_path(folder, name, teacher), arrays, {"teacher": teacher, **about})


def load_teacher_features(folder: Path, name: str, teacher: str) -> tuple[TeacherFeatures, dict[str, Any]]:
    """What a teacher says of a scene, and the shard's description. Raises DatasetError as ``load_scene``."""
    arrays, about = _read(teacher_path(folder, name, teacher))
    return TeacherFeatures(**arrays), about


def _write(path: Path, arrays: Mapping[str, NDArray[Any]], about: Mapping[str, Any]) -> Path:
    from safetensors.numpy import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{uuid4().hex[:12]}.tmp")  # two workers, also of two machines, must not share it
    contiguous = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
    save_file(contiguous, temporary, {"scene": json.dumps({"format": FORMAT, **about})})
    temporary.chmod(0o666 & ~_umask())  # safetensors lets only the owner read; a cluster's other users may need to
    temporary.replace(path)
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {})["scene"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        if about["format"] != FORMAT:
            raise KeyError(f"format {about['format']}, this version reads {FORMAT}")
    except FileNotFoundError as error:
        raise DatasetError("shard", str(path), "It is not there: run `python -m training prepare` first.") from error
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise DatasetError("shard", str(path), f"Delete it and prepare the scene again: {error}") from error
    return arrays, about
