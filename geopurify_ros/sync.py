"""Which messages belong together: approximate time synchronisation, bounded, without ROS.

One implementation for every environment: message_filters is no PyPI wheel, and it neither counts what it drops nor
notices that a bag has started over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_NS = 1_000_000_000
_REWIND_RUN = 3
_RUN_GAP_NS = 5 * _NS


@dataclass(frozen=True)
class SyncedSet:
    """Messages of one moment: the stamp of the first topic's message, and one message for each topic."""

    stamp_ns: int
    messages: tuple[Any, ...]


class ApproximateSync:
    """Match the messages of several topics by stamp.

    A message is matched with the nearest one of every other topic as soon as all lie within ``slop_s``: keep the slop
    below half the frame period and pairs are right whatever the order of arrival. Each message is used once.

    What is not matched is dropped and counted in ``counts``: ``zero_stamp`` (unset header), ``future`` (ahead of the
    clock), ``duplicate``, ``late`` (older than what was already emitted), ``unmatched`` (no partner came).

    When time jumps back (a bag starts over, a simulation is reset), three messages of a topic in a row that agree on
    the older time are the proof: buffers are reset, ``rewinds`` counts it, and these messages are matched as usual.

    Args:
        topics: Names; the first one gives the stamp of a set.
        slop_s: Largest difference of stamps within a set, seconds.
        queue_size: Messages kept for each topic while they wait for partners.
        rewind_s: Messages older than the newest by more than this may mean that time has jumped back, seconds.
        max_future_s: Messages ahead of the clock by more than this are dropped, seconds.
    """

    def __init__(
        self,
        topics: Sequence[str],
        slop_s: float = 0.015,
        queue_size: int = 30,
        rewind_s: float = 1.0,
        max_future_s: float = 2.0,
    ) -> None:
        self._topics = tuple(topics)
        self._slop_ns = round(slop_s * _NS)
        self._queue_size = queue_size
        self._rewind_ns = round(rewind_s * _NS)
        self._max_future_ns = round(max_future_s * _NS)
        self.counts: Counter[str] = Counter()
        self.emitted = 0
        self.rewinds = 0
        self._reset()

    def _reset(self) -> None:
        self._waiting: dict[str, dict[int, Any]] = {topic: {} for topic in self._topics}
        self._last = dict.fromkeys(self._topics, 0)
        self._newest = dict.fromkeys(self._topics, 0)
        self._suspects: list[tuple[str, int, Any]] = []

    def add(self, topic: str, stamp_ns: int, message: Any, now_ns: int = 0) -> list[SyncedSet]:
        """Take one message in; the sets it completes come out (mostly none or one).

        Args:
            topic: One of the topics.
            stamp_ns: Its header's stamp.
            message: Anything; it is only handed on.
            now_ns: The node's clock; 0 when it is not known (simulated time before the first /clock).
        """
        if stamp_ns <= 0:
            self.counts["zero_stamp"] += 1
            return []
        if now_ns and stamp_ns > now_ns + self._max_future_ns:
            self.counts["future"] += 1
            return []
        if stamp_ns in self._waiting[topic] or stamp_ns == self._last[topic]:
            self.counts["duplicate"] += 1
            return []
        if stamp_ns < max(self._last[topic], self._newest[topic] - self._rewind_ns):
            return self._late(topic, stamp_ns, message)
        self._suspects = [suspect for suspect in self._suspects if suspect[0] != topic]
        self._newest[topic] = max(self._newest[topic], stamp_ns)
        self._waiting[topic][stamp_ns] = message
        matched = self._match(topic, stamp_ns)
        if matched is None:
            self._trim(topic)
            return []
        return [matched]

    def _match(self, topic: str, stamp_ns: int) -> SyncedSet | None:
        """The set around this message, if every other topic has a message within the slop."""
        chosen: dict[str, int] = {}
        for other, waiting in self._waiting.items():
            nearest = stamp_ns if other == topic else min(waiting, key=lambda t: abs(t - stamp_ns), default=None)
            if nearest is None:
                return None
            chosen[other] = nearest
        if max(chosen.values()) - min(chosen.values()) > self._slop_ns:
            return None
        messages = tuple(self._waiting[name].pop(chosen[name]) for name in self._topics)
        for name, stamp in chosen.items():
            self._last[name] = stamp
            stale = [t for t in self._waiting[name] if t < stamp]
            self.counts["unmatched"] += len(stale)
            for t in stale:
                del self._waiting[name][t]
        self.emitted += 1
        return SyncedSet(chosen[self._topics[0]], messages)

    def _trim(self, topic: str) -> None:
        waiting = self._waiting[topic]
        while len(waiting) > self._queue_size:
            del waiting[min(waiting)]
            self.counts["unmatched"] += 1

    def _late(self, topic: str, stamp_ns: int, message: Any) -> list[SyncedSet]:
        """Count a late message, or find that time has jumped back."""
        self.counts["late"] += 1
        own = [stamp for name, stamp, _ in self._suspects if name == topic]
        goes_on = bool(own) and own[-1] < stamp_ns <= own[-1] + _RUN_GAP_NS
        if not goes_on:
            self._suspects = [suspect for suspect in self._suspects if suspect[0] != topic]
            own = []
            if stamp_ns > self._newest[topic] - self._rewind_ns:
                return []
        self._suspects.append((topic, stamp_ns, message))
        if len(own) + 1 < _REWIND_RUN:
            return []
        return self._rewind(stamp_ns)

    def _rewind(self, stamp_ns: int) -> list[SyncedSet]:
        """Start over, with what is held of the new time."""
        held = [(name, t, message) for name, waiting in self._waiting.items() for t, message in waiting.items()]
        held = [item for item in held if abs(item[1] - stamp_ns) <= self._rewind_ns] + self._suspects
        self.counts["late"] -= len(self._suspects)
        self.rewinds += 1
        self._reset()
        return [found for name, t, message in sorted(held, key=lambda h: h[1]) for found in self.add(name, t, message)]
