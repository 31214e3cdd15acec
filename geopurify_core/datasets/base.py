"""What every recording promises: frames in order, and an honest count of those it could not give."""

from __future__ import annotations

import logging
import queue
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from geopurify_core.errors import DatasetError, GeoPurifyError, InvalidCameraError, InvalidPoseError
from geopurify_core.frame import RGBDFrame

log = logging.getLogger(__name__)
T = TypeVar("T")
PREFETCH_FRAMES = 4
NO_DEPTH_MARK = 65_535  # Kinect recordings write this for "no measurement"


@runtime_checkable
class RGBDDataset(Protocol):
    """A recording that can be read more than once.

    Attributes:
        name: Short name for progress bars and reports.
        skipped: Reason → number of frames that were left out in the last pass.
    """

    name: str
    skipped: Counter[str]

    def __len__(self) -> int:
        """Frames in the recording, usable or not."""
        ...

    def __iter__(self) -> Iterator[RGBDFrame]:
        """Every usable frame in order of time."""
        ...


class SkipFrame(Exception):
    """This frame cannot be used; ``reason`` is the kind under which it is counted."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(f"{reason}: {detail}" if detail else reason)


class FrameSource(ABC):
    """Common part of the readers: count what is skipped, say each kind once, decode ahead in one background thread."""

    name: str

    def __init__(self, name: str) -> None:
        self.name = name
        self.skipped: Counter[str] = Counter()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def _read(self, start: int, stop: int | None, stride: int) -> Iterator[RGBDFrame | SkipFrame]:
        """Frames ``start``, ``start + stride``, … below ``stop``; a SkipFrame in the place of an unusable one."""

    def __iter__(self) -> Iterator[RGBDFrame]:
        return self.frames()

    def frames(self, stride: int = 1, start: int = 0, stop: int | None = None) -> Iterator[RGBDFrame]:
        """Usable frames among number ``start``, ``start + stride``, … below ``stop``."""
        check_range(stride, start, stop)
        self.skipped.clear()
        for item in prefetched(self._read(start, stop, stride), PREFETCH_FRAMES):
            if isinstance(item, RGBDFrame):
                yield item
            else:
                self._count(item)

    def _count(self, skip: SkipFrame) -> None:
        if skip.reason not in self.skipped:
            log.warning("%s: skipping frames (%s); first: %s", self.name, skip.reason, skip.detail)
        self.skipped[skip.reason] += 1


class Indexed(Protocol):
    """Frames by number, made or read when asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> RGBDFrame: ...


class FrameSequence(FrameSource):
    """Frames that can be had by number, as a dataset; only those asked for are made."""

    def __init__(self, name: str, frames: Indexed) -> None:
        super().__init__(name)
        self.source = frames

    def __len__(self) -> int:
        return len(self.source)

    def _read(self, start: int, stop: int | None, stride: int) -> Iterator[RGBDFrame | SkipFrame]:
        for index in range(len(self.source))[start:stop:stride]:
            yield self.source[index]


def check_range(stride: int, start: int, stop: int | None) -> None:
    """Raise DatasetError unless the numbers describe a forward range."""
    if stride < 1:
        raise DatasetError("stride", stride, "Use every n-th frame with n of at least 1.")
    if start < 0:
        raise DatasetError("start", start, "Count frames from 0.")
    if stop is not None and stop < start:
        raise DatasetError("stop", stop, f"It must not lie before start ({start}).")


def iterate(dataset: RGBDDataset, stride: int = 1, start: int = 0, stop: int | None = None) -> Iterator[RGBDFrame]:
    """A part of any dataset: through its own ``frames`` where it has one, else by leaving frames out."""
    frames = getattr(dataset, "frames", None)
    if callable(frames):
        yield from frames(stride=stride, start=start, stop=stop)
        return
    check_range(stride, start, stop)
    yield from islice(dataset, start, stop, stride)


def skip_reason(error: GeoPurifyError) -> SkipFrame:
    """The counted kind of an error that spoils one frame."""
    if isinstance(error, InvalidPoseError):
        return SkipFrame("invalid pose", str(error))
    if isinstance(error, InvalidCameraError):
        return SkipFrame("invalid camera", str(error))
    return SkipFrame("unreadable image", str(error))


def depth_to_metres(depth: NDArray[np.uint16] | NDArray[np.float32], units_per_metre: float) -> NDArray[np.float32]:
    """(h, w) float32 metres; 0, 65535, negative and non-finite values become 0, "no measurement"."""
    metres: NDArray[np.float32]
    if depth.dtype == np.uint16:
        metres = depth.astype(np.float32) / np.float32(units_per_metre)
        metres[depth == NO_DEPTH_MARK] = 0
        return metres
    metres = np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0)).astype(np.float32)
    return metres


def prefetched(items: Iterable[T], depth: int) -> Iterator[T]:
    """The same items, produced ahead by one thread that holds at most ``depth`` of them.

    Errors of the producer are raised here, in order. Closing this iterator early ends the thread and closes ``items``.
    """
    ready: queue.Queue[_Item[T] | _End] = queue.Queue(maxsize=depth)
    cancelled = threading.Event()
    worker = threading.Thread(target=_produce, args=(items, ready, cancelled), name="frame-prefetch", daemon=True)
    worker.start()
    try:
        while isinstance(entry := ready.get(), _Item):
            yield entry.value
        if entry.error is not None:
            raise entry.error
    finally:
        cancelled.set()
        worker.join()


@dataclass(frozen=True)
class _Item(Generic[T]):
    value: T


@dataclass(frozen=True)
class _End:
    error: BaseException | None


def _produce(items: Iterable[T], ready: queue.Queue[_Item[T] | _End], cancelled: threading.Event) -> None:
    end = _End(None)
    try:
        for item in items:
            if not _offer(ready, _Item(item), cancelled):
                break
    except BaseException as error:
        end = _End(error)
    finally:
        close = getattr(items, "close", None)
        if close is not None:
            close()
        _offer(ready, end, cancelled)


def _offer(ready: queue.Queue[_Item[T] | _End], entry: _Item[T] | _End, cancelled: threading.Event) -> bool:
    """Put ``entry`` into the queue unless the reader goes away first."""
    while not cancelled.is_set():
        with suppress(queue.Full):
            ready.put(entry, timeout=0.1)
            return True
    return False
