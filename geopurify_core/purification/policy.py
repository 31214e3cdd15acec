"""When a running mapper purifies by itself, and with which student."""

from __future__ import annotations

from typing import TYPE_CHECKING

from geopurify_core.config import PurificationConfig
from geopurify_core.errors import NotAvailableError, StudentError

if TYPE_CHECKING:
    from geopurify_core.purification.student.trained import Student


class PurifyPolicy:
    """When a running mapper purifies: not again within a period, and not before enough has changed.

    Args:
        config: ``period_s`` (0: never by itself) and ``dirty_fraction``.
    """

    def __init__(self, config: PurificationConfig) -> None:
        self.period_s, self.dirty_fraction = config.period_s, config.dirty_fraction
        self._ended_s: float | None = None

    def due(self, now_s: float, changed_fraction: float) -> bool:
        """Whether to purify now.

        Args:
            now_s: A monotonic clock, seconds.
            changed_fraction: Share of the voxels changed since the newest purified map, 0..1; 1 where there is none.
        """
        if self.period_s <= 0 or changed_fraction <= 0 or changed_fraction < self.dirty_fraction:
            return False
        return self._ended_s is None or now_s - self._ended_s >= self.period_s

    def ended(self, now_s: float) -> None:
        """A run, successful or not, ended now. (From its end, not its start: a slow one leaves room between two.)"""
        self._ended_s = now_s


def student_for(config: PurificationConfig, backbone: str, feature_dim: int, engine: str = "torch") -> Student:
    """The configured student, or the one shipped for the backbone.

    Args:
        config: ``student`` and ``device``.
        backbone: Fingerprint of the map's backbone.
        feature_dim: C, the channels of the map.
        engine: ``sparse.engine``.

    Raises:
        NotAvailableError: None is configured, and none is shipped for this backbone; or the device or the engine is
            not there.
        StudentError: The configured one cannot be read, or was made for another backbone or width.
    """
    from geopurify_core.purification.student.checkpoint import find_student

    student = find_student(config.student, backbone, device=config.device, engine=engine)
    if student is None:
        raise NotAvailableError(
            "student network",
            backbone,
            "None is shipped for this backbone: name a checkpoint trained for it (purification.student, --student), or "
            "ask the raw features (purified: false).",
        )
    if student.feature_dim != feature_dim:
        raise StudentError(
            "student.feature_dim", student.feature_dim, f"The map's features have {feature_dim} channels: use another."
        )
    return student
