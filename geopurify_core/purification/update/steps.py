"""The course of one purification: which step it is in, how far along, how long each took, and whether to stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from geopurify_core.errors import PurificationError

Progress = Callable[[str, float], None]
Cancelled = Callable[[], bool]

STEPS = ("inputs", "student", "neighbors", "affinity", "pooling")


class Course:
    """Times the steps, reports the share done of the whole, and raises where the caller has asked to stop.

    Args:
        progress: Called with (step, share of the whole purification done in 0..1); never decreasing.
        cancelled: Asked between chunks of work.

    Attributes:
        seconds: Seconds spent in each step so far.
    """

    def __init__(self, progress: Progress | None = None, cancelled: Cancelled | None = None) -> None:
        self._progress, self._cancelled = progress, cancelled
        self._share = dict.fromkeys(STEPS, 1.0 / len(STEPS))
        self._done = self._reported = 0.0
        self._name = STEPS[0]
        self.seconds: dict[str, float] = {}

    def expect(self, seconds: Mapping[str, float]) -> None:
        """Weigh the steps by how long each is predicted to take."""
        total = sum(seconds.values()) or 1.0
        self._share = {name: value / total for name, value in seconds.items()}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """One named step; a step may be entered several times, its seconds add up."""
        self._name = name
        self.at(0.0)
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
        self._done = min(1.0, self._done + self._share.pop(name, 0.0))
        self.at(0.0)

    def at(self, share: float) -> None:
        """The current step is ``share`` done. Raises PurificationError where the purification was cancelled."""
        if self._cancelled is not None and self._cancelled():
            raise PurificationError("purification", "cancelled", "It stopped as asked; start it again when wanted.")
        self._reported = max(self._reported, min(1.0, self._done + share * self._share.get(self._name, 0.0)))
        if self._progress is not None:
            self._progress(self._name, self._reported)
