"""What to pool with: a student's affinity, and what it has to be compared with."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from geopurify_core.purification.affinity.build import Affinity, build_affinity
from geopurify_core.purification.affinity.neighbors import nearest_neighbors
from geopurify_core.purification.pooling.visiting import visit_order
from geopurify_core.purification.student.inputs import student_inputs
from geopurify_core.purification.student.trained import Student
from training.experiments.room import Room
from training.scenes.prepared import load_teacher_features, save_teacher, teacher_path
from training.teachers.base import TeacherFeatures, load_teacher

log = logging.getLogger(__name__)

NEIGHBORS = 96
_COLOUR_FACTOR = 1.5
_NO_LENGTH = 1e-3  # a constant last channel keeps a grey voxel without a normal from having no direction


class Affinities:
    """The affinities of one room over the same K nearest voxels, which are searched once.

    Args:
        room: In key order, as ``Room`` has it.
        neighbors: K.
    """

    def __init__(self, room: Room, neighbors: int = NEIGHBORS) -> None:
        self.room = room
        self.neighbors: NDArray[np.int32] = nearest_neighbors(room.coords, neighbors)
        self.order: NDArray[np.int32] = visit_order(room.coords)

    def of_student(self, student: Student) -> Affinity:
        """Equation 3 of the student's embeddings."""
        return self.of_embeddings(student.network.embed(self.room.coords, student_inputs(self.room.snapshot())))

    def of_embeddings(self, embeddings: NDArray[np.floating] | torch.Tensor) -> Affinity:
        """Equation 3 of any embeddings (V, D)."""
        rows = np.asarray(embeddings, dtype=np.float32)
        return build_affinity(self.room.coords, rows, neighbors=self.neighbors)

    def even(self) -> Affinity:
        """A box blur: what smoothing alone does."""
        weights = np.full(self.neighbors.shape, 1.0 / max(1, self.neighbors.shape[1]), dtype=np.float32)
        return Affinity(self.neighbors, weights, self.order)

    def of_raw_features(self) -> Affinity:
        """No teacher and no student: the features' own cosines."""
        return self.of_embeddings(self.room.scene.features.astype(np.float32))

    def of_colour_and_normal(self) -> Affinity:
        """No learning: colour (RGB around grey, times 1.5) and normal."""
        colour = self.room.scene.rgb.astype(np.float32) / 255 - 0.5
        one = np.full((len(colour), 1), _NO_LENGTH)
        return self.of_embeddings(
            np.concatenate([_COLOUR_FACTOR * colour, self.room.scene.normals.astype(np.float32), one], axis=1)
        )

    def of_teacher(self, name: str, folder: Path | None = None) -> Affinity:
        """The teacher's own cosines, as if they were embeddings; what it says is kept in ``folder`` where given."""
        return self.of_embeddings(_teacher_features(self.room, name, folder).dense())

    def of_objects(self) -> Affinity:
        """The most that pooling can reach: even over the neighbours of the own object, over all where there is none."""
        groups = self.room.groups()
        same = (groups[self.neighbors] == groups[:, None]).astype(np.float32)
        same[same.sum(axis=1) == 0] = 1.0
        weights = np.asarray(same / same.sum(axis=1, keepdims=True), dtype=np.float32)
        return Affinity(self.neighbors, weights, self.order)

    def named(self, teacher: str = "geometric", folder: Path | None = None) -> dict[str, Callable[[], Affinity]]:
        """What a student is compared with, by name; each is made when it is called."""
        return {
            "even (box blur)": self.even,
            "raw features": self.of_raw_features,
            "colour and normal": self.of_colour_and_normal,
            f"{teacher} teacher": lambda: self.of_teacher(teacher, folder),
            "true objects": self.of_objects,
        }


def _teacher_features(room: Room, name: str, folder: Path | None) -> TeacherFeatures:
    teacher = load_teacher(name)
    if folder is not None and teacher_path(folder, room.name, name).exists():
        features, about = load_teacher_features(folder, room.name, name)
        if len(features) == len(room) and about.get("fingerprint") == teacher.fingerprint:
            return features
    features = teacher.describe(room.scene.cloud())
    if folder is not None and not teacher_path(folder, room.name, name).exists():
        save_teacher(
            folder, room.name, name, features, {"fingerprint": teacher.fingerprint, "licence": teacher.licence}
        )
    return features
