"""The purification thread: never in the way, never stuck, never a result that nobody wants any more."""

from __future__ import annotations

import gc
import os
import random
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from geopurify_core.config import PurificationConfig
from geopurify_core.errors import NotAvailableError, PurificationError, StudentError
from geopurify_core.jit import run_each
from geopurify_core.purification.purifier import Purifier, PurifyPolicy, student_for

LONG_S = 20.0  # a wait that only a broken purifier exhausts


class Result:
    """As much of a Purification as the purifier looks at."""

    def __init__(self, snapshot: Any, previous: Result | None = None) -> None:
        self.snapshot = snapshot
        self.version = snapshot.version
        self.report = SimpleNamespace(mode="incremental" if previous else "full")
        self.nbytes = 1000
        self.blob = np.ones(1000)


class Compute:
    """A computation that lasts until it is let go, or is cancelled; it counts how often it runs at once."""

    def __init__(self, *, looks: bool = True) -> None:
        self.started, self.go, self.looks = threading.Semaphore(0), threading.Event(), looks
        self.go.set()
        self.calls: list[int] = []
        self.previous: list[int | None] = []
        self.at_once = self.most_at_once = 0
        self.fails: BaseException | None = None

    def __call__(
        self,
        snapshot: Any,
        student: Any,
        config: Any,
        previous: Any = None,
        progress: Any = None,
        cancelled: Any = None,
    ) -> Result:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            self.calls.append(snapshot.version)
            self.previous.append(previous and previous.version)
            progress("student", 0.25)
            self.started.release()
            while not self.go.wait(0.002):
                if self.looks and cancelled():
                    raise PurificationError("purification", "cancelled", "As asked.")
            if self.fails is not None:
                raise self.fails
            return Result(snapshot, previous)
        finally:
            self.at_once -= 1


class Map:
    """A map whose every change makes a new snapshot."""

    def __init__(self) -> None:
        self.version = 0
        self.lock = threading.Lock()

    def change(self) -> int:
        with self.lock:
            self.version += 1
            return self.version

    def snapshot(self) -> Any:
        with self.lock:
            return Snapshot(self.version)


class Snapshot(SimpleNamespace):
    def __init__(self, version: int) -> None:
        super().__init__(version=version, stamp_ns=100 + version)

    def __len__(self) -> int:
        return 7


def purifier_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "geopurify-purifier"]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)


@pytest.fixture
def world() -> Iterator[SimpleNamespace]:
    clock = SimpleNamespace(now=50.0)
    compute, living = Compute(), Map()
    purifier = Purifier(
        SimpleNamespace(), PurificationConfig(), living.snapshot, compute=compute, clock=lambda: clock.now
    )
    yield SimpleNamespace(purifier=purifier, compute=compute, map=living, clock=clock)
    compute.go.set()
    assert purifier.close()
    until(lambda: not purifier_threads())


def test_a_run_publishes_and_the_next_builds_on_it(world: SimpleNamespace) -> None:
    purifier = world.purifier
    assert purifier.latest is None and purifier.status.state == "idle" and not purifier.busy
    world.map.change()
    first = purifier.purify(LONG_S)
    assert purifier.latest is first and first.version == 1 and purifier.status.mode == "full"
    world.map.change()
    second = purifier.purify(LONG_S)
    assert (second.version, world.compute.previous, purifier.status.mode) == (2, [None, 1], "incremental")
    status = purifier.status
    assert (status.state, status.message, status.stamp_ns, status.num_voxels) == ("idle", "", 102, 7)
    assert (status.runs, status.nbytes, status.step, status.progress) == (2, 1000, "", 0.0)


def test_an_unchanged_map_is_not_purified_twice(world: SimpleNamespace) -> None:
    first = world.purifier.purify(LONG_S)
    assert world.purifier.purify(LONG_S) is first and world.compute.calls == [0] and world.purifier.status.runs == 1


def test_progress_and_time_left(world: SimpleNamespace) -> None:
    world.compute.go.clear()
    assert world.purifier.request()
    world.compute.started.acquire()
    world.clock.now += 3.0
    status = world.purifier.status
    assert (status.state, status.step, status.progress) == ("running", "student", 0.25)
    assert status.eta_s == pytest.approx(9.0)
    world.compute.go.set()
    assert world.purifier.wait(LONG_S)
    assert world.purifier.status.seconds == pytest.approx(3.0) and world.purifier.status.eta_s is None


def test_two_hundred_requests_coalesce(world: SimpleNamespace) -> None:
    world.compute.go.clear()
    assert world.purifier.request()
    world.compute.started.acquire()
    for _ in range(200):
        world.map.change()
        assert world.purifier.request()
    assert world.purifier.status.pending
    world.compute.go.set()
    assert world.purifier.wait(LONG_S)
    assert world.compute.calls == [0, 200] and world.compute.most_at_once == 1
    assert world.purifier.latest.version == 200


def test_waiters_from_many_threads_get_a_result_as_new_as_their_question(world: SimpleNamespace) -> None:
    behind: list[int] = []

    def ask() -> None:
        for _ in range(20):
            version = world.map.change()
            behind.append(version - world.purifier.purify(LONG_S).version)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)
    assert len(behind) == 160 and max(behind) <= 0
    assert world.compute.most_at_once == 1 and len(world.compute.calls) <= 160


def test_a_failure_is_told_and_the_next_request_works(world: SimpleNamespace) -> None:
    kept = world.purifier.purify(LONG_S)
    for failure in (StudentError("student", "x", "Mend it."), MemoryError(), SystemExit(3), TimeoutError("net")):
        world.compute.fails = failure
        world.map.change()
        with pytest.raises(type(failure)):
            world.purifier.purify(LONG_S)
        status = world.purifier.status
        assert status.state == "failed" and status.message and world.purifier.latest is kept
    world.compute.fails = None
    assert world.purifier.purify(LONG_S).version == 4
    assert world.purifier.status.state == "idle" and world.purifier.status.message == ""


def test_a_source_that_fails_is_a_failure_too(world: SimpleNamespace) -> None:
    def broken() -> Any:
        raise OSError("gone")

    purifier = Purifier(SimpleNamespace(), PurificationConfig(), broken, compute=world.compute)
    with pytest.raises(OSError, match="gone"):
        purifier.purify(LONG_S)
    assert purifier.status.state == "failed" and purifier.close()


def test_whoever_waits_no_longer_leaves_it_running(world: SimpleNamespace) -> None:
    world.compute.go.clear()
    with pytest.raises(PurificationError, match="background"):
        world.purifier.purify(0.01)
    assert world.purifier.status.state == "running" and not world.purifier.wait(0.01)
    world.compute.go.set()
    assert world.purifier.wait(LONG_S) and world.purifier.latest.version == 0


@pytest.mark.parametrize("looks", [True, False])
def test_cancel_drops_the_running_and_the_pending_one(world: SimpleNamespace, looks: bool) -> None:
    kept = world.purifier.purify(LONG_S)
    world.compute.go.clear()
    world.compute.looks = looks
    world.compute.started = threading.Semaphore(0)
    world.map.change()
    errors: list[Exception] = []

    def ask() -> None:
        try:
            world.purifier.purify(LONG_S)
        except PurificationError as error:
            errors.append(error)

    waiting = [threading.Thread(target=ask) for _ in range(3)]
    waiting[0].start()
    world.compute.started.acquire()
    for thread in waiting[1:]:
        thread.start()
    until(lambda: world.purifier.status.pending)
    assert world.purifier.cancel()
    for thread in waiting:  # they are told at once, even where the computation does not look
        thread.join(LONG_S)
    assert [error.value for error in errors] == ["stopped"] * 3
    world.compute.go.set()
    assert world.purifier.wait(LONG_S)
    status = world.purifier.status
    assert (world.purifier.latest, status.state) == (kept, "idle") and "cancelled" in status.message
    assert not world.purifier.cancel() and world.compute.calls == [0, 1]
    assert world.purifier.purify(LONG_S).version == 1 and world.purifier.status.message == ""


def test_a_computation_that_only_reports_is_stopped_by_its_report(world: SimpleNamespace) -> None:
    entered, stopped = threading.Event(), threading.Event()

    def compute(*_: Any, progress: Any, **__: Any) -> Any:
        try:
            while True:
                progress("pooling", 0.5)
                entered.set()
                time.sleep(0.001)
        finally:
            stopped.set()

    purifier = Purifier(SimpleNamespace(), PurificationConfig(), world.map.snapshot, compute=compute)
    purifier.request()
    assert entered.wait(LONG_S) and purifier.close() and stopped.is_set()


def test_a_reset_map_is_not_overtaken_by_its_old_purification(world: SimpleNamespace) -> None:
    world.purifier.purify(LONG_S)
    world.compute.go.clear()
    world.compute.looks = False
    world.compute.started = threading.Semaphore(0)
    world.map.change()
    world.purifier.request()
    world.compute.started.acquire()
    world.purifier.reset()
    assert world.purifier.latest is None and world.purifier.status.num_voxels == 0
    world.purifier.request()  # of the new map, while the old run has not noticed yet
    world.map.version = 40
    world.compute.go.set()
    assert world.purifier.wait(LONG_S)
    assert world.purifier.latest.version == 40 and world.compute.previous[-1] is None


def test_close_is_final_and_quick(world: SimpleNamespace) -> None:
    world.purifier.purify(LONG_S)
    world.compute.go.clear()
    world.map.change()
    world.purifier.request()
    assert world.purifier.close() and not purifier_threads()
    assert not world.purifier.request() and world.purifier.latest is None and world.purifier.status.state == "off"
    with pytest.raises(NotAvailableError, match="closed"):
        world.purifier.purify(LONG_S)
    assert world.purifier.close()


def test_close_does_not_wait_for_the_deaf(world: SimpleNamespace) -> None:
    world.compute.go.clear()
    world.compute.looks = False
    world.purifier.request()
    world.compute.started.acquire()
    assert not world.purifier.close(timeout_s=0.01)
    world.compute.go.set()
    until(lambda: not purifier_threads())
    assert world.purifier.latest is None


def test_a_system_without_threads_left_is_asked_again(world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            world.purifier.request()
        assert not world.purifier.busy
    assert world.purifier.purify(LONG_S).version == world.map.version


def test_no_thread_is_left_when_there_is_nothing_to_do(world: SimpleNamespace) -> None:
    world.purifier.purify(LONG_S)
    until(lambda: not purifier_threads())


def test_the_old_result_and_its_snapshot_are_let_go(world: SimpleNamespace) -> None:
    old = weakref.ref(world.purifier.purify(LONG_S))
    old_snapshot = weakref.ref(old().snapshot)  # type: ignore[union-attr]
    world.purifier.published.engine = old()  # whatever was made of it goes as well
    gc.disable()  # by counting references alone
    try:
        world.map.change()
        world.purifier.purify(LONG_S)
        until(lambda: old() is None and old_snapshot() is None)
    finally:
        gc.enable()


def test_a_kept_error_keeps_no_snapshot(world: SimpleNamespace) -> None:
    seen: list[weakref.ref[Any]] = []

    def source() -> Any:
        snapshot = world.map.snapshot()
        seen.append(weakref.ref(snapshot))
        return snapshot

    def failing(snapshot: Any, *_: Any, **__: Any) -> Any:
        try:
            raise ValueError("inner")
        except ValueError as error:
            raise PurificationError("map", "x", "y") from error

    purifier = Purifier(SimpleNamespace(), PurificationConfig(), source, compute=failing)
    with pytest.raises(PurificationError) as caught:
        purifier.purify(LONG_S)
    until(lambda: seen[0]() is None)
    assert str(caught.value.__cause__) == "inner" and purifier.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads have no priority of their own here")
def test_the_thread_and_its_helpers_give_way(world: SimpleNamespace) -> None:
    def nice() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def compute(snapshot: Any, *_: Any, **__: Any) -> Any:
        inherited: list[int] = []
        child = threading.Thread(target=lambda: inherited.append(nice()))
        child.start()
        child.join()
        result = Result(snapshot)
        result.nice = [nice(), *inherited, *run_each(nice, [(), ()])]  # type: ignore[attr-defined]
        return result

    before = nice()
    purifier = Purifier(SimpleNamespace(), PurificationConfig(), world.map.snapshot, compute=compute)
    assert set(purifier.purify(LONG_S).nice) == {max(before, 10)}  # type: ignore[attr-defined]
    assert purifier.close()
    assert {nice(), *run_each(nice, [(), ()])} == {before}, "the threads of fusion and queries keep theirs"


def test_random_moments(world: SimpleNamespace) -> None:
    """Requests, changes, cancels and resets in any order: never two runs at once, never an old map, never stuck."""
    rng, purifier, compute = random.Random(5), world.purifier, world.compute
    floor = 0  # no result may be of a map older than the last reset
    for _ in range(600):
        act = rng.randrange(7)
        if act < 2:
            assert purifier.request()
        elif act == 2:
            world.map.change()
        elif act == 3:
            purifier.cancel()
        elif act == 4:
            floor = world.map.change()
            purifier.reset()
        elif act == 5:
            compute.go.clear() if rng.random() < 0.5 else compute.go.set()
            compute.looks = rng.random() < 0.5
            compute.fails = ValueError("now and then") if rng.random() < 0.3 else None
        else:
            time.sleep(rng.choice((0.0, 0.0005, 0.003)))
        latest = purifier.latest
        assert latest is None or latest.version >= floor
        assert purifier.status.state in ("idle", "running", "failed")
    compute.go.set()
    compute.fails = None
    world.map.change()
    assert purifier.purify(LONG_S).version == world.map.version and purifier.wait(LONG_S)
    assert compute.most_at_once == 1 and len(purifier_threads()) <= 1


def test_close_at_random_moments() -> None:
    rng = random.Random(11)
    for _ in range(60):
        compute, living = Compute(looks=rng.random() < 0.7), Map()
        purifier = Purifier(SimpleNamespace(), PurificationConfig(), living.snapshot, compute=compute)
        for _ in range(rng.randrange(3)):
            purifier.request()
            living.change()
        time.sleep(rng.choice((0.0, 0.0002, 0.002)))
        closing = [threading.Thread(target=purifier.close) for _ in range(2)]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join(LONG_S)
        assert purifier.latest is None and not purifier.request()
    until(lambda: not purifier_threads())


# -- when ------------------------------------------------------------------------------------------------------------


def test_the_policy_waits_for_time_and_change() -> None:
    policy = PurifyPolicy(PurificationConfig(period_s=10.0, dirty_fraction=0.05))
    assert policy.due(0.0, 1.0) and not policy.due(0.0, 0.0) and not policy.due(0.0, 0.049)
    policy.ended(3.0)
    assert not policy.due(12.9, 1.0) and policy.due(13.0, 0.05)
    assert not PurifyPolicy(PurificationConfig(period_s=0.0)).due(1e9, 1.0)
    eager = PurifyPolicy(PurificationConfig(period_s=1.0, dirty_fraction=0.0))
    assert eager.due(0.0, 1e-6) and not eager.due(0.0, 0.0), "an unchanged map has nothing to gain"


def test_it_purifies_by_itself_only_when_due_and_idle(world: SimpleNamespace) -> None:
    purifier = world.purifier
    assert not purifier.maybe_request(0.0)
    world.compute.go.clear()
    assert purifier.maybe_request(1.0)
    assert not purifier.maybe_request(1.0), "one is running"
    world.compute.go.set()
    assert purifier.wait(LONG_S) and not purifier.maybe_request(1.0), "it has just ended"
    world.clock.now += 10.0
    assert not purifier.maybe_request(0.01) and purifier.maybe_request(0.06)
    world.compute.fails = ValueError("once")
    world.map.change()
    assert purifier.wait(LONG_S)
    world.clock.now += 9.0
    assert not purifier.maybe_request(1.0), "a failure waits for its turn as well"
    world.clock.now += 1.0
    assert purifier.maybe_request(1.0) and purifier.wait(LONG_S)


# -- for whom --------------------------------------------------------------------------------------------------------


def test_a_backbone_without_a_student_is_named() -> None:
    with pytest.raises(NotAvailableError, match=r"nobody:1.*--student"):
        student_for(PurificationConfig(), "nobody:1", 16)


def test_a_student_that_cannot_be_read_is_named(tmp_path: Any) -> None:
    (tmp_path / "s.safetensors").write_bytes(b"nothing")
    for path in (tmp_path / "s.safetensors", tmp_path / "absent.safetensors"):
        with pytest.raises(StudentError):
            student_for(PurificationConfig(student=str(path)), "nobody:1", 16)
