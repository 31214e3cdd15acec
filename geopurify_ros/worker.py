"""A bounded queue that counts what it drops, and the one thread that does the heavy work."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any


class DroppingQueue:
    """Holds the newest ``capacity`` items; an older one is dropped, and counted, to make room."""

    def __init__(self, capacity: int) -> None:
        self._items: deque[Any] = deque()
        self._capacity = capacity
        self._changed = threading.Condition()
        self.dropped = 0
        self.received = 0

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Any) -> None:
        """Never blocks."""
        with self._changed:
            self.received += 1
            if len(self._items) >= self._capacity:
                self._items.popleft()
                self.dropped += 1
            self._items.append(item)
            self._changed.notify()

    def get(self, timeout_s: float) -> Any:
        """The oldest item, or None when none came in time."""
        with self._changed:
            self._changed.wait_for(lambda: self._items, timeout_s)
            return self._items.popleft() if self._items else None


class Worker(threading.Thread):
    """Calls ``prepare`` once and then ``work`` for every item, until stopped; no exception ends it.

    Args:
        prepare: Loads what is slow to load; when it fails, every item is refused with its error.
        work: Handles one item.
        failed: Told of every exception.
        queue: Where items come from.
    """

    def __init__(
        self,
        prepare: Callable[[], None],
        work: Callable[[Any], None],
        failed: Callable[[BaseException], None],
        queue: DroppingQueue,
    ) -> None:
        super().__init__(name="geopurify-worker", daemon=True)
        self.queue = queue
        self._prepare, self._work, self._failed = prepare, work, failed
        self._stop_asked = threading.Event()
        self._busy_since_s: float | None = None

    def run(self) -> None:
        """The thread's life."""
        self._guarded(self._prepare)
        while not self._stop_asked.is_set():
            item = self.queue.get(timeout_s=0.1)
            if item is not None:
                self._guarded(self._work, item)

    def _guarded(self, step: Callable[..., None], *arguments: Any) -> None:
        self._busy_since_s = time.monotonic()
        try:
            step(*arguments)
        except Exception as error:  # the robot drives on: report, and take the next frame
            self._failed(error)
        finally:
            self._busy_since_s = None

    @property
    def busy_s(self) -> float:
        """How long the item in hand has taken so far; 0 while it waits for one."""
        since_s = self._busy_since_s
        return 0.0 if since_s is None else time.monotonic() - since_s

    def stop(self, timeout_s: float) -> None:
        """Ask it to end and wait for the item in hand, but no longer than this."""
        self._stop_asked.set()
        if self.is_alive():
            self.join(timeout_s)

    @property
    def stopping(self) -> bool:
        """Whether it was asked to end."""
        return self._stop_asked.is_set()
