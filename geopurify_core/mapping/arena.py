"""Memory that costs only what is used: arrays reserved at full capacity, whose pages arrive when first written.

Growing an array by copying would need twice its size for a moment, just when memory is scarce. Reserving address space
instead costs nothing, and a byte budget then means what it says.
"""

from __future__ import annotations

import contextlib
import mmap
import sys
import weakref
from typing import Any, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

from geopurify_core.errors import InvalidConfigError

_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
_HUGE_PAGE_BYTES = 1 << 21


def lazy_zeros(shape: tuple[int, ...], dtype: DTypeLike, *, huge_pages: bool = False) -> NDArray[Any]:
    """A zeroed array whose pages are committed on first write; it owns its memory and frees it when it dies.

    Args:
        huge_pages: Ask for 2 MiB pages (fewer faults); only for arrays whose granularity may be that coarse.
    """
    dtype = np.dtype(dtype)
    count = int(np.prod(shape, dtype=np.int64))
    nbytes = count * dtype.itemsize
    if not sys.platform.startswith("linux"):
        return np.zeros(shape, dtype)
    try:
        buffer = mmap.mmap(-1, max(nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    except OSError as error:  # a limit on address space (ulimit -v), or a system that promises no more than it has
        raise InvalidConfigError(
            "map.budget_mb", f"{nbytes >> 20} MiB in one array", "This system does not grant it; set a smaller budget."
        ) from error
    if huge_pages and nbytes >= _HUGE_PAGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them; ordinary pages serve as well
            buffer.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(buffer, dtype=dtype, count=count).reshape(shape)


class SnapshotArena:
    """Memory for one snapshot, used again for the next one as soon as nobody reads the last.

    Args:
        capacity: Rows reserved.
        fields: For each array its row shape and dtype.
    """

    def __init__(self, capacity: int, fields: dict[str, tuple[tuple[int, ...], DTypeLike]]) -> None:
        self.capacity = capacity
        self.synced_version = -1
        self.committed_rows = 0
        self.arrays = {
            name: lazy_zeros((capacity, *shape), dtype, huge_pages=name == "features")
            for name, (shape, dtype) in fields.items()
        }
        self._readers: list[weakref.ref[Any]] = []

    @property
    def in_use(self) -> bool:
        """Whether any array handed out, or any view or tensor made of one, is still alive."""
        return any(reader() is not None for reader in self._readers)

    def lease(self, rows: int) -> dict[str, NDArray[Any]]:
        """Read-only arrays over the first ``rows`` rows.

        Each is made from a memoryview, not from the arena's array: numpy makes views of views point at the first array
        of the chain, so a weak reference to this one tells when the last reader is gone.
        """
        self._readers = []
        self.committed_rows = max(self.committed_rows, rows)
        leased = {}
        for name, array in self.arrays.items():
            part = array[:rows]
            root = (
                np.frombuffer(memoryview(cast(Any, part.reshape(-1))), dtype=array.dtype)
                if part.size
                else np.empty(0, array.dtype)
            )
            root.setflags(write=False)
            self._readers.append(weakref.ref(root))
            leased[name] = root.reshape(part.shape)
        return leased
