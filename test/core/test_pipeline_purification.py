"""Purification beside the pipeline: asked for, answered from, replaced and dropped with the map, never waited for."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from geopurify_core.camera import PinholeCamera
from geopurify_core.config import Config
from geopurify_core.errors import (
    InvalidConfigError,
    MapMismatchError,
    NotAvailableError,
    PurificationError,
    StudentError,
)
from geopurify_core.frame import RGBDFrame
from geopurify_core.mapping.snapshot import MapSnapshot
from geopurify_core.pipeline import SemanticMapper
from geopurify_core.querying.engine import QueryEngine
from geopurify_core.vision.base import FeatureMap

CAMERA = PinholeCamera(80.0, 80.0, 39.5, 29.5, 80, 60)
LONG_S = 20.0  # a wait that only a broken mapper exhausts
SETTINGS: dict[str, Any] = {"query": {"min_voxels": 2}, "map": {"budget_mb": 64}}


class Colours:
    """Three channels: red, green, blue; texts are axes."""

    name, feature_dim, licence, fingerprint, text_fingerprint = "colours", 3, "Apache-2.0", "colours-1", "colours"

    def encode_image(self, rgb: NDArray[np.uint8], depth_m: NDArray[np.float32] | None = None) -> FeatureMap:
        return FeatureMap.from_rows((rgb / np.float32(255)).astype(np.float32), np.ones(rgb.shape[:2], np.float32))

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        axes = {"ruby": (1, 0, 0), "emerald": (0, 1, 0), "sapphire": (0, 0, 1)}
        rows = np.array([axes.get(text, (1, 1, 1)) for text in texts], dtype=np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class Swapped:
    """What stands in for a Purification: red and blue change places, which no raw answer can be mistaken for."""

    def __init__(self, snapshot: MapSnapshot) -> None:
        self.snapshot, self.fingerprint = snapshot, "swapped"
        self.order = np.arange(len(snapshot))
        self.features: NDArray[np.float16] | None = np.ascontiguousarray(snapshot.features[:, ::-1])
        self.weight, self.nbytes = snapshot.weight, 1
        self.report = SimpleNamespace(mode="full")

    def as_snapshot(self) -> MapSnapshot:
        assert self.features is not None
        return replace(self.snapshot, features=self.features, purified=self.fingerprint)


def frame(stamp_ns: int = 1, x_m: float = 0.0) -> RGBDFrame:
    """A wall 1 m ahead: left half red, right half blue."""
    rgb = np.zeros((60, 80, 3), dtype=np.uint8)
    rgb[:, :40, 0], rgb[:, 40:, 2] = 255, 255
    T_map_camera = np.eye(4)
    T_map_camera[0, 3] = x_m
    return RGBDFrame(rgb, np.ones((60, 80), dtype=np.float32), CAMERA, T_map_camera, stamp_ns)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A student for every backbone, and a computation that waits while the gate is closed."""
    gate = SimpleNamespace(open=threading.Event(), entered=threading.Semaphore(0), runs=0)
    gate.open.set()

    def compute(snapshot: MapSnapshot, *_: Any, cancelled: Callable[[], bool], **__: Any) -> Swapped:
        gate.runs += 1
        gate.entered.release()
        while not gate.open.wait(0.002):
            if cancelled():
                raise PurificationError("purification", "cancelled", "As asked.")
        return Swapped(snapshot)

    monkeypatch.setattr("geopurify_core.pipeline.student_for", lambda *_: SimpleNamespace())
    monkeypatch.setattr("geopurify_core.purification.purifier._default_compute", lambda: compute)
    yield gate
    gate.open.set()
    until(lambda: not any(thread.name == "geopurify-purifier" for thread in threading.enumerate()))


@pytest.fixture
def mapper(gate: SimpleNamespace) -> Iterator[SemanticMapper]:
    mapper = SemanticMapper(Config.from_dict(SETTINGS), Colours())
    mapper.integrate(frame(1))
    yield mapper
    gate.open.set()
    mapper.close()


def side(mapper: SemanticMapper, text: str, *, purified: bool) -> float:
    """Where along the wall the best object for a text is: negative is left."""
    return float(mapper.query([text], purified=purified)[0].objects[0].center_m[0])


def test_purified_queries_need_a_purified_map_and_then_use_it(mapper: SemanticMapper) -> None:
    for ask in (lambda: mapper.engine(purified=True), lambda: mapper.query(["ruby"], purified=True)):
        with pytest.raises(NotAvailableError, match="Purify first"):
            ask()
    result = mapper.purify(LONG_S)
    assert mapper.purifier is not None and mapper.purifier.latest is result
    assert side(mapper, "ruby", purified=False) < 0 < side(mapper, "ruby", purified=True)
    engine = mapper.engine(purified=True)
    assert engine.snapshot.purified == "swapped" and mapper.engine(purified=True) is engine
    assert mapper.query(["ruby"], purified=True)[0].snapshot is engine.snapshot
    assert not mapper.engine().snapshot.purified and not mapper.snapshot().purified


def test_answers_stay_with_the_purified_map_until_the_next_one(mapper: SemanticMapper) -> None:
    mapper.purify(LONG_S)
    before = mapper.engine(purified=True)
    mapper.integrate(frame(2, x_m=0.5))
    assert mapper.engine(purified=True) is before and mapper.engine().snapshot.stamp_ns == 2
    mapper.purify(LONG_S)
    assert mapper.engine(purified=True).snapshot.stamp_ns == 2


def test_frames_queries_and_snapshots_do_not_wait_for_it(mapper: SemanticMapper, gate: SimpleNamespace) -> None:
    """Everything below happens while one purification is stuck, so nothing can have waited for it."""
    mapper.purify(LONG_S)
    gate.open.clear()
    mapper.integrate(frame(2))
    gate.entered = threading.Semaphore(0)
    assert mapper.purifier is not None and mapper.purifier.request()
    gate.entered.acquire()
    done = threading.Event()

    def work() -> None:
        for i in range(10):
            mapper.integrate(frame(3 + i, x_m=0.05 * i))
            assert mapper.query(["ruby", "sapphire"])[0].objects
            assert mapper.query(["ruby"], purified=True)[0].objects
            assert mapper.snapshot().stamp_ns == mapper.engine().snapshot.stamp_ns == 3 + i
            assert not mapper.maybe_purify() and mapper.purification_status.state == "running"
        done.set()

    worker = threading.Thread(target=work)
    worker.start()
    worker.join(LONG_S)
    assert done.is_set() and mapper.purifier.latest.snapshot.stamp_ns == 1  # type: ignore[union-attr]
    gate.open.set()
    assert mapper.purifier.wait(LONG_S) and mapper.purifier.latest.snapshot.stamp_ns == 2  # type: ignore[union-attr]


def test_engines_are_not_made_under_the_maps_lock(mapper: SemanticMapper, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bool] = []

    class Watched(QueryEngine):
        def __init__(self, *arguments: Any) -> None:
            made.append(mapper._lock.locked())
            super().__init__(*arguments)

    monkeypatch.setattr("geopurify_core.pipeline.QueryEngine", Watched)
    mapper.purify(LONG_S)
    mapper.query(["ruby"])
    mapper.query(["ruby"], purified=True)
    assert made == [False, False]


def test_reset_and_load_drop_the_purified_map(mapper: SemanticMapper, gate: SimpleNamespace) -> None:
    saved = mapper.snapshot()
    for replace_map in (mapper.reset, lambda: mapper.load(saved)):
        mapper.integrate(frame(5))
        mapper.purify(LONG_S)
        replace_map()
        with pytest.raises(NotAvailableError, match="no purified map yet"):
            mapper.engine(purified=True)
        assert mapper.purification_status.stamp_ns == 0
    gate.open.clear()
    gate.entered = threading.Semaphore(0)
    assert mapper.purifier is not None and mapper.purifier.request()
    gate.entered.acquire()
    mapper.reset()  # while it runs
    gate.open.set()
    assert mapper.purifier.wait(LONG_S) and mapper.purifier.latest is None


def test_a_purified_map_is_not_mapped_on(mapper: SemanticMapper) -> None:
    mapper.purify(LONG_S)
    purified, epoch = mapper.engine(purified=True).snapshot, mapper.epoch
    with pytest.raises(MapMismatchError, match="load the raw map"):
        mapper.load(purified)
    assert mapper.epoch == epoch and len(mapper.snapshot()) == len(purified)


def test_a_runner_purifies_when_enough_has_changed(gate: SimpleNamespace) -> None:
    wanted = {"period_s": 1e-6, "dirty_fraction": 0.6}
    mapper = SemanticMapper(Config.from_dict({**SETTINGS, "purification": wanted}), Colours())
    assert not mapper.maybe_purify(), "an empty map"
    for i in range(4):
        mapper.integrate(frame(1 + i, x_m=0.9 * i))
    assert mapper.maybe_purify() and mapper.purifier is not None and mapper.purifier.wait(LONG_S)
    assert not mapper.maybe_purify(), "nothing has changed"
    mapper.integrate(frame(9, x_m=2.7))
    assert not mapper.maybe_purify(), "a third has changed"
    for i in range(3):
        mapper.integrate(frame(10 + i, x_m=0.9 * i))
    assert mapper.maybe_purify() and mapper.purifier.wait(LONG_S) and gate.runs == 2
    never = SemanticMapper(Config.from_dict({**SETTINGS, "purification": {"period_s": 0.0}}), Colours())
    never.integrate(frame())
    assert not never.maybe_purify() and never._purifier is None, "it has not even looked for a student"
    mapper.close()


def test_the_changed_share_counts_blocks_since_a_version() -> None:
    mapper = SemanticMapper(Config.from_dict(SETTINGS), Colours())
    living = mapper._map
    assert living.changed_share(-1) == 0.0
    mapper.integrate(frame(1))
    first = living.version
    assert living.changed_share(-1) == 1.0 and living.changed_share(first) == 0.0
    report = mapper.integrate(frame(2, x_m=3.0))  # elsewhere: only new voxels
    new = report.voxels_new / len(living)
    assert 0.3 < new <= living.changed_share(first) <= new + 64 / len(living)
    assert living.changed_share(living.version) == 0.0


def test_settings_take_effect_and_only_what_must_go_goes(mapper: SemanticMapper) -> None:
    mapper.purify(LONG_S)
    purifier, engine = mapper.purifier, mapper.engine(purified=True)
    mapper.configure(Config.from_dict({**SETTINGS, "query": {"min_voxels": 2, "max_objects": 1}}))
    changed = mapper.engine(purified=True)
    assert changed is not engine and changed.config.max_objects == 1 and mapper.purifier is purifier
    mapper.configure(Config.from_dict({**SETTINGS, "purification": {"period_s": 3.0, "dirty_fraction": 0.5}}))
    assert mapper.purifier is purifier and purifier is not None
    assert (purifier.policy.period_s, purifier.policy.dirty_fraction) == (3.0, 0.5) and purifier.latest is not None
    policy = purifier.policy
    timing = {"period_s": 3.0, "dirty_fraction": 0.5}
    mapper.configure(Config.from_dict({**SETTINGS, "query": {"min_voxels": 3}, "purification": timing}))
    assert purifier.policy is policy, "a setting of something else does not cut the period short"
    mapper.configure(Config.from_dict({**SETTINGS, "purification": {"budget_mb": 777}}))
    assert mapper.purifier is purifier and purifier.latest is not None and purifier.config.budget_mb == 777
    mapper.configure(Config.from_dict({**SETTINGS, "purification": {"steps": 3}}))
    assert mapper.purifier is not purifier and purifier.latest is None
    former, purifier, policy = weakref.ref(purifier), None, None
    until(lambda: gc.collect() >= 0 and former() is None)
    assert mapper.purifier is not None and mapper.purifier.latest is None and mapper.purifier.config.steps == 3
    mapper.configure(Config.from_dict({**SETTINGS, "purification": {"enabled": False}}))
    assert mapper.purifier is None and "enabled" in mapper.purification_status.message
    with pytest.raises(NotAvailableError, match=r"purification\.enabled"):
        mapper.purify()
    with pytest.raises(InvalidConfigError):
        mapper.configure(Config.from_dict({"map": {"voxel_size_m": 0.1}}))


def test_other_settings_stop_what_runs_with_the_old_ones_and_no_run_is_forgotten(
    mapper: SemanticMapper, gate: SimpleNamespace
) -> None:
    mapper.purify(LONG_S)
    assert mapper.purified is mapper.purifier.latest  # type: ignore[union-attr]
    mapper.integrate(frame(2))
    gate.open.clear()
    told: list[str] = []

    def wait() -> None:
        try:
            mapper.purify(LONG_S)
        except PurificationError as error:
            told.append(str(error))

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert gate.entered.acquire(timeout=LONG_S) and gate.entered.acquire(timeout=LONG_S)
    mapper.configure(Config.from_dict({**SETTINGS, "purification": {"steps": 3}}))
    waiting.join(LONG_S)
    assert told and "ask again" in told[0]
    with pytest.raises(NotAvailableError, match="no purified map yet"):
        mapper.purified  # noqa: B018
    assert mapper.purification_status.runs == 1
    gate.open.set()
    mapper.purify(LONG_S)
    assert mapper.purification_status.runs == 2
    mapper.configure(Config.from_dict({**SETTINGS, "purification": {"enabled": False}}))
    assert (mapper.purification_status.state, mapper.purification_status.runs) == ("off", 2)
    with pytest.raises(NotAvailableError, match="enabled"):
        mapper.purified  # noqa: B018


def test_a_backbone_without_a_student_lacks_one_which_is_no_fault() -> None:
    mapper = SemanticMapper(Config.from_dict(SETTINGS), Colours())
    assert mapper.lacks_student and mapper.purification_status.state == "off"
    for part in ({"student": "/nowhere/s.safetensors"}, {"enabled": False}):
        assert not SemanticMapper(Config.from_dict({**SETTINGS, "purification": part}), Colours()).lacks_student


def test_a_configured_student_that_is_unusable_is_told_but_stops_nothing() -> None:
    wanted = {**SETTINGS, "purification": {"student": "/nowhere/s.safetensors"}}
    mapper = SemanticMapper(Config.from_dict(wanted), Colours())
    mapper.integrate(frame())
    assert not mapper.maybe_purify() and mapper.purifier is None
    assert "/nowhere" in mapper.purification_status.message and mapper.query(["ruby"])[0].objects
    with pytest.raises(StudentError, match="/nowhere"):
        mapper.purify()
    reference = weakref.ref(mapper)
    gc.disable()
    try:
        del mapper
        assert reference() is None, "the kept error must not keep the mapper"
    finally:
        gc.enable()


def test_half_an_installation_is_told_but_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise ImportError("libmkl.so is missing")

    monkeypatch.setattr("geopurify_core.pipeline.student_for", broken)
    mapper = SemanticMapper(Config.from_dict(SETTINGS), Colours())
    mapper.integrate(frame())
    assert not mapper.maybe_purify() and "libmkl.so" in mapper.purification_status.message
    with pytest.raises(PurificationError, match=r"libmkl\.so"):
        mapper.purify()


def test_closing_ends_purification_and_nothing_else(mapper: SemanticMapper, gate: SimpleNamespace) -> None:
    mapper.purify(LONG_S)
    gate.open.clear()
    mapper.integrate(frame(2))
    assert mapper.purifier is not None and mapper.purifier.request()
    mapper.close()
    assert not any(thread.name == "geopurify-purifier" for thread in threading.enumerate())
    assert mapper.purification_status.state == "off" and mapper.query(["ruby"])[0].objects
    for ask in (mapper.purify, lambda: mapper.engine(purified=True)):
        with pytest.raises(NotAvailableError, match="closed"):
            ask()
    mapper.close()


def test_the_old_purified_map_is_let_go_with_its_engine(mapper: SemanticMapper) -> None:
    old = weakref.ref(mapper.purify(LONG_S))
    old_engine = weakref.ref(mapper.engine(purified=True))
    mapper.query(["ruby"], purified=True)
    gc.disable()
    try:
        mapper.integrate(frame(2))
        mapper.purify(LONG_S)
        until(lambda: old() is None and old_engine() is None)
    finally:
        gc.enable()


def test_a_dropped_mapper_is_freed_at_once_with_its_purifier(gate: SimpleNamespace) -> None:
    mapper = SemanticMapper(Config.from_dict(SETTINGS), Colours())
    mapper.integrate(frame())
    mapper.purify(LONG_S)
    mapper.query(["ruby"], purified=True)
    purifier = mapper.purifier
    assert purifier is not None
    until(lambda: not any(thread.name == "geopurify-purifier" for thread in threading.enumerate()))
    reference = weakref.ref(mapper)
    gc.disable()
    try:
        del mapper
        assert reference() is None
    finally:
        gc.enable()
    assert purifier.latest is None and not purifier.request()


def test_many_threads_at_once(mapper: SemanticMapper) -> None:
    """Frames, queries, requests, resets and settings from five threads for a while: no error, no standstill."""
    errors: list[BaseException] = []
    answers: list[int] = []
    stop = threading.Event()

    def repeated(step: Callable[[int], object]) -> threading.Thread:
        def run() -> None:
            i = 0
            while not stop.is_set():
                try:
                    step(i)
                except (NotAvailableError, PurificationError, MapMismatchError):
                    pass  # told so: no purified map at the moment, or the map went from under it
                except BaseException as error:
                    errors.append(error)
                    return
                i += 1

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def ask_purified(_: int) -> None:
        (result,) = mapper.query(["ruby"], purified=True)
        assert result.snapshot is not None and result.snapshot.purified and len(result.scores) == len(result.snapshot)
        answers.append(len(result.scores))

    settings = [Config.from_dict({**SETTINGS, "query": {"min_voxels": 2, "max_objects": n}}) for n in (1, 2)]
    threads = [
        repeated(lambda i: mapper.integrate(frame(2 + i, x_m=0.05 * (i % 20)))),
        repeated(lambda _: mapper.query(["ruby"])),
        repeated(ask_purified),
        repeated(lambda _: mapper.purify(LONG_S)),
        repeated(lambda i: (time.sleep(0.02), mapper.reset() if i % 3 == 0 else mapper.configure(settings[i % 2]))),
    ]
    time.sleep(1.5)
    stop.set()
    for thread in threads:
        thread.join(LONG_S)
    assert answers and not errors and not any(thread.is_alive() for thread in threads)


def test_purification_costs_no_full_copy_of_the_map(mapper: SemanticMapper) -> None:
    """Queries hold one snapshot and the purified map another; a third serves the next, and then they take turns."""
    memories = set()
    for i in range(8):
        mapper.integrate(frame(2 + i, x_m=0.1 * i))
        mapper.query(["ruby"])
        old = mapper.purifier and mapper.purifier.latest and weakref.ref(mapper.purifier.latest)
        mapper.purify(LONG_S)
        until(lambda old=old: old is None or old() is None)  # type: ignore[misc]
        mapper.query(["ruby"], purified=True)
        memories |= {id(arena.arrays["features"]) for arena in mapper._map._arenas}
    assert len(memories) <= 3


@pytest.mark.parametrize("pool", ["features", "scores"])
def test_the_real_thing_end_to_end(tmp_path: Any, pool: str) -> None:
    """The apartment, the built-in backbone, a small student of random weights: purify, map on, purify again."""
    torch = pytest.importorskip("torch")
    from geopurify_core.datasets import iterate, open_dataset
    from geopurify_core.purification.student.checkpoint import save_student
    from geopurify_core.purification.student.network import StudentAffinityNetwork
    from geopurify_core.purification.student.trained import StudentInfo

    file = tmp_path / "s.safetensors"
    wanted = {"map": {"voxel_size_m": 0.08}, "purification": {"student": str(file), "pool": pool, "device": "cpu"}}
    mapper = SemanticMapper(Config.from_dict(wanted))
    backbone = mapper.backbone
    torch.manual_seed(0)
    info = StudentInfo(backbone.fingerprint, backbone.feature_dim, 16, 16, 1, voxel_size_m=0.08)
    save_student(file, StudentAffinityNetwork(backbone.feature_dim + 6, 16, 16, 1), info)
    *frames, last = iterate(open_dataset("synthetic:3", num_frames=5, width=120, height=90))
    for item in frames:
        mapper.integrate(item)
    old = weakref.ref(mapper.purify(120.0))
    engine = mapper.engine(purified=True)
    assert engine.snapshot.purified.startswith("student:") and len(engine.snapshot) == len(mapper.snapshot())
    (before,) = mapper.query(["bed"], purified=True)
    assert before.objects and np.isfinite(before.scores).all()
    progress = mapper.purification_status
    assert (progress.state, progress.mode, progress.runs) == ("idle", "full", 1) and progress.nbytes > 0
    del engine, before
    mapper.integrate(last)
    mapper.purify(120.0)
    assert mapper.purification_status.stamp_ns == last.stamp_ns
    assert len(mapper.query(["bed"], purified=True)[0].scores) == mapper.stats().num_voxels
    until(lambda: old() is None)
    with pytest.raises(MapMismatchError):
        mapper.load(mapper.engine(purified=True).snapshot)
    mapper.close()
