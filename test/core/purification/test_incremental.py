"""Incremental purification gives what a computation from scratch gives, whatever happened to the map."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from geopurify_core.config import PurificationConfig
from geopurify_core.mapping.keys import pack_keys
from geopurify_core.purification.student.inputs import student_inputs
from geopurify_core.purification.student.normals import fill_normals
from geopurify_core.purification.update import cost, incremental, partial, subgraph, whole
from geopurify_core.purification.update.checks import key_order
from geopurify_core.purification.update.compute import purify_snapshot
from geopurify_core.purification.update.delta import map_delta
from geopurify_core.purification.update.dilation import rings
from geopurify_core.purification.update.result import FULL, INCREMENTAL, NOTHING, Purification

_SPEC = importlib.util.spec_from_file_location("purification_maps", Path(__file__).with_name("_maps.py"))
assert _SPEC is not None and _SPEC.loader is not None
maps = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(maps)

# With eight neighbours weights reach 0.5, where a factor of 20 turns the last bit of a cosine into 1e-6 of weight.
CONFIG = PurificationConfig(neighbors=8, steps=4, sharpening=5.0)
STUDENT = maps.small_student()
# Half precision keeps 11 bits, and the two ways may fall on different sides of a rounding.
HALF_ULP = 2.0**-11


@pytest.fixture
def always_partial(monkeypatch: pytest.MonkeyPatch) -> None:
    """On small maps everything from scratch is as cheap; this makes the partial ways be taken wherever there is one."""
    monkeypatch.setattr(cost, "is_worthwhile", lambda partial_seconds, full_seconds: True)


def assert_same(found: Purification, expected: Purification) -> None:
    np.testing.assert_array_equal(found.keys, expected.keys)
    np.testing.assert_array_equal(found.order, expected.order)
    np.testing.assert_array_equal(found.affinity.neighbors, expected.affinity.neighbors)
    np.testing.assert_array_equal(found.normals, expected.normals)
    np.testing.assert_allclose(found.embeddings, expected.embeddings, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.affinity.weights, expected.affinity.weights, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.length, expected.length, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found.weight, expected.weight, rtol=1e-5, atol=1e-5)
    if expected.features is None:
        assert found.features is None
        return
    assert found.features is not None
    ours, theirs = found.features.astype(np.float32), expected.features.astype(np.float32)
    assert (np.abs(ours - theirs) <= 1e-4 + 2 * HALF_ULP * np.abs(theirs)).all()


@hypothesis.settings(max_examples=12)
@hypothesis.given(
    edits=st.lists(st.sampled_from(sorted(maps.EDITS)), min_size=1, max_size=5),
    seed=st.integers(0, 2**16),
    pool=st.sampled_from(["features", "scores"]),
)
def test_equals_a_computation_from_scratch_after_every_edit(edits: list[str], seed: int, pool: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if seed % 3:
            patch.setattr(cost, "is_worthwhile", lambda partial_seconds, full_seconds: True)
        rng = np.random.default_rng(seed)
        config = replace(CONFIG, pool=pool)
        snapshot = maps.strip(60, rng)
        result = purify_snapshot(snapshot, STUDENT, config)
        for name in edits:
            before = result
            snapshot = maps.EDITS[name](snapshot, rng)
            result = purify_snapshot(snapshot, STUDENT, config, previous=before)
            assert_same(result, purify_snapshot(snapshot, STUDENT, config))
            if result.report.modes["student"] != FULL:
                assert_untouched_rows_are_bit_identical(before, result)


def assert_untouched_rows_are_bit_identical(before: Purification, now: Purification) -> None:
    """Beyond the receptive field of every difference, found the slow way."""
    delta = map_delta(before.snapshot, before.keys, before.order, now.snapshot, now.keys, now.order)
    changed = incremental.changed_inputs(delta, now.normals, before.normals)
    sources = np.concatenate([now.coords[changed], delta.removed_coords])
    if not len(sources):
        far = np.ones(len(now), dtype=bool)
    else:
        distance = np.abs(now.coords[:, None] - sources[None]).max(axis=2).min(axis=1)
        far = distance > STUDENT.network.receptive_field
    rows = np.flatnonzero(far)
    np.testing.assert_array_equal(now.embeddings[rows], before.embeddings[delta.source[rows]])


def test_a_small_change_is_computed_in_part_only(always_partial: None) -> None:
    rng = np.random.default_rng(3)
    snapshot = maps.strip(300, rng)
    first = purify_snapshot(snapshot, STUDENT, CONFIG)
    assert set(first.report.modes.values()) == {FULL}
    for edit in (maps.change_features, maps.add_voxels, maps.evict_voxels):
        snapshot = edit(snapshot, rng)
        second = purify_snapshot(snapshot, STUDENT, CONFIG, previous=first)
        assert second.report.mode == INCREMENTAL
        for step in ("student", "affinity", "pooling"):
            assert 0 < second.report.rows[step] < len(second) // 4, step
        assert (second.report.rows["neighbors"] > 0) == (edit is not maps.change_features)
        assert 0 < second.report.student_work < 0.25
        assert_same(second, purify_snapshot(snapshot, STUDENT, CONFIG))
        first = second


def test_nothing_changed_means_nothing_computed() -> None:
    rng = np.random.default_rng(4)
    snapshot = maps.strip(40, rng)
    first = purify_snapshot(snapshot, STUDENT, CONFIG)
    for later in (snapshot, maps.take(snapshot, rng.permutation(len(snapshot)))):
        second = purify_snapshot(later, STUDENT, CONFIG, previous=first)
        assert second.report.mode == NOTHING
        assert second.features is first.features
        assert second.snapshot is later
        np.testing.assert_array_equal(pack_keys(later.coords)[second.order], second.keys)


@pytest.mark.parametrize(
    "other",
    [
        {"config": replace(CONFIG, steps=5)},
        {"config": replace(CONFIG, sharpening=3.0)},
        {"config": replace(CONFIG, neighbors=7)},
        {"config": replace(CONFIG, pool="scores")},
        {"student": maps.small_student(seed=1)},
    ],
)
def test_a_previous_result_of_another_kind_is_not_built_on(other: dict[str, object], always_partial: None) -> None:
    rng = np.random.default_rng(5)
    snapshot = maps.strip(30, rng)
    arguments = {"student": STUDENT, "config": CONFIG, **other}
    first = purify_snapshot(snapshot, STUDENT, CONFIG)
    second = purify_snapshot(maps.change_features(snapshot, rng), **arguments, previous=first)  # type: ignore[arg-type]
    assert second.report.mode == FULL


def test_many_small_changes_do_not_pile_up(always_partial: None) -> None:
    """Each moves features by less than the tolerance, so that alone it would be ignored; together they are not."""
    rng = np.random.default_rng(6)
    snapshot = maps.strip(80, rng)
    result = purify_snapshot(snapshot, STUDENT, CONFIG)
    ignored = 0
    for _ in range(12):
        features = snapshot.features.copy()
        rows = slice(0, len(features), 40)
        features[rows] += np.float16(2e-3)
        snapshot = maps.take(snapshot, np.arange(len(snapshot)), features=features)
        result = purify_snapshot(snapshot, STUDENT, CONFIG, previous=result)
        ignored += len(result) - result.report.rows["pooling"]
        assert_same(result, purify_snapshot(snapshot, STUDENT, CONFIG))
    assert ignored > 0


def test_a_map_may_shrink_below_k_voxels_and_grow_again() -> None:
    rng = np.random.default_rng(7)
    large = maps.strip(20, rng)
    result = purify_snapshot(large, STUDENT, CONFIG)
    for count in (6, 1, 2, 9, 10, len(large), 0, 12):
        snapshot = maps.take(large, np.arange(count))
        result = purify_snapshot(snapshot, STUDENT, CONFIG, previous=result)
        assert len(result) == count
        assert result.affinity.neighbors.shape[1] == max(0, min(8, count - 1))
        assert_same(result, purify_snapshot(snapshot, STUDENT, CONFIG))


def test_rings_equal_a_search_hop_by_hop() -> None:
    rng = np.random.default_rng(8)
    coords = np.unique(rng.integers(0, 14, (500, 3)).astype(np.int32), axis=0)
    keys = np.sort(pack_keys(coords))
    coords = coords[np.argsort(pack_keys(coords))]
    changed = rng.random(len(keys)) < 0.004
    near_gone = np.flatnonzero(rng.random(len(keys)) < 0.004)
    beside = np.abs(coords[:, None] - coords[None]).max(axis=2) <= 1
    expected = np.full(len(keys), 6)
    reached = changed.copy()
    expected[reached] = 0
    for hop in range(1, 6):
        reached = beside[reached].any(axis=0) if reached.any() else reached
        if hop == 1:
            reached[near_gone] = True
        expected[reached & (expected > hop)] = hop
    np.testing.assert_array_equal(rings(keys, changed, 5, near_gone), expected)


def test_the_student_halo_shrinks_layer_by_layer() -> None:
    rng = np.random.default_rng(9)
    snapshot = maps.strip(200, rng)
    keys, order = key_order(snapshot)
    changed = np.zeros(len(keys), dtype=bool)
    changed[len(keys) // 2] = True
    reach = incremental.reach_of(keys, changed, np.zeros((0, 3), np.int32), 3)
    rows = reach.layer_rows
    assert len(rows) == 3 and rows == sorted(rows, reverse=True) and rows[-1] < rows[0]
    assert reach.work == pytest.approx(sum(rows) / (3 * len(keys)))
    assert fill_normals(snapshot.coords, snapshot.normals, order).shape == (len(keys), 3)
    assert student_inputs(snapshot, order).shape == (len(keys), maps.CHANNELS + 6)


@pytest.mark.parametrize("compiled", [True, False])
def test_a_subgraph_pools_its_wanted_rows_like_the_whole_map(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Halo as wide as T hops: nothing is left out, so the result must be that of the whole map."""
    from geopurify_core.purification.pooling.pool import pool

    if not compiled:
        monkeypatch.setattr(subgraph, "HAVE_NUMBA", False)
    rng = np.random.default_rng(10)
    snapshot = maps.strip(120, rng)
    all_rows = purify_snapshot(snapshot, STUDENT, CONFIG)
    wanted = all_rows.coords[:, 0] < -50
    arrival = subgraph.arrivals(all_rows.affinity, wanted, 4, 1e-30)
    graph = subgraph.SubGraph(all_rows.affinity, arrival, 4, "cpu")
    assert len(graph.rows) < len(all_rows)
    columns = rng.standard_normal((len(all_rows), 19)).astype(np.float32)
    found = graph.pool(columns[graph.rows], np.full((len(graph.fringe), 19), 99, np.float32))  # never looked at
    np.testing.assert_array_equal(np.sort(graph.computed[: graph.num_wanted]), np.flatnonzero(wanted))
    expected = pool(columns, all_rows.affinity, 4)[graph.computed[: graph.num_wanted]]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def test_as_many_steps_as_may_be_set(always_partial: None) -> None:
    """More than a byte counts to."""
    rng = np.random.default_rng(13)
    snapshot, config = maps.strip(60, rng), replace(CONFIG, steps=300)
    first = purify_snapshot(snapshot, STUDENT, config)
    snapshot = maps.change_features(snapshot, rng)
    found = purify_snapshot(snapshot, STUDENT, config, previous=first)
    assert found.report.modes["pooling"] != NOTHING
    assert_same(found, purify_snapshot(snapshot, STUDENT, config))


def test_a_sketch_is_that_of_the_values_held(always_partial: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of those that pooling the whole map would give: what a halo leaves out must count as movement next time."""
    monkeypatch.setattr(partial, "TOLERANCE", 0.1)
    monkeypatch.setattr(partial, "_THRESHOLDS", (0.5, 1e-8))
    rng = np.random.default_rng(12)
    snapshot = maps.strip(80, rng)
    result = purify_snapshot(snapshot, STUDENT, CONFIG)
    left_out = 0.0
    for edit in (maps.change_features, maps.add_voxels, maps.change_features, maps.evict_voxels) * 2:
        snapshot = edit(snapshot, rng)
        result = purify_snapshot(snapshot, STUDENT, CONFIG, previous=result)
        expected = purify_snapshot(snapshot, STUDENT, CONFIG)
        assert result.features is not None
        of_values = result.features.astype(np.float32) @ whole.sketch_matrix(maps.CHANNELS).T
        np.testing.assert_allclose(result.sketch, of_values, rtol=0, atol=1e-2)  # features are rounded to halves
        off = np.sqrt(np.square(result.sketch - expected.sketch).mean(axis=1))
        assert off.max() <= partial.allowed(expected.sketch) * 1.001
        left_out = max(left_out, float(off.max()))
    assert left_out > 2e-2


@pytest.mark.parametrize("channels", [12, 128, 384, 512, 768, 1024])
def test_a_sketch_misses_no_movement_of_a_single_channel(channels: int) -> None:
    seen = np.sqrt(np.square(whole.sketch_matrix(channels)).mean(axis=0))
    assert seen.min() > 1 / partial._SAFETY


def test_a_sketch_tells_how_far_rows_have_moved() -> None:
    rng = np.random.default_rng(11)
    rows = rng.standard_normal((400, 64)).astype(np.float32) * 10.0 ** rng.uniform(-6, 0, (400, 1)).astype(np.float32)
    sketch = rows @ whole.sketch_matrix(64).T
    held = partial.Held(np.arange(400), None, np.zeros(400, np.float32), np.zeros_like(sketch))
    moved = partial.moved_rows(sketch, held)
    length = np.linalg.norm(rows, axis=1)
    assert moved[length > partial.TOLERANCE].all()
    assert not moved[length < partial.TOLERANCE / 5].any()
