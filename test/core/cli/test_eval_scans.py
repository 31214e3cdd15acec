"""``geopurify eval scans`` and ``tables`` end to end: tiny ScanNet scenes, a backbone that knows three colours."""

from __future__ import annotations

import csv
import json
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from geopurify_core.cli.app import app
from geopurify_core.purification.student.checkpoint import save_student
from geopurify_core.purification.student.network import StudentAffinityNetwork
from geopurify_core.purification.student.trained import StudentInfo
from geopurify_core.vision.base import FeatureMap

NAMES = {"wall": 0, "chair": 1, "table": 2}
COLOURS = np.array([[220, 30, 30], [30, 200, 30], [40, 40, 210]], np.uint8)
NYU40 = {"wall": 1, "floor": 2, "chair": 5, "sofa": 6, "table": 7, "otherprop": 40}
DIM, F, W, H, Z_M = 8, 100.0, 160, 120, 2.0
STRIPES_M = (-0.8, -0.3, 0.3, 0.8)  # red | green | blue boards side by side on a wall that the camera faces


class PaintedBackbone:
    """A pixel speaks of the class whose colour it has; other class names mean something else altogether."""

    name, feature_dim, licence, fingerprint, text_fingerprint = "painted", DIM, "CC0-1.0", "painted:1", "painted-text:1"

    def encode_image(self, rgb, depth_m=None):
        nearest = np.abs(rgb[..., None, :].astype(int) - COLOURS).sum(-1).argmin(-1)
        return FeatureMap.from_rows(np.eye(DIM, dtype=np.float32)[nearest], np.ones(rgb.shape[:2], np.float32))

    def encode_text(self, texts):
        rows = np.zeros((len(texts), DIM), np.float32)
        for row, text in zip(rows, texts, strict=True):
            row[NAMES.get(text, DIM - 1)] = 1
        return rows


@pytest.fixture(autouse=True)
def painted(monkeypatch):
    for place in ("geopurify_core.vision", "geopurify_core.pipeline"):
        monkeypatch.setattr(f"{place}.load_backbone", lambda name, **options: PaintedBackbone())


def write_ply(path, points, colours, labels=None):
    """A binary PLY of vertices (with a label each) and one face."""
    fields = "property float x\nproperty float y\nproperty float z\n" + "".join(
        f"property uchar {name}\n" for name in ("red", "green", "blue")
    )
    fields += "property ushort label\n" if labels is not None else ""
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(points)}\n{fields}"
    header += "element face 1\nproperty list uchar int vertex_indices\nend_header\n"
    kinds = [("xyz", "<f4", 3), ("rgb", "u1", 3)] + ([("label", "<u2")] if labels is not None else [])
    rows = np.zeros(len(points), dtype=kinds)
    rows["xyz"], rows["rgb"] = points, colours
    if labels is not None:
        rows["label"] = labels
    path.write_bytes(header.encode() + rows.tobytes() + struct.pack("<B3i", 3, 0, 1, 2))


def make_scene(root, name, wrong=0.25, unseen=60):
    """A wall of three stripes. A share of the green one is labelled sofa; some floor points lie behind the camera."""
    folder = root / name
    for part in ("color", "depth", "pose", "intrinsic"):
        (folder / part).mkdir(parents=True)
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(-0.75, 0.76, 0.025), np.arange(-0.5, 0.51, 0.025)))
    clear = np.min(np.abs(x[:, None] - np.array(STRIPES_M)), axis=1) > 0.04
    x, y = x[clear], y[clear]
    stripe = np.digitize(x, STRIPES_M[1:3])
    points = np.stack([x, y, np.full(len(x), Z_M)], axis=1)
    labels = np.array([NYU40["wall"], NYU40["chair"], NYU40["table"]])[stripe]
    green = np.flatnonzero(stripe == 1)
    labels[green[: int(wrong * len(green))]] = NYU40["sofa"]
    labels[np.flatnonzero(stripe == 0)[:5]] = NYU40["otherprop"]  # no ScanNet-20 class: ignored
    behind = np.stack([np.linspace(-0.5, 0.5, unseen), np.zeros(unseen), np.full(unseen, -1.0)], axis=1)
    points, labels = np.concatenate([points, behind]), np.concatenate([labels, np.full(unseen, NYU40["floor"])])
    colours = np.concatenate([COLOURS[stripe], np.full((unseen, 3), 128, np.uint8)])
    write_ply(folder / f"{name}_vh_clean_2.ply", points.astype(np.float32), colours)
    write_ply(folder / f"{name}_vh_clean_2.labels.ply", points.astype(np.float32), colours, labels)
    K = np.array([[F, 0, (W - 1) / 2, 0], [0, F, (H - 1) / 2, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    for kind in ("color", "depth"):
        np.savetxt(folder / "intrinsic" / f"intrinsic_{kind}.txt", K)
    column = (np.arange(W) - (W - 1) / 2) / F * Z_M
    image = np.broadcast_to(COLOURS[np.digitize(column, STRIPES_M[1:3])], (H, W, 3))
    Image.fromarray(np.ascontiguousarray(image)).save(folder / "color" / "0.jpg", quality=100, subsampling=0)
    Image.fromarray(np.full((H, W), int(Z_M * 1000), np.uint16)).save(folder / "depth" / "0.png")
    np.savetxt(folder / "pose" / "0.txt", np.eye(4))
    return folder, stripe, labels, unseen


@pytest.fixture
def student(tmp_path):
    torch.manual_seed(0)
    network = StudentAffinityNetwork(DIM + 6, 8, 4, 1)
    about = {"trained_on": "2 scenes (apartment_0300 to apartment_0301)", "extra": {"recipe": {"micro": 16}}}
    info = StudentInfo("painted:1", DIM, 8, 4, 1, voxel_size_m=0.05, **about)
    save_student(tmp_path / "student.safetensors", network, info)
    return tmp_path / "student.safetensors"


def run(*arguments):
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


def scores_of(result, variant="raw", reading="20", which="all"):
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["results"][variant][reading][which]


def test_openscene_scores_of_a_planted_scene_are_as_worked_out(tmp_path):
    folder, stripe, labels, unseen = make_scene(tmp_path, "scene0000_00")
    result = run("scans", folder, "--lift", "robot", "--student", "none", "--json")
    got = scores_of(result)
    red, green = int((stripe == 0).sum()) - 5, int((stripe == 1).sum())
    sofa = int((labels == NYU40["sofa"]).sum())
    assert got["classes"]["wall"] == {"iou": 1.0, "acc": 1.0, "points": red, "featureless": 0}
    assert got["classes"]["table"]["iou"] == 1.0
    assert got["classes"]["chair"]["iou"] == pytest.approx((green - sofa) / green)
    assert got["classes"]["chair"]["acc"] == 1.0
    assert got["classes"]["sofa"]["iou"] == 0 and got["classes"]["sofa"]["points"] == sofa
    # the floor was not seen: no miss in the IoU of anybody, but misses in its accuracy and in the overall one
    assert got["classes"]["floor"] == {"iou": 0.0, "acc": 0.0, "points": unseen, "featureless": unseen}
    right = len(stripe) - 5 - sofa
    assert got["accuracy"] == pytest.approx(right / (right + sofa + unseen))
    assert scores_of(result, which="seen")["accuracy"] == pytest.approx(right / (right + sofa))
    assert got["miou"] == pytest.approx((2 + (green - sofa) / green) / 20)
    assert scores_of(result, reading="19")["miou"] == pytest.approx((2 + (green - sofa) / green) / 19)
    assert len(got["absent"]) == 15


def test_geopurifys_protocol_copies_the_nearest_and_judges_every_point(tmp_path):
    folder, _, _, unseen = make_scene(tmp_path, "scene0000_00")
    result = run("scans", folder, "--protocol", "geopurify", "--lift", "robot", "--student", "none", "--json")
    got = scores_of(result)
    assert got["featureless"] == 0 and got["classes"]["floor"]["points"] == unseen
    assert got["classes"]["floor"]["acc"] == 0  # it was taken for what is nearest, which costs that class its IoU
    assert min(got["classes"][name]["iou"] for name in ("wall", "chair", "table")) < 0.95
    report = json.loads(result.stdout)
    assert report["protocol"]["name"] == "geopurify" and report["prompts"][0] == "wall"


def test_raw_and_purified_side_by_side_with_all_files(tmp_path, student):
    folder, *_ = make_scene(tmp_path, "scene0000_00")
    results = tmp_path / "results"
    result = run(
        "scans", folder, "--lift", "robot", "--student", student, "--steps", "1,6", "--repeats", "2", "-o", results
    )
    assert result.exit_code == 0, result.output
    assert "T=6" in result.stdout and "otherfurniture" in result.stdout and "mIoU" in result.stdout
    report = json.loads((results / "report.json").read_text())
    assert list(report["results"]) == ["raw", "T=1", "T=6"]
    assert report["student"].startswith("student:") and report["backbone"]["fingerprint"] == "painted:1"
    assert report["student_about"]["sampling"] == "hybrid" and report["student_about"]["trained_on"] == "rooms"
    assert report["protocol"]["repeats"] == 2 and report["points"]["featureless"]["raw"] == 60
    assert {path.name for path in results.iterdir()} == {
        "settings.json", "report.json", "scenes.csv", "classes.csv", "scenes", "confusion_raw.png", "confusion_T6.png"
    }  # fmt: skip
    with (results / "scenes.csv").open() as file:
        assert {row["variant"] for row in csv.DictReader(file)} == {"raw", "T=1", "T=6"}


def test_a_second_run_goes_on_where_the_first_was(tmp_path, monkeypatch):
    first, second = (make_scene(tmp_path, f"scene000{i}_00")[0] for i in range(2))
    results = tmp_path / "results"
    assert run("scans", first, "--lift", "robot", "--student", "none", "-o", results).exit_code == 0
    seen = []
    whole = PaintedBackbone.encode_image
    monkeypatch.setattr(PaintedBackbone, "encode_image", lambda self, *a: seen.append(1) or whole(self, *a))
    arguments = ("scans", first, second, "--lift", "robot", "--student", "none", "-o", results, "--json")
    report = json.loads(run(*arguments).stdout)
    assert len(seen) == 1 and report["run"]["known"] == 1 and report["run"]["scored"] == 1
    assert report["scenes"] == ["scene0000_00", "scene0001_00"]
    together = json.loads(run("scans", first, second, "--lift", "robot", "--student", "none", "--json").stdout)
    assert together["results"] == report["results"]
    (results / "scenes" / "scene0000_00.npz").write_bytes(b"half")
    assert json.loads(run(*arguments).stdout)["results"] == report["results"]  # a damaged one is scored again
    other = run("scans", first, "--lift", "robot", "--student", "none", "--wording", "scene", "-o", results)
    assert other.exit_code == 2 and "--fresh" in other.output


def test_bad_scenes_are_skipped_and_listed_with_their_reasons(tmp_path):
    good, *_ = make_scene(tmp_path, "scene0000_00")
    blind, *_ = make_scene(tmp_path, "scene0001_00")
    (blind / "depth" / "0.png").unlink()
    (tmp_path / "empty").mkdir()
    broken, *_ = make_scene(tmp_path, "scene0002_00")
    (broken / "scene0002_00_vh_clean_2.ply").write_bytes(b"ply\nformat ascii 1.0\n")
    result = run("scans", good, blind, tmp_path / "empty", broken, tmp_path / "nowhere", "--lift", "robot", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["scenes"] == ["scene0000_00"] and len(report["skipped"]) == 4
    assert "_vh_clean_2.ply" in report["skipped"][str((tmp_path / "empty").resolve())]
    nothing = run("scans", tmp_path / "empty", "--lift", "robot")
    assert nothing.exit_code == 2 and "None could be scored" in nothing.output


def test_a_list_names_scenes_of_one_folder(tmp_path):
    make_scene(tmp_path, "scene0000_00")
    make_scene(tmp_path, "scene0001_00")
    (tmp_path / "val.txt").write_text("scene0001_00\n\n")
    result = run("scans", tmp_path, "--list", tmp_path / "val.txt", "--lift", "robot", "--student", "none", "--json")
    assert json.loads(result.stdout)["scenes"] == ["scene0001_00"]


def test_the_map_protocol_judges_what_the_robot_would_know(tmp_path, student):
    folder, *_ = make_scene(tmp_path, "scene0000_00")
    result = run("scans", folder, "--protocol", "map", "--student", student, "--steps", "2", "--json")
    got = scores_of(result)
    assert got["classes"]["wall"]["acc"] > 0.97 and got["classes"]["floor"]["featureless"] == 60
    report = json.loads(result.stdout)
    assert list(report["results"]) == ["raw", "T=2"] and report["mapping"]["map"]["voxel_size_m"] > 0


def test_a_saved_map_is_judged_like_one_made_on_the_way(tmp_path, student):
    folder, *_ = make_scene(tmp_path, "scene0000_00")
    made = CliRunner().invoke(app, ["map", str(folder), "--out", str(tmp_path / "room.map"), "--backbone", "painted"])
    assert made.exit_code == 0, made.output
    saved = run("scans", folder, "--map", tmp_path / "room.map", "--student", student, "--json")
    on_the_way = run("scans", folder, "--protocol", "map", "--student", student, "--json")
    assert json.loads(saved.stdout)["results"] == json.loads(on_the_way.stdout)["results"]
    assert json.loads(saved.stdout)["protocol"]["name"] == "map"
    several = run("scans", folder, folder, "--map", tmp_path / "room.map")
    assert several.exit_code == 2 and "--map" in several.output


def test_a_map_of_another_backbone_is_refused(tmp_path, monkeypatch):
    folder, *_ = make_scene(tmp_path, "scene0000_00")
    assert CliRunner().invoke(app, ["map", str(folder), "--out", str(tmp_path / "room.map")]).exit_code == 0
    monkeypatch.setattr(PaintedBackbone, "fingerprint", "painted:2")
    result = run("scans", folder, "--map", tmp_path / "room.map", "--student", "none")
    assert result.exit_code == 2 and "painted:1" in result.output


def test_a_student_of_another_backbone_is_refused_before_any_scene(tmp_path):
    folder, *_ = make_scene(tmp_path, "scene0000_00")
    info = StudentInfo("another:1", DIM, 8, 4, 1)
    save_student(tmp_path / "other.safetensors", StudentAffinityNetwork(DIM + 6, 8, 4, 1), info)
    result = run("scans", folder, "--student", tmp_path / "other.safetensors")
    assert result.exit_code == 2 and "another:1" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--labels", "scannet21"), "scannet20"), (("--dataset", "kitti"), "matterport"),
        (("--protocol", "mine"), "openscene"), (("--steps", "1,many"), "--steps"), (("--steps", "0"), "steps"),
        (("--list", "nowhere.txt"), "--list"), (("--lift", "mine"), "robot"),
    ],
)  # fmt: skip
def test_wrong_options_are_named(tmp_path, arguments, message):
    result = run("scans", tmp_path, *arguments)
    assert result.exit_code == 2 and message in result.output


def test_results_find_their_way_into_the_tables(tmp_path, student):
    folder, *_ = make_scene(tmp_path, "scene0000_00")
    results = tmp_path / "results"
    arguments = ("--lift", "robot", "--student", student, "--steps", "18", "--repeats", "1")
    assert run("scans", folder, *arguments, "-o", results / "a").exit_code == 0
    printed = json.loads(run("tables", results, "--json").stdout)["tables"]
    (source, about), *_ = printed[0]["sources"].items()
    assert source.endswith("report.json#raw") and (about["scenes"], about["expected"]) == (1, 312)
    assert about["departures"] == ["protocol openscene", "lifting robot"]
    assert [table["table"] for table in printed] == ["1", "2", "3", "4", "8", "9", "10"]
    ours = [row for table in printed for row in table["rows"] if any(value is not None for value in row["ours"])]
    assert {row["method"] for row in ours} == {
        "here: painted, 2D features",
        "here: painted, purified, student of rooms",
    }
    report = json.loads((results / "a" / "report.json").read_text())
    first = next(row for row in ours if "2D" in row["method"])
    assert first["ours"][0] == pytest.approx(100 * report["results"]["raw"]["19"]["all"]["miou"], abs=1e-3)
    text = run("tables", results, "--markdown", "-t", "1").stdout
    assert "1 of 312 scenes" in text and "* (1/312 scenes) [1]" in text
    assert "| GeoPurify (about 1.5 %) | 55.1 / n/a |" in text
    assert "here: painted" in run("tables", results).stdout


def test_tables_without_results_hold_nothing_of_ours():
    text = run("tables", "--markdown").stdout
    rows = [line for line in text.splitlines() if line.startswith("|") and " / " in line]
    cells = [cell.strip() for row in rows for cell in row.strip("|").split("|")[1:] if " / " in cell]
    assert len(cells) > 100 and all(cell.endswith("/ n/a") for cell in cells)
    assert run("tables", "-t", "7").exit_code == 2


def test_lists_name_matterport_regions_by_house_and_region(tmp_path):
    from geopurify_core.cli.evaluate.scans import _listed

    (tmp_path / "test.txt").write_text("2t7WUuJeko7_region0.pth\nULsKaCPVFJR_region17\n")
    assert _listed(tmp_path / "test.txt", [tmp_path], "matterport") == [
        tmp_path / "2t7WUuJeko7" / "region_segmentations" / "region0.ply",
        tmp_path / "ULsKaCPVFJR" / "region_segmentations" / "region17.ply",
    ]
