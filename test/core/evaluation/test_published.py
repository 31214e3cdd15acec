"""The published tables: transcribed consistently, and never taken for ours."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from geopurify_core.errors import DatasetError, InvalidConfigError
from geopurify_core.evaluation.openscene import readings_of
from geopurify_core.evaluation.protocol import Protocol
from geopurify_core.evaluation.published import fill_table, published, read_results
from geopurify_core.labels import load_label_set
from geopurify_core.scans.lift_settings import LiftSettings

TABLES = published()["tables"]


def values(table, method):
    (row,) = [row for row in TABLES[table]["rows"] if row["method"] == method]
    return row["values"]


def test_the_seven_tables_are_there_and_square():
    assert list(TABLES) == ["1", "2", "3", "4", "8", "9", "10"]
    for table in TABLES.values():
        assert all(len(row["values"]) == len(table["columns"]) for row in table["rows"])
        assert all(value is None or 0 <= value <= 100 for row in table["rows"] for value in row["values"])
        assert table["notes"]


@pytest.mark.parametrize(("table", "classes"), [("8", 19), ("9", 20)])
def test_class_tables_average_to_their_printed_means(table, classes):
    for row in TABLES[table]["rows"]:
        ious, miou = row["values"][:-2], row["values"][-2]
        assert len(ious) == classes
        assert sum(ious) / classes == pytest.approx(miou, abs=0.05)


def test_the_sums_that_the_notes_speak_of():
    assert sum(values("8", "GeoPurify")[:-2]) == pytest.approx(1047.7)
    assert sum(values("9", "GeoPurify")[:-2]) == pytest.approx(804.1)


@pytest.mark.parametrize("table", ["8", "9"])
def test_printed_differences_are_those_of_the_rows(table):
    before, after = values(table, "baseline (2D features)"), values(table, "GeoPurify")
    for low, high, printed in zip(before, after, TABLES[table]["printed_difference"], strict=True):
        assert high - low == pytest.approx(printed, abs=0.11)


def test_the_same_figure_is_the_same_in_every_table():
    assert values("1", "GeoPurify")[:2] == values("8", "GeoPurify")[-2:] == values("4", "T = 18")
    assert values("4", "with GeoPurify") == values("4", "hybrid") == values("4", "T = 18")
    assert values("1", "GeoPurify")[2:] == values("9", "GeoPurify")[-2:]
    assert values("8", "baseline (2D features)")[-2:] == values("4", "without purification (aggregated 2D features)")
    for method in ("OpenScene", "CUA-O3D", "GGSD", "GeoPurify"):
        assert values("3", method)[:2] == values("10", method)[:2]


def test_columns_name_classes_and_readings_that_exist():
    for table in TABLES.values():
        for column in table["columns"]:
            labels = load_label_set(column["labels"])
            reading = next(r for r in readings_of(labels) if r.name == str(column["names"]))
            if "class" in column:
                assert column["class"] in reading.names(labels)
            if "group" in column:
                assert column["group"] in labels.groups


# -- ours ------------------------------------------------------------------------------------------------------------


def plant(
    folder, *, dataset="scannet", labels="scannet20", backbone="xdecoder", protocol="geopurify", trained_on="scannet",
    sampling="", variants=("raw", "T=18"), scenes=312, base=0.5, teacher="", changes=None, lifting=None, more=None,
):  # fmt: skip
    """A report whose figures tell which cell they are: 0.5 + 0.001 for each variant, mAcc 0.1 more."""
    label_set = load_label_set(labels)
    results = {}
    for i, variant in enumerate(variants):
        value = base + 0.001 * i
        means = {"miou": value, "macc": value + 0.1}
        results[variant] = {}
        for reading in readings_of(label_set):
            classes = {name: {"iou": value, "acc": 0.0, "points": 1} for name in reading.names(label_set)}
            foreground = {"foreground": {"miou": value - 0.2, "macc": value - 0.1}}
            results[variant][reading.name] = {"all": {**means, "classes": classes, "groups": foreground}}
    report = {
        "report": 1, "dataset": dataset, "labels": labels,
        "protocol": {**Protocol.preset(protocol).as_plain(), **(changes or {})},
        "backbone": {"name": backbone, "fingerprint": f"{backbone}:vocabulary:1"},
        "student_about": {"trained_on": trained_on, "sampling": sampling, "teacher": teacher},
        "scenes": [f"s{i}" for i in range(scenes)], "results": results,
        **({} if lifting is None else {"lifting": asdict(LiftSettings.preset(lifting))}), **(more or {}),
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def cells(table, results):
    """(row, column) → our figure, wherever there is one."""
    return {
        (row.method, table_column): round(cell.value, 3)
        for row in fill_table(table, results).rows
        for table_column, cell in zip(fill_table(table, results).columns, row.ours, strict=True)
        if cell is not None
    }


def test_without_results_nothing_is_ours():
    for number in TABLES:
        assert all(cell is None for row in fill_table(number, []).rows for cell in row.ours)


def test_a_report_shows_up_in_its_own_cells_and_in_no_other(tmp_path):
    results = read_results([plant(tmp_path / "a")])
    assert cells("1", results) == {
        ("GeoPurify", "ScanNetV2 mIoU"): 50.1, ("GeoPurify", "ScanNetV2 mAcc"): 60.1
    }  # fmt: skip
    assert cells("2", results) == cells("3", results) == cells("9", results) == cells("10", results) == {}
    raw, pure = "without purification (aggregated 2D features)", "with GeoPurify"
    assert cells("4", results) == {
        (raw, "ScanNetV2 mIoU"): 50.0, (raw, "ScanNetV2 mAcc"): 60.0,
        (pure, "ScanNetV2 mIoU"): 50.1, (pure, "ScanNetV2 mAcc"): 60.1,
        ("T = 18", "ScanNetV2 mIoU"): 50.1, ("T = 18", "ScanNetV2 mAcc"): 60.1,
    }  # fmt: skip
    assert len(cells("8", results)) == 2 * 21


def test_training_data_decides_between_tables_1_and_3(tmp_path):
    crossed = read_results([plant(tmp_path / "a", trained_on="matterport")])
    assert cells("1", crossed) == {}
    assert set(cells("3", crossed)) == {
        ("GeoPurify", "Matterport3D → ScanNetV2 mIoU"), ("GeoPurify", "Matterport3D → ScanNetV2 mAcc")
    }  # fmt: skip


def test_sampling_and_steps_decide_within_table_4(tmp_path):
    results = read_results(
        [
            plant(tmp_path / "macro", sampling="macro", base=0.3),
            plant(tmp_path / "hybrid", sampling="hybrid", variants=("raw", "T=1", "T=6", "T=18", "T=36")),
        ]
    )
    got = {method: value for (method, column), value in cells("4", results).items() if column.endswith("mIoU")}
    assert got["macro negatives only"] == 30.1 and got["hybrid"] == 50.3
    assert [got[f"T = {t}"] for t in (1, 6, 18, 36)] == [50.1, 50.2, 50.3, 50.4]
    assert cells("1", results)["GeoPurify", "ScanNetV2 mIoU"] == 50.3  # never the macro-only one


def test_scannet200_gives_foreground_means(tmp_path):
    results = read_results([plant(tmp_path / "a", labels="scannet200")])
    assert cells("2", results) == {
        ("GeoPurify", "ScanNet200 f-mIoU"): 30.1, ("GeoPurify", "ScanNet200 f-mAcc"): 40.1
    }  # fmt: skip


def test_other_backbones_get_rows_of_their_own(tmp_path):
    results = read_results([plant(tmp_path / "a", backbone="nano", trained_on="rooms")])
    rows = {method for method, _ in cells("1", results)}
    assert rows == {"here: nano, 2D features", "here: nano, purified, student of rooms"}
    assert cells("4", results) == {}


def test_maps_clouds_and_other_label_sets_stand_nowhere(tmp_path):
    folders = [
        plant(tmp_path / "map", protocol="map"),
        plant(tmp_path / "cloud", dataset="cloud"),
        plant(tmp_path / "labels", labels="matterport40"),
    ]
    results = read_results(folders)
    assert len(results) == 3
    assert all(not cells(number, results) for number in TABLES)


def test_the_protocol_behind_the_published_figure_is_preferred_then_more_scenes(tmp_path):
    plant(tmp_path / "r" / "openscene", protocol="openscene", base=0.1)
    plant(tmp_path / "r" / "few", base=0.2, scenes=5)
    plant(tmp_path / "r" / "full", base=0.3)
    (cell, *_) = (row.ours[0] for row in fill_table("1", read_results([tmp_path])).rows if row.has_ours)
    assert round(cell.value, 1) == 30.1 and cell.variant == "T=18"


def first_cell(results):
    return next(row.ours[0] for row in fill_table("1", results).rows if row.ours[0] is not None)


def test_a_full_run_is_preferred_to_a_trial_by_a_closer_protocol(tmp_path):
    plant(tmp_path / "trial", scenes=1, base=0.2)
    plant(tmp_path / "full", protocol="openscene", base=0.3)
    cell = first_cell(read_results([tmp_path]))
    assert round(cell.value, 1) == 30.1 and cell.complete and "protocol openscene" in cell.departures


def test_too_few_scenes_are_told_by_the_cell(tmp_path):
    cell = first_cell(read_results([plant(tmp_path / "a", scenes=1)]))
    assert not cell.complete and (cell.result.scenes, cell.result.expected) == (1, 312)


@pytest.mark.parametrize(
    ("planted", "departures"),
    [
        ({}, ()),
        ({"lifting": "geopurify"}, ()),
        ({"lifting": "robot"}, ("lifting robot",)),
        ({"changes": {"featureless": "drop"}}, ("featureless drop",)),
        ({"changes": {"random_frame": False, "sharpening": 5.0}}, ("random_frame False", "sharpening 5.0")),
        ({"changes": {"voxel_size_m": 0.04}}, ("voxels of 0.04 m",)),
        ({"protocol": "openscene", "lifting": "openscene"}, ("protocol openscene", "lifting openscene")),
        (
            {"more": {"backbone": {"name": "xdecoder", "fingerprint": "xdecoder:open:1|x"}}},
            ("pixels assigned without labels",),
        ),
    ],
)
def test_what_a_run_does_differently_is_told_by_the_cell(tmp_path, planted, departures):
    assert first_cell(read_results([plant(tmp_path / "a", **planted)])).departures == departures


def test_what_purification_does_is_no_matter_to_raw_features(tmp_path):
    results = read_results([plant(tmp_path / "a", changes={"sharpening": 5.0, "wording": "scene"})])
    rows = {row.method: row.ours[0] for row in fill_table("8", results).rows}
    assert rows["baseline (2D features)"].departures == ("wording scene",)
    assert rows["GeoPurify"].departures == ("wording scene", "sharpening 5.0")


def test_a_student_of_another_teacher_does_not_stand_for_the_papers(tmp_path):
    folders = [plant(tmp_path / "a", teacher="geometric"), plant(tmp_path / "b", teacher="sonata", base=0.3)]
    got = {row: value for (row, column), value in cells("1", read_results(folders)).items() if "V2 mIoU" in column}
    assert got == {"GeoPurify": 30.1, "here: xdecoder, purified, student of scannet, teacher geometric": 50.1}


@pytest.mark.parametrize(
    "damage",
    [
        {"results": {"raw": {"19": {}}}}, {"results": {"raw": {"19": {"all": {"miou": None}}}}}, {"results": []},
        {"student_about": None}, {"protocol": {}}, {"scenes": None}, {"lifting": 7},
    ],
)  # fmt: skip
def test_damaged_reports_are_left_out(tmp_path, damage):
    assert read_results([plant(tmp_path / "a", more=damage)]) == []


def test_t_of_19_serves_where_the_paper_says_18(tmp_path):
    results = read_results([plant(tmp_path / "a", variants=("raw", "T=19"))])
    assert cells("1", results)["GeoPurify", "ScanNetV2 mIoU"] == 50.1
    assert ("T = 18", "ScanNetV2 mIoU") not in cells("4", results)


def test_foreign_reports_are_left_out_and_missing_paths_named(tmp_path):
    (tmp_path / "report.json").write_text('{"report": 7}')
    other = tmp_path / "x"
    other.mkdir()
    (other / "report.json").write_text("[1, 2")
    assert read_results([tmp_path]) == []
    with pytest.raises(DatasetError, match="nowhere"):
        read_results([tmp_path / "nowhere"])
    with pytest.raises(InvalidConfigError, match="table"):
        fill_table("7", [])
