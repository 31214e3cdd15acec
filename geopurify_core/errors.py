"""One family of errors. Each names the field, the value that was wrong, and what to do about it."""

from __future__ import annotations

from typing import Any

_MAX_VALUE_CHARS = 120


def _shorten(value: Any) -> str:
    """Both ends of a long value: a path says most at its end, a list at its beginning."""
    text, half = repr(value), _MAX_VALUE_CHARS // 2
    return text if len(text) <= _MAX_VALUE_CHARS else f"{text[: half - 1]}…{text[-half:]}"


class GeoPurifyError(Exception):
    """Base of every error this package raises on purpose.

    Args:
        field: What was wrong, as the caller knows it (``"depth.encoding"``, ``"map.voxel_size_m"``).
        value: The offending value (shortened in the message), or None where there is none to show.
        remedy: One sentence that says what to do.
    """

    def __init__(self, field: str, value: Any, remedy: str) -> None:
        self.field = field
        self.value = value
        self.remedy = remedy
        super().__init__(f"{field}: {_shorten(value)} is not usable. {remedy}")

    def __reduce__(self) -> tuple[type[GeoPurifyError], tuple[str, Any, str]]:
        return type(self), (self.field, self.value, self.remedy)


class InvalidConfigError(GeoPurifyError):
    """A configuration key is unknown, of the wrong type, or out of range."""


class InvalidFrameError(GeoPurifyError):
    """An RGB-D frame (image, depth, camera, pose or stamp) cannot be integrated as it is."""


class InvalidPoseError(InvalidFrameError):
    """A pose is not finite, not rigid, singular, or missing."""


class InvalidCameraError(InvalidFrameError):
    """Camera intrinsics are singular, not finite, or do not fit the image."""


class BadMessageError(InvalidFrameError):
    """A ROS message (or its recorded bytes) has an encoding, size, step or endianness that cannot be read."""


class BackboneError(GeoPurifyError):
    """A 2D backbone is unknown, cannot be loaded, or answered with something unusable."""


class DatasetError(GeoPurifyError):
    """A dataset folder, recording or scene file is missing something or cannot be read."""


class MapFileError(GeoPurifyError):
    """A saved map is truncated, foreign, corrupted, or from a newer version."""


class MapMismatchError(GeoPurifyError):
    """Two parts that must agree do not: feature widths, voxel sizes, or the backbones behind two maps."""


class SparseError(GeoPurifyError):
    """Sparse tensors cannot be used as given: coordinates out of reach or twice, rows or channels that do not fit."""


class PurificationError(GeoPurifyError):
    """Features or embeddings that cannot be purified, or a purification that was cancelled or outgrew its budget."""


class StudentError(GeoPurifyError):
    """A student checkpoint cannot be read, or was made for another backbone or width."""


class QueryError(GeoPurifyError):
    """A query cannot be answered: empty or oversized text, empty map, or a bad limit."""


class NotAvailableError(GeoPurifyError):
    """A capability that this version, or this machine's installation, does not have."""
