"""The exported layout: order, stamps, sizes, and every way in which a frame or a folder can be broken."""

import threading

import numpy as np
import pytest
from PIL import Image

from geopurify_core.datasets import open_dataset
from geopurify_core.datasets.base import depth_to_metres, iterate, prefetched
from geopurify_core.datasets.scannet import ScanNetFolder
from geopurify_core.errors import DatasetError

COLOR_K = np.array([[50.0, 0, 31.5, 0], [0, 52, 23.5, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
DEPTH_K = np.array([[25.0, 0, 15.5], [0, 26, 11.5], [0, 0, 1]])


def write_scene(root, count=12, csv=False):
    """Frame i: colour filled with i, depth 1000 + i mm with a hole, camera i cm along x; 64x48 colour, 32x24 depth."""
    for name in ("color", "depth", "pose", "intrinsic"):
        (root / name).mkdir(parents=True)
    np.savetxt(root / "intrinsic/intrinsic_color.txt", COLOR_K)
    np.savetxt(root / "intrinsic/intrinsic_depth.txt", DEPTH_K)
    for i in range(count):
        Image.fromarray(np.full((48, 64, 3), i, np.uint8)).save(root / f"color/{i}.png")
        depth = np.full((24, 32), 1000 + i, np.uint16)
        depth[0, 0], depth[0, 1] = 0, 65535
        Image.fromarray(depth).save(root / f"depth/{i}.png")
        pose = np.eye(4)
        pose[0, 3] = i / 100
        np.savetxt(root / f"pose/{i}.txt", pose)
    if csv:
        rows = [f"{i},{i * 7},{i * 0.25 + 1}" for i in range(count)]
        (root / "frames.csv").write_text("\n".join(["frame,source_frame,timestamp_s", *rows]) + "\n")
    return root


@pytest.fixture
def scene(tmp_path):
    return write_scene(tmp_path / "scene")


def test_frames_come_in_numeric_order_with_both_cameras(scene):
    dataset = open_dataset(scene)
    frames = list(dataset)
    assert len(dataset) == len(frames) == 12 and dataset.name == "scene" and not dataset.skipped
    for i, frame in enumerate(frames):  # 2 before 10: numbers, not text
        assert frame.rgb.shape == (48, 64, 3) and (frame.rgb == i).all()
        assert frame.T_map_camera[0, 3] == i / 100
        assert frame.stamp_ns == round(i * 1e9 / 30)
        assert frame.depth_m.dtype == np.float32 and frame.depth_m[0, :2].tolist() == [0, 0]
        assert frame.depth_m[5, 5] == np.float32(1000 + i) / np.float32(1000)
        assert (frame.camera.fx, frame.camera.width) == (50, 64)
        assert (frame.depth_camera.fx, frame.depth_camera.cy, frame.depth_camera.width) == (25, 11.5, 32)


def test_stamps_come_from_the_csv(tmp_path):
    frames = list(open_dataset(write_scene(tmp_path / "s", 3, csv=True)))
    assert [frame.stamp_ns for frame in frames] == [1_000_000_000, 1_250_000_000, 1_500_000_000]


def test_a_partial_csv_is_not_mixed_with_guesses(tmp_path, caplog):
    root = write_scene(tmp_path / "s", 3)
    (root / "frames.csv").write_text("frame,timestamp_s\n0,100\n1,101\n")
    assert [frame.stamp_ns for frame in open_dataset(root)] == [0, 33_333_333, 66_666_667]
    assert "30 Hz" in caplog.text


def test_stride_start_stop(scene):
    dataset = ScanNetFolder(scene)
    assert [f.rgb[0, 0, 0] for f in dataset.frames(stride=3, start=2, stop=9)] == [2, 5, 8]
    assert [f.rgb[0, 0, 0] for f in iterate(dataset, stride=5)] == [0, 5, 10]
    with pytest.raises(DatasetError, match="stride"):
        next(dataset.frames(stride=0))


def test_broken_frames_are_skipped_counted_and_named_once(scene, caplog):
    (scene / "pose/1.txt").write_text("-inf -inf -inf -inf\n" * 4)
    (scene / "pose/2.txt").write_text("nan 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n")
    np.savetxt(scene / "pose/3.txt", np.diag([2.0, 1, 1, 1]))
    (scene / "pose/4.txt").write_text("no numbers")
    (scene / "pose/5.txt").unlink()
    (scene / "color/6.png").write_bytes((scene / "color/6.png").read_bytes()[:60])
    (scene / "depth/7.png").unlink()
    Image.fromarray(np.zeros((24, 32), np.uint8)).save(scene / "depth/8.png")
    (scene / "color/9.png").unlink()
    dataset = ScanNetFolder(scene)
    assert [int(f.rgb[0, 0, 0]) for f in dataset] == [0, 10, 11]
    assert dataset.skipped == {
        "invalid pose": 4,
        "missing pose file": 1,
        "unreadable image": 2,
        "missing depth file": 1,
        "missing color file": 1,
    }
    assert sum("invalid pose" in r.getMessage() for r in caplog.records) == 1
    list(dataset)
    assert dataset.skipped["invalid pose"] == 4  # counts are of one pass


@pytest.mark.parametrize("name", ["color", "depth", "pose", "intrinsic"])
def test_a_missing_folder_is_named(scene, name):
    (scene / name).rename(scene / "elsewhere")
    with pytest.raises(DatasetError) as caught:
        open_dataset(scene)
    assert caught.value.field == f"{name}/" and caught.value.remedy


@pytest.mark.parametrize("name", ["color", "depth", "pose"])
def test_an_empty_folder_is_named(scene, name):
    for path in (scene / name).iterdir():
        path.unlink()
    with pytest.raises(DatasetError, match=f"{name}/"):
        open_dataset(scene)


@pytest.mark.parametrize("content", [None, "words", "1 2 3", "0 0 0\n0 0 0\n0 0 1", "nan 0 1\n0 1 1\n0 0 1"])
def test_bad_intrinsics_are_named(scene, content):
    path = scene / "intrinsic/intrinsic_depth.txt"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(DatasetError, match="intrinsic_depth"):
        open_dataset(scene)


def test_a_bad_csv_is_named(scene):
    (scene / "frames.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DatasetError, match=r"frames\.csv"):
        open_dataset(scene)


def test_unknown_things_are_no_dataset(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    for spec in (tmp_path, tmp_path / "notes.txt", tmp_path / "absent"):
        with pytest.raises(DatasetError, match="ScanNet"):
            open_dataset(spec)
    with pytest.raises(DatasetError, match="synthetic:SEED"):
        open_dataset("synthetic:x")


def test_unknown_options_are_refused(scene):
    with pytest.raises(DatasetError, match="options"):
        open_dataset(scene, topics={})
    with pytest.raises(DatasetError, match="depth_shift"):
        open_dataset(scene, depth_shift=0)


def test_depth_marks_become_no_measurement():
    raw = np.array([[0, 65535, 1500]], np.uint16)
    assert depth_to_metres(raw, 1000).tolist() == [[0, 0, 1.5]]
    metres = np.array([[np.nan, np.inf, -1, 0, 2.5]], np.float32)
    assert depth_to_metres(metres, 1000).tolist() == [[0, 0, 0, 0, 2.5]]


def test_prefetch_keeps_order_raises_late_and_ends_its_thread():
    produced = []

    def numbers(until):
        for i in range(until):
            produced.append(i)
            yield i
        raise ValueError("the end")

    ahead = prefetched(numbers(5), 2)
    assert [next(ahead) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="the end"):
        next(ahead)
    produced.clear()
    ahead = prefetched(numbers(1000), 2)
    assert next(ahead) == 0
    ahead.close()
    assert len(produced) <= 5  # one taken, two queued, one in hand
    assert not any(thread.name == "frame-prefetch" for thread in threading.enumerate())


def test_real_kinect_recording(shared_dir):
    dataset = open_dataset(shared_dir / "data/seq_redkitchen")
    frames = list(iterate(dataset, stride=40))
    assert len(dataset) == 125 and len(frames) == 4 and not dataset.skipped
    assert frames[0].stamp_ns == 33_300_000 and frames[0].rgb.shape == (480, 640, 3)
    assert 0.5 < (frames[0].depth_m > 0).mean() < 0.9  # its README: about 28 % of pixels have no depth
