"""Pairing two streams by their stamps with bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Pair(Generic[A, B]):
    """A leading message and the partner nearest in time; None where none came near enough."""

    stamp_ns: int
    first: A
    second: B | None


class NearestPairs(Generic[A, B]):
    """Give every leading message the nearest partner within ``slop_ns``; each partner serves once.

    A leading message is answered as soon as no nearer partner can come (partners arrive in order of their stamps), or
    when ``capacity`` messages wait. Both queues are bounded: the oldest partner is dropped first.
    """

    def __init__(self, slop_ns: int, capacity: int = 32) -> None:
        self.slop_ns = slop_ns
        self.capacity = capacity
        self._leading: deque[tuple[int, A]] = deque()
        self._partners: deque[tuple[int, B]] = deque(maxlen=capacity)

    def add_first(self, stamp_ns: int, message: A) -> Iterator[Pair[A, B]]:
        """Take in a leading message; yields the pairs that this decides."""
        self._leading.append((stamp_ns, message))
        yield from self._decide(flush=False)

    def add_second(self, stamp_ns: int, message: B) -> Iterator[Pair[A, B]]:
        """Take in a partner; yields the pairs that this decides."""
        self._partners.append((stamp_ns, message))
        yield from self._decide(flush=False)

    def flush(self) -> Iterator[Pair[A, B]]:
        """Answer everything that still waits: the streams have ended."""
        yield from self._decide(flush=True)

    def _decide(self, flush: bool) -> Iterator[Pair[A, B]]:
        while self._leading:
            stamp_ns, message = self._leading[0]
            newest = self._partners[-1][0] if self._partners else None
            if not flush and len(self._leading) <= self.capacity and (newest is None or newest < stamp_ns):
                return
            self._leading.popleft()
            yield Pair(stamp_ns, message, self._take_nearest(stamp_ns))

    def _take_nearest(self, stamp_ns: int) -> B | None:
        """Remove and return the partner nearest to ``stamp_ns``, and everything older, if it is near enough."""
        if not self._partners:
            return None
        index = min(range(len(self._partners)), key=lambda i: abs(self._partners[i][0] - stamp_ns))
        partner_ns, partner = self._partners[index]
        if abs(partner_ns - stamp_ns) > self.slop_ns:
            return None
        for _ in range(index + 1):
            self._partners.popleft()
        return partner
