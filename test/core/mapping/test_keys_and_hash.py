"""Keys and the hash table against Python's own integers and dictionaries; float16 against numpy's."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geopurify_core.mapping.hash import HashIndex, SortedIndex
from geopurify_core.mapping.keys import COORD_LIMIT, NO_KEY, key_centers, pack_keys, unpack_keys, voxel_of

coordinate = st.integers(-COORD_LIMIT, COORD_LIMIT - 1)
voxel = st.tuples(coordinate, coordinate, coordinate)


@given(st.lists(voxel, min_size=1, max_size=20))
def test_keys_round_trip_and_sort_like_coordinates(voxels):
    coords = np.array(voxels, dtype=np.int32)
    keys = pack_keys(coords)
    np.testing.assert_array_equal(unpack_keys(keys), coords)
    assert (keys >= 0).all()
    assert [voxels[i] for i in np.argsort(keys, kind="stable")] == sorted(voxels)


@given(voxel, st.floats(0.005, 1.0))
def test_a_voxel_holds_its_own_centre(coords, size):
    """R20: key → centre → key."""
    key = pack_keys(np.array([coords]))
    assert voxel_of(key_centers(key, size), size).tolist() == key.tolist()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300, COORD_LIMIT * 0.04, -COORD_LIMIT * 0.04 - 0.01])
def test_points_out_of_reach_have_no_key(value):
    points = np.array([[0.0, value, 0.0], [0.01, 0.01, -0.01]])
    assert (voxel_of(points, 0.04) == NO_KEY).tolist() == [True, False]
    assert pack_keys(np.array([[0, COORD_LIMIT, 0], [0, 0, -COORD_LIMIT - 1]])).tolist() == [NO_KEY, NO_KEY]


@pytest.mark.parametrize("kind", [HashIndex, SortedIndex])
@settings(max_examples=30, deadline=None)
@given(batches=st.lists(st.sets(st.integers(0, 5000), max_size=400), max_size=8), seed=st.integers(0, 9))
def test_index_behaves_like_a_dictionary(kind, batches, seed):
    index, keys, known = kind(), np.zeros(6000, dtype=np.int64), {}
    for batch in batches:
        new = sorted(k for k in batch if k not in known)
        start = len(known)
        for key in new:
            keys[len(known)] = key * 0x1_0000_0001
            known[key] = len(known)
        index.append(keys, start, len(known))
    wanted = np.random.default_rng(seed).integers(0, 5001, 300)
    expected = [known.get(int(k), -1) for k in wanted]
    assert index.find(keys, wanted * 0x1_0000_0001).tolist() == expected
    half = len(known) // 2
    index.rebuild(keys, half)
    assert index.find(keys, wanted * 0x1_0000_0001).tolist() == [row if row < half else -1 for row in expected]


def test_hash_table_stays_small_and_probes_short():
    rng = np.random.default_rng(0)
    coords = np.unique(rng.integers(-60, 60, (200_000, 3)), axis=0)
    keys = pack_keys(coords)
    index = HashIndex()
    for start in range(0, len(keys), 5000):
        stop = min(start + 5000, len(keys))
        index.append(keys, start, stop)
        assert stop == len(keys) or index.nbytes <= max(4096, 10 * stop)
    np.testing.assert_array_equal(index.find(keys, keys), np.arange(len(keys)))


@pytest.mark.parametrize("portable", [False, True])
def test_float16_conversions_equal_numpys(portable):
    """All 63 488 finite patterns, and every halfway case between neighbours (round to nearest even)."""
    numba = pytest.importorskip("numba")
    from geopurify_core.mapping import half

    widen = half._portable_widen if portable else half.widen
    narrow = half._portable_narrow if portable else half.narrow

    @numba.njit
    def convert(bits, values, wide, narrowed):
        for i in range(len(bits)):
            wide[i] = widen(bits[i])
        for i in range(len(values)):
            narrowed[i] = narrow(values[i])

    bits = np.arange(1 << 16, dtype=np.uint16)
    bits = bits[np.isfinite(bits.view(np.float16))]
    exact = np.unique(bits.view(np.float16).astype(np.float32))
    between = (exact[1:] + exact[:-1]) / 2
    values = np.concatenate(
        [exact, between, np.nextafter(between, np.float32(1e9)), np.nextafter(between, np.float32(-1e9))]
    )
    values = np.concatenate([values, np.random.default_rng(0).normal(0, 1, 10_000).astype(np.float32)]).astype(
        np.float32
    )
    wide, narrowed = np.empty(len(bits), np.float32), np.empty(len(values), np.uint16)
    convert(bits, values, wide, narrowed)
    np.testing.assert_array_equal(wide, bits.view(np.float16).astype(np.float32))
    np.testing.assert_array_equal(narrowed.view(np.float16), values.astype(np.float16))


WITHOUT_NUMBA = """
import importlib.util, sys
sys.path.insert(0, sys.argv[1])
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "numba" else find_spec(name, *rest)
sys.modules["numba"] = None
import numpy as np
from geopurify_core.camera import PinholeCamera
from geopurify_core.config import MapConfig
from geopurify_core.frame import RGBDFrame
from geopurify_core.mapping.fusion import fuse_frame
from geopurify_core.mapping.voxel_map import VoxelMap
from geopurify_core.vision.base import FeatureMap
rng = np.random.default_rng(0)
maps = VoxelMap(MapConfig(budget_mb=1, voxel_size_m=0.02), 64, "b", "t")
for i in range(12):
    depth = (1.5 + 0.1 * i + 0.2 * rng.random((48, 64))).astype(np.float32)
    frame = RGBDFrame(np.zeros((48, 64, 3), np.uint8), depth, PinholeCamera(50, 50, 32, 24, 64, 48), np.eye(4), i)
    features = FeatureMap.from_rows(rng.normal(size=(6, 8, 64)).astype(np.float32), np.ones((6, 8), np.float32))
    report = fuse_frame(maps, frame, features)
    snapshot = maps.snapshot()
assert maps.evicted > 0 and np.isfinite(snapshot.features).all() and (snapshot.weight > 0).all()
np.testing.assert_array_equal(maps.find(snapshot.coords), np.arange(len(maps)))
print("numba" in [name for name, module in sys.modules.items() if module], len(snapshot))
"""


def test_everything_works_without_numba(repository):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_NUMBA, str(repository)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("False ")


def test_a_read_only_installation_still_runs(repository):
    """Where numba finds no folder for its cache, the kernels compile in memory."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import numba.core.caching as caching\n"
        "def refuse(*_):\n    raise RuntimeError('cannot cache function: no locator available')\n"
        "caching.CacheImpl.__init__ = refuse\n"
        "from geopurify_core.mapping.hash import slot_of\n"
        "print(0 <= slot_of(123, 10) < 10)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(repository)], capture_output=True, text=True, check=False)
    assert done.stdout == "True\n", done.stderr
