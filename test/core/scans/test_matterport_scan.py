"""Matterport3D as downloaded and as exported: both give the same frames; labels in four sets; views of a region."""

import json

import numpy as np
import pytest

from geopurify_core.datasets.matterport import MatterportHouse, is_matterport_house, views_of_region
from geopurify_core.errors import DatasetError
from geopurify_core.scans import NO_LABEL, read_matterport
from geopurify_core.scans.matterport import MATTERPORT21_NYU40


@pytest.fixture
def region(disk, tmp_path):
    return disk.write_matterport(tmp_path / "scans" / "aHouse")


def test_a_region_is_read_whole(disk, region):
    points, rgb, ids, _ = disk.room()
    scan = read_matterport(region)
    assert scan.name == "aHouse_region0"
    np.testing.assert_array_equal(scan.points_m, points)
    np.testing.assert_array_equal(scan.rgb, rgb)
    np.testing.assert_allclose(scan.normals[:, 2], 1, atol=1e-6)
    floor, table = MATTERPORT21_NYU40.index(disk.FLOOR), MATTERPORT21_NYU40.index(disk.TABLE)
    clear = np.abs(points[:, 0] - 1.2) > 0.05  # at the border of the two halves the faces' majority decides
    wanted = np.select([ids == disk.FLOOR, ids == disk.TABLE], [floor, table], NO_LABEL)
    np.testing.assert_array_equal(scan.labels["matterport21"][clear], wanted[clear])
    # the table's nyuClass names without void: wall floor table
    wanted = np.select([ids == disk.FLOOR, ids == disk.TABLE], [1, 2], NO_LABEL)
    for name in ("matterport40", "matterport80", "matterport160"):
        np.testing.assert_array_equal(scan.labels[name][clear], wanted[clear])
    wanted = np.select([ids == disk.FLOOR, ids == disk.TABLE], [1, 2], 0)
    np.testing.assert_array_equal(scan.instances[clear], wanted[clear])


def naive_majority(faces, of_face, count):
    votes = np.zeros((count, of_face.max() + 1), dtype=int)
    for face, value in zip(faces, of_face, strict=True):
        for vertex in face:
            votes[vertex, value] += 1
    return votes.argmax(axis=1)


def test_a_vertex_takes_the_label_of_most_of_its_faces(disk, region):
    _, _, _, faces = disk.room()
    rng = np.random.default_rng(3)
    category = rng.integers(-1, 7, len(faces)).astype("<i4")
    points, rgb, _, _ = disk.room()
    disk.write_ply(region, disk.columns(points, rgb), faces, {"category_id": category})
    of_index = {1: 1, 2: 2, 4: 3, 5: 2}  # index in the table → class + 1
    wanted = naive_majority(faces, np.array([of_index.get(int(c), 0) for c in category]), len(points))
    labels = read_matterport(region).labels["matterport40"]
    np.testing.assert_array_equal(labels, np.where(wanted == 0, NO_LABEL, wanted - 1))


def test_labels_come_from_the_objects_where_the_mesh_has_none(disk, region):
    points, rgb, _, faces = disk.room()
    whole = read_matterport(region)
    disk.write_ply(region, disk.columns(points, rgb), faces)
    np.testing.assert_array_equal(read_matterport(region).labels["matterport21"], whole.labels["matterport21"])
    region.with_suffix(".semseg.json").unlink()
    bare = read_matterport(region)
    assert not bare.labels and bare.instances is None


def test_downloaded_and_exported_images_are_the_same_frames(disk, tmp_path):
    downloaded = read_matterport(disk.write_matterport(tmp_path / "a" / "aHouse"))
    images = tmp_path / "matterport_2d"
    exported = read_matterport(disk.write_matterport(tmp_path / "b" / "aHouse", images / "aHouse"), images=images)
    frames = list(downloaded.frames(1)), list(exported.frames(1))
    assert len(frames[0]) == len(frames[1]) == len(disk.CENTRES)
    for one, other, centre in zip(*frames, disk.CENTRES.values(), strict=True):
        np.testing.assert_allclose(one.T_map_camera, disk.pose(*centre), atol=1e-9)
        np.testing.assert_allclose(other.T_map_camera, one.T_map_camera, atol=1e-9)
        np.testing.assert_allclose(one.camera.K, disk.K)
        np.testing.assert_array_equal(one.rgb, other.rgb)
        np.testing.assert_allclose(one.depth_m, disk.image(*centre)[1], atol=1 / 8000)


def test_intrinsics_hold_for_the_images_after_them(disk, region):
    conf = next((region.parents[1] / "undistorted_camera_parameters").glob("*.conf"))
    lines = conf.read_text().splitlines()
    lines.insert(7, "intrinsics_matrix 99 0 30  0 98 20  0 0 1")
    conf.write_text("\n".join(lines))
    focal = [frame.camera.fx for frame in MatterportHouse(region.parents[1])]
    assert focal == [disk.FOCAL, disk.FOCAL, 99, 99]


def test_cameras_inside_the_region_or_the_nearest_hundred():
    rng = np.random.default_rng(0)
    centres = rng.uniform(0, 10, (300, 3))
    centres[7] = np.nan
    inside = views_of_region(centres, np.array([[0, 0, 0], [5, 5, 5.0]]))
    assert inside.tolist() == [i for i, c in enumerate(centres) if ((c > 0) & (c < 5)).all()]
    far = views_of_region(centres, np.array([[20, 20, 20], [22, 24, 26.0]]))
    distance = np.linalg.norm(centres - [21, 22, 23], axis=1)
    assert sorted(far) == sorted(np.argsort(distance)[:100])
    assert len(views_of_region(centres[:9], np.array([[20, 20, 20], [22, 24, 26.0]]))) == 8


def test_broken_images_are_left_out(disk, region):
    house = region.parents[1]
    colours = sorted((house / "undistorted_color_images").iterdir())
    colours[0].unlink()
    colours[1].write_bytes(b"not a picture")
    recording = MatterportHouse(house)
    assert len(recording) == 4 and len(list(recording)) == 2
    assert dict(recording.skipped) == {"missing image": 1, "unreadable image": 1}


def test_an_export_without_a_pose_loses_that_image_only(disk, tmp_path, caplog):
    images = tmp_path / "2d" / "aHouse"
    disk.write_matterport(tmp_path / "scans" / "aHouse", images)
    next((images / "pose").iterdir()).unlink()
    recording = MatterportHouse(images)
    assert len(list(recording)) == 3 and recording.skipped["invalid pose"] == 1
    assert len(list(MatterportHouse(images, np.array([[-9, -9, -9], [9, 9, 9.0]])))) == 3  # of the region of this box
    assert "1 images have no usable pose" in caplog.text


def test_damaged_parameters_are_named(region, tmp_path):
    house = region.parents[1]
    conf = next((house / "undistorted_camera_parameters").glob("*.conf"))
    text = conf.read_text()
    for bad in (text.replace("scan p00", "scan p00 extra"), text.replace("intrinsics_matrix", "intrinsics_matrix x")):
        conf.write_text(bad)
        with pytest.raises(DatasetError, match="line"):
            MatterportHouse(house)
    conf.unlink()
    with pytest.raises(DatasetError, match="conf"):
        MatterportHouse(house)
    with pytest.raises(DatasetError, match="images"):
        read_matterport(region, images=tmp_path / "elsewhere")
    assert not is_matterport_house(tmp_path)


def test_foreign_categories_and_segments_that_do_not_fit(disk, region):
    points, rgb, _, faces = disk.room()
    disk.write_ply(region, disk.columns(points, rgb), faces, {"category_id": np.full(len(faces), 1000, "<i4")})
    assert (read_matterport(region).labels["matterport21"] == NO_LABEL).all()
    with pytest.raises(DatasetError, match="1000"):
        read_matterport(region, strict=True)
    region.with_suffix(".fsegs.json").write_text(json.dumps({"segIndices": [1]}))
    with pytest.raises(DatasetError, match="1 segments"):
        read_matterport(region)
