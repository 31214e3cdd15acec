"""Many scenes on one machine: in this process, or in several that share its cores evenly."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from training.scenes.one import FAILED, Outcome, prepare_one
from training.scenes.settings import Preparation
from training.scenes.sources import Source

log = logging.getLogger(__name__)
RETRIES = 2  # of a scene whose worker died
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "GEOPURIFY_THREADS",
)  # fmt: skip


def run_here(sources: Sequence[Source], out: Path, settings: Preparation) -> Iterator[Outcome]:
    """One scene after the other."""
    for source in sources:
        yield prepare_one(source, out, settings)


def run_in_processes(
    sources: Sequence[Source], out: Path, settings: Preparation, workers: int, retries: int = RETRIES
) -> Iterator[Outcome]:
    """Outcomes as they come, from ``workers`` processes with a share of the cores each.

    Each worker is a pool of one, so that a process that dies (killed, or out of memory) takes down no other scene than
    its own, which is tried again in a new process, ``retries`` times. Closing the iterator ends the workers.
    """
    threads = max(1, (os.cpu_count() or 1) // workers)
    waiting = deque(_Task(source) for source in sources)
    slots = [_Slot(threads) for _ in range(min(workers, len(sources)))]
    running: dict[Future[Outcome], tuple[_Slot, _Task]] = {}
    try:
        while waiting or running:
            busy = [slot for slot, _ in running.values()]
            for slot in slots:
                if waiting and slot not in busy:
                    task = waiting.popleft()
                    running[slot.start(task.source, out, settings)] = slot, task
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                slot, task = running.pop(future)
                outcome = _outcome(future, slot, task, retries)
                if outcome is None:
                    waiting.appendleft(_Task(task.source, task.deaths + 1))
                else:
                    yield outcome
    finally:
        for slot in slots:
            slot.end()


@dataclass(frozen=True)
class _Task:
    source: Source
    deaths: int = 0


def _outcome(future: Future[Outcome], slot: _Slot, task: _Task, retries: int) -> Outcome | None:
    """What became of a task; None where its worker died and it should be tried again."""
    try:
        return future.result()
    except BrokenProcessPool:
        slot.end()
    name = task.source.name
    if task.deaths < retries:
        log.warning("%s: its worker died; trying it again (%d of %d)", name, task.deaths + 1, retries)
        return None
    reason = f"Its worker died {task.deaths + 1} times: is memory short? Try fewer workers."
    return Outcome(name, task.source.label, FAILED, error="WorkerDied", reason=reason)


class _Slot:
    """A place for one worker process, which is started when it is needed and again when it has died."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool: ProcessPoolExecutor | None = None

    def start(self, source: Source, out: Path, settings: Preparation) -> Future[Outcome]:
        try:
            return self._submit(source, out, settings)
        except BrokenProcessPool:  # it died while it had nothing to do
            self.end()
            return self._submit(source, out, settings)

    def _submit(self, source: Source, out: Path, settings: Preparation) -> Future[Outcome]:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")  # forking a process with threads in it can hang
            self._pool = ProcessPoolExecutor(1, context, initializer=_begin)
        with thread_limit(self._threads):  # the process is started within, and takes it over
            return self._pool.submit(prepare_one, source, out, settings)

    def end(self) -> None:
        """At once: what a scene had not finished is not there, and what it had is whole."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def _begin() -> None:
    """In a new worker: Ctrl-C is for the parent, which then ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def thread_variables(threads: int) -> dict[str, str]:
    """Environment of a worker that may use so many threads; it holds for torch too, whose pool OpenMP sizes."""
    return dict.fromkeys(_THREAD_VARIABLES, str(threads))


@contextmanager
def thread_limit(threads: int) -> Iterator[None]:
    """Environment variables that limit the threads of processes started meanwhile."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(thread_variables(threads))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
