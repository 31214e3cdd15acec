"""The living map: budget, eviction, snapshots, and going on from a saved one."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from geopurify_core.config import MapConfig
from geopurify_core.errors import InvalidConfigError, MapMismatchError
from geopurify_core.mapping import budget
from geopurify_core.mapping.fusion import fuse_frame
from geopurify_core.mapping.keys import pack_keys, unpack_keys
from geopurify_core.mapping.voxel_map import VoxelMap

ORIGIN = np.zeros(3)


def grid_keys(start, stop):
    """Keys of voxels in a row along x."""
    x = np.arange(start, stop)
    return pack_keys(np.stack([x, np.zeros_like(x), np.zeros_like(x)], axis=1))


def put(voxel_map, keys, stamp_ns, camera_m=ORIGIN):
    """Place voxels whose features say who they are, as a frame would."""
    placement = voxel_map.place(keys, stamp_ns, camera_m)
    rows = placement.rows[placement.rows >= 0]
    kept = keys[placement.rows >= 0]
    voxel_map.arrays.features[rows] = (unpack_keys(kept)[:, :1] % 1000).astype(np.float16)
    voxel_map.arrays.weight[rows] = 1
    voxel_map.arrays.geometry_weight[rows] = 1
    voxel_map.arrays.last_seen_ns[rows] = stamp_ns
    voxel_map.commit(placement.rows, stamp_ns)
    return placement


def assert_consistent(voxel_map):
    """The index finds every voxel, and every row is still the voxel it was."""
    snapshot = voxel_map.snapshot()
    assert len(snapshot) == len(voxel_map) <= voxel_map.capacity
    np.testing.assert_array_equal(voxel_map.find(snapshot.coords), np.arange(len(snapshot)))
    np.testing.assert_array_equal(snapshot.features[:, 0].astype(int), snapshot.coords[:, 0] % 1000)


def test_a_new_map_is_empty(new_map):
    snapshot = new_map().snapshot()
    assert len(snapshot) == 0 and snapshot.feature_dim == 16 and snapshot.stamp_ns == 0 and snapshot.version == 0
    assert snapshot.backbone == "backbone-a" and snapshot.text_fingerprint == "text-a"
    assert (snapshot.voxel_size_m, snapshot.frame_id) == (0.05, "map")
    assert new_map().find(np.array([[0, 0, 0]])).tolist() == [-1]


def test_too_small_a_budget_is_refused_with_the_size_needed():
    with pytest.raises(InvalidConfigError, match=r"budget_mb.*give at least 3 MiB"):
        VoxelMap(MapConfig(budget_mb=1), 2048, "b", "t")
    VoxelMap(MapConfig(budget_mb=3), 2048, "b", "t")


def test_everything_beside_the_features_takes_at_most_64_bytes():
    assert budget.LIVING_BYTES + budget.HASH_BYTES <= 64
    voxel_map = VoxelMap(MapConfig(budget_mb=64), 16, "b", "t")
    for start in range(0, 300_000, 10_000):
        put(voxel_map, grid_keys(start, start + 10_000), 1)
        if start >= 20_000:  # below, the smallest hash table is what is measured
            assert (voxel_map.nbytes - 32 * len(voxel_map)) / len(voxel_map) <= 64


def test_the_oldest_go_first_and_are_counted():
    voxel_map = VoxelMap(MapConfig(budget_mb=1), 64, "b", "t")
    room = voxel_map.capacity
    put(voxel_map, grid_keys(0, room // 2), 1)
    put(voxel_map, grid_keys(room // 2, room), 2)
    put(voxel_map, grid_keys(0, 100), 3)  # seen again: young
    placement = put(voxel_map, grid_keys(room, room + 10), 4)
    assert placement.new == 10 and placement.dropped == 0
    assert placement.evicted == voxel_map.evicted == int(room * budget.EVICT_SHARE)
    left = set(voxel_map.snapshot().coords[:, 0].tolist())
    gone = set(range(room + 10)) - left
    # all from the first half, not seen again, and of equally old ones the farthest from the camera at x = 0
    assert gone == set(range(room // 2 - placement.evicted, room // 2))
    assert_consistent(voxel_map)


def test_the_farthest_go_first_when_told_so():
    voxel_map = VoxelMap(MapConfig(budget_mb=1, evict="farthest"), 64, "b", "t")
    room = voxel_map.capacity
    put(voxel_map, grid_keys(0, room), 1)
    at = np.array([room * voxel_map.config.voxel_size_m, 0, 0])
    placement = put(voxel_map, grid_keys(room, room + 10), 2, at)
    assert set(range(room + 10)) - set(voxel_map.snapshot().coords[:, 0].tolist()) == set(range(placement.evicted))
    assert_consistent(voxel_map)


def test_a_frame_larger_than_the_budget_keeps_what_is_near():
    voxel_map = VoxelMap(MapConfig(budget_mb=1), 64, "b", "t")
    room = voxel_map.capacity
    placement = put(voxel_map, grid_keys(0, room + 500), 1)
    assert placement.dropped == 500 and placement.new == room and (placement.rows < 0).sum() == 500
    assert voxel_map.snapshot().coords[:, 0].max() == room - 1
    assert put(voxel_map, grid_keys(0, room + 1), 2).dropped == 1  # nothing seen now is forgotten for its neighbour
    assert_consistent(voxel_map)


@pytest.mark.parametrize("policy", ["oldest", "farthest"])
def test_ten_times_the_budget(policy):
    """R12: the count never exceeds the capacity, the bytes never the budget, and rows stay what they were."""
    voxel_map = VoxelMap(MapConfig(budget_mb=1, evict=policy), 64, "b", "t")
    rng = np.random.default_rng(0)
    made = 0
    for step in range(100):
        start = step * voxel_map.capacity // 10
        keys = rng.permutation(grid_keys(start - 40, start + voxel_map.capacity // 10))
        made += put(voxel_map, keys, step + 1, np.array([start * 0.04, 0, 0])).new
        assert voxel_map.nbytes <= 1.05 * (1 << 20)
        if step % 7 == 0:
            assert_consistent(voxel_map)
    assert voxel_map.evicted == made - len(voxel_map) > 8 * voxel_map.capacity
    assert voxel_map.nbytes <= 1.05 * (1 << 20)


RESIDENT = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from geopurify_core.config import MapConfig
from geopurify_core.mapping.voxel_map import VoxelMap
from geopurify_core.mapping.keys import pack_keys

def status(name):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(name))

def feed(voxel_map, frames, size):
    peak = 0
    for i in range(frames):
        x = np.arange(i * size, (i + 1) * size)
        keys = pack_keys(np.stack([x % 100000, x // 100000, 0 * x], axis=1))
        rows = voxel_map.place(keys, i + 1, np.zeros(3)).rows
        voxel_map.arrays.features[rows] = 1.0
        for array in voxel_map.arrays.each()[2:]:
            array[rows] = 1
        voxel_map.commit(rows, i + 1)
        if i % 5 == 0:
            voxel_map.snapshot()
        peak = max(peak, status("VmRSS"))
    return peak

feed(VoxelMap(MapConfig(budget_mb=4), 512, "b", "t"), 10, 500)  # compile and warm up
budget = 160
base = status("VmRSS")
voxel_map = VoxelMap(MapConfig(budget_mb=budget), 512, "b", "t")
feed(voxel_map, 10 * voxel_map.capacity // 2000 // 2, 2000)
peak = status("VmHWM") - base
print(voxel_map.evicted, peak / (budget << 20), voxel_map.nbytes / (budget << 20))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_resident_memory_stays_within_the_budget(repository):
    """R12 as the kernel sees it: the peak of the process, with five times the budget fed and snapshots taken."""
    done = subprocess.run([sys.executable, "-c", RESIDENT, str(repository)], capture_output=True, text=True, check=True)
    evicted, peak, claimed = map(float, done.stdout.split())
    assert evicted > 100_000
    assert 0.9 < claimed <= 1.0
    assert peak <= 1.05


def test_snapshots_are_cached_immutable_and_independent(new_map, make_frame, make_features):
    voxel_map = new_map()
    fuse_frame(voxel_map, make_frame(0), make_features(0))
    first = voxel_map.snapshot()
    assert voxel_map.snapshot() is first
    kept = {name: getattr(first, name).copy() for name in ("coords", "features", "weight", "rgb", "normals")}
    for name in kept:
        with pytest.raises(ValueError, match="read-only"):
            getattr(first, name)[0] = 1
    for i in range(1, 5):
        fuse_frame(voxel_map, make_frame(i), make_features(i))
        assert voxel_map.snapshot().version == i + 1
    for name, values in kept.items():
        np.testing.assert_array_equal(getattr(first, name), values)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("held", ["snapshot", "array", "view", "tensor", "memoryview"])
def test_memory_is_used_again_only_when_nobody_reads_it(new_map, make_frame, make_features, held):
    import torch

    voxel_map = new_map()
    fuse_frame(voxel_map, make_frame(0), make_features(0))
    snapshot = voxel_map.snapshot()
    first = voxel_map._arenas[0]
    expected = snapshot.features.copy()
    reader = {
        "snapshot": lambda snapshot: snapshot,
        "array": lambda snapshot: snapshot.features,
        "view": lambda snapshot: snapshot.features[5:].T[::2],
        "tensor": lambda snapshot: torch.from_numpy(snapshot.features.view()),
        "memoryview": lambda snapshot: memoryview(snapshot.features),
    }[held](snapshot)
    del snapshot
    fuse_frame(voxel_map, make_frame(1), make_features(1))
    voxel_map.snapshot()
    second = voxel_map._arenas[0]
    assert second is not first and first.in_use
    if held == "view":
        np.testing.assert_array_equal(reader, expected[5:].T[::2])
    del reader
    gc.collect()
    assert not first.in_use
    fuse_frame(voxel_map, make_frame(2), make_features(2))
    third = voxel_map.snapshot()
    assert voxel_map._arenas[0] is second, "nobody reads the second snapshot; its memory should serve the third"
    np.testing.assert_array_equal(third.features, voxel_map.arrays.features[: len(voxel_map)])


def test_a_reader_that_always_holds_the_last_one_costs_two_memories(new_map, make_frame, make_features):
    """As the query engine does: it lets go of a snapshot when it has the next."""
    voxel_map, memories, held = new_map(), set(), None
    for i in range(8):
        fuse_frame(voxel_map, make_frame(i), make_features(i))
        held = voxel_map.snapshot()
        memories.add(id(voxel_map._arenas[0].arrays["features"]))
        np.testing.assert_array_equal(held.features, voxel_map.arrays.features[: len(voxel_map)])
        np.testing.assert_array_equal(held.weight, voxel_map.arrays.weight[: len(voxel_map)])
    assert len(memories) == 2 and len(voxel_map._arenas) == 2


def test_the_spare_memory_goes_before_the_budget_does():
    voxel_map, held = VoxelMap(MapConfig(budget_mb=1), 64, "b", "t"), None
    for step in range(20):
        put(voxel_map, grid_keys(step * 400, (step + 1) * 400), step + 1)
        held = voxel_map.snapshot()
        assert voxel_map.nbytes <= 1.05 * (1 << 20)
    assert len(held) > 2000 and len(voxel_map._arenas) == 1


def test_a_recycled_snapshot_equals_a_fresh_one(new_map, make_frame, make_features):
    """Copying only what changed must not miss anything, eviction included."""
    recycled, fresh = (new_map(budget_mb=1, voxel_size_m=0.02) for _ in range(2))
    for i in range(25):
        for voxel_map in (recycled, fresh):
            fuse_frame(voxel_map, make_frame(i), make_features(i))
        if i % 3 == 0:
            fresh._arenas = []
            a, b = recycled.snapshot(), fresh.snapshot()
            for name in ("coords", "features", "weight", "geometry_weight", "rgb", "normals", "last_seen_ns"):
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
            del a, b
    assert recycled.evicted > 0


def test_readers_see_one_moment_while_frames_arrive(new_map, make_frame, make_features):
    """A writer fuses under a lock; readers take snapshots under it and check them outside."""
    voxel_map, lock, stop, failures = new_map(), threading.Lock(), threading.Event(), []
    frames = [(make_frame(i), make_features(i)) for i in range(6)]

    def read():
        while not stop.is_set():
            with lock:
                snapshot = voxel_map.snapshot()
            total = snapshot.weight.astype(float).sum()
            checksum = snapshot.features.tobytes()
            if snapshot.features.tobytes() != checksum or snapshot.weight.astype(float).sum() != total:
                failures.append(snapshot.version)
            if len(np.unique(pack_keys(snapshot.coords))) != len(snapshot):
                failures.append(snapshot.version)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for i in range(30):
        with lock:
            fuse_frame(voxel_map, *frames[i % 6])
    stop.set()
    for reader in readers:
        reader.join(timeout=30)
    assert not failures and voxel_map.version == 30


def test_from_snapshot_goes_on_where_it_ended(new_map, make_frame, make_features):
    voxel_map = new_map()
    for i in range(3):
        fuse_frame(voxel_map, make_frame(i), make_features(i))
    snapshot = voxel_map.snapshot()
    loaded = VoxelMap.from_snapshot(snapshot, voxel_map.config)
    again = loaded.snapshot()
    for name in ("coords", "features", "weight", "geometry_weight", "rgb", "first_seen_ns", "last_seen_ns"):
        np.testing.assert_array_equal(getattr(snapshot, name), getattr(again, name))
    assert (again.version, again.stamp_ns, again.backbone) == (snapshot.version, snapshot.stamp_ns, snapshot.backbone)
    for living in (voxel_map, loaded):
        fuse_frame(living, make_frame(3), make_features(3))
    a, b = voxel_map.snapshot(), loaded.snapshot()
    np.testing.assert_array_equal(a.coords, b.coords)
    np.testing.assert_array_equal(a.features, b.features)
    np.testing.assert_array_equal(a.weight, b.weight)
    assert np.abs(a.rgb.astype(int) - b.rgb).max() <= 1  # colours restart from whole numbers


def test_from_snapshot_keeps_the_newest_when_the_budget_shrank(new_map):
    big = VoxelMap(MapConfig(budget_mb=2), 64, "b", "t")
    put(big, grid_keys(0, big.capacity // 2), 1)
    put(big, grid_keys(big.capacity // 2, big.capacity), 2)
    small = VoxelMap.from_snapshot(big.snapshot(), MapConfig(budget_mb=1))
    assert len(small) == small.capacity and small.evicted == big.capacity - small.capacity
    assert small.snapshot().coords[:, 0].min() >= big.capacity // 2
    assert_consistent(small)


@pytest.mark.parametrize("config", [MapConfig(voxel_size_m=0.1), MapConfig(voxel_size_m=0.05, frame_id="odom")])
def test_from_snapshot_refuses_another_grid(new_map, config):
    with pytest.raises(MapMismatchError):
        VoxelMap.from_snapshot(new_map().snapshot(), config)


def test_two_processes_agree(new_map, make_frame, make_features, tmp_path):
    """Nothing depends on addresses or hash seeds: another process fuses to the same bits."""
    script = tmp_path / "fuse.py"
    script.write_text(
        "import sys, hashlib, numpy as np\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from geopurify_core.camera import PinholeCamera\n"
        "from geopurify_core.config import MapConfig\n"
        "from geopurify_core.frame import RGBDFrame\n"
        "from geopurify_core.mapping.fusion import fuse_frame\n"
        "from geopurify_core.mapping.voxel_map import VoxelMap\n"
        "from geopurify_core.vision.base import FeatureMap\n"
        "rng = np.random.default_rng(0)\n"
        "m = VoxelMap(MapConfig(), 8, 'b', 't')\n"
        "for i in range(3):\n"
        "    d = rng.uniform(1, 3, (48, 64)).astype(np.float32)\n"
        "    f = RGBDFrame(np.zeros((48, 64, 3), np.uint8), d, PinholeCamera(50, 50, 32, 24, 64, 48), np.eye(4), i)\n"
        "    rows = rng.normal(size=(6, 8, 8)).astype(np.float32)\n"
        "    fuse_frame(m, f, FeatureMap.from_rows(rows, np.ones((6, 8), np.float32)))\n"
        "s = m.snapshot()\n"
        "print(len(s), hashlib.sha256(s.coords.tobytes() + s.features.tobytes() + s.weight.tobytes()).hexdigest())\n",
        encoding="utf-8",
    )
    root = os.path.dirname(os.path.dirname(__import__("geopurify_core").__file__))
    answers = {
        subprocess.run(
            [sys.executable, str(script), root],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(answers) == 1 and not answers.pop().startswith("0 ")


def test_a_frame_that_dies_half_way_does_not_spoil_later_snapshots(new_map, make_frame, make_features, monkeypatch):
    """Voxels placed by an interrupted frame are empty, and no later snapshot shows old memory in their place."""
    from geopurify_core.mapping import fusion

    voxel_map = new_map()
    fuse_frame(voxel_map, make_frame(0), make_features(0))
    voxel_map.snapshot()
    with monkeypatch.context() as patch:
        patch.setattr(fusion, "run_chunks", lambda *_args, **_options: (_ for _ in ()).throw(MemoryError()))
        patch.setattr(fusion, "check_values", lambda _features: None)
        with pytest.raises(MemoryError):
            fuse_frame(voxel_map, make_frame(3), make_features(3))
    fuse_frame(voxel_map, make_frame(6), make_features(6))
    snapshot = voxel_map.snapshot()
    np.testing.assert_array_equal(voxel_map.find(snapshot.coords), np.arange(len(snapshot)))
    np.testing.assert_array_equal(snapshot.features, voxel_map.arrays.features[: len(snapshot)])
    assert np.isfinite(snapshot.features).all()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="address space is reserved on Linux only")
def test_a_budget_that_the_system_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("geopurify_core.mapping.arena.mmap.mmap", refuse)
    with pytest.raises(InvalidConfigError, match="budget_mb"):
        VoxelMap(MapConfig(), 8, "a", "b")
