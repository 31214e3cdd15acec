"""Differences of snapshots, against a plain comparison by dictionary."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from geopurify_core.purification.update import delta as delta_module
from geopurify_core.purification.update.checks import key_order
from geopurify_core.purification.update.delta import Delta, map_delta, rows_differ

_SPEC = importlib.util.spec_from_file_location("purification_maps", Path(__file__).with_name("_maps.py"))
assert _SPEC is not None and _SPEC.loader is not None
maps = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(maps)


def delta_of(before, now) -> Delta:  # type: ignore[no-untyped-def]
    return map_delta(before, *key_order(before), now, *key_order(now))


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("name", sorted(maps.EDITS))
def test_equals_a_comparison_voxel_by_voxel(name: str, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr(delta_module, "HAVE_NUMBA", False)
    rng = np.random.default_rng(0)
    before = maps.strip(30, rng)
    now = maps.only_reorder(maps.EDITS[name](before, rng), rng)
    found = delta_of(before, now)
    old = {tuple(xyz): row for row, xyz in enumerate(before.coords.tolist())}
    keys, order = key_order(now)
    _, old_order = key_order(before)
    for row in range(len(keys)):
        was = old.get(tuple(now.coords[order[row]].tolist()))
        assert (found.source[row] < 0) == (was is None)
        if was is None:
            assert found.features[row] and found.rgb[row] and found.normals[row] and found.weight[row]
            continue
        assert old_order[found.source[row]] == was
        assert found.target[found.source[row]] == row
        for field in ("features", "rgb", "normals", "weight"):
            differs = getattr(now, field)[order[row]].tobytes() != getattr(before, field)[was].tobytes()
            assert getattr(found, field)[row] == differs, field
    gone = set(old) - {tuple(xyz) for xyz in now.coords.tolist()}
    assert {tuple(xyz) for xyz in found.removed_coords.tolist()} == gone
    assert found.nothing == (name == "only_reorder")
    assert found.same_voxels == (name not in ("add_voxels", "evict_voxels"))


def test_bits_count_not_values() -> None:
    """-0.0 equals 0.0 and NaN does not equal itself; what matters is whether the bytes are the same."""
    rng = np.random.default_rng(1)
    before = maps.strip(10, rng)
    features = before.features.copy()
    features[0, 0], features[1, 0] = 0.0, np.nan
    before = replace(before, features=features)
    features = features.copy()
    features[0, 0] = -0.0
    found = delta_of(before, replace(before, features=features))
    assert np.flatnonzero(found.features).tolist() == [int(np.flatnonzero(key_order(before)[1] == 0)[0])]


def test_the_same_snapshot_is_not_looked_at() -> None:
    snapshot = maps.strip(10, np.random.default_rng(2))
    assert delta_of(snapshot, snapshot).nothing


def test_from_and_to_an_empty_map() -> None:
    snapshot = maps.strip(10, np.random.default_rng(3))
    empty = maps.take(snapshot, np.zeros(0, dtype=np.int64))
    grown, shrunk = delta_of(empty, snapshot), delta_of(snapshot, empty)
    assert grown.added.all() and len(grown.source) == len(snapshot) and not len(grown.removed_coords)
    assert not len(shrunk.source) and len(shrunk.removed_coords) == len(snapshot)


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32])
def test_rows_of_every_kind(dtype: type) -> None:
    rng = np.random.default_rng(4)
    a = rng.integers(0, 3, (50, 4)).astype(dtype)
    b = a.copy()
    b[::7, 3] += 1
    rows = rng.permutation(50)
    np.testing.assert_array_equal(rows_differ(a, rows, b, rows), rows % 7 == 0)
    np.testing.assert_array_equal(rows_differ(a[:, 0], rows, a[:, 0], rows), np.zeros(50, bool))
