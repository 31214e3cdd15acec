"""Maps on disk: exact, atomic, and suspicious of everything they read."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import subprocess
import sys
import time
import tracemalloc
from dataclasses import fields, replace

import numpy as np
import pytest

from geopurify_core.config import MapConfig
from geopurify_core.errors import MapFileError, MapMismatchError
from geopurify_core.mapping.snapshot import MapSnapshot
from geopurify_core.mapping.store import load_map, read_extra, save_map
from geopurify_core.mapping.voxel_map import VoxelMap


def snapshot_of(rows: int = 50, channels: int = 8, seed: int = 0) -> MapSnapshot:
    rng = np.random.default_rng(seed)
    cells = rng.permutation(40**3)[:rows]
    coords = np.stack([cells // 1600, cells // 40 % 40, cells % 40], axis=1).astype(np.int32) - 20
    first = rng.integers(1, 1 << 60, rows)
    return MapSnapshot(
        coords=coords,
        features=rng.normal(size=(rows, channels)).astype(np.float16),
        weight=rng.uniform(0, 9, rows).astype(np.float32),
        rgb=rng.integers(0, 256, (rows, 3), dtype=np.uint8),
        normals=rng.normal(size=(rows, 3)).astype(np.float16),
        first_seen_ns=first,
        last_seen_ns=first + rng.integers(0, 1 << 40, rows),
        voxel_size_m=0.04,
        frame_id="map",
        stamp_ns=(1 << 60) + 7,
        version=3 + seed,
        backbone="nano:0123",
        text_fingerprint="minilm",
        geometry_weight=rng.uniform(9, 20, rows).astype(np.float32),
    )


def assert_same(a: MapSnapshot, b: MapSnapshot) -> None:
    for item in fields(MapSnapshot):
        x, y = getattr(a, item.name), getattr(b, item.name)
        if isinstance(x, np.ndarray):
            assert x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes(), item.name
        else:
            assert x == y, item.name


def rewrite(path, change, *, checksum=True):
    """Change header (a dict) and payload (a bytearray) of a map file as an attacker would, with a fitting checksum."""
    import hashlib

    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, payload = json.loads(data[8 : 8 + length]), bytearray(data[8 + length :])
    change(header, payload)
    if checksum:
        header["__metadata__"]["sha256"] = "0" * 64
        raw = json.dumps(header, separators=(",", ":")).encode()
        header["__metadata__"]["sha256"] = hashlib.sha256(raw + payload).hexdigest()
    raw = json.dumps(header, separators=(",", ":")).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + payload)


@pytest.mark.parametrize("rows", [0, 1, 500])
def test_round_trip_is_bit_exact(tmp_path, rows):
    path, snapshot = tmp_path / "room.gpmap", snapshot_of(rows)
    save_map(path, snapshot, {"backbone": {"name": "nano"}, "note": "Küche", "zeros": "0" * 64})
    loaded = load_map(path)
    assert_same(snapshot, loaded)
    assert not loaded.features.flags.writeable
    assert read_extra(path) == {"backbone": {"name": "nano"}, "note": "Küche", "zeros": "0" * 64}
    assert os.listdir(tmp_path) == ["room.gpmap"]


def test_a_purified_map_says_so_and_an_older_file_is_raw(tmp_path):
    path = tmp_path / "room.gpmap"
    purified = replace(snapshot_of(), purified="student:0123 T=18 α=20")
    save_map(path, purified)
    assert_same(load_map(path), purified)
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    written = json.loads(path.read_bytes()[8 : 8 + length])["__metadata__"]
    assert written["version"] == "2", "a reader that does not know what purified means must not take it for a raw map"

    def older(header, _):
        described = json.loads(header["__metadata__"]["map"])
        del described["purified"]
        header["__metadata__"].update(map=json.dumps(described), version="1")

    rewrite(path, older)
    assert_same(load_map(path), replace(purified, purified=""))


def test_a_purified_map_is_not_fused_into():
    purified = replace(snapshot_of(), purified="student:0123")
    with pytest.raises(MapMismatchError, match="load the raw map") as caught:
        VoxelMap.from_snapshot(purified, MapConfig())
    assert caught.value.field == "map.purified"
    assert len(VoxelMap.from_snapshot(replace(purified, purified=""), MapConfig())) == len(purified)


def test_any_safetensors_reader_opens_it(tmp_path):
    from safetensors.numpy import load_file

    snapshot = snapshot_of()
    save_map(tmp_path / "map", snapshot)
    tensors = load_file(str(tmp_path / "map"))
    np.testing.assert_array_equal(tensors["features"], snapshot.features)
    np.testing.assert_array_equal(tensors["coords"], snapshot.coords)


def test_saving_replaces_and_removes_what_a_dead_writer_left(tmp_path):
    path = tmp_path / "map"
    leftover, foreign = tmp_path / ".map.0123456789ab.tmp", tmp_path / ".other.0123456789ab.tmp"
    leftover.write_bytes(b"half a map")
    foreign.write_bytes(b"not mine")
    save_map(path, snapshot_of(seed=1))
    save_map(path, snapshot_of(seed=2))
    assert_same(load_map(path), snapshot_of(seed=2))
    assert sorted(os.listdir(tmp_path)) == [foreign.name, "map"]


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "map"
    save_map(path, snapshot_of(seed=1))

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MapFileError, match="No space left"):
        save_map(path, snapshot_of(seed=2))
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["map"]
    assert_same(load_map(path), snapshot_of(seed=1))


@pytest.mark.parametrize("extra", [{"a": object()}, {"a": float("nan")}, {"a": "x" * 2_000_000}])
def test_unfit_extra_is_refused(tmp_path, extra):
    with pytest.raises(MapFileError, match="extra"):
        save_map(tmp_path / "map", snapshot_of(), extra)
    assert os.listdir(tmp_path) == []


def test_missing_places_are_named(tmp_path):
    with pytest.raises(MapFileError, match="no such file"):
        load_map(tmp_path / "nowhere")
    with pytest.raises(MapFileError, match="no such file"):
        load_map(tmp_path)
    with pytest.raises(MapFileError, match="cannot be written"):
        save_map(tmp_path / "no" / "folder" / "map", snapshot_of())


def test_two_hundred_mutations_are_all_refused(tmp_path):
    """R10: bytes flipped, cut, inserted, repeated or swapped anywhere in the file."""
    path, broken = tmp_path / "map", tmp_path / "broken"
    save_map(path, snapshot_of(40))
    original = path.read_bytes()
    rng = random.Random(7)
    for _ in range(200):
        data = bytearray(original)
        at = rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(1500)  # half of them in the header
        kind = rng.randrange(5)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            data[at:at] = rng.randbytes(rng.randrange(1, 64))
        elif kind == 3:
            del data[at : at + rng.randrange(1, 64)]
        else:
            data[at : at + 8] = rng.randbytes(8)
        if bytes(data) == original:
            continue
        broken.write_bytes(data)
        with pytest.raises(MapFileError):
            load_map(broken)
    assert path.read_bytes() == original


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 7, b"\xff" * 100, b"ply\nformat ascii 1.0\n", b"\x02" + b"\0" * 7 + b"{}"]
)
def test_foreign_files_are_refused(tmp_path, content):
    path = tmp_path / "map"
    path.write_bytes(content)
    with pytest.raises(MapFileError):
        load_map(path)


def test_foreign_safetensors_are_refused(tmp_path):
    from safetensors.numpy import save_file

    save_file({"weight": np.zeros((3, 3), np.float32)}, str(tmp_path / "map"))
    with pytest.raises(MapFileError):
        load_map(tmp_path / "map")


def test_a_newer_version_says_what_to_do(tmp_path):
    path = tmp_path / "map"
    save_map(path, snapshot_of())
    rewrite(path, lambda header, _: header["__metadata__"].update(version="2"))
    with pytest.raises(MapFileError, match="Update this software"):
        load_map(path)


def _metadata(key, value):
    def change(header, _payload):
        described = json.loads(header["__metadata__"]["map"])
        described[key] = value
        header["__metadata__"]["map"] = json.dumps(described)

    return change


def _tensor(name, **values):
    return lambda header, _: header[name].update(values)


def _payload(name, dtype, value):
    def change(header, payload):
        start, stop = header[name]["data_offsets"]
        array = np.frombuffer(payload, dtype, offset=start, count=(stop - start) // np.dtype(dtype).itemsize)
        array[4] = value

    return change


def _twice(header, payload):
    start, _ = header["coords"]["data_offsets"]
    payload[start : start + 12] = payload[start + 12 : start + 24]


HOSTILE = {
    "huge shape": _tensor("features", shape=[1 << 50, 1 << 10]),
    "huge rows everywhere": lambda header, _: [
        item.update(shape=[1 << 40, *item["shape"][1:]]) for name, item in header.items() if name != "__metadata__"
    ],
    "negative shape": _tensor("features", shape=[-1, 8]),
    "float shape": _tensor("features", shape=[50.0, 8]),
    "shape is text": _tensor("features", shape="many"),
    "no channels": _tensor("features", shape=[50, 0]),
    "wrong dtype": _tensor("features", dtype="F32"),
    "offsets overlap": _tensor("weight", data_offsets=[0, 200]),
    "offsets beyond the file": _tensor("rgb", data_offsets=[1 << 40, (1 << 40) + 150]),
    "tensor missing": lambda header, _: header.pop("normals"),
    "tensor too many": lambda header, _: header.update(extra={"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}),
    "payload cut": lambda _, payload: payload.__delitem__(slice(-10, None)),
    "payload longer": lambda _, payload: payload.extend(b"1234"),
    "NaN feature": _payload("features", "<f2", np.nan),
    "infinite weight": _payload("weight", "<f4", np.inf),
    "negative weight": _payload("geometry_weight", "<f4", -1),
    "NaN normal": _payload("normals", "<f2", np.nan),
    "out of reach": _payload("coords", "<i4", 1 << 21),
    "seen before it was": _payload("last_seen_ns", "<i8", 0),
    "negative stamp": _payload("first_seen_ns", "<i8", -5),
    "voxel twice": _twice,
    "voxel size zero": _metadata("voxel_size_m", 0.0),
    "voxel size NaN": _metadata("voxel_size_m", float("nan")),
    "voxel size text": _metadata("voxel_size_m", "0.04"),
    "stamp too big": _metadata("stamp_ns", 1 << 70),
    "frame is a number": _metadata("frame_id", 7),
    "purified is a flag": _metadata("purified", True),
    "a raw map that claims the version of purified ones": lambda header, _: header["__metadata__"].update(version="2"),
    "purified is null": _metadata("purified", None),
    "extra is a list": _metadata("extra", [1]),
    "metadata is a list": lambda header, _: header["__metadata__"].update(map="[1, 2]"),
    "version is a word": lambda header, _: header["__metadata__"].update(version="one"),
    "version zero": lambda header, _: header["__metadata__"].update(version="0"),
    "deeply nested": lambda header, _: header["__metadata__"].update(map="[" * 100_000),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_files_are_refused_before_they_cost_memory(tmp_path, change):
    path = tmp_path / "map"
    save_map(path, snapshot_of())
    rewrite(path, change)
    tracemalloc.start()
    try:
        with pytest.raises(MapFileError):
            load_map(path)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


WRITER = """
import sys, time
sys.path[:0] = sys.argv[1:3]
from test_store_snapshots import snapshot_of
from geopurify_core.mapping.store import save_map
pair = [snapshot_of(20_000, 64, seed) for seed in (1, 2)]
print("ready", flush=True)
for i in range(1_000_000):
    save_map(sys.argv[3], pair[i % 2])
"""


def test_kill_9_never_loses_the_map(tmp_path, repository):
    """R8: a process that saves without pause is killed at 24 random moments; the file is always one of its maps."""
    helper = tmp_path / "helper"
    helper.mkdir()
    shutil.copy(__file__, helper / "test_store_snapshots.py")
    path = tmp_path / "maps" / "map"
    path.parent.mkdir()
    save_map(path, snapshot_of(20_000, 64, 2))
    wanted = {seed: snapshot_of(20_000, 64, seed) for seed in (1, 2)}
    rng = random.Random(3)
    interrupted = 0
    for _ in range(24):
        command = [sys.executable, "-c", WRITER, str(helper), str(repository), str(path)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE)
        try:
            assert writer.stdout.readline() == b"ready\n"
            time.sleep(rng.uniform(0, 0.08))
        finally:
            writer.kill()
            writer.wait()
            writer.stdout.close()
        interrupted += len(os.listdir(path.parent)) > 1
        loaded = load_map(path)
        assert_same(loaded, wanted[loaded.version - 3])
    assert interrupted > 0, "no kill fell into a save: the test proves nothing"
    save_map(path, wanted[1])
    assert os.listdir(path.parent) == ["map"]


def test_replace_keeps_arrays_read_only():
    snapshot = replace(snapshot_of(), version=9)
    with pytest.raises(ValueError, match="read-only"):
        snapshot.coords[0] = 0
