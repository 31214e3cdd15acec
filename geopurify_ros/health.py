"""What goes well and what does not, counted while it happens and told once a second on /diagnostics."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from geopurify_core.errors import GeoPurifyError, InvalidPoseError

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
_RECENT_S = 5.0
_MAX_KINDS = 200
_TOLD = 3


@dataclass
class Kind:
    """Failures of one kind: how many, the newest words, and when."""

    count: int = 0
    text: str = ""
    last_s: float = 0.0


@dataclass
class Input:
    """One subscribed topic."""

    required: bool
    received: int = 0
    refused: Kind = field(default_factory=Kind)
    last_s: float = 0.0
    note: str = ""
    noted: int = 0
    silent: bool = False
    told: int = 0
    told_s: float = field(default_factory=time.monotonic)


@dataclass
class Trouble:
    """Failures of one sort, by kind, and whether they are over."""

    kinds: dict[str, Kind] = field(default_factory=dict)
    over: bool = True

    def recent(self) -> list[str]:
        """The words of kinds that happened within the last seconds, newest first."""
        now = time.monotonic()
        kinds = sorted(self.kinds.values(), key=lambda kind: -kind.last_s)
        return [kind.text for kind in kinds if now - kind.last_s < _RECENT_S]


class Health:
    """Thread-safe counters; ``log`` is called with each kind of failure's first words."""

    def __init__(self, log: Callable[[str], object]) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._started_s = time.monotonic()
        self.inputs: dict[str, Input] = {}
        self.pose = Trouble()
        self.work = Trouble()
        self.newest_error = ""

    def watch(self, topic: str, required: bool = True) -> None:
        """Report on this topic from now on."""
        self.inputs[topic] = Input(required)

    def arrived(self, topic: str) -> None:
        """One message came in."""
        entry = self.inputs[topic]
        entry.received += 1
        entry.last_s = time.monotonic()

    def refused(self, topic: str, error: Exception) -> None:
        """One message of this topic could not be used."""
        entry = self.inputs[topic]
        entry.refused.count += 1
        entry.refused.text, entry.refused.last_s = str(error), time.monotonic()
        self.failed(error)

    def noted(self, topic: str, note: str) -> None:
        """Something is odd about this topic: a warning until messages arrive all the same."""
        entry = self.inputs[topic]
        entry.note, entry.noted = note, entry.received

    def failed(self, error: BaseException) -> None:
        """One frame, pose or request failed."""
        known = isinstance(error, GeoPurifyError)
        name = f"{type(error).__name__} {error.field}" if known else type(error).__name__
        text = str(error) if known else f"{type(error).__name__}: {error}"
        trouble = self.pose if isinstance(error, InvalidPoseError) else self.work
        with self._lock:
            first = name not in trouble.kinds
            if len(trouble.kinds) >= _MAX_KINDS and first:
                name, first = "others", False
            kind = trouble.kinds.setdefault(name, Kind())
            kind.count, kind.text, kind.last_s = kind.count + 1, text, time.monotonic()
            trouble.over = False
            self.newest_error = text
        if first:
            self._log(f"{text} (further ones are counted in /diagnostics)")

    def succeeded(self) -> None:
        """One frame went all the way."""
        self.pose.over = self.work.over = True
        self.newest_error = ""

    def input_statuses(self, warn_s: float, error_s: float) -> list[DiagnosticStatus]:
        """One status for each topic: silent ones are warnings, then errors; so are refused messages and QoS clashes."""
        now = time.monotonic()
        return [self._input(topic, entry, now, warn_s, error_s) for topic, entry in self.inputs.items()]

    def _input(self, topic: str, entry: Input, now: float, warn_s: float, error_s: float) -> DiagnosticStatus:
        rate = (entry.received - entry.told) / max(now - entry.told_s, 1e-3)
        entry.told, entry.told_s = entry.received, now
        age = now - (entry.last_s or self._started_s)
        level, text = OK, f"{rate:.1f} Hz" if entry.received else "waiting"
        if entry.required and age > warn_s:
            level = ERROR if age > error_s else WARN
            text = f"no message {'' if entry.received else 'yet '}for {age:.0f} s; is it published and remapped?"
            self._tell_silence(topic, entry, level == ERROR)
        elif now - entry.refused.last_s < _RECENT_S and entry.refused.count:
            level, text = WARN, entry.refused.text
        if entry.required and age <= warn_s:
            self._tell_silence(topic, entry, False)
        if entry.note:
            level = max(level, OK if entry.received > entry.noted else WARN)
            text = f"{text} ({entry.note})"
        values = {
            "received": entry.received,
            "rate_hz": f"{rate:.2f}",
            "age_s": f"{age:.2f}",
            "refused": entry.refused.count,
        }
        return status(f"input {topic}", level, text, values)

    def _tell_silence(self, topic: str, entry: Input, silent: bool) -> None:
        """In the log too, once when a topic falls silent and once when it is back."""
        if silent and not entry.silent:
            self._log(f"{topic}: no message {'any more' if entry.received else 'yet'}; is it published and remapped?")
        elif entry.silent and not silent:
            self._log(f"{topic}: messages arrive again.")
        entry.silent = silent

    def trouble_status(self, name: str, trouble: Trouble, values: Mapping[str, object]) -> DiagnosticStatus:
        """ERROR while frames fail, WARN for a while after, with the counts of every kind."""
        with self._lock:
            words = trouble.recent() if trouble.over else trouble.recent() or [self.newest_error]
            counts = {f"failed: {name}": f"{kind.count} x, {kind.text}" for name, kind in trouble.kinds.items()}
        level = ERROR if not trouble.over else WARN if words else OK
        return status(name, level, " | ".join(words[:_TOLD]) or "ok", {**values, **counts})


def status(name: str, level: bytes, message: str, values: Mapping[str, object]) -> DiagnosticStatus:
    """A diagnostic status; the node's name comes before it when it is published."""
    pairs = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
    return DiagnosticStatus(name=name, level=level, message=message, values=pairs)
