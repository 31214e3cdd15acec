"""What every teacher is: a point cloud in, one descriptor for each point out; similar descriptors belong together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from geopurify_core.errors import DatasetError, InvalidConfigError


@dataclass(frozen=True)
class PointCloud:
    """What a teacher may look at: the scan, never its labels.

    Attributes:
        points_m: (N, 3) float32 positions, metres, z up.
        rgb: (N, 3) uint8 colours.
        normals: (N, 3) float32 unit normals; zero where unknown.
        instances: (N,) int32, 0 unknown. Only the ``known`` teacher, the ceiling in experiments, looks here.
    """

    points_m: NDArray[np.float32]
    rgb: NDArray[np.uint8]
    normals: NDArray[np.float32]
    instances: NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return len(self.points_m)


@dataclass(frozen=True)
class TeacherFeatures:
    """Descriptors of N points, stored once where many points share one (cells of 8 cm, surface patches).

    Attributes:
        rows: (M, D) float16 or float32, M ≤ N distinct descriptors, any length. What counts is their cosine.
        index: (N,) int32, the row of each point.
    """

    rows: NDArray[np.floating[Any]]
    index: NDArray[np.int32]

    def __post_init__(self) -> None:
        if self.rows.ndim != 2 or self.index.ndim != 1:
            shapes = self.rows.shape, self.index.shape
            raise DatasetError("teacher features", shapes, "Give rows (M, D) and index (N,).")
        if len(self.index) and not 0 <= int(self.index.min()) <= int(self.index.max()) < len(self.rows):
            raise DatasetError("teacher features", int(self.index.max()), f"There are {len(self.rows)} rows.")
        if not np.isfinite(self.rows).all():
            raise DatasetError("teacher features", "not finite", "Run the teacher again; a scan with NaN is refused.")

    def __len__(self) -> int:
        return len(self.index)

    def dense(self) -> NDArray[np.float32]:
        """(N, D) float32, a row for each point."""
        return np.asarray(self.rows[self.index], dtype=np.float32)


class Teacher(Protocol):
    """A frozen geometric teacher.

    Attributes:
        name: As ``load_teacher`` knows it.
        fingerprint: Changes with everything that changes the result.
        licence: Of its weights; decides what a student of it may be used for.
    """

    name: str
    fingerprint: str
    licence: str

    def describe(self, cloud: PointCloud) -> TeacherFeatures:
        """Descriptors of all points; the same for the same cloud. Raises DatasetError for a cloud it cannot take."""
        ...


TEACHERS = ("geometric", "sonata", "known")


def load_teacher(name: str, **options: Any) -> Teacher:
    """A teacher by name.

    Args:
        name: ``geometric`` (no weights), ``sonata`` (checkpoint=FILE) or ``known`` (the scene's own objects: nothing
            one has on real scans, but the ceiling that experiments compare with).
        options: Of that teacher.

    Raises:
        InvalidConfigError: An unknown name, or an option that it does not take.
    """
    try:
        if name == "geometric":
            from training.teachers.geometric import GeometricTeacher

            return GeometricTeacher(**options)
        if name == "sonata":
            from training.teachers.sonata import SonataTeacher

            return SonataTeacher(**options)
        if name == "known":
            from training.teachers.known import KnownTeacher

            return KnownTeacher(**options)
    except TypeError as error:
        raise InvalidConfigError(
            "teacher options", options, f"The {name} teacher does not take them: {error}"
        ) from error
    raise InvalidConfigError("teacher", name, f"Choose one of {', '.join(TEACHERS)}.")
