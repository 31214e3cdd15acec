"""Purification beside a running mapper: the newest snapshot becomes a :class:`Purification`, on a thread of its own.

Nothing waits for it. It holds the map's lock no longer than a snapshot takes, gives way to fusion and queries on the
processor, and replaces its previous result in one step, so that a reader sees the old one or the new one, each whole.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TYPE_CHECKING, Any, Protocol

from geopurify_core.config import PurificationConfig
from geopurify_core.errors import NotAvailableError, PurificationError
from geopurify_core.jit import go_background
from geopurify_core.mapping.snapshot import MapSnapshot
from geopurify_core.purification.policy import PurifyPolicy, student_for
from geopurify_core.purification.run import Job, Published, PurifierStatus, without_frames

if TYPE_CHECKING:
    from geopurify_core.purification.student.trained import Student
    from geopurify_core.purification.update.result import Purification

log = logging.getLogger(__name__)

__all__ = ["Purifier", "PurifierStatus", "PurifyPolicy", "student_for"]

_CLOSE_TIMEOUT_S = 2.0


class Compute(Protocol):
    """What turns a snapshot into a purification: :func:`geopurify_core.purification.update.compute.purify_snapshot`."""

    def __call__(
        self,
        snapshot: MapSnapshot,
        student: Any,
        config: PurificationConfig,
        previous: Any = None,
        progress: Callable[[str, float], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Any: ...


class Purifier:
    """Purifies on request; one run at a time, at most one waiting, each on the newest snapshot when it starts.

    The thread exists only while there is something to do, so a purifier that is forgotten leaves none behind.

    Args:
        student: The Student Affinity Network for the map's backbone.
        config: Settings of the runs.
        snapshot_source: Gives the newest snapshot; the only thing here that may take the map's lock.
        compute: What does the work; by default :func:`~geopurify_core.purification.update.compute.purify_snapshot`.
        clock: Seconds, monotonic.

    Attributes:
        policy: When :meth:`maybe_request` makes a request.
    """

    def __init__(
        self,
        student: Student,
        config: PurificationConfig,
        snapshot_source: Callable[[], MapSnapshot],
        *,
        compute: Compute | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.student, self.config = student, config
        self.policy = PurifyPolicy(config)
        self._source, self._compute, self._clock = snapshot_source, compute or _default_compute(), clock
        self._changed = threading.Condition()
        self._running: Job | None = None
        self._pending: Job | None = None
        self._thread: threading.Thread | None = None
        self._published: Published | None = None
        self._failed = False
        self._message = ""
        self._runs = 0
        self._closed = False

    # -- ask ---------------------------------------------------------------------------------------------------------

    def request(self) -> bool:
        """Purify the map as it is now or later, without waiting; False if this purifier is closed."""
        return self._submit() is not None

    def maybe_request(self, changed_fraction: float) -> bool:
        """Make a request if the policy says so and none is being served; whether it did."""
        if self.busy or not self.policy.due(self._clock(), changed_fraction):
            return False
        return self.request()

    def purify(self, timeout_s: float | None = None) -> Purification:
        """Purify the map as it is now, and wait for it; the newest result itself if the map has not changed since.

        Args:
            timeout_s: Longest wait; the run goes on after it. None waits as long as it takes.

        Raises:
            PurificationError: It took too long, was cancelled, or the map was replaced; or what the computation raises.
            NotAvailableError: This purifier is closed.
        """
        job = self._submit()
        if job is None:
            raise NotAvailableError("purify", "closed", "Make a new mapper.")
        try:
            result: Purification = job.future.result(timeout_s)
        except FutureTimeoutError as error:
            if job.future.done():  # the computation itself ran into a time limit
                raise
            raise PurificationError(
                "purify.timeout_s", timeout_s, "It goes on in the background: wait for it, or ask again."
            ) from error
        return result

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until nothing runs or is pending; False if that took longer."""
        with self._changed:
            return self._changed.wait_for(lambda: self._running is None and self._pending is None, timeout_s)

    def _submit(self) -> Job | None:
        with self._changed:
            if self._closed:
                return None
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="geopurify-purifier", daemon=True)
                thread.start()  # it waits for the lock; where the system has no thread left, nothing is pending either
                self._thread = thread
            if self._pending is None:
                self._pending = Job()
            return self._pending

    # -- stop --------------------------------------------------------------------------------------------------------

    def cancel(self) -> bool:
        """Stop the running purification and forget the pending one; False if there was neither. Does not wait."""
        with self._changed:
            return self._stop("It was cancelled: ask again.")

    def reset(self) -> None:
        """The map was replaced: drop the result, and stop what is being made of the old map."""
        with self._changed:
            self._stop("The map was reset or loaded meanwhile: ask again.")
            self._published = None
            self._failed, self._message = False, ""

    def close(self, timeout_s: float = _CLOSE_TIMEOUT_S) -> bool:
        """Stop for good and drop the result; whether the thread ended in time (it is a daemon, and ends by itself)."""
        with self._changed:
            self._closed = True
            self._stop("The mapper was closed.")
            self._published = None
            thread = self._thread
        if thread is None or thread is threading.current_thread():
            return True
        thread.join(timeout_s)
        if thread.is_alive() and timeout_s > 0:
            log.warning("the purification that was running has not stopped within %.1f s", timeout_s)
        return not thread.is_alive()

    def _stop(self, reason: str) -> bool:
        jobs = [job for job in (self._running, self._pending) if job is not None and not job.stopped]
        for job in jobs:
            job.stop(reason)
        self._pending = None
        if jobs:
            self._message = reason
        self._changed.notify_all()
        return bool(jobs)

    # -- look --------------------------------------------------------------------------------------------------------

    @property
    def published(self) -> Published | None:
        """The newest result with its engine, or None before the first. Read it once and use what you got."""
        return self._published

    @property
    def latest(self) -> Purification | None:
        """The newest result, or None before the first."""
        published = self._published
        return None if published is None else published.result

    @property
    def busy(self) -> bool:
        """Whether something runs or is pending."""
        return self._running is not None or self._pending is not None

    @property
    def status(self) -> PurifierStatus:
        """What it does and has done, at one moment."""
        with self._changed:
            job, published = self._running, self._published
            state = "off" if self._closed else "running" if self.busy else "failed" if self._failed else "idle"
            values: dict[str, Any] = {"message": self._message, "pending": self._pending is not None}
            if job is not None:
                values.update(
                    step="stopping" if job.stopped else job.step, progress=job.progress, eta_s=job.eta_s(self._clock())
                )
            runs = self._runs
        if published is not None:
            result = published.result
            values.update(
                stamp_ns=result.snapshot.stamp_ns,
                num_voxels=len(result.snapshot),
                mode=result.report.mode,
                seconds=published.seconds,
                nbytes=result.nbytes,
            )
        return PurifierStatus(state=state, runs=runs, **values)

    # -- the thread --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        go_background()
        while (job := self._next()) is not None:
            try:
                self._run(job)
            except BaseException as error:  # whatever it was, the next request is served
                self._end_failed(job, error)

    def _next(self) -> Job | None:
        with self._changed:
            self._running, self._pending = self._pending, None
            if self._running is None:
                self._thread = None
            else:
                self._running.started_s = self._clock()
                self._message = ""
            self._changed.notify_all()
            return self._running

    def _run(self, job: Job) -> None:
        started_s = self._clock()
        snapshot = self._source()
        previous = self.latest
        if previous is not None and previous.snapshot.version == snapshot.version:
            self._end(job, self._published)
            return
        result = self._compute(
            snapshot, self.student, self.config, previous=previous, progress=job.report, cancelled=job.is_stopped
        )
        self._end(job, Published(result, self._clock() - started_s))

    def _end(self, job: Job, published: Published | None) -> None:
        with self._changed:
            self._running = None
            self._failed = False
            self.policy.ended(self._clock())
            if not job.stopped and published is not None:
                self._runs += published is not self._published
                self._published = published
                job.future.set_result(published.result)
            self._changed.notify_all()

    def _end_failed(self, job: Job, error: BaseException) -> None:
        with self._changed:
            self._running = None
            self.policy.ended(self._clock())
            if not job.stopped:
                news = str(error) or type(error).__name__
                level = logging.DEBUG if self._failed and news == self._message else logging.WARNING
                log.log(level, "purification failed: %s", news, exc_info=log.isEnabledFor(logging.DEBUG))
                self._failed, self._message = True, news
                job.stopped = True
                job.future.set_exception(without_frames(error))
            self._changed.notify_all()


def _default_compute() -> Compute:
    from geopurify_core.purification.update.compute import purify_snapshot

    return purify_snapshot
