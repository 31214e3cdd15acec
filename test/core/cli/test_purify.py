"""Purifying from the command line, with a small student of random weights that only has to run."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from geopurify_core.cli.app import app
from geopurify_core.cli.purify import purified_path, with_options
from geopurify_core.config import Config
from geopurify_core.errors import InvalidConfigError
from geopurify_core.mapping.store import load_map, read_extra, save_map
from geopurify_core.purification.student.checkpoint import save_student
from geopurify_core.purification.student.network import StudentAffinityNetwork
from geopurify_core.purification.student.trained import StudentInfo

runner = CliRunner()


def write_student(path, backbone="fruit:1", channels=16):
    torch.manual_seed(0)
    network = StudentAffinityNetwork(channels + 6, 8, 8, 1)
    save_student(path, network, StudentInfo(backbone, channels, 8, 8, 1, voxel_size_m=0.04))


@pytest.fixture
def student(tmp_path):
    write_student(tmp_path / "s.safetensors")
    return tmp_path / "s.safetensors"


@pytest.fixture
def settings(student, tmp_path):
    """A YAML file that names the student, and a neighbourhood that reaches from a board to the wall behind it."""
    (tmp_path / "c.yaml").write_text(f"purification: {{student: {student}, neighbors: 256, steps: 1}}\n")
    return tmp_path / "c.yaml"


@pytest.fixture
def purified_file(map_file, settings, tmp_path):
    result = runner.invoke(app, ["purify", str(map_file), "-o", str(tmp_path / "p.map"), "--config", str(settings)])
    assert result.exit_code == 0, result.output
    return tmp_path / "p.map"


def test_a_purified_map_holds_the_same_voxels_and_says_what_it_is(map_file, purified_file):
    raw, purified = load_map(map_file), load_map(purified_file)
    assert not raw.purified and purified.purified.startswith("student:") and "steps=1" in purified.purified
    rows = np.lexsort(raw.coords.T[::-1])
    for name in ("coords", "rgb", "normals", "first_seen_ns", "geometry_weight"):
        np.testing.assert_array_equal(getattr(purified, name), getattr(raw, name)[rows])
    assert (purified.features != raw.features[rows]).any() and np.isfinite(purified.features).all()
    before, after = read_extra(map_file), read_extra(purified_file)
    described = after.pop("purification")
    assert after == before and described["settings"]["neighbors"] == 256 and "student" in described["seconds"]


def test_it_reports_steps_and_settings(map_file, settings, tmp_path):
    arguments = ["purify", str(map_file), "-o", str(tmp_path / "new/p.map"), "--config", str(settings)]
    result = runner.invoke(app, [*arguments, "--preset", "paper_literal", "--set", "purification.steps=3"])
    assert result.exit_code == 0, result.output
    said = " ".join(result.stdout.split())
    assert "K=256 T=3 α=0.05" in said and "student:" in said and "pooling" in said
    assert "sharpening=0.05" in load_map(tmp_path / "new/p.map").purified


def test_options_come_on_top_of_the_configuration():
    config = with_options(Config.from_dict({"purification": {"steps": 4, "student": "a"}}), "b", "official_code")
    assert (config.purification.student, config.purification.resolved_steps) == ("b", 4)
    assert with_options(config, None, None) == config
    with pytest.raises(InvalidConfigError, match="preset"):
        with_options(config, None, "wrong")


@pytest.mark.parametrize("text", ["tomato", "plum"])
def test_query_purified_answers_as_the_purified_file_does(map_file, purified_file, settings, text):
    asked = ["--json", "--config", str(settings)]
    kept = json.loads(runner.invoke(app, ["query", str(purified_file), text, *asked]).stdout)[text]
    result = runner.invoke(app, ["query", str(map_file), text, *asked, "--purified"])
    assert result.exit_code == 0, result.output
    flying, raw = (
        json.loads(result.stdout)[text],
        json.loads(runner.invoke(app, ["query", str(map_file), text, *asked]).stdout)[text],
    )
    assert flying[0]["num_voxels"] == kept[0]["num_voxels"]
    np.testing.assert_allclose(flying[0]["center_m"], kept[0]["center_m"], atol=0.01)
    assert flying[0]["score"] == pytest.approx(kept[0]["score"], abs=0.01) != raw[0]["score"]


def test_a_purified_map_is_asked_as_it_is(purified_file, settings):
    plain, again = (
        runner.invoke(app, ["query", str(purified_file), "tomato", "--json", "--config", str(settings), *more])
        for more in ([], ["--purified"])
    )
    assert plain.exit_code == again.exit_code == 0 and plain.stdout == again.stdout


def test_a_purified_map_is_drawn_and_exported(purified_file, tmp_path):
    query = ["query", str(purified_file), "tomato", "--image", str(tmp_path / "q.png")]
    export = ["export", str(purified_file), str(tmp_path / "c.ply"), "-t", "tomato", "-t", "plum"]
    for arguments in (query, export):
        assert runner.invoke(app, arguments).exit_code == 0
    assert (tmp_path / "q.png").stat().st_size > 1000 and (tmp_path / "c.ply").stat().st_size > 1000


def test_map_purify_writes_both(scene, settings, tmp_path):
    arguments = ["map", str(scene), "-o", str(tmp_path / "room.map"), "--backbone", "fruit", "--config", str(settings)]
    result = runner.invoke(app, [*arguments, "--purify"])
    assert result.exit_code == 0 and "room_purified.map" in result.stdout, result.output
    raw, purified = load_map(tmp_path / "room.map"), load_map(purified_path(tmp_path / "room.map"))
    assert not raw.purified and purified.purified and len(raw) == len(purified)
    assert read_extra(tmp_path / "room_purified.map")["frames"] == 3


def test_eval_targets_on_raw_purified_and_purified_on_the_way(map_file, purified_file, settings, tmp_path):
    known = {"objects": [{"query": "tomato", "xyz": [-0.6, 0, 1.7]}]}
    (tmp_path / "t.json").write_text(json.dumps(known))
    asked = [str(tmp_path / "t.json"), "--json", "--config", str(settings)]
    scores = []
    for arguments in ([str(map_file)], [str(purified_file)], [str(map_file), "--purified"]):
        result = runner.invoke(app, ["eval", "targets", arguments[0], *asked, *arguments[1:]])
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout)
        assert report["hit_at_3"] == 1
        scores.append(report["rows"][0]["score"])
    assert scores[1] == pytest.approx(scores[2], abs=0.01) and abs(scores[0] - scores[1]) > 0.01


def test_eval_synthetic_side_by_side(settings):
    small = ["--frames", "2", "-d", "width=64", "-d", "height=48", "--backbone", "fruit", "--config", str(settings)]
    alone = {
        name: json.loads(runner.invoke(app, ["eval", "synthetic", *small, *more, "--json"]).stdout)
        for name, more in (("raw", []), ("purified", ["--purified"]), ("both", ["--both"]))
    }
    assert [alone[name]["features"] for name in alone] == ["raw", "purified", "both"]
    both = alone["both"]
    assert both["labels"] == alone["raw"]["labels"] and both["purified"]["labels"] == alone["purified"]["labels"]
    gain = both["purified"]["labels"]["miou"] - both["labels"]["miou"]
    assert both["difference"]["miou"] == pytest.approx(gain) and "hit_at_1" in both["difference"]
    shown = runner.invoke(app, ["eval", "synthetic", *small, "--both"])
    said = " ".join(shown.stdout.split())
    assert shown.exit_code == 0 and f"({gain:+.3f})" in said and "mIoU" in said and "hit@3" in said and "→" in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["purify", "{tmp}/absent.map", "-o", "{tmp}/x"], "no such file"),
        (["purify", "{map}", "-o", "{tmp}/x"], "--student"),
        (["purify", "{map}", "-o", "{tmp}/x", "--student", "{tmp}/absent"], "student"),
        (["purify", "{map}", "-o", "{tmp}/x", "--student", "{map}"], "student"),
        (["purify", "{map}", "-o", "{tmp}/x", "--student", "{other}"], "citrus:1"),
        (["purify", "{map}", "-o", "{tmp}/x", "--student", "{wide}"], "feature_dim"),
        (["purify", "{map}", "-o", "{tmp}/x", "--student", "{s}", "--preset", "wrong"], "paper_literal"),
        (["purify", "{map}", "-o", "{tmp}/x", "--student", "{s}", "--set", "purification.k=3"], "purification.k"),
        (["purify", "{map}", "-o", "{tmp}/x", "--student", "{s}", "--set", "purification.budget_mb=1"], "budget_mb"),
        (["purify", "{map}", "-o", "{map}", "--student", "{s}"], "replace the raw map"),
        (["purify", "{map}", "-o", "{tmp}", "--student", "{s}"], "--out"),
        (["purify", "{purified}", "-o", "{tmp}/x", "--student", "{s}"], "purified already"),
        (["query", "{map}", "tomato", "--purified"], "--student"),
        (["query", "{map}", " ", "--purified"], "texts[0]"),
        (["map", "{scene}", "-o", "{tmp}/x", "--backbone", "fruit", "--purify"], "--student"),
        (["eval", "synthetic", "--frames", "1", "--backbone", "fruit", "--both"], "--student"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(arguments, says, scene, map_file, student, tmp_path):
    purified_file = tmp_path / "p.map"
    save_map(purified_file, replace(load_map(map_file), purified="student:0123"))
    write_student(tmp_path / "other", "citrus:1")
    write_student(tmp_path / "wide", "fruit:1", 17)
    places = {
        "tmp": tmp_path, "scene": scene, "map": map_file, "purified": purified_file, "s": student,
        "other": tmp_path / "other", "wide": tmp_path / "wide",
    }  # fmt: skip
    before, raw = sorted(os.listdir(tmp_path)), map_file.read_bytes()
    result = runner.invoke(app, [argument.format(**places) for argument in arguments])
    assert result.exit_code == 2 and says in " ".join(result.stderr.split()), result.output
    assert "Traceback" not in result.output and not result.stdout
    assert len([line for line in result.stderr.strip().splitlines() if not line.startswith("purify ")]) == 1
    assert sorted(os.listdir(tmp_path)) == before and map_file.read_bytes() == raw


def test_interrupting_leaves_nothing(map_file, student, tmp_path, monkeypatch):
    def interrupted(*_, progress, **__):
        progress("student", 0.5)
        raise KeyboardInterrupt

    monkeypatch.setattr("geopurify_core.purification.update.compute.purify_snapshot", interrupted)
    result = runner.invoke(app, ["purify", str(map_file), "-o", str(tmp_path / "x"), "--student", str(student)])
    assert result.exit_code == 130 and not (tmp_path / "x").exists()


def test_an_empty_map_stays_empty(map_file, student, tmp_path):
    full = load_map(map_file)
    names = ("coords", "features", "weight", "rgb", "normals", "first_seen_ns", "last_seen_ns", "geometry_weight")
    save_map(tmp_path / "e.map", replace(full, **{name: getattr(full, name)[:0] for name in names}))
    arguments = ["purify", str(tmp_path / "e.map"), "-o", str(tmp_path / "x"), "--student", str(student)]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0 and len(load_map(tmp_path / "x")) == 0, result.output


def test_config_and_weights_name_purification():
    printed = runner.invoke(app, ["config"]).stdout
    assert "\npurification:\n" in printed and "\nsparse:\n" in printed and "  period_s: 10.0" in printed
    assert "purification" in runner.invoke(app, ["weights"]).stdout
