"""One run of the purifier as others see it: those who wait for it, those who watch it, and what it leaves behind."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from geopurify_core.errors import PurificationError

if TYPE_CHECKING:
    from geopurify_core.purification.update.result import Purification

_ETA_FROM = 0.05  # an estimate from less than this share of the work is a guess


@dataclass(frozen=True)
class PurifierStatus:
    """What purification is doing, and what it has done.

    Attributes:
        state: ``off`` (``message`` says why), ``idle``, ``running``, or ``failed`` (the next run may succeed).
        message: Why it is off, or why the last run failed or was stopped; empty while all is well.
        step: What the running one is at.
        progress: Share of the running one that is done, 0..1; 0 while none runs.
        eta_s: Seconds left, guessed from the progress so far; None where there is nothing to guess from.
        pending: Whether another run follows the running one.
        runs: Purifications made so far.
        stamp_ns: Newest observation in the newest purified map; 0 while there is none.
        num_voxels: Its voxels.
        mode: How it was made: ``full``, ``incremental``, or empty while there is none.
        seconds: How long that took.
        nbytes: Memory that it takes beside the map.
    """

    state: str
    message: str = ""
    step: str = ""
    progress: float = 0.0
    eta_s: float | None = None
    pending: bool = False
    runs: int = 0
    stamp_ns: int = 0
    num_voxels: int = 0
    mode: str = ""
    seconds: float = 0.0
    nbytes: int = 0


class Published:
    """A finished purification, with room for what readers make of it once: both go when the next one comes.

    Attributes:
        result: The purification.
        seconds: How long it took.
        lock: Hold it to fill ``engine``.
        engine: A query engine over it, for whoever asks first.
    """

    def __init__(self, result: Purification, seconds: float) -> None:
        self.result, self.seconds = result, seconds
        self.lock = threading.Lock()
        self.engine: Any = None


class Job:
    """One run and those who wait for it."""

    def __init__(self) -> None:
        self.future: Future[Any] = Future()
        self.stopped = False
        self.step, self.progress = "", 0.0
        self.started_s = 0.0

    def stop(self, reason: str) -> None:
        """Drop whatever it will bring. (Callers hold the purifier's lock.)"""
        if not self.stopped:
            self.stopped = True
            self.future.set_exception(PurificationError("purify", "stopped", reason))

    def is_stopped(self) -> bool:
        return self.stopped

    def report(self, step: str, progress: float) -> None:
        """Told by the computation; ends it here, should it not have looked whether it is wanted any more."""
        if self.stopped:
            raise PurificationError("purify", "stopped", "Its result is not wanted any more.")
        self.step, self.progress = str(step), min(max(float(progress), 0.0), 1.0)

    def eta_s(self, now_s: float) -> float | None:
        """Seconds left, if what is done so far tells; None otherwise."""
        if self.stopped or self.progress < _ETA_FROM:
            return None
        return (now_s - self.started_s) * (1.0 - self.progress) / self.progress


def without_frames(error: BaseException) -> BaseException:
    """The error without its tracebacks: their frames would keep snapshots and results alive as long as it is."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error
