"""The scene's own objects as a teacher: what the best possible geometric teacher would say. For experiments only."""

from __future__ import annotations

import numpy as np

from geopurify_core.errors import DatasetError
from training.teachers.base import PointCloud, TeacherFeatures

_WIDTH = 64


class KnownTeacher:
    """One random direction for each instance, so that hybrid sampling works as with any other teacher.

    Args:
        seed: Of the directions.
    """

    name = "known"
    licence = "that of the scene's labels"

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self.fingerprint = f"known:{seed}"

    def describe(self, cloud: PointCloud) -> TeacherFeatures:
        """Points of one instance share a row; points of none (0 or less) get one row each, like to nothing.

        Raises:
            DatasetError: The scene has no instances, or not one for each point.
        """
        if cloud.instances is None:
            raise DatasetError("instances", None, "The known teacher needs scenes that come with their instances.")
        if np.shape(cloud.instances) != (len(cloud),):
            raise DatasetError("instances", np.shape(cloud.instances), f"Give one for each of {len(cloud)} points.")
        instances = cloud.instances.astype(np.int64)
        unknown = instances <= 0
        instances[unknown] = -1 - np.arange(int(unknown.sum()))
        _, index = np.unique(instances, return_inverse=True)
        rows = np.random.default_rng(self._seed).standard_normal((int(index.max(initial=-1)) + 1, _WIDTH))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return TeacherFeatures(rows.astype(np.float16), index.reshape(-1).astype(np.int32))
