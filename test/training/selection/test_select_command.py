"""``python -m training select``: tables, lists, links, pictures, and one line for what is wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from geopurify_core.errors import DatasetError, InvalidConfigError
from training.cli import app
from training.scenes.prepared import PreparedScene, load_scene, save_scene, scene_names
from training.scenes.sources import find_sources
from training.selection.listing import link_shards
from training.selection.table6 import TABLE6


def run(*arguments):
    return CliRunner().invoke(app, ["select", *map(str, arguments)])


@pytest.fixture
def table(tmp_path):
    """Twelve scenes; those with even numbers are rich."""
    rng = np.random.default_rng(0)
    path = tmp_path / "h.json"
    path.write_text(json.dumps({f"s{i:02d}": rng.integers(1, 9, 9 if i % 2 == 0 else 3).tolist() for i in range(12)}))
    return path


def test_json_says_everything(table):
    result = run(table, "--count", 3, "--json")
    assert result.exit_code == 0, result.output
    plain = json.loads(result.stdout)
    assert plain["settings"]["clusters"] == plain["settings"]["count"] == 3
    assert len(plain["chosen"]) == 3 and all(int(name[1:]) % 2 == 0 for name in plain["chosen"])
    assert [one["name"] for one in plain["scenes"] if one["chosen"]] == plain["chosen"]
    assert {one["score"] is None for one in plain["scenes"] if not one["passed"]} == {True}


def test_table_list_and_picture(table, tmp_path):
    result = run(table, "--count", 2, "--out", tmp_path / "new" / "list.txt", "--picture", tmp_path / "p" / "s.png")
    assert result.exit_code == 0, result.output
    assert "12 scenes" in result.stdout and "2 chosen" in result.stdout and "below a median" in result.stdout
    remark, *names = (tmp_path / "new" / "list.txt").read_text().splitlines()
    assert remark.startswith("# ") and len(names) == 2 and all(name in result.stdout for name in names)
    assert (tmp_path / "p" / "s.png").read_bytes()[:4] == b"\x89PNG"


def shards(folder, count):
    for i in range(count):
        labels = np.repeat(np.arange(5 + i % 3, dtype=np.uint8), 4 + i)
        blank = np.zeros((len(labels), 3), np.float16)
        arrays = blank.astype("f4"), blank.astype(np.uint8), blank, blank, np.ones(len(labels), "f4"), labels
        save_scene(folder, PreparedScene(f"room{i}", *arrays, about={"label_set": "scannet20"}))
        (folder / f"room{i}.geometric.safetensors").write_bytes(b"teacher")


def test_links_make_a_folder_to_distil_from(tmp_path):
    shards(tmp_path / "all", 9)
    for count in (3, 2):  # the second selection replaces the first
        result = run(tmp_path / "all", "--count", count, "--link", tmp_path / "few", "--json")
        assert result.exit_code == 0, result.output
        assert scene_names(tmp_path / "few") == json.loads(result.stdout)["chosen"]
    name = scene_names(tmp_path / "few")[0]
    assert len(load_scene(tmp_path / "few", name)) == len(load_scene(tmp_path / "all", name))
    assert (tmp_path / "few" / f"{name}.geometric.safetensors").read_bytes() == b"teacher"


def test_links_go_into_no_folder_of_something_else_and_to_no_table(table, tmp_path):
    shards(tmp_path / "all", 9)
    before = sorted(path.name for path in (tmp_path / "all").iterdir())
    result = run(tmp_path / "all", "--count", 2, "--link", tmp_path / "all")
    assert result.exit_code == 2 and "other files" in result.output
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == before
    assert "prepare" in run(table, "--count", 2, "--link", tmp_path / "few").output


def test_scenes_left_out_are_listed_even_where_too_few_remain(tmp_path):
    shards(tmp_path, 2)
    (tmp_path / "broken.safetensors").write_bytes(b"")
    result = run(tmp_path, "--count", 2)
    assert result.exit_code == 2
    assert "1 scenes left out" in result.output and "broken: " in result.output and "use all of them" in result.output


def test_published_lists(tmp_path):
    assert run("--preset", "table6-scannet").stdout.split() == list(TABLE6["table6-scannet"])
    for name in TABLE6["table6-scannet"][:2]:
        (tmp_path / "scans" / name).mkdir(parents=True)
        (tmp_path / "scans" / name / f"{name}_vh_clean_2.ply").write_bytes(b"")
    result = run(tmp_path / "scans", "--preset", "table6-scannet", "--out", tmp_path / "list.txt")
    assert result.exit_code == 0 and "18 of 20 are missing" in result.output
    lines = (tmp_path / "list.txt").read_text().splitlines()[1:]
    assert lines == [str(tmp_path / "scans" / name) for name in TABLE6["table6-scannet"][:2]]
    sources = find_sources([f"@{tmp_path / 'list.txt'}"], tmp_path)
    assert [source.name for source in sources] == list(TABLE6["table6-scannet"][:2])


def test_prepare_finds_the_papers_twenty_by_themselves(tmp_path):
    for name in TABLE6["table6-scannet"]:
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}_vh_clean_2.ply").write_bytes(b"")
    for name in TABLE6["table6-matterport"]:
        house, region = name.split("_")
        (tmp_path / house / "region_segmentations").mkdir(parents=True, exist_ok=True)
        (tmp_path / house / "region_segmentations" / f"{region}.ply").write_bytes(b"")
    for preset, names in TABLE6.items():
        assert [source.name for source in find_sources([f"{preset}:{tmp_path}"], tmp_path)] == list(names)
    (tmp_path / "scene0126_00").rename(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match=r"1 of 20 are missing there: scene0126_00\."):
        find_sources([f"table6-scannet:{tmp_path}"], tmp_path)


@pytest.mark.parametrize("content", ["", "# nothing\n", "@other.txt\n", "/absent/scene\n"])
def test_prepare_refuses_lists_of_nothing_and_of_lists(tmp_path, content):
    (tmp_path / "list.txt").write_text(content)
    with pytest.raises(DatasetError):
        find_sources([f"@{tmp_path / 'list.txt'}"], tmp_path)
    with pytest.raises(DatasetError, match="cannot be read"):
        find_sources([f"@{tmp_path / 'absent.txt'}"], tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "SOURCE"), (("--preset", "best", "."), "paper-matterport"), (("/absent",), "no scene"),
        (("--label-set", "colours", "."), "scannet20"), (("--gamma", "-1", "."), "gamma"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(arguments, words):
    result = run(*arguments)
    assert result.exit_code == 2 and words in result.output and "Traceback" not in result.output


@pytest.mark.parametrize(
    ("option", "place"),
    [("--picture", "picture.unheardof"), ("--picture", "file/picture.png"), ("--out", "file/list.txt")],
)
def test_what_cannot_be_written_is_said_in_one_line(tmp_path, table, option, place):
    (tmp_path / "file").write_text("")
    result = run(table, "--count", "2", option, tmp_path / place)
    assert result.exit_code == 2 and option in result.output and "Traceback" not in result.output


def test_links_need_a_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    shard = tmp_path / "room.safetensors"
    with pytest.raises(InvalidConfigError, match="--link"):
        link_shards(tmp_path / "file", [("room", shard)])
    assert (tmp_path / "file").read_text() == "mine"
