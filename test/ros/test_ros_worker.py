"""The queue and the thread, the counters, and the launch files' wiring; nothing here talks to another process."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from geopurify_core.errors import BadMessageError, InvalidPoseError
from geopurify_ros.worker import DroppingQueue, Worker


def test_a_full_queue_drops_the_oldest_and_counts_it() -> None:
    queue = DroppingQueue(3)
    for i in range(10):
        queue.put(i)
    assert (len(queue), queue.dropped, queue.received) == (3, 7, 10)
    assert [queue.get(0.0) for _ in range(4)] == [7, 8, 9, None]


def test_no_exception_ends_the_worker() -> None:
    queue, done, failures = DroppingQueue(10), [], []
    finished = threading.Event()

    def work(item: int) -> None:
        if item % 2:
            raise MemoryError(f"frame {item}") if item == 3 else ValueError(f"frame {item}")
        done.append(item)
        if item == 6:
            finished.set()

    def prepare() -> None:
        raise RuntimeError("no weights")

    worker = Worker(prepare, work, failures.append, queue)
    worker.start()
    for i in range(7):
        queue.put(i)
    assert finished.wait(10)
    worker.stop(5.0)
    assert not worker.is_alive()
    assert done == [0, 2, 4, 6]
    assert [str(error) for error in failures] == ["no weights", "frame 1", "frame 3", "frame 5"]


def test_stopping_does_not_wait_for_a_stuck_frame() -> None:
    queue, release = DroppingQueue(1), threading.Event()
    worker = Worker(lambda: None, lambda item: release.wait(30), lambda error: None, queue)
    worker.start()
    queue.put(1)
    time.sleep(0.1)
    started = time.monotonic()
    worker.stop(0.2)
    assert time.monotonic() - started < 5.0
    release.set()


@pytest.fixture
def health() -> Any:
    pytest.importorskip("diagnostic_msgs")
    from geopurify_ros.health import Health

    words: list[str] = []
    health = Health(words.append)
    health.words = words
    return health


def test_each_kind_is_logged_once_and_all_are_counted(health: Any) -> None:
    for i in range(5):
        health.failed(BadMessageError("image.step", i, "Mend it."))
        health.failed(InvalidPoseError("pose", i, "Publish it."))
        health.failed(ValueError(i))
    assert len(health.words) == 3
    item = health.trouble_status("worker", health.work, {})
    values = {v.key: v.value for v in item.values}
    assert item.level == b"\x02"
    assert values["failed: BadMessageError image.step"].startswith("5 x, image.step: 4")
    assert values["failed: ValueError"].startswith("5 x, ")
    health.succeeded()
    assert health.newest_error == ""
    assert health.trouble_status("worker", health.work, {}).level == b"\x01", "over, but recent"


def test_an_error_that_nothing_has_ended_keeps_its_words(health: Any) -> None:
    """The stream stopped after a failure: an hour later the diagnostics still say which."""
    health.failed(BadMessageError("image.step", 1, "Mend it."))
    health.work.kinds["BadMessageError image.step"].last_s -= 3600
    item = health.trouble_status("worker", health.work, {})
    assert item.level == b"\x02"
    assert "image.step" in item.message


def test_endless_kinds_of_failure_take_bounded_memory(health: Any) -> None:
    for i in range(1_000):
        health.failed(BadMessageError(f"field {i}", None, ""))
    assert len(health.work.kinds) <= 201
    assert health.work.kinds["others"].count == 800
    assert len(health.words) <= 201


def test_a_silent_topic_is_a_warning_then_an_error(health: Any) -> None:
    health.watch("/rgb", True)
    health.watch("/extra", False)
    levels = []
    for age_s in (1.0, 6.0, 11.0):
        health._started_s = time.monotonic() - age_s
        rgb, extra = health.input_statuses(5.0, 10.0)
        levels.append(rgb.level)
        assert extra.level == b"\x00"
    assert levels == [b"\x00", b"\x01", b"\x02"]
    assert "no message yet for 11 s" in rgb.message
    health.arrived("/rgb")
    assert health.input_statuses(5.0, 10.0)[0].level == b"\x00"
    health.refused("/rgb", BadMessageError("image.step", 1, "Mend it."))
    assert health.input_statuses(5.0, 10.0)[0].level == b"\x01"
    health.inputs["/rgb"].note = "a publisher's QoS is incompatible (RELIABILITY)"
    assert "QoS" in health.input_statuses(5.0, 10.0)[0].message
