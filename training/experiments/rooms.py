"""Scores of a student on rooms it never saw: raw, purified for several T, and pooled with what it has to beat."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geopurify_core.datasets.synthetic.kinds import SCANNET20
from geopurify_core.errors import StudentError
from geopurify_core.evaluation.metrics import SegmentationScores, confusion_matrix, scores
from geopurify_core.purification.affinity.build import Affinity
from geopurify_core.purification.student.trained import Student
from geopurify_core.vision.base import SemanticBackbone
from training.experiments.affinities import Affinities
from training.experiments.room import Room
from training.experiments.scorespace import Columns, Texts, columns_of, pooled_columns

log = logging.getLogger(__name__)

STEPS = 18  # T as published
SWEEP = (1, 6, 18, 36)  # table 4
RAW = "raw"
Row = dict[str, Any]
Rows = dict[str, Row]


def student_row(steps: int) -> str:
    """How the rows of the student are called."""
    return f"student, T={steps}"


@dataclass
class ScoredRoom:
    """A room with everything that all students share: its neighbours and the columns that are pooled."""

    room: Room
    affinities: Affinities
    columns: Columns
    texts: Texts

    @classmethod
    def of(cls, room: Room, texts: Texts) -> ScoredRoom:
        """Prepares a room; seconds for 10⁵ voxels."""
        return cls(room, Affinities(room), columns_of(room.scene.features, room.scene.weight, texts), texts)

    def raw(self) -> Row:
        """Scores of the map as it is."""
        return self._row(self.columns)

    def pooled(self, affinity: Affinity, steps: Sequence[int]) -> dict[int, Row]:
        """Scores after each of the ascending ``steps``."""
        return {step: self._row(columns) for step, columns in pooled_columns(self.columns, affinity, steps)}

    def of_student(self, student: Student, steps: Sequence[int] = (STEPS,)) -> Rows:
        """Scores of the purified map. Raises StudentError where the student is for another backbone."""
        if student.backbone and student.backbone != self.room.scene.backbone:
            raise StudentError("student.backbone", student.backbone, f"{self.room.name} is of another backbone.")
        rows = self.pooled(self.affinities.of_student(student), steps)
        return {student_row(step): row for step, row in rows.items()}

    def of_others(self, teacher: str, folder: Path | None, steps: Sequence[int] = (1, STEPS)) -> Rows:
        """Scores with what needs no training."""
        return self.of_builders(self.affinities.named(teacher, folder), steps)

    def of_builders(self, builders: Mapping[str, Callable[[], Affinity]], steps: Sequence[int]) -> Rows:
        """Scores with named affinities."""
        rows: Rows = {}
        for name, build in builders.items():
            rows |= {f"{name}, T={step}": row for step, row in self.pooled(build(), steps).items()}
        return rows

    def _row(self, columns: Columns) -> Row:
        predicted = columns.labels(self.texts)
        return in_percent(scores(confusion_matrix(self.room.truth, predicted, len(SCANNET20)), SCANNET20))


def in_percent(result: SegmentationScores) -> Row:
    """mIoU and mAcc (means over the classes that occur), accuracy, and the IoU of each class, in percent."""
    values = {"mIoU": result.miou, "mAcc": result.macc, "accuracy": result.accuracy}
    classes = {name: round(100 * value, 1) for name, value in result.iou.items()}
    return {**{name: round(100 * value, 2) for name, value in values.items()}, "IoU": classes}


def score_rooms(
    rooms: Sequence[Room],
    student: Student,
    encoder: SemanticBackbone,
    *,
    sweep: int = 0,
    others: int = 0,
    teacher: str = "geometric",
    folder: Path | None = None,
    tell: Callable[[str], None] = log.info,
) -> dict[str, Rows]:
    """Room's name → row's name → scores.

    Args:
        rooms: To score on, in the order in which ``sweep`` and ``others`` count.
        student: Purifies them.
        encoder: Asks; its text space is that of the maps.
        sweep: On so many rooms T is varied.
        others: On so many rooms other affinities are tried as well.
        teacher: Whose own affinity is among them.
        folder: Where what the teacher says of a room is kept.
        tell: Hears of each room that is done.
    """
    texts, report = Texts.of(SCANNET20, encoder), {}
    for index, room in enumerate(rooms):
        started = time.perf_counter()
        scored = ScoredRoom.of(room, texts)
        rows = {RAW: scored.raw(), **scored.of_student(student, SWEEP if index < sweep else (STEPS,))}
        if index < others:
            rows |= scored.of_others(teacher, folder)
        took = time.perf_counter() - started
        tell(f"{room.name}: {len(room)} voxels, {took:.0f} s, { ({name: row['mIoU'] for name, row in rows.items()}) }")
        report[room.name] = rows
    return report
