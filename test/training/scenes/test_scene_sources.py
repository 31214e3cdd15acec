"""What a SOURCE stands for, and which seeds may be trained on."""

import pytest

from geopurify_core.errors import DatasetError
from training.nano.views import FIRST_TRAINING_SEED, VALIDATION_SEEDS
from training.scenes.prepared import save_scene
from training.scenes.seeds import CHOICE_SEEDS, EVALUATION_SEEDS, TRAINING_SEEDS, check_seeds, walk_of
from training.scenes.sources import Source, find_sources


def names(*specs, out="out", **options):
    return [(source.name, source.kind) for source in find_sources([str(spec) for spec in specs], out, **options)]


def test_synthetic_rooms_keep_their_names():
    sources = find_sources(["synthetic:300-302", "synthetic:775"], None)
    assert [source.name for source in sources] == [f"apartment_0{seed}" for seed in (300, 301, 302, 775)]
    assert sources[0] == Source("apartment_0300", "synthetic", "synthetic:300") and sources[0].seed == 300


def test_folders_are_taken_apart(disk, scans, tmp_path):
    region = disk.write_matterport(tmp_path / "mp" / "aHouse")
    for number in (10, 2):
        (region.parent / f"region{number}.ply").write_bytes(region.read_bytes())
    scene = ("scene0001_00", "scannet")
    assert names(scans / "scene0001_00") == [scene]
    assert names(scans, scans / "scene0001_00") == [("scene0000_00", "scannet"), scene, ("scene0002_00", "scannet")]
    regions = [(f"aHouse_region{number}", "matterport") for number in (0, 2, 10)]
    assert names(tmp_path / "mp") == names(tmp_path / "mp" / "aHouse") == regions
    assert names(region) == regions[:1]


def test_scenes_without_a_mesh_are_named_and_not_passed_over(disk, scans, tmp_path, caplog):
    """Downloads that broke off: they fail later, each for itself. What is no scan at all is said."""
    disk.write_frames(scans / "scene0007_01")
    (scans / "notes").mkdir()
    assert names(scans)[-1] == ("scene0007_01", "scannet") and len(names(scans)) == 4
    assert "1 folders hold no scan and are left out: notes" in caplog.text
    disk.write_matterport(tmp_path / "mp" / "aHouse")
    (tmp_path / "mp" / "bHouse" / "region_segmentations").mkdir(parents=True)
    assert names(tmp_path / "mp") == [("aHouse_region0", "matterport"), ("bHouse", "matterport")]
    assert names(scans / "scene0007_01") == [("scene0007_01", "recording")]  # by itself it is one


def test_recordings_are_those_of_geopurify_map(disk, tmp_path):
    disk.write_frames(tmp_path / "my walk.1")
    (tmp_path / "bag").mkdir()
    (tmp_path / "bag" / "metadata.yaml").write_text("")
    (tmp_path / "a.sens").write_bytes(b"")
    specs = tmp_path / "my walk.1", tmp_path / "bag", tmp_path / "a.sens"
    assert names(*specs) == [("my_walk_1", "recording"), ("bag", "recording"), ("a", "recording")]


def test_nothing_named_means_what_is_there(tmp_path, make_scene):
    for name in ("b", "a"):
        save_scene(tmp_path, make_scene(name))
    (tmp_path / "c.123.tmp").write_bytes(b"half")
    assert names(out=tmp_path) == [("a", "prepared"), ("b", "prepared")]


@pytest.mark.parametrize(
    "spec", ["synthetic:", "synthetic:3-", "synthetic:x", "synthetic", "synthetic:305-301", "/nowhere/at/all"]
)
def test_what_is_no_source_is_refused(spec):
    with pytest.raises(DatasetError):
        find_sources([spec], None)


def test_an_empty_folder_and_names_that_clash_are_refused(disk, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="Nothing known"):
        names(tmp_path / "empty")
    with pytest.raises(DatasetError, match="Two scenes"):
        names(disk.write_frames(tmp_path / "a" / "walk"), disk.write_frames(tmp_path / "b" / "walk"))


def test_files_that_change_are_noticed_and_folders_that_move_are_not(disk, tmp_path):
    walk = disk.write_frames(tmp_path / "walk")
    (source,) = find_sources([str(walk)], None)
    before = source.inputs()
    moved = walk.rename(tmp_path / "sub")
    assert find_sources([str(moved)], None)[0].inputs() != "" and source.label == "recording:walk"
    (other_place := tmp_path / "elsewhere").mkdir()
    back = moved.rename(other_place / "walk")
    assert find_sources([str(back)], None)[0].inputs() == before
    (back / "pose/0.txt").write_text("changed")
    assert find_sources([str(back)], None)[0].inputs() != before


def test_seeds_for_training_choosing_and_scoring_are_apart():
    assert not {*TRAINING_SEEDS} & {*CHOICE_SEEDS, *EVALUATION_SEEDS, *VALIDATION_SEEDS}
    check_seeds([*TRAINING_SEEDS, *CHOICE_SEEDS])
    for taken in (0, 9, *EVALUATION_SEEDS, *VALIDATION_SEEDS, FIRST_TRAINING_SEED):
        with pytest.raises(DatasetError, match="seeds"):
            find_sources([f"synthetic:{taken}"], None)
    assert names("synthetic:10-12", "synthetic:200", evaluation=True)[0] == ("apartment_0010", "synthetic")
    for training in (300, FIRST_TRAINING_SEED):
        with pytest.raises(DatasetError, match="to score by"):
            find_sources([f"synthetic:{training}"], None, evaluation=True)


def test_walks_are_those_of_the_shipped_data():
    """As their shards say: 0300 walked 61 of 101 frames, 0200 84 of 97, 0339 75 of 75; scored rooms are whole."""
    assert [walk_of(seed) for seed in (300, 200, 339, 10)] == [(101, 61), (97, 84), (75, 75), (120, 120)]
