"""Scoring students on rooms: few columns say what all channels say; references; summaries."""

from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from geopurify_core.config import PurificationConfig
from geopurify_core.datasets.synthetic import SyntheticDataset
from geopurify_core.datasets.synthetic.kinds import CLASS_NAMES, SCANNET20
from geopurify_core.errors import DatasetError, StudentError
from geopurify_core.mapping.keys import pack_keys
from geopurify_core.purification.student.checkpoint import load_student, save_student, shipped_student
from geopurify_core.purification.update.compute import purify_snapshot
from geopurify_core.querying.engine import QueryEngine
from training.cli import app
from training.experiments.affinities import Affinities
from training.experiments.real import mapped, prepared_map
from training.experiments.room import UNKNOWN, cropped, load_rooms, room_of, seeds_in
from training.experiments.rooms import RAW, ScoredRoom, score_rooms
from training.experiments.scorespace import columns_of, pooled_columns
from training.experiments.summary import markdown, mean_and_deviation, per_class, summary
from training.scenes.prepared import save_scene

# -- rooms -----------------------------------------------------------------------------------------------------------


def test_a_room_is_in_key_order_and_keeps_its_rows_together(scene):
    room = room_of(scene)
    assert (np.diff(pack_keys(room.coords)) > 0).all()
    np.testing.assert_allclose((room.coords + 0.5) * 0.04, room.scene.points_m, atol=1e-6)
    before = {tuple(p): both for p, *both in zip(scene.points_m.tolist(), scene.labels, scene.instances, strict=True)}
    for p, label, instance in zip(room.scene.points_m.tolist(), room.scene.labels, room.scene.instances, strict=True):
        assert before[tuple(p)] == [label, instance]


def test_classes_beyond_the_twenty_do_not_count(scene):
    labels = scene.labels.copy()
    labels[:50] = CLASS_NAMES.index("lamp")
    room = room_of(replace(scene, labels=labels))
    assert (room.truth == UNKNOWN).sum() >= 50 and room.truth[room.truth != UNKNOWN].max() < len(SCANNET20)


def test_objects_are_groups_and_the_floor_is_one(scene):
    room = room_of(scene)
    groups = room.groups()
    assert (groups[room.scene.instances == 0] == 0).all() and len(np.unique(groups)) == 4
    with pytest.raises(DatasetError, match="instances"):
        room_of(replace(scene, instances=None)).groups()


def test_a_cropped_room_is_a_column_in_its_middle(scene):
    room = room_of(scene)
    part = cropped(room, 300)
    assert len(part) == 300 and len(part.scene.features) == 300
    assert (np.diff(pack_keys(part.coords)) > 0).all()
    assert np.ptp(part.coords[:, 0]) < 20 and cropped(room, 0) is room and cropped(room, 10**6) is room


def test_rooms_come_from_a_folder_of_shards(scene, tmp_path):
    save_scene(tmp_path, scene)
    save_scene(tmp_path, replace(scene, name="apartment_0011"))
    assert [room.name for room in load_rooms(tmp_path)] == ["apartment_0010", "apartment_0011"]
    assert [room.name for room in load_rooms(tmp_path, [11])] == ["apartment_0011"]
    with pytest.raises(DatasetError, match="Prepare"):
        load_rooms(tmp_path / "none")
    with pytest.raises(DatasetError, match="not scan points"):
        room_of(replace(scene, about={**scene.about, "voxel_size_m": 0.0}))


def test_seeds_are_read_as_written():
    assert seeds_in("10-12,15") == [10, 11, 12, 15] and seeds_in("") == []
    with pytest.raises(DatasetError, match="10-12,15"):
        seeds_in("ten")


# -- few columns instead of all channels -----------------------------------------------------------------------------


def labels_of_engine(snapshot, encoder):
    """The definition: what the query engine says of full features."""
    return QueryEngine(snapshot, encoder).segment(SCANNET20)[0]


def test_raw_labels_are_those_of_the_query_engine(scene, encoder, texts):
    room = room_of(scene)
    columns = columns_of(room.scene.features, room.scene.weight, texts)
    expected = labels_of_engine(room.snapshot(), encoder)
    assert (columns.labels(texts) == expected).mean() > 0.998
    assert columns.labels(texts)[room.scene.weight == 0] == [-1] == expected[room.scene.weight == 0]
    assert columns.values.shape[1] % 32 == 0


def test_pooled_labels_are_those_of_purified_features(scene, encoder, texts, student):
    """Against the real thing: purify all channels, ask the engine; rows come in key order from both."""
    room = room_of(scene)
    purified = purify_snapshot(room.snapshot(), student, replace(PurificationConfig(), steps=6)).as_snapshot()
    affinity = Affinities(room).of_student(student)
    ((step, pooled),) = pooled_columns(columns_of(room.scene.features, room.scene.weight, texts), affinity, (6,))
    np.testing.assert_array_equal(purified.coords, room.coords)
    agreement = (pooled.labels(texts) == labels_of_engine(purified, encoder)).mean()
    assert step == 6 and agreement > 0.998


def test_a_basis_of_all_channels_is_exact(encoder, texts, scene, monkeypatch):
    monkeypatch.setattr("training.experiments.scorespace._LEFT_OUT", -1.0)
    room = room_of(scene)
    columns = columns_of(room.scene.features, room.scene.weight, texts)
    assert columns.basis.shape == (384, 384)
    np.testing.assert_allclose(columns.basis.T @ columns.basis, np.eye(384), atol=1e-4)
    got, expected = columns.labels(texts), labels_of_engine(room.snapshot(), encoder)
    assert (got == expected).mean() > 0.999


# -- affinities ------------------------------------------------------------------------------------------------------


def test_true_objects_take_nothing_from_strangers_and_pool_best(scene, texts):
    room = room_of(scene)
    affinities = Affinities(room, 24)
    true, groups = affinities.of_objects(), room.groups()
    np.testing.assert_allclose(true.weights.sum(1), 1, atol=1e-5)
    strangers = groups[true.neighbors] != groups[:, None]
    has_own = (~strangers).any(1)
    assert (true.weights[has_own] * strangers[has_own]).sum() == 0
    scored = ScoredRoom(room, affinities, columns_of(room.scene.features, room.scene.weight, texts), texts)
    ceiling = scored.pooled(true, (18,))[18]["mIoU"]
    assert ceiling > scored.pooled(affinities.even(), (18,))[18]["mIoU"] + 10
    assert ceiling > scored.raw()["mIoU"] + 10


def test_every_reference_is_a_row_stochastic_matrix(scene, tmp_path):
    affinities = Affinities(room_of(scene), 24)
    for name, build in affinities.named("known", tmp_path).items():
        affinity = build()
        np.testing.assert_allclose(np.asarray(affinity.weights).sum(1), 1, atol=1e-5, err_msg=name)
    kept = tmp_path / "apartment_0010.known.safetensors"
    stamp = kept.stat().st_mtime_ns
    again = affinities.of_teacher("known", tmp_path)
    assert kept.stat().st_mtime_ns == stamp
    np.testing.assert_array_equal(again.weights, affinities.of_teacher("known").weights)


# -- reports ---------------------------------------------------------------------------------------------------------


def test_a_report_has_the_rows_asked_for(scene, encoder, student):
    rooms = [room_of(scene), room_of(replace(scene, name="apartment_0011"))]
    report = score_rooms(rooms, student, encoder, sweep=1, others=1, teacher="known", tell=lambda line: None)
    first, second = report["apartment_0010"], report["apartment_0011"]
    assert list(second) == [RAW, "student, T=18"]
    assert {"student, T=1", "student, T=36", "even (box blur), T=1", "known teacher, T=18"} <= set(first)
    assert first[RAW] == second[RAW] and set(first[RAW]["IoU"]) == {"floor", "chair", "bed"}
    assert first["true objects, T=18"]["mIoU"] > first[RAW]["mIoU"]
    table = summary(list(report.values()))
    assert table["student, T=36"]["rooms"] == "1" and table[RAW]["rooms"] == "2"


def test_a_student_of_another_backbone_is_refused(scene, encoder, student):
    other = replace(student, info=replace(student.info, backbone="other"))
    with pytest.raises(StudentError, match="another backbone"):
        score_rooms([room_of(scene)], other, encoder)


def row(miou, **classes):
    return {"mIoU": miou, "mAcc": miou + 10, "accuracy": 75.0, "IoU": classes}


def test_summary_tells_the_gain_beyond_the_same_rooms_raw():
    rooms = [{"raw": row(40.0), "s": row(44.0)}, {"raw": row(42.0), "s": row(50.0)}, {"raw": row(90.0)}]
    table = summary(rooms)
    assert table["s"]["mIoU"] == "47.0 ± 4.2" and table["s"]["gain"] == "+6.0 ± 2.8, worst +4.0"
    assert table["s"]["rooms"] == "2" and table["raw"]["gain"] == ""
    assert "| s | 2 | 47.0 ± 4.2 | 57.0 ± 4.2 | 75.0 ± 0.0 | +6.0 ± 2.8, worst +4.0 |" in markdown(table)
    assert mean_and_deviation([3.14]) == "3.1" and mean_and_deviation([1, 3], "+") == "+2.0 ± 1.4"


def test_classes_are_ranked_by_what_they_gain():
    rooms = [
        {"raw": row(1, bed=10.0, sink=50.0), "s": row(1, bed=30.0, sink=20.0)},
        {"raw": row(1, bed=20.0), "s": row(1, bed=60.0)},
    ]
    assert per_class(rooms, "s") == [("bed", 15.0, 45.0, 2), ("sink", 50.0, 20.0, 1)]


def test_the_command_scores_a_student_file(scene, student, tmp_path):
    save_scene(tmp_path / "rooms", scene)
    save_student(tmp_path / "s.safetensors", student.network, student.info)
    target = tmp_path / "scores.json"
    command = ["rooms", str(tmp_path / "rooms"), "--student", str(tmp_path / "s.safetensors"), "--teacher", "known"]
    result = CliRunner().invoke(app, [*command, "--json", str(target)])
    assert result.exit_code == 0, result.output
    assert "| raw | 1 |" in result.output and "true objects, T=18" in result.output and '"mIoU"' in target.read_text()


@pytest.mark.slow
def test_the_shipped_student_helps_in_a_room_that_nobody_trained_on(encoder, texts):
    path = shipped_student(encoder.fingerprint)
    assert path is not None, "no student is shipped for nano's present weights: distil one (docs/student.md)"
    recording = SyntheticDataset(10, num_frames=120)
    snapshot = mapped(recording.frames(stop=24), encoder)
    instances = recording.ground_truth_instances(snapshot.centers_m).astype(np.int32)
    labels = recording.apartment.class_of_instance[instances]
    scored = ScoredRoom.of(room_of(prepared_map(snapshot, "apartment_0010", labels, instances)), texts)
    raw, blurred = scored.raw()["mIoU"], scored.pooled(scored.affinities.even(), (18,))[18]["mIoU"]
    purified = scored.of_student(load_student(path))["student, T=18"]["mIoU"]
    assert purified > raw + 3 and purified > blurred + 5, (raw, purified, blurred)
