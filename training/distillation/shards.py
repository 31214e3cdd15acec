"""A folder of prepared scenes with what a teacher says of them, read when needed, a few kept in memory."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geopurify_core.errors import DatasetError
from geopurify_core.geometry import unit_up
from training.distillation.basis import in_basis, semantic_basis
from training.distillation.recipe import Recipe
from training.scenes.prepared import (
    PreparedScene,
    load_scene,
    load_teacher_features,
    scene_names,
    scene_path,
    teacher_path,
)
from training.teachers.base import TeacherFeatures, load_teacher

MUST_AGREE = ("backbone", "text_fingerprint", "voxel_size_m", "channels")
_TEACHERS = ("teacher_fingerprint", "teacher_licence")
_TREE_BYTES = 40  # a point in a k-d tree: its coordinates as doubles, its number, its share of the nodes
_BASIS_SCENES = 10


@dataclass(frozen=True)
class TrainingScene:
    """A scene as training wants it.

    Attributes:
        name: The scene's.
        points_m: (N, 3) float32 metres.
        inputs: (N, R + 6) float16: semantic features in the basis, colour in [0, 1], normal.
        rows: (M, D) float32 unit descriptors of the teacher (zero where it says nothing).
        index: (N,) int64, the row of each point.
        coords: (N, 3) int32 where the points are map voxels, else None.
        up: Three numbers, which way up is in these coordinates.
    """

    name: str
    points_m: NDArray[np.float32]
    inputs: NDArray[np.float16]
    rows: Tensor
    index: NDArray[np.int64]
    coords: NDArray[np.int32] | None
    up: tuple[float, float, float] = (0.0, 0.0, 1.0)

    def __len__(self) -> int:
        return len(self.points_m)

    @property
    def nbytes(self) -> int:
        """Bytes held, the tree of scan points included whether it is there already or not."""
        arrays = (self.points_m, self.inputs, self.index, self.coords)
        tree = _TREE_BYTES * len(self) if self.coords is None else 0
        return sum(part.nbytes for part in arrays if part is not None) + 4 * self.rows.numel() + tree

    @cached_property
    def tree(self) -> Any:
        """K-d tree of the points."""
        from scipy.spatial import cKDTree

        return cKDTree(self.points_m)


class Shards:
    """The scenes of a run.

    Args:
        folder: Of ``NAME.safetensors`` and ``NAME.TEACHER.safetensors``.
        teacher: Whose features to learn from. ``known`` needs no shards: it is asked on the spot.
        recipe: Says how many points a scene needs, and the rank of the basis.
        basis: (C, R) of an earlier run; by default made from up to ten of the scenes.
        skip_bad: Leave scenes out that cannot be used (``refused`` lists them) instead of raising.
        most_bytes: Kept in memory; at least one scene is.

    Raises:
        DatasetError: No scenes; one that is damaged, too small or lacks the teacher; scenes that do not go together.
    """

    def __init__(
        self,
        folder: Path,
        teacher: str,
        recipe: Recipe,
        *,
        basis: Tensor | None = None,
        skip_bad: bool = False,
        most_bytes: int = 2 << 30,
    ) -> None:
        self.folder, self.teacher = Path(folder), teacher
        self.refused: dict[str, str] = {}
        self._about: dict[str, dict[str, Any]] = {}
        self._look_at_headers(recipe.least_points, skip_bad)
        self.names = tuple(self._about)
        self._most_bytes = most_bytes
        self._kept: OrderedDict[str, TrainingScene] = OrderedDict()
        self.basis = self._new_basis(recipe.rank) if basis is None else basis

    def __len__(self) -> int:
        return len(self.names)

    @property
    def voxel_size_m(self) -> float:
        """Of the map voxels, metres; 0 for scan points."""
        return float(self._first["voxel_size_m"])

    @property
    def channels(self) -> int:
        """C of the 2D features."""
        return int(self._first["channels"])

    @property
    def provenance(self) -> dict[str, Any]:
        """What a student must say of its origin: backbone, teacher, licence, scenes."""
        fingerprint, licence = (self._first[name] for name in _TEACHERS)
        return {
            **{name: self._first[name] for name in MUST_AGREE},
            "teacher": {"name": self.teacher, "fingerprint": fingerprint, "licence": licence},
            "scenes": list(self.names),
        }

    def scene(self, name: str) -> TrainingScene:
        """A scene, from memory or from its shards. Raises DatasetError where they do not belong together."""
        if name in self._kept:
            self._kept.move_to_end(name)
            return self._kept[name]
        self._kept[name] = scene = self._read(name)
        while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > self._most_bytes:
            self._kept.popitem(last=False)
        return scene

    @property
    def _first(self) -> dict[str, Any]:
        return self._about[self.names[0]]

    def _look_at_headers(self, least_points: int, skip_bad: bool) -> None:
        names = scene_names(self.folder)
        if not names:
            raise DatasetError("scenes", str(self.folder), "No shards there: run `python -m training prepare` first.")
        for name in names:
            try:
                about = _header(self.folder, name, self.teacher)
                if about["points"] < least_points:
                    raise DatasetError(
                        f"scene {name}", f"{about['points']} points", f"An anchor needs {least_points}: leave it out."
                    )
                _check_agreement(name, about, next(iter(self._about.values()), about))
                self._about[name] = about
            except DatasetError as error:
                self.refused[name] = str(error)
                if not skip_bad:
                    raise
        if not self._about:
            raise DatasetError("scenes", str(self.folder), f"None can be used: {next(iter(self.refused.values()))}")

    def _new_basis(self, rank: int) -> Tensor:
        if not rank:
            return torch.empty(0, 0)
        some = self.names[:: ceil(len(self.names) / _BASIS_SCENES)]
        return torch.from_numpy(semantic_basis((load_scene(self.folder, name).features for name in some), rank))

    def _read(self, name: str) -> TrainingScene:
        scene = load_scene(self.folder, name)
        features = self._teacher_features(scene)
        _check_values(scene, features)
        rows = torch.from_numpy(features.rows.astype(np.float32))
        size = scene.voxel_size_m
        coords = np.rint(scene.points_m.astype(np.float64) / size - 0.5).astype(np.int32) if size else None
        return TrainingScene(
            name,
            scene.points_m,
            in_basis(scene, self.basis.numpy()),
            torch.nn.functional.normalize(rows, dim=1),
            features.index.astype(np.int64),
            coords,
            _up_of(scene),
        )

    def _teacher_features(self, scene: PreparedScene) -> TeacherFeatures:
        if self.teacher == "known" and not teacher_path(self.folder, scene.name, "known").exists():
            return load_teacher("known").describe(scene.cloud())
        return load_teacher_features(self.folder, scene.name, self.teacher)[0]


def _check_values(scene: PreparedScene, features: TeacherFeatures) -> None:
    """Raise DatasetError for values that would train nonsense without a word."""
    name = f"scene {scene.name}"
    if len(features) != len(scene):
        raise DatasetError(name, f"{len(scene)} points, {len(features)} descriptors", "Ask the teacher again.")
    for field in ("features", "points_m", "normals"):
        values = getattr(scene, field)
        bad = int((~np.isfinite(values)).any(axis=1).sum())
        if bad:
            raise DatasetError(f"{name}: {field}", f"{bad} of {len(values)} rows", "They are not finite: prepare anew.")


def _up_of(scene: PreparedScene) -> tuple[float, float, float]:
    x, y, z = unit_up(scene.about.get("up", (0, 0, 1))).tolist()
    return x, y, z


def _header(folder: Path, name: str, teacher: str) -> dict[str, Any]:
    """What the two shards of a scene say of themselves, without their arrays."""
    about, shapes = _described(scene_path(folder, name))
    said: dict[str, Any] = {}
    if teacher == "known" and not teacher_path(folder, name, teacher).exists():
        known = load_teacher("known")
        said = {"fingerprint": known.fingerprint, "licence": known.licence}
    else:
        said, described = _described(teacher_path(folder, name, teacher))
        if described["index"][0] != shapes["points_m"][0]:
            raise DatasetError(f"scene {name}", described["index"][0], f"It has {shapes['points_m'][0]} points.")
    return {
        "backbone": about.get("backbone", ""),
        "text_fingerprint": about.get("text_fingerprint", ""),
        "voxel_size_m": float(about.get("voxel_size_m", 0.0)),
        "channels": shapes["features"][1],
        "points": shapes["points_m"][0],
        "teacher_fingerprint": str(said.get("fingerprint", "")),
        "teacher_licence": str(said.get("licence", "")),
    }


def _described(path: Path) -> tuple[dict[str, Any], dict[str, list[int]]]:
    import json

    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {})["scene"])
            return about, {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 (no mapping)
    except FileNotFoundError as error:
        remedy = "It is not there: run `python -m training prepare` with this teacher first."
        raise DatasetError("shard", str(path), remedy) from error
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise DatasetError("shard", str(path), f"Delete it and prepare the scene again: {error}") from error


def _check_agreement(name: str, about: dict[str, Any], first: dict[str, Any]) -> None:
    for field in (*MUST_AGREE, *_TEACHERS):
        if about[field] != first[field]:
            raise DatasetError(
                f"scene {name}: {field}", about[field], f"The scenes before it have {first[field]!r}: do not mix them."
            )
