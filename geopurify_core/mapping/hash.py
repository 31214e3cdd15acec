"""From a voxel's key to its row: an open-addressing hash table, compiled; or sorted keys where numba is absent.

The table holds nothing but int32 row numbers (plus one; 0 is an empty slot) and compares keys in the map's own array,
so it costs 6 to 9 bytes a voxel. Its size need not be a power of two: the hash's upper 32 bits are scaled onto it.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from geopurify_core.jit import HAVE_NUMBA, compiled

_MIN_SLOTS = 1024
_MAX_LOAD = 2 / 3
_GROWTH = 1.5


class KeyIndex(Protocol):
    """Finds the rows of keys. ``keys`` is always the map's key array; its first rows are the ones indexed."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        ...

    def find(self, keys: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int32]:
        """(n,) rows of ``wanted``; -1 where a key is not in the map."""
        ...

    def append(self, keys: NDArray[np.int64], start: int, stop: int) -> None:
        """Index rows [start, stop), whose keys are already written and new."""
        ...

    def rebuild(self, keys: NDArray[np.int64], count: int) -> None:
        """Index rows [0, count) and nothing else."""
        ...


def new_index() -> KeyIndex:
    """The best index available."""
    return HashIndex() if HAVE_NUMBA else SortedIndex()


class HashIndex:
    """Linear probing over int32 slots, at most two thirds full."""

    def __init__(self) -> None:
        self._slots = np.zeros(_MIN_SLOTS, dtype=np.int32)

    @property
    def nbytes(self) -> int:
        return self._slots.nbytes

    def find(self, keys: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int32]:
        rows = np.empty(len(wanted), dtype=np.int32)
        _find(self._slots, keys, wanted, rows)
        return rows

    def append(self, keys: NDArray[np.int64], start: int, stop: int) -> None:
        if stop > len(self._slots) * _MAX_LOAD:
            self._resize(stop)
            start = 0
        _insert(self._slots, keys, start, stop)

    def rebuild(self, keys: NDArray[np.int64], count: int) -> None:
        self._slots[:] = 0
        self.append(keys, 0, count)

    def _resize(self, count: int) -> None:
        size = len(self._slots)
        while count > size * _MAX_LOAD:
            size = int(size * _GROWTH)
        self._slots = np.zeros(0, dtype=np.int32)  # let go of the old one first: everything is inserted anew
        self._slots = np.zeros(size, dtype=np.int32)


class SortedIndex:
    """Sorted keys and binary search: slower to change, needs numpy only."""

    def __init__(self) -> None:
        self._keys = np.empty(0, dtype=np.int64)
        self._rows = np.empty(0, dtype=np.int32)

    @property
    def nbytes(self) -> int:
        return self._keys.nbytes + self._rows.nbytes

    def find(self, keys: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int32]:
        if len(self._keys) == 0:
            return np.full(len(wanted), -1, dtype=np.int32)
        at = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        return np.where(self._keys[at] == wanted, self._rows[at], np.int32(-1)).astype(np.int32, copy=False)

    def append(self, keys: NDArray[np.int64], start: int, stop: int) -> None:
        self.rebuild(keys, stop)

    def rebuild(self, keys: NDArray[np.int64], count: int) -> None:
        self._rows = np.argsort(keys[:count], kind="stable").astype(np.int32)
        self._keys = keys[self._rows]


@compiled()
def slot_of(key: Any, size: Any) -> Any:
    """First slot to probe for ``key`` in a table of ``size`` slots (splitmix64's finaliser, scaled)."""
    h = np.uint64(key)
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    h = h ^ (h >> np.uint64(31))
    return np.int64(((h >> np.uint64(32)) * np.uint64(size)) >> np.uint64(32))


@compiled()
def _find(slots, keys, wanted, rows):  # type: ignore[no-untyped-def]
    size = len(slots)
    for i in range(len(wanted)):
        key = wanted[i]
        at = slot_of(key, size)
        row = -1
        while slots[at] != 0:
            if keys[slots[at] - 1] == key:
                row = slots[at] - 1
                break
            at += 1
            if at == size:
                at = 0
        rows[i] = row


@compiled()
def _insert(slots, keys, start, stop):  # type: ignore[no-untyped-def]
    size = len(slots)
    for row in range(start, stop):
        at = slot_of(keys[row], size)
        while slots[at] != 0:
            at += 1
            if at == size:
                at = 0
        slots[at] = row + 1
