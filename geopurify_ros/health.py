"""What goes well and what does not, counted while it happens and told once a second on /diagnostics."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from geopurify_core.errors import GeoPurifyError, InvalidPoseError

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
_RECENT_S = 5.0
_MAX_KINDS = 200


@dataclass
class Input:
    """One subscribed topic."""

    required: bool
    received: int = 0
    bad: int = 0
    last_s: float = 0.0
    note: str = ""
    told: int = 0
    told_s: float = field(default_factory=time.monotonic)


@dataclass
class Trouble:
    """Failures of one sort: how many of each kind, the newest words, and whether they are over."""

    kinds: Counter[str] = field(default_factory=Counter)
    last: str = ""
    last_s: float = -1e9
    over: bool = True


class Health:
    """Thread-safe counters; ``log`` is called with each kind of failure's first words."""

    def __init__(self, log: Callable[[str], object]) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._started_s = time.monotonic()
        self.inputs: dict[str, Input] = {}
        self.pose = Trouble()
        self.work = Trouble()

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
        self.inputs[topic].bad += 1
        self.failed(error)

    def failed(self, error: BaseException) -> None:
        """One frame, pose or request failed."""
        known = isinstance(error, GeoPurifyError)
        kind = f"{type(error).__name__} {error.field}" if known else type(error).__name__
        text = str(error) if known else f"{type(error).__name__}: {error}"
        trouble = self.pose if isinstance(error, InvalidPoseError) else self.work
        with self._lock:
            first = kind not in trouble.kinds and len(trouble.kinds) < _MAX_KINDS
            if first or kind in trouble.kinds:
                trouble.kinds[kind] += 1
            trouble.last, trouble.last_s, trouble.over = text, time.monotonic(), False
        if first:
            self._log(f"{text} (further ones are counted in /diagnostics)")

    def succeeded(self) -> None:
        """One frame went all the way."""
        self.pose.over = self.work.over = True

    @property
    def newest_error(self) -> str:
        """The newest failure's words, or nothing when a frame has gone well since."""
        current = [trouble for trouble in (self.pose, self.work) if not trouble.over]
        return max(current, key=lambda t: t.last_s).last if current else ""

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
            text = (
                f"{topic}: no message {'' if entry.received else 'yet '}for {age:.0f} s; is it published and remapped?"
            )
        if entry.note:
            level, text = max(level, WARN), f"{entry.note} {text if level != OK else ''}".strip()
        values = {"received": entry.received, "rate_hz": f"{rate:.2f}", "age_s": f"{age:.2f}", "refused": entry.bad}
        return status(f"input {topic}", level, text, values)

    def trouble_status(self, name: str, trouble: Trouble, values: Mapping[str, object]) -> DiagnosticStatus:
        """ERROR while frames fail, WARN for a while after, with the counts of every kind."""
        recent = time.monotonic() - trouble.last_s < _RECENT_S
        level = ERROR if not trouble.over else WARN if recent else OK
        with self._lock:
            counts = {f"failed: {kind}": count for kind, count in trouble.kinds.items()}
        return status(
            name, level, trouble.last if level != OK else "ok", {**values, **counts, "last_error": trouble.last}
        )


def status(name: str, level: bytes, message: str, values: Mapping[str, object]) -> DiagnosticStatus:
    """A diagnostic status of this node."""
    pairs = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
    return DiagnosticStatus(
        name=f"geopurify: {name}", hardware_id="geopurify", level=level, message=message, values=pairs
    )
