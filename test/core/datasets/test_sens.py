"""A `.sens` file written here, read back; then damaged in every way that its header allows."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from geopurify_core.datasets import open_dataset
from geopurify_core.datasets.sens import SensFile
from geopurify_core.errors import DatasetError

W, H, DW, DH = 16, 12, 8, 6
K_COLOR = np.array([[14, 0, 7.5, 0], [0, 15, 5.5, 0], [0, 0, 1, 0], [0, 0, 0, 1]], np.float32)
K_DEPTH = np.array([[7, 0, 3.5, 0], [0, 8, 2.5, 0], [0, 0, 1, 0], [0, 0, 0, 1]], np.float32)
NUM_FRAMES_AT = 4 + 8 + 6 + 4 * 64 + 8 + 16 + 4


def sens_bytes(count=4, color=1, depth=1, stamps=True, pose=None, version=4, name=b"sensor"):
    out = io.BytesIO()
    out.write(struct.pack("<IQ", version, len(name)) + name)
    for matrix in (K_COLOR, np.eye(4, dtype=np.float32), K_DEPTH, np.eye(4, dtype=np.float32)):
        out.write(matrix.astype("<f4").tobytes())
    out.write(struct.pack("<ii4IfQ", color, depth, W, H, DW, DH, 1000.0, count))
    for i in range(count):
        T = np.eye(4, dtype=np.float32) if pose is None or i != 1 else pose.astype(np.float32)
        T = T.copy()
        T[0, 3] += i
        picture = io.BytesIO()
        pixels = np.full((H, W, 3), 10 * i, np.uint8)
        Image.fromarray(pixels).save(
            picture, format="JPEG" if color == 2 else "PNG", **({"quality": 95} if color == 2 else {})
        )
        rgb = pixels.tobytes() if color == 0 else picture.getvalue()
        raw = np.full((DH, DW), 500 + i, "<u2").tobytes()
        raw = zlib.compress(raw) if depth == 1 else raw
        stamp = (1000 + 33 * i) * 1000 if stamps else 0
        out.write(T.astype("<f4").tobytes() + struct.pack("<4Q", stamp, stamp, len(rgb), len(raw)) + rgb + raw)
    return out.getvalue() + struct.pack("<Q", 0)  # no inertial measurements


def written(tmp_path, data):
    path = tmp_path / "scene.sens"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("color", [0, 1, 2])
@pytest.mark.parametrize("depth", [0, 1])
def test_every_compression_reads_back(tmp_path, color, depth):
    dataset = open_dataset(written(tmp_path, sens_bytes(color=color, depth=depth)))
    frames = list(dataset)
    assert len(dataset) == len(frames) == 4 and dataset.name == "scene" and dataset.header.sensor == "sensor"
    for i, frame in enumerate(frames):
        np.testing.assert_allclose(frame.rgb, 10 * i, atol=2 if color == 2 else 0)
        np.testing.assert_array_equal(frame.depth_m, np.float32(500 + i) / np.float32(1000))
        assert frame.stamp_ns == (1000 + 33 * i) * 1_000_000 and frame.T_map_camera[0, 3] == i
        assert (frame.camera.fy, frame.camera.width) == (15, W)
        assert (frame.depth_camera.fx, frame.depth_camera.height) == (7, DH)


def test_without_stamps_the_number_is_the_clock(tmp_path):
    assert [f.stamp_ns for f in SensFile(written(tmp_path, sens_bytes(stamps=False)))] == [0, 33333333, 66666667, 10**8]


def test_a_part_is_read_without_decoding_the_rest(tmp_path):
    assert [
        f.T_map_camera[0, 3] for f in SensFile(written(tmp_path, sens_bytes(9))).frames(stride=3, start=1, stop=8)
    ] == [1, 4, 7]


@pytest.mark.parametrize(
    "bad", [np.full((4, 4), -np.inf), np.zeros((4, 4)), np.full((4, 4), np.nan), np.diag([1, 1, -1, 1])]
)
def test_lost_tracking_is_skipped_and_counted(tmp_path, bad):
    dataset = SensFile(written(tmp_path, sens_bytes(pose=bad)))
    assert len(list(dataset)) == 3 and dataset.skipped == {"invalid pose": 1}


def test_a_corrupt_picture_is_skipped_and_counted(tmp_path):
    data = bytearray(sens_bytes())
    data[data.index(b"\x89PNG")] = 0
    data[data.rindex(b"\x78\x9c") + 2] ^= 0xFF  # inside the last zlib stream
    dataset = SensFile(written(tmp_path, bytes(data)))
    assert len(list(dataset)) == 2 and dataset.skipped == {"unreadable image": 2}


def test_a_zlib_bomb_is_not_unpacked(tmp_path):
    data = bytearray(sens_bytes(count=1))
    bomb = zlib.compress(bytes(10_000_000))
    place = data.rindex(b"\x78\x9c")
    frame = NUM_FRAMES_AT + 8
    data[frame + 88 : frame + 96] = struct.pack("<Q", len(bomb))
    dataset = SensFile(written(tmp_path, bytes(data[:place]) + bomb))
    assert not list(dataset) and dataset.skipped == {"unreadable image": 1}


@pytest.mark.parametrize(
    ("field", "data"),
    [
        ("sens.version", sens_bytes(version=3)),
        ("sens.sensor_name", struct.pack("<IQ", 4, 2**60)),
        ("sens.color_compression", sens_bytes(color=7)),
        ("sens.depth_compression", sens_bytes(depth=2)),
        ("sens", b""),
        ("sens", sens_bytes()[:100]),
    ],
)
def test_a_bad_header_is_named(tmp_path, field, data):
    with pytest.raises(DatasetError) as caught:
        SensFile(written(tmp_path, data))
    assert caught.value.field.startswith(field) and caught.value.remedy


def test_truncation_is_an_error_after_the_whole_frames(tmp_path):
    frames = iter(SensFile(written(tmp_path, sens_bytes()[:-40])))
    assert sum(1 for _, frame in zip(range(3), frames, strict=False) if frame) == 3
    with pytest.raises(DatasetError, match="truncated"):
        next(frames)


def test_hostile_sizes_are_refused_before_allocating(tmp_path):
    data = bytearray(sens_bytes(count=1))
    frame = NUM_FRAMES_AT + 8
    data[frame + 80 : frame + 96] = struct.pack("<2Q", 2**62, 2**62)
    with pytest.raises(DatasetError, match="left"):
        list(SensFile(written(tmp_path, bytes(data))))
    data = bytearray(sens_bytes(count=1))
    data[NUM_FRAMES_AT : NUM_FRAMES_AT + 8] = struct.pack("<Q", 2**63)
    with pytest.raises(DatasetError, match="truncated"):
        list(SensFile(written(tmp_path, bytes(data))))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 900), st.integers(0, 255)), min_size=1, max_size=5), st.integers(0, 1000))
def test_fuzzed_files_give_frames_or_a_dataset_error(tmp_path, flips, length):
    data = bytearray(sens_bytes(count=2))
    for place, value in flips:
        if place < len(data):
            data[place] = value
    with contextlib.suppress(DatasetError):
        list(SensFile(written(tmp_path, bytes(data[: max(length, 1)] if length < 900 else data))))
