"""Reads an X-Decoder configuration (the tree of the official YAML files) by type, with the full path in every error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from geopurify_core.errors import InvalidConfigError


class Section:
    """One node of the tree, e.g. ``MODEL.BACKBONE.FOCAL``.

    Args:
        values: What stands below this node.
        path: Where it stands, for messages; empty for the whole tree.

    Raises:
        InvalidConfigError: ``values`` is no mapping. Every reader raises it for a value that is missing or of the wrong
            kind.
    """

    def __init__(self, values: Any, path: str = "") -> None:
        if not isinstance(values, Mapping):
            raise InvalidConfigError(path or "config", values, "Give a mapping of keys to values here.")
        self._values, self._path = values, path

    def field(self, key: str) -> str:
        """Full path of a key below this node."""
        return f"{self._path}.{key}" if self._path else key

    def error(self, key: str, remedy: str) -> InvalidConfigError:
        """The error for the value that stands at ``key``."""
        return InvalidConfigError(self.field(key), self._values.get(key), remedy)

    def section(self, key: str) -> Section:
        """The node below ``key``, which must be there."""
        return Section(self._read(key, None), self.field(key))

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive integer."""
        value = self._read(key, default)
        if not _is_positive_int(value):
            raise InvalidConfigError(self.field(key), value, "Give a positive integer.")
        return int(value)

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number."""
        value = self._read(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise InvalidConfigError(self.field(key), value, "Give a positive number.")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """True or false."""
        value = self._read(key, default)
        if not isinstance(value, bool):
            raise InvalidConfigError(self.field(key), value, "Give true or false.")
        return value

    def text(self, key: str, choices: Sequence[str]) -> str:
        """One of ``choices``."""
        value = self._read(key, None)
        if value not in choices:
            raise InvalidConfigError(self.field(key), value, f"Known values: {', '.join(choices)}.")
        return str(value)

    def texts(self, key: str, default: Sequence[str] | None = None) -> tuple[str, ...]:
        """A list of strings, none of them twice."""
        value = self._read(key, default)
        if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(v, str) for v in value):
            raise InvalidConfigError(self.field(key), value, "Give a list of names.")
        if len(set(value)) != len(value) or not value:
            raise InvalidConfigError(self.field(key), value, "Name at least one, and none twice.")
        return tuple(value)

    def integers(
        self, key: str, length: int | None = None, least: int = 1, default: Sequence[int] | None = None
    ) -> tuple[int, ...]:
        """A list of integers ≥ ``least``, of the given length where one is given."""
        value = self._read(key, default)
        if isinstance(value, str) or not isinstance(value, Sequence) or not all(_is_int(v, least) for v in value):
            raise InvalidConfigError(self.field(key), value, f"Give a list of integers, {least} or more.")
        self._check_length(key, value, length)
        return tuple(value)

    def flags(self, key: str, length: int) -> tuple[bool, ...]:
        """A list of true and false, of the given length."""
        value = self._read(key, None)
        if not isinstance(value, Sequence) or not all(isinstance(v, bool) for v in value):
            raise InvalidConfigError(self.field(key), value, "Give a list of true and false.")
        self._check_length(key, value, length)
        return tuple(value)

    def _check_length(self, key: str, value: Sequence[Any], length: int | None) -> None:
        if not value or (length is not None and len(value) != length):
            raise InvalidConfigError(self.field(key), value, f"Give one value per stage: {length or 'at least one'}.")

    def _read(self, key: str, default: Any) -> Any:
        value = self._values.get(key, default)
        if value is None:
            raise InvalidConfigError(self.field(key), None, "This key is missing from the configuration.")
        return value


def _is_int(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_positive_int(value: Any) -> bool:
    return _is_int(value, 1)
