"""A ScanNet scene on disk: labels, objects, frames and their numbers, alignment, and what may be wrong with it."""

import json
import shutil
import struct
import zlib

import numpy as np
import pytest

from geopurify_core.errors import DatasetError
from geopurify_core.labels import available_label_sets, load_label_set
from geopurify_core.scans import NO_LABEL, read_labelled_cloud, read_scannet
from geopurify_core.scans.scannet import is_scannet_scene


@pytest.fixture
def scene(disk, tmp_path):
    return disk.write_scannet(tmp_path / "scene0000_00")


@pytest.fixture
def truth(disk):
    return disk.room()


def class_of(name):
    return load_label_set("scannet20").names.index(name)


def test_a_scene_is_read_whole(disk, scene, truth):
    points, rgb, ids, _ = truth
    scan = read_scannet(scene)
    assert scan.name == "scene0000_00" and is_scannet_scene(scene) and not is_scannet_scene(scene.parent)
    np.testing.assert_array_equal(scan.points_m, points)
    np.testing.assert_array_equal(scan.rgb, rgb)
    np.testing.assert_allclose(scan.normals, np.tile([0, 0, 1], (len(points), 1)), atol=1e-6)
    wanted = np.select([ids == disk.FLOOR, ids == disk.TABLE], [class_of("floor"), class_of("table")], NO_LABEL)
    np.testing.assert_array_equal(scan.labels["scannet20"], wanted)
    np.testing.assert_array_equal(scan.instances, np.select([ids == disk.FLOOR, ids == disk.TABLE], [1, 2], 0))


@pytest.mark.skipif("scannet200" not in available_label_sets(), reason="the label set scannet200 is not there")
def test_scannet200_goes_by_the_raw_categories(disk, scene, truth):
    ids = truth[2]
    names = load_label_set("scannet200").names
    wanted = np.select([ids == disk.FLOOR, ids == disk.TABLE], [names.index("floor"), names.index("table")], NO_LABEL)
    np.testing.assert_array_equal(read_scannet(scene).labels["scannet200"], wanted)


def test_labels_come_from_the_objects_where_there_is_no_labelled_mesh(scene):
    whole = read_scannet(scene)
    (scene / "scene0000_00_vh_clean_2.labels.ply").unlink()
    np.testing.assert_array_equal(read_scannet(scene).labels["scannet20"], whole.labels["scannet20"])


def test_a_bare_mesh_is_a_scan_too(disk, tmp_path):
    folder = disk.write_scannet(tmp_path / "scene0001_00", frames=False, aggregation=False)
    (folder / "scene0001_00_vh_clean_2.labels.ply").unlink()
    scan = read_scannet(folder)
    assert not scan.labels and scan.instances is None and scan.frames is None


@pytest.mark.parametrize("exported", [False, True])
def test_frames_are_chosen_by_their_number(disk, tmp_path, exported):
    folder = disk.write_scannet(tmp_path / "scene0000_00", frames=False)
    disk.write_frames(folder / "exported" if exported else folder)
    scan = read_scannet(folder)
    for stride, numbers in ((1, [0, 20, 30, 40]), (20, [0, 20, 40]), (15, [0, 30]), (7, [0])):
        centres = [tuple(frame.T_map_camera[:2, 3]) for frame in scan.frames(stride)]
        assert centres == [disk.CENTRES[number] for number in numbers]
    with pytest.raises(DatasetError, match="stride"):
        list(scan.frames(0))


def sens_bytes(disk):
    """The same frames as a ``.sens`` file, version 4: raw colours, zlib depth in millimetres."""
    matrices = np.eye(4, dtype="<f4")
    matrices[:3, :3] = disk.K
    header = struct.pack("<IQ", 4, 1) + b"s" + b"".join(m.tobytes() for m in (matrices, np.eye(4, dtype="<f4")) * 2)
    header += struct.pack("<ii4IfQ", 0, 1, *(disk.WIDTH, disk.HEIGHT) * 2, 1000.0, len(disk.CENTRES))
    parts = [header]
    for centre in disk.CENTRES.values():
        rgb, depth = disk.image(*centre)
        packed = zlib.compress(np.round(depth * 1000).astype("<u2").tobytes())
        parts.append(disk.pose(*centre).astype("<f4").tobytes() + struct.pack("<4Q", 0, 0, rgb.nbytes, len(packed)))
        parts += [rgb.tobytes(), packed]
    return b"".join(parts)


def test_frames_of_a_sens_file_are_those_of_the_export(disk, tmp_path):
    exported = read_scannet(disk.write_scannet(tmp_path / "a" / "scene0000_00"))
    packed = disk.write_scannet(tmp_path / "b" / "scene0000_00", frames=False)
    (packed / "scene0000_00.sens").write_bytes(sens_bytes(disk))
    scan = read_scannet(packed)
    for one, other in zip(scan.frames(1), exported.frames(1), strict=True):
        np.testing.assert_array_equal(one.rgb, other.rgb)
        np.testing.assert_array_equal(one.depth_m, other.depth_m)
        np.testing.assert_allclose(one.T_map_camera, other.T_map_camera, atol=1e-6)
    assert len(list(scan.frames(2))) == 2  # every second of the recording's own frames


def test_a_frame_without_pose_or_with_a_broken_image_is_left_out(disk, scene):
    (scene / "pose/20.txt").unlink()
    (scene / "color/30.png").write_bytes(b"\x89PNG broken")
    assert len(list(read_scannet(scene).frames(1))) == 2


def test_alignment_turns_points_normals_and_cameras_alike(scene, truth):
    T = np.array([[0, -1, 0, 2], [1, 0, 0, -1], [0, 0, 1, 0.5], [0, 0, 0, 1]], dtype=np.float64)
    values = " ".join(str(value) for value in T.ravel())
    (scene / "scene0000_00.txt").write_text(f"colorHeight = 968\naxisAlignment = {values} \nsceneType = Apartment\n")
    plain, turned = read_scannet(scene), read_scannet(scene, align=True)
    np.testing.assert_array_equal(plain.points_m, truth[0])
    np.testing.assert_allclose(turned.points_m, truth[0] @ T[:3, :3].T + T[:3, 3], atol=1e-5)
    np.testing.assert_allclose(turned.normals, plain.normals @ T[:3, :3].T, atol=1e-6)
    for before, after in zip(plain.frames(1), turned.frames(1), strict=True):
        np.testing.assert_allclose(after.T_map_camera, T @ before.T_map_camera)
    (scene / "scene0000_00.txt").write_text("axisAlignment = 1 2 3\n")
    with pytest.raises(DatasetError, match="axisAlignment"):
        read_scannet(scene, align=True)


def test_foreign_ids_are_counted_or_refused(disk, tmp_path, truth, caplog):
    ids = truth[2].copy()
    ids[:7] = 77
    scene = disk.write_scannet(tmp_path / "scene0002_00", label_ids=ids)
    with caplog.at_level("WARNING"):
        labels = read_scannet(scene).labels["scannet20"]
    assert (labels[:7] == NO_LABEL).all() and labels[7] != NO_LABEL
    assert "7 labels have ids unknown" in caplog.text and "77" in caplog.text
    with pytest.raises(DatasetError, match="77"):
        read_scannet(scene, strict=True)


def test_files_that_do_not_fit_each_other_are_named(disk, scene):
    labels = scene / "scene0000_00_vh_clean_2.labels.ply"
    points, rgb, ids, _ = disk.room()
    disk.write_ply(labels, disk.columns(points[:50], rgb[:50], label=ids[:50].astype("<u2")))
    with pytest.raises(DatasetError, match="50 points"):
        read_scannet(scene)
    labels.unlink()
    segments = scene / "scene0000_00_vh_clean_2.0.010000.segs.json"
    segments.write_text(json.dumps({"segIndices": [1, 2, 3]}))
    with pytest.raises(DatasetError, match="3 segments"):
        read_scannet(scene)
    segments.write_text("{")
    with pytest.raises(DatasetError, match="cannot be read"):
        read_scannet(scene)


def test_damaged_objects_are_named_and_lone_files_said(scene, caplog):
    segments, groups = scene / "scene0000_00_vh_clean_2.0.010000.segs.json", scene / "scene0000_00.aggregation.json"
    for path, content in ((groups, {"segGroups": [{"label": "floor"}]}), (segments, {"segIndices": ["x"]})):
        path.write_text(json.dumps(content))
        with pytest.raises(DatasetError, match=path.name):
            read_scannet(scene)
    segments.unlink()
    assert read_scannet(scene).instances is None
    assert "scene0000_00.aggregation.json has no counterpart" in caplog.text


def test_a_folder_without_a_mesh_or_with_several_is_refused(scene, tmp_path):
    with pytest.raises(DatasetError, match="vh_clean_2"):
        read_scannet(tmp_path / "nothing")
    renamed = scene.rename(tmp_path / "copy")
    assert read_scannet(renamed).name == "scene0000_00"
    shutil.copy(renamed / "scene0000_00_vh_clean_2.ply", renamed / "scene0009_00_vh_clean_2.ply")
    with pytest.raises(DatasetError, match="several scenes"):
        read_scannet(renamed)


def test_a_labelled_cloud_with_its_views(disk, tmp_path, truth):
    points, rgb, ids, _ = truth
    instance = (ids == disk.TABLE).astype("<u2")
    cloud = disk.write_ply(
        tmp_path / "scan_a/labelled.ply", disk.columns(points, rgb, label=ids.astype("<u2"), instance=instance)
    )
    scan = read_labelled_cloud(cloud, disk.write_frames(tmp_path / "views"))
    assert scan.name == "scan_a" and len(list(scan.frames(1))) == 4
    np.testing.assert_array_equal(scan.instances, instance)
    assert (scan.normals[:, 2] > 0.99).mean() > 0.95  # the cameras hang above it
    assert read_labelled_cloud(cloud).frames is None


def test_the_real_labelled_scan_is_read(shared_dir):
    data = shared_dir / "data"
    scan = read_labelled_cloud(data / "scan_scene0000_00/labelled.ply", data / "rend_scene0000_00")
    counts = json.loads((data / "scan_scene0000_00/labels.json").read_text())["counts"]
    for name in ("wall", "floor", "cabinet", "curtain"):
        assert (scan.labels["scannet20"] == class_of(name)).sum() == counts[name]["points"]
    assert len(scan) == 81369 and scan.instances.max() == 67
    assert (np.linalg.norm(scan.normals, axis=1) > 0.99).mean() > 0.95
