"""The command line from recording to answer, with a backbone that knows colours by fruit."""

import dataclasses
import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from geopurify_core.cli.app import app
from geopurify_core.cli.common import parse_options
from geopurify_core.cli.info import default_yaml
from geopurify_core.cli.query import picture_paths, slug
from geopurify_core.cli.text_side import text_side
from geopurify_core.config import Config
from geopurify_core.errors import BackboneError, InvalidConfigError
from geopurify_core.mapping.store import load_map, read_extra
from geopurify_core.mapping.voxel_map import VoxelMap
from geopurify_core.vision.text import SentenceEncoder

runner = CliRunner()


def test_map_reports_what_it_skipped_and_remembers_its_origin(scene, tmp_path):
    result = runner.invoke(
        app,
        ["map", str(scene), "-o", str(tmp_path / "new/a.map"), "--backbone", "fruit", "--set", "map.voxel_size_m=0.05"],
    )
    assert result.exit_code == 0, result.output
    assert "1 invalid pose" in result.stdout and "frames" in result.stdout
    extra = read_extra(tmp_path / "new/a.map")
    assert extra["backbone"] == {"name": "fruit", "options": {}} and extra["frames"] == 3
    assert extra["skipped"] == {"invalid pose": 1}
    assert Config.from_dict(extra["config"]).map.voxel_size_m == load_map(tmp_path / "new/a.map").voxel_size_m == 0.05


def test_query_json_is_the_contract(map_file):
    result = runner.invoke(app, ["query", str(map_file), "tomato", "plum", "--json", "--max-objects", "3"])
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert list(answer) == ["tomato", "plum"]
    for text, x in (("tomato", -0.6), ("plum", 0.6)):
        assert 1 <= len(answer[text]) <= 3
        scores = [found["score"] for found in answer[text]]
        assert scores == sorted(scores, reverse=True)
        best = answer[text][0]
        assert {"score", "center_m", "size_m", "num_voxels"} <= set(best)
        assert len(best["center_m"]) == len(best["size_m"]) == 3 and best["num_voxels"] > 4
        np.testing.assert_allclose(best["center_m"], (x, 0, 1.7), atol=0.06)
        # a board of 0.3 x 0.4 m, one voxel of 4 cm thick; edges are uncertain by a voxel on each side
        np.testing.assert_allclose(sorted(best["size_m"]), (0.04, 0.3, 0.4), atol=0.09)


def test_query_table_and_pictures(map_file, tmp_path):
    result = runner.invoke(app, ["query", str(map_file), "tomato", "lime [x]", "--image", str(tmp_path / "q.png")])
    assert result.exit_code == 0, result.output
    assert "tomato" in result.stdout and "lime [x]" in result.stdout and "[m]" in result.stdout
    for name in ("q_tomato.png", "q_lime_x.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.size[0] > 800 and len(np.unique(np.asarray(picture.convert("L")))) > 20


def test_min_score_can_leave_nothing(map_file):
    result = runner.invoke(app, ["query", str(map_file), "tomato", "--min-score", "1000", "--json"])
    assert json.loads(result.stdout) == {"tomato": []}
    assert "not found" in runner.invoke(app, ["query", str(map_file), "tomato", "--min-score", "1000"]).stdout


def test_a_bag_gives_the_same_map(scene, map_file, tmp_path):
    bag = tmp_path / "a.mcap"
    written = runner.invoke(app, ["bag", "from-scannet", str(scene), str(bag)])
    assert written.exit_code == 0 and "3 frames" in written.stdout and "skipped 1: invalid pose" in written.stdout
    assert runner.invoke(app, ["bag", "from-scannet", str(scene), str(bag)]).exit_code == 2
    assert runner.invoke(app, ["bag", "from-scannet", str(scene), str(bag), "--force"]).exit_code == 0
    described = runner.invoke(app, ["bag", "info", str(bag)])
    assert "/rgb/image" in described.stdout and "camera_info" in described.stdout
    result = runner.invoke(app, ["map", str(bag), "-o", str(tmp_path / "b.map"), "--backbone", "fruit"])
    assert result.exit_code == 0, result.output
    a, b = load_map(map_file), load_map(tmp_path / "b.map")
    for name in ("coords", "features", "rgb", "last_seen_ns"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_stride_and_max_frames(scene, tmp_path):
    arguments = ["map", str(scene), "-o", str(tmp_path / "c.map"), "--backbone", "fruit"]
    assert runner.invoke(app, [*arguments, "--stride", "3"]).exit_code == 0
    assert read_extra(tmp_path / "c.map")["frames"] == 1  # of 0 and 3, the first has no pose
    assert runner.invoke(app, [*arguments, "--max-frames", "3"]).exit_code == 0
    assert read_extra(tmp_path / "c.map")["frames"] == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["map", "{tmp}/absent", "--out", "{tmp}/x"], "dataset"),
        (["map", "{scene}", "--out", "{tmp}/x", "--backbone", "wrong"], "Known here: fruit"),
        (["map", "{scene}", "--out", "{tmp}", "--backbone", "fruit"], "--out"),
        (["map", "{scene}", "--out", "{tmp}/x", "--set", "map.size=1"], "map.size"),
        (["map", "{scene}", "--out", "{tmp}/x", "--set", "nothing"], "key=value"),
        (["map", "{scene}", "--out", "{tmp}/x", "--config", "{tmp}/absent.yaml"], "config file"),
        (["map", "{scene}", "--out", "{tmp}/x", "-d", "wrong=1"], "dataset options"),
        (["map", "synthetic:3", "--out", "{tmp}/x", "--backbone", "fruit", "-d", "wrong=1"], "dataset options"),
        (["map", "synthetic:3", "--out", "{tmp}/x", "--backbone", "fruit", "-d", "num_frames=abc"], "dataset options"),
        (["map", "{scene}", "--out", "{pipe}", "--backbone", "fruit"], "--out"),
        (["map", "{scene}", "--out", "{tmp}/x", "--backbone", "fruit", "-d", "depth_shift=.nan"], "depth_shift"),
        (["query", "{tmp}/absent.map", "chair"], "map file"),
        (["query", "{map}", " "], "texts[0]"),
        (["query", "{map}", "x" * 10_000], "10000 bytes"),
        (["query", "{map}", "tomato", "--max-objects", "0"], "max_objects"),
        (["query", "{map}", "tomato", "--image", "{tmp}/a.png", "--up", "0 0"], "--up"),
        (["export", "{map}", "{tmp}/cloud.xyz"], "cloud file"),
        (["export", "{map}", "{tmp}/cloud.ply", "--labels", "wrong"], "labels"),
        (["bag", "from-scannet", "{tmp}/absent", "{tmp}/x.mcap"], "dataset"),
        (["bag", "info", "{tmp}/absent"], "bag"),
        (["export", "{map}", "{pipe}"], "cloud file"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, says, scene, map_file, tmp_path):
    places = {"tmp": tmp_path, "scene": scene, "map": map_file, "pipe": tmp_path / "pipe.ply"}
    os.mkfifo(places["pipe"])  # renaming a file onto it, or onto a device, would take its place
    before = sorted(path.name for path in tmp_path.iterdir())
    result = runner.invoke(app, [argument.format(**places) for argument in arguments])
    assert result.exit_code == 2 and says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1 and "Traceback" not in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_debug_shows_the_error(tmp_path):
    result = runner.invoke(app, ["--debug", "query", str(tmp_path / "absent"), "x"])
    assert result.exception is not None and "no such file" in str(result.exception)


def test_no_usable_frame_writes_no_map(scene, tmp_path):
    for path in (scene / "pose").iterdir():
        path.write_text("nan " * 16)
    result = runner.invoke(app, ["map", str(scene), "-o", str(tmp_path / "x.map"), "--backbone", "fruit"])
    assert result.exit_code == 2 and "invalid pose" in result.stderr and not (tmp_path / "x.map").exists()


@pytest.mark.parametrize("option", ["depth_shift=1", "depth_shift=1.0e+9"])
def test_depth_out_of_range_everywhere_is_said_and_writes_no_map(scene, tmp_path, option):
    result = runner.invoke(app, ["map", str(scene), "-o", str(tmp_path / "x.map"), "--backbone", "fruit", "-d", option])
    assert result.exit_code == 2 and "no depth in range" in result.stderr and "depth." in result.stderr
    assert not (tmp_path / "x.map").exists()


def test_a_frame_that_the_network_fails_on_costs_that_frame_only(scene, tmp_path, monkeypatch, fruit_backbone):
    original, seen = fruit_backbone.encode_image, []

    def failing(self, rgb, depth_m=None):
        seen.append(1)
        if len(seen) == 2:
            raise BackboneError("model", "NaN", "The network diverged.")
        return original(self, rgb)

    monkeypatch.setattr(fruit_backbone, "encode_image", failing)
    result = runner.invoke(app, ["map", str(scene), "-o", str(tmp_path / "x.map"), "--backbone", "fruit"])
    assert result.exit_code == 0 and "The network diverged" in " ".join(result.stderr.split())
    assert read_extra(tmp_path / "x.map")["frames"] == 2
    assert read_extra(tmp_path / "x.map")["skipped"] == {"invalid pose": 1, "rejected: model": 1}


def test_an_interrupt_waits_until_the_frame_is_fused(scene, tmp_path, monkeypatch):
    """A signal may come between making room for voxels and filling them; the saved map must not show that."""
    original, seen = VoxelMap.place, []

    def interrupted(self, *arguments):
        placement = original(self, *arguments)
        seen.append(1)
        if len(seen) == 2:
            signal.raise_signal(signal.SIGINT)
        return placement

    monkeypatch.setattr(VoxelMap, "place", interrupted)
    result = runner.invoke(app, ["map", str(scene), "-o", str(tmp_path / "x.map"), "--backbone", "fruit"])
    assert result.exit_code == 130 and read_extra(tmp_path / "x.map")["frames"] == 2
    assert load_map(tmp_path / "x.map").geometry_weight.min() > 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_interrupting_keeps_the_frames_so_far(scene, tmp_path, monkeypatch, fruit_backbone):
    original, seen = fruit_backbone.encode_image, []

    def interrupted(self, rgb, depth_m=None):
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return original(self, rgb)

    monkeypatch.setattr(fruit_backbone, "encode_image", interrupted)
    result = runner.invoke(app, ["map", str(scene), "-o", str(tmp_path / "x.map"), "--backbone", "fruit"])
    assert result.exit_code == 130 and read_extra(tmp_path / "x.map")["frames"] == 2


def test_a_recording_that_breaks_off_gives_its_first_half(scene, tmp_path):
    sens = tmp_path / "cut.sens"
    sens.write_bytes(sens_of(scene)[:-100])
    result = runner.invoke(app, ["map", str(sens), "-o", str(tmp_path / "x.map"), "--backbone", "fruit"])
    assert result.exit_code == 2 and "truncated" in result.stderr
    assert read_extra(tmp_path / "x.map")["frames"] == 1  # of three, the first has no pose and the last is cut


def sens_of(scene):
    """The first three frames of an exported scene as a .sens file: PNG colour, raw depth."""
    K = np.loadtxt(scene / "intrinsic/intrinsic_color.txt").astype("<f4").tobytes()
    eye = np.eye(4, dtype="<f4").tobytes()
    data = (
        struct.pack("<IQ", 4, 1)
        + b"s"
        + K
        + eye
        + K
        + eye
        + struct.pack("<ii4IfQ", 1, 0, 160, 120, 160, 120, 1000.0, 3)
    )
    for i in range(3):
        color = (scene / f"color/{i}.png").read_bytes()
        depth = np.asarray(Image.open(scene / f"depth/{i}.png")).astype("<u2").tobytes()
        pose = np.loadtxt(scene / f"pose/{i}.txt").astype("<f4").tobytes()
        data += pose + struct.pack("<4Q", 0, 0, len(color), len(depth)) + color + depth
    return data


def test_a_map_of_another_text_space_is_refused(map_file, monkeypatch, fruit_backbone):
    monkeypatch.setattr(fruit_backbone, "text_fingerprint", "other")
    result = runner.invoke(app, ["query", str(map_file), "tomato"])
    assert result.exit_code == 2 and "text_fingerprint" in result.stderr


def test_the_next_command_embeds_nothing_twice(map_file, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    snapshot = load_map(map_file)
    known = dataclasses.replace(snapshot, text_fingerprint=SentenceEncoder().text_fingerprint)
    first = text_side(known, {}).encode_text(["red chair", "table"])
    assert len(list((tmp_path / "cache/geopurify/text").iterdir())) == 2
    monkeypatch.setattr(SentenceEncoder, "_embed", None)  # from here on, embedding fails
    np.testing.assert_array_equal(text_side(known, {}).encode_text(["table", "red chair"])[::-1], first)


def test_the_printed_config_is_the_default_one(tmp_path):
    printed = runner.invoke(app, ["config"]).stdout
    (tmp_path / "c.yaml").write_text(printed)
    assert Config.from_yaml(tmp_path / "c.yaml") == Config() and printed == default_yaml()


def test_weights_names_licences():
    result = runner.invoke(app, ["weights"])
    assert result.exit_code == 0 and "Apache-2.0" in result.stdout and "CC-BY-NC" in result.stdout


def test_small_parsers():
    assert parse_options(["a=1", "b=x=y", "c=[1, 2]", "d="], "f") == {"a": 1, "b": "x=y", "c": [1, 2], "d": None}
    with pytest.raises(InvalidConfigError, match="YAML"):
        parse_options(["a=[1"], "f")
    assert slug("  Red/../Cabinet! ") == "red_cabinet" and slug("?!") == "text" and slug("стол") == "стол"
    names = [path.name for path in picture_paths(Path("q.png"), ["a b", "a-b"])]
    assert names == ["q_a_b.png", "q_a_b_2.png"] and picture_paths(Path("q.png"), ["x"]) == [Path("q.png")]


def test_eval_targets(map_file, tmp_path):
    known = {"objects": [{"query": "tomato", "xyz": [-0.6, 0, 1.7]}, {"query": "plum", "xyz": [-0.6, 0, 1.7]}]}
    (tmp_path / "t.json").write_text(json.dumps(known))
    result = runner.invoke(app, ["eval", "targets", str(map_file), str(tmp_path / "t.json"), "--json"])
    report = json.loads(result.stdout)
    assert (report["targets"], report["hit_at_1"]) == (2, 1) and report["rows"][0]["rank"] == 1
    assert report["rows"][1]["distance_m"] > 0.8  # the plum is 1.2 m away, less half its box
    shown = runner.invoke(app, ["eval", "targets", str(map_file), str(tmp_path / "t.json")])
    assert "hit@1 1/2" in shown.stdout
    bad = runner.invoke(app, ["eval", "targets", str(map_file), str(tmp_path / "absent.json")])
    assert bad.exit_code == 2 and "targets" in bad.stderr


def test_eval_synthetic():
    small = ["--frames", "2", "-d", "width=64", "-d", "height=48", "--backbone", "fruit"]
    report = json.loads(runner.invoke(app, ["eval", "synthetic", *small, "--json"]).stdout)
    assert report["dataset"] == "synthetic:3" and 0 <= report["labels"]["miou"] <= 1
    assert report["objects"]["targets"] >= report["objects"]["hit_at_3"] >= report["objects"]["hit_at_1"]
    shown = runner.invoke(app, ["eval", "synthetic", *small])
    assert shown.exit_code == 0 and "mIoU" in shown.stdout and "hit@3" in shown.stdout


def test_help_is_quick_because_nothing_heavy_is_imported():
    heavy = "{'torch', 'matplotlib', 'open3d', 'onnxruntime', 'rosbags', 'sentence_transformers'}"
    code = f"import sys; from geopurify_core.cli.app import app; print(sorted({heavy} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_bag_leaves_nothing(tmp_path, stop):
    """Started as a process of its own: nothing but a real signal shows what is left behind."""
    command = [
        sys.executable,
        "-m",
        "geopurify_core.cli",
        "bag",
        "from-scannet",
        "synthetic:3",
        str(tmp_path / "a.mcap"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline and not any(tmp_path.glob(".a.mcap*/*/*")):
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()
    process.send_signal(stop)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and b"Interrupted" in said and not list(tmp_path.iterdir())
