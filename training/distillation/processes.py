"""Running in one process or several, and being interrupted there: Ctrl-C ends a run between two steps.

The first Ctrl-C is noted, in whichever process it arrives, and all of them stop after the step they are at. The second
one stops at once. Where a shell sends it to every process of a run, they may each note the same one.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch

from geopurify_core.errors import StudentError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

log = logging.getLogger("training.distillation")


class Flag(Protocol):
    """What events of threads and of processes have in common."""

    def is_set(self) -> bool: ...

    def set(self) -> None: ...


class Work(Protocol):
    """What runs in every process, asking ``stop`` now and then."""

    def __call__(self, fabric: Fabric, *, stop: Flag) -> str: ...


def launched(fabric: Fabric, work: Work) -> str:
    """``work(fabric, stop)`` in every process of ``fabric``; what the first of them returns.

    ``work`` asks now and then whether ``stop`` is set, in several processes within :func:`noted_here`.

    Raises:
        StudentError: One of several processes failed; with the last line of what it said, or what ended it.
        KeyboardInterrupt: The second Ctrl-C.
    """
    if fabric.strategy.launcher is None:
        alone = threading.Event()
        with _heeded(alone):
            fabric.launch()
            return work(fabric, stop=alone)
    from torch.multiprocessing.spawn import ProcessException

    stop = multiprocessing.get_context("spawn").Event()
    with _heeded(stop):
        try:
            return str(fabric.launch(partial(_to_the_end, work=work, stop=stop)))
        except ProcessException as error:
            if stop.is_set():  # before the first step they are not ready to finish one
                raise KeyboardInterrupt from error
            said = str(error).strip().splitlines()[-1]
            raise StudentError("process", error.error_index, f"It stopped: {said}") from error


def _to_the_end(fabric: Fabric, work: Work, stop: Flag) -> str:
    """``work``, and no process leaves before the others: those still talking to it would abort."""
    said = work(fabric, stop=stop)
    fabric.barrier()
    torch.distributed.destroy_process_group()
    return said


def anywhere(fabric: Fabric, here: bool) -> bool:
    """Whether any process says so."""
    if fabric.world_size == 1:
        return here
    said = fabric.all_reduce(torch.tensor(float(here), device=fabric.device), reduce_op="sum")
    assert isinstance(said, torch.Tensor)
    return bool(said > 0)


@contextmanager
def _heeded(stop: Flag) -> Iterator[None]:
    """The first Ctrl-C sets ``stop``, the second one ends the processes started within and interrupts at once."""
    before, noted = set(multiprocessing.active_children()), threading.Event()

    def note(*_: Any) -> None:
        if noted.is_set():
            for child in set(multiprocessing.active_children()) - before:
                child.terminate()
            raise KeyboardInterrupt
        noted.set()
        stop.set()
        log.warning("finishing the step; again to stop at once")

    with _handling(note):
        yield


@contextmanager
def noted_here(stop: Flag) -> Iterator[Callable[[], bool]]:
    """Asks whether to stop, from within ``work``. One of several processes also notes its own Ctrl-C.

    It also gets one when the process that started it is gone.
    """
    if isinstance(stop, threading.Event):
        yield stop.is_set
        return
    own = threading.Event()
    with _handling(lambda *_: own.set()):
        yield lambda: own.is_set() or stop.is_set()


@contextmanager
def _handling(handler: Callable[..., None]) -> Iterator[None]:
    """SIGINT goes to ``handler``; only a main thread can say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
