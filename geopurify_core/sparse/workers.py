"""A pool of threads in which torch computes with one thread each.

Blocks of a sparse convolution are independent. One thread for each block needs no barrier after every small product,
which keeps both cores busy and does not collapse when other processes want them too.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch

_ROWS = 4096
_starting = threading.Lock()


@lru_cache(maxsize=4)
def _pool(threads: int, _pid: int) -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="geopurify-sparse")
    together = threading.Barrier(threads + 1)

    def start() -> None:
        torch.set_num_threads(1)  # for this thread, and for threads that begin later, until it is set back below
        together.wait()

    started = [pool.submit(start) for _ in range(threads)]
    together.wait()
    for future in started:
        future.result()
    torch.set_num_threads(threads)
    return pool


def share_blocks(work: Callable[[Iterator[int]], None], num_blocks: int) -> None:
    """Call ``work(blocks)`` in as many threads as torch may use; each draws its next block from one common iterator.

    ``work`` runs without autograd, in inference mode if the caller does.
    """
    inference, blocks, threads = torch.is_inference_mode_enabled(), iter(range(num_blocks)), torch.get_num_threads()

    def run() -> None:
        with torch.inference_mode(inference), torch.no_grad():
            work(blocks)

    with _starting:
        pool = _pool(threads, os.getpid())
    for future in [pool.submit(run) for _ in range(min(threads, num_blocks))]:
        future.result()


def share_rows(work: Callable[[int, int], None], num_rows: int) -> None:
    """Call ``work(low, high)`` on blocks of rows, shared among threads in the same way.

    Torch's own loops over an array end with a barrier, at which a thread waits as long as others hold its core: on two
    busy cores 10 to 20 ms for something that takes half of one.
    """
    blocks = -(-num_rows // _ROWS)
    if blocks < 2:
        work(0, num_rows)
        return

    def draw(numbers: Iterator[int]) -> None:
        for number in numbers:
            work(number * _ROWS, min((number + 1) * _ROWS, num_rows))

    share_blocks(draw, blocks)
