"""A purification from scratch: against its parts put together by hand, and all that may be wrong with its input."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from geopurify_core.config import PurificationConfig
from geopurify_core.errors import MapMismatchError, NotAvailableError, PurificationError, StudentError
from geopurify_core.mapping.keys import pack_keys
from geopurify_core.mapping.snapshot import MapSnapshot
from geopurify_core.purification.student.inputs import student_inputs
from geopurify_core.purification.update import checks, whole
from geopurify_core.purification.update.compute import purify_snapshot
from geopurify_core.purification.update.result import FULL
from geopurify_core.purification.update.steps import STEPS, Course

_SPEC = importlib.util.spec_from_file_location("purification_maps", Path(__file__).with_name("_maps.py"))
assert _SPEC is not None and _SPEC.loader is not None
maps = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(maps)

CONFIG = PurificationConfig(neighbors=8, steps=4, sharpening=5.0)
STUDENT = maps.small_student()


@pytest.fixture
def snapshot() -> MapSnapshot:
    result: MapSnapshot = maps.strip(30, np.random.default_rng(0))
    return result


def naive(snapshot: MapSnapshot) -> tuple[np.ndarray, np.ndarray]:
    """(V, V) dense A, and the rows of the snapshot in key order; loops and float64 throughout."""
    order = sorted(range(len(snapshot)), key=lambda row: tuple(snapshot.coords[row]))
    coords = snapshot.coords[order].astype(np.int64)
    embeddings = STUDENT.network.embed(coords, student_inputs(snapshot, np.array(order))).double().numpy()
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    dense = np.zeros((len(coords), len(coords)))
    for i in range(len(coords)):
        square = ((coords - coords[i]) ** 2).sum(axis=1)
        nearest = sorted((square[j], j) for j in range(len(coords)) if j != i)[:8]
        columns = [j for _, j in nearest]
        weights = np.exp(5.0 * unit[columns] @ unit[i])
        dense[i, columns] = weights / weights.sum()
    return np.linalg.matrix_power(dense, 4), np.array(order)


@pytest.mark.parametrize("pool", ["features", "scores"])
def test_equals_the_equations_written_out(snapshot: MapSnapshot, pool: str) -> None:
    found = purify_snapshot(snapshot, STUDENT, replace(CONFIG, pool=pool))
    power, order = naive(snapshot)
    np.testing.assert_array_equal(found.order, order)
    np.testing.assert_array_equal(found.keys, pack_keys(snapshot.coords)[order])
    expected = power @ snapshot.features[order].astype(np.float64)
    np.testing.assert_allclose(found.length, np.linalg.norm(expected, axis=1), atol=1e-5)
    np.testing.assert_allclose(found.weight, power @ snapshot.weight[order], rtol=1e-5)
    vectors = np.random.default_rng(1).standard_normal((40, maps.CHANNELS)).astype(np.float32)
    np.testing.assert_allclose(found.pool_scores(vectors), vectors @ expected.T, atol=2e-5)
    np.testing.assert_allclose(found.sketch, expected @ whole.sketch_matrix(maps.CHANNELS).T, atol=2e-5)
    assert found.report.mode == FULL
    assert found.report.rows == dict.fromkeys(STEPS, len(snapshot))
    if pool == "features":
        assert found.features is not None
        np.testing.assert_allclose(found.features, expected, atol=1e-5 + 2**-11)
    else:
        assert found.features is None


def test_scores_give_the_same_best_text_as_features(snapshot: MapSnapshot) -> None:
    found = purify_snapshot(snapshot, STUDENT, CONFIG)
    vectors = np.random.default_rng(2).standard_normal((7, maps.CHANNELS)).astype(np.float32)
    assert found.features is not None
    of_features = vectors @ found.features.astype(np.float32).T
    of_scores = found.pool_scores(vectors)
    gap = np.sort(of_features, axis=0)
    clear = gap[-1] - gap[-2] > 1e-2  # half precision may swap two that are nearly even
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(of_scores.argmax(axis=0)[clear], of_features.argmax(axis=0)[clear])


def test_the_order_of_the_rows_changes_nothing(snapshot: MapSnapshot) -> None:
    rows = np.random.default_rng(3).permutation(len(snapshot))
    first, second = (purify_snapshot(m, STUDENT, CONFIG) for m in (snapshot, maps.take(snapshot, rows)))
    assert first.features is not None and second.features is not None
    np.testing.assert_array_equal(first.features.view(np.uint16), second.features.view(np.uint16))
    np.testing.assert_array_equal(rows[second.order], first.order)


def test_as_snapshot_carries_everything_in_key_order(snapshot: MapSnapshot) -> None:
    found = purify_snapshot(snapshot, STUDENT, CONFIG)
    purified = found.as_snapshot()
    assert purified.purified == found.fingerprint and "student:0" in purified.purified
    np.testing.assert_array_equal(pack_keys(purified.coords), found.keys)
    for name in ("rgb", "normals", "first_seen_ns", "last_seen_ns", "geometry_weight"):
        np.testing.assert_array_equal(getattr(purified, name), getattr(snapshot, name)[found.order])
    with pytest.raises(MapMismatchError, match="purified already"):
        purify_snapshot(purified, STUDENT, CONFIG)
    with pytest.raises(NotAvailableError, match="features"):
        purify_snapshot(snapshot, STUDENT, replace(CONFIG, pool="scores")).as_snapshot()


@pytest.mark.parametrize("count", [0, 1, 2, 8, 9])
def test_few_voxels(snapshot: MapSnapshot, count: int) -> None:
    few = maps.take(snapshot, np.arange(count))
    for pool in ("features", "scores"):
        found = purify_snapshot(few, STUDENT, replace(CONFIG, pool=pool))
        assert len(found) == count and found.length.shape == found.weight.shape == (count,)
        assert found.pool_scores(np.zeros((2, maps.CHANNELS), np.float32)).shape == (2, count)
    if count == 1:
        np.testing.assert_allclose(found.length, np.linalg.norm(few.features.astype(np.float32), axis=1), rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_must_be_finite(snapshot: MapSnapshot, value: float) -> None:
    features = snapshot.features.copy()
    features[[3, 5], 2] = value
    with pytest.raises(PurificationError, match=r"map.features: '2 of"):
        purify_snapshot(replace(snapshot, features=features), STUDENT, CONFIG)


def test_weights_must_be_finite_and_features_halves(snapshot: MapSnapshot) -> None:
    weight = snapshot.weight.copy()
    weight[[1, 4]] = np.nan, np.inf
    with pytest.raises(PurificationError, match=r"map.weight: '2 of"):
        purify_snapshot(replace(snapshot, weight=weight), STUDENT, CONFIG)
    wide = snapshot.features.astype(np.float64)
    with pytest.raises(PurificationError, match=r"map.features: 'float64'"):
        purify_snapshot(replace(snapshot, features=wide), STUDENT, CONFIG)  # type: ignore[arg-type]


def test_voxels_twice_or_out_of_reach(snapshot: MapSnapshot) -> None:
    for coords in (snapshot.coords[np.maximum(np.arange(len(snapshot)) - 1, 0)], snapshot.coords + (1 << 20)):
        with pytest.raises(PurificationError, match=r"map.coords"):
            purify_snapshot(replace(snapshot, coords=coords.astype(np.int32)), STUDENT, CONFIG)


def test_a_student_of_another_kind(snapshot: MapSnapshot) -> None:
    with pytest.raises(StudentError):
        purify_snapshot(replace(snapshot, backbone="other"), STUDENT, CONFIG)
    with pytest.raises(StudentError):
        purify_snapshot(snapshot, maps.small_student(channels=maps.CHANNELS + 1), CONFIG)


def test_vectors_of_another_width(snapshot: MapSnapshot) -> None:
    found = purify_snapshot(snapshot, STUDENT, CONFIG)
    with pytest.raises(PurificationError, match=r"vectors.shape"):
        found.pool_scores(np.zeros((2, maps.CHANNELS + 1), np.float32))


def test_a_budget_too_small_says_how_much_is_needed(snapshot: MapSnapshot) -> None:
    need_mb = -(-checks.needed_bytes(snapshot, STUDENT, CONFIG) // (1 << 20))
    purify_snapshot(snapshot, STUDENT, replace(CONFIG, budget_mb=need_mb))
    with pytest.raises(PurificationError, match=f"need about {need_mb} MiB"):
        purify_snapshot(snapshot, STUDENT, replace(CONFIG, budget_mb=need_mb - 1))


def test_what_is_held_stays_below_what_was_announced(snapshot: MapSnapshot) -> None:
    found = purify_snapshot(snapshot, STUDENT, CONFIG)
    assert found.nbytes < checks.needed_bytes(snapshot, STUDENT, CONFIG)
    assert found.nbytes / len(found) < 4 * 5 + 8 * 8 + 2 * maps.CHANNELS + 4 * 31 + 64


def test_progress_never_falls_and_ends_at_one(snapshot: MapSnapshot) -> None:
    seen: list[tuple[str, float]] = []
    purify_snapshot(snapshot, STUDENT, CONFIG, progress=lambda step, share: seen.append((step, share)))
    shares = [share for _, share in seen]
    assert shares == sorted(shares) and shares[0] == 0.0 and shares[-1] == pytest.approx(1.0)
    assert list(dict.fromkeys(step for step, _ in seen)) == list(STEPS)


@pytest.mark.parametrize("after", [0, 1, 4, 9, 12])
def test_cancelled_between_chunks(snapshot: MapSnapshot, after: int) -> None:
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked > after

    with pytest.raises(PurificationError, match="cancelled"):
        purify_snapshot(snapshot, STUDENT, CONFIG, cancelled=cancelled)
    assert asked == after + 1


def test_a_course_weighs_steps_as_expected() -> None:
    seen: list[float] = []
    course = Course(lambda _, share: seen.append(share))
    course.expect({"student": 3.0, "pooling": 1.0})
    with course.step("student"):
        course.at(0.5)
    with course.step("pooling"):
        course.at(0.5)
    assert seen == pytest.approx([0.0, 0.375, 0.75, 0.75, 0.875, 1.0])
    assert set(course.seconds) == {"student", "pooling"}


def test_other_devices_take_the_torch_path(snapshot: MapSnapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA: pooling gets tensors, not arrays."""
    monkeypatch.setattr("geopurify_core.purification.update.compute.resolve_device", lambda _: torch.device("cpu", 0))
    expected = purify_snapshot(snapshot, STUDENT, CONFIG)
    columns = np.random.default_rng(5).standard_normal((len(snapshot), 3)).astype(np.float32)
    from geopurify_core.purification.pooling.packed import PackedAffinity

    packed = PackedAffinity(expected.affinity)
    on_tensors = whole.pool_columns(columns, packed, 4, "cpu:0")
    np.testing.assert_allclose(on_tensors, whole.pool_columns(columns, packed, 4, "cpu"), atol=1e-6)
    for keep in (True, False):
        results = [
            whole.pool_features(snapshot.features, expected.order, packed, 4, device, keep=keep, tick=lambda _: None)
            for device in ("cpu", "cpu:0")
        ]
        np.testing.assert_allclose(results[0][1], results[1][1], atol=1e-5 if not keep else 1e-3)
