"""Numba where it is present: compiled loops that release the interpreter lock, and one small pool of threads for them.

Numba's own ``parallel=True`` is not used on purpose: its fallback threading layer ends the process when two threads
enter it, and a mapper that fuses while it answers queries does exactly that.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import logging
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

Function = Callable[..., Any]

HAVE_NUMBA = importlib.util.find_spec("numba") is not None
_MAX_THREADS = 8
_BACKGROUND_NICE = 10
_this_thread = threading.local()


def compiled(
    *, contract: bool = False, reassociate: bool = False, inline: bool = False
) -> Callable[[Function], Function]:
    """Decorator: compile with numba, cached on disk where some folder is writable, unchanged where numba is absent.

    Args:
        contract: Allow multiply and add to fuse into one rounding. Off where results must equal numpy's bit for bit.
        reassociate: Allow sums in any order as well, so that dot products use vector registers.
        inline: Dissolve it in its callers: passing arrays to a function costs more than a short loop.
    """

    def decorate(function: Function) -> Function:
        if not HAVE_NUMBA:
            return function
        import numba

        options: dict[str, Any] = {
            "nogil": True,
            "fastmath": {"contract", "reassoc", "nsz"} if reassociate else {"contract"} if contract else False,
            "error_model": "numpy",
        }
        if inline:
            options["inline"] = "always"
        try:
            return cast(Function, numba.njit(cache=True, **options)(function))
        except RuntimeError:  # a read-only installation and no writable home
            log.debug("no folder to cache %s in; compiling it anew in every process", function.__name__)
            return cast(Function, numba.njit(**options)(function))

    return decorate


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """A C-contiguous array that may not be written. Images from messages come like that and others do not; numba would
    compile every kernel once for each kind."""
    array = np.ascontiguousarray(array).view()
    array.setflags(write=False)
    return array


def num_threads() -> int:
    """Threads that one task may use: the CPUs this process is allowed on, at most eight, or ``GEOPURIFY_THREADS``."""
    most = _MAX_THREADS
    if (wanted := os.environ.get("GEOPURIFY_THREADS", "")).isdecimal():
        most = min(most, max(1, int(wanted)))
    try:
        return min(most, len(os.sched_getaffinity(0)))
    except AttributeError:  # not Linux
        return min(most, os.cpu_count() or 1)


def go_background() -> None:
    """Let the calling thread, its chunks and the OpenMP threads it will start give way to every other thread.

    Its chunks get a pool of their own: in the common one, those of a frame or a query would queue up behind them. The
    system is asked for a lower priority where it has one for single threads (Linux; threads inherit it).
    """
    _this_thread.background = True
    if sys.platform.startswith("linux"):
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):  # a sandbox that forbids it: then it merely shares
            os.setpriority(os.PRIO_PROCESS, thread, max(_BACKGROUND_NICE, os.getpriority(os.PRIO_PROCESS, thread)))


@lru_cache(maxsize=2)
def _pool(_pid: int, background: bool) -> ThreadPoolExecutor:
    name = "geopurify-background" if background else "geopurify"
    initializer = go_background if background else None
    return ThreadPoolExecutor(max_workers=num_threads(), thread_name_prefix=name, initializer=initializer)


def run_chunks(
    function: Callable[..., Any], total: int, *args: Any, min_chunk: int = 1, per_thread: int = 1
) -> list[Any]:
    """Call ``function(start, stop, *args)`` on chunks that cover ``range(total)``; results in chunk order.

    Args:
        total: Length of the range to cover.
        min_chunk: Smaller pieces are not worth a thread.
        per_thread: Chunks for each thread, more than one to even out unequal work.
    """
    pieces = max(1, min(num_threads() * per_thread, total // max(min_chunk, 1)))
    bounds = [total * i // pieces for i in range(pieces + 1)]
    return run_each(function, [(low, high, *args) for low, high in itertools.pairwise(bounds)])


def run_each(function: Callable[..., Any], calls: list[tuple[Any, ...]]) -> list[Any]:
    """``function(*call)`` for each call, in threads; results in order of the calls."""
    if len(calls) == 1 or num_threads() == 1:
        return [function(*call) for call in calls]
    pool = _pool(os.getpid(), getattr(_this_thread, "background", False))
    return list(pool.map(lambda call: function(*call), calls))
