"""Targets against boxes that are known, and against a real recording where it is at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geopurify_core.config import Config
from geopurify_core.errors import DatasetError
from geopurify_core.evaluation.targets import Target, evaluate_targets, read_targets
from geopurify_core.querying.results import DetectedObject, QueryResult


class CannedEngine:
    """Answers every text with the boxes it was given; the map spans a 10 m cube."""

    class snapshot:
        centers_m = np.random.default_rng(0).uniform(0, 10, (5000, 3)).astype(np.float32)
        voxel_size_m = 0.04

    def __init__(self, boxes: dict[str, list[tuple[list[float], list[float], float]]]) -> None:
        self.boxes = boxes

    def query(self, texts: list[str], **_: Any) -> list[QueryResult]:
        return [QueryResult(text, np.zeros(5000, np.float32), tuple(self._objects(text))) for text in texts]

    def _objects(self, text: str) -> list[DetectedObject]:
        found = []
        for rank, (center, size, yaw) in enumerate(self.boxes.get(text, [])):
            c, s = np.cos(yaw), np.sin(yaw)
            R = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
            voxels = np.arange(4, dtype=np.int32)
            found.append(DetectedObject(text, 5.0 - rank, np.array(center), np.array(size), yaw, voxels, R))
        return found


def test_ranks_distances_and_misses() -> None:
    engine = CannedEngine(
        {
            "chair": [([5, 5, 1], [1, 1, 1], 0.0), ([2, 2, 1], [1, 1, 1], 0.0)],
            "lamp": [([5, 5, 1], [4, 0.2, 1], np.pi / 4)],
            "wall": [([5, 5, 5], [10, 10, 10], 0.0)],
        }
    )
    targets = [
        Target("chair", np.array([[2.0, 2.79, 1.0]])),  # 0.29 m from the second box
        Target("chair", np.array([[2.0, 2.81, 1.0]])),  # 0.31 m: a miss
        Target("lamp", np.array([[6.2, 6.2, 1.0]])),  # inside, only because the box is turned
        Target("lamp", np.array([[6.2, 3.8, 1.0], [5.0, 5.0, 1.0]])),  # one of its points suffices
        Target("wall", np.array([[5.0, 5.0, 5.0]])),  # a box as large as the room proves nothing
        Target("sofa", np.array([[0.0, 0.0, 0.0]])),
    ]
    report = evaluate_targets(engine, targets)  # type: ignore[arg-type]
    assert [row.rank for row in report.rows] == [2, None, 1, 1, None, None]
    assert (report.hits_at(1), report.hits_at(3)) == (2, 3)
    assert report.oversized == 1
    assert report.largest_volume_m3 == pytest.approx(1000)
    assert report.rows[0].distance_m == pytest.approx(np.hypot(2.5, 1.71), abs=1e-6)
    plain = json.loads(json.dumps(report.as_plain()))
    assert plain["hit_at_1"] == 2
    assert plain["misses"] == ["chair", "wall", "sofa"]
    assert plain["rows"][5] == {"text": "sofa", "rank": None, "distance_m": None, "score": None, "num_objects": 0}


def test_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "objects.json"
    path.write_text(
        json.dumps({"objects": [{"query": "mug", "xyz": [1, 2, 3]}, {"query": "bed", "xyz": [[0, 0, 0], [1, 1, 1]]}]})
    )
    mug, bed = read_targets(path)
    assert mug.text == "mug"
    np.testing.assert_array_equal(mug.points_m, [[1, 2, 3]])
    assert bed.points_m.shape == (2, 3)


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ("{", "targets"),
        ("{}", "targets"),
        ('{"objects": []}', "targets"),
        ('{"objects": [{"xyz": [1, 2, 3]}]}', "objects[0].query"),
        ('{"objects": [{"query": "mug"}]}', "objects[0].xyz"),
        ('{"objects": [{"query": "mug", "xyz": [1, 2]}]}', "objects[0].xyz"),
        ('{"objects": [{"query": "mug", "xyz": [1, 2, NaN]}]}', "objects[0].xyz"),
        ('{"objects": [{"query": "mug", "xyz": [[1, 2, 3], [1]]}]}', "objects[0].xyz"),
    ],
)
def test_unusable_files_are_refused(tmp_path: Path, content: str, field: str) -> None:
    path = tmp_path / "objects.json"
    path.write_text(content)
    with pytest.raises(DatasetError) as error:
        read_targets(path)
    assert error.value.field == field


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="targets"):
        read_targets(tmp_path / "none.json")


def test_a_real_kitchen_is_searched(repository: Path, shared_dir: Path) -> None:
    """Every fifth frame of the recording; docs/querying.md has the whole."""
    from geopurify_core.datasets import iterate, open_dataset
    from geopurify_core.pipeline import SemanticMapper
    from geopurify_core.vision import load_backbone

    config = repository / "config/backbones/composite.yaml"
    backbone = load_backbone("composite", config=str(config), weights_dir=str(shared_dir / "weights"))
    mapper = SemanticMapper(Config(), backbone)
    scene = shared_dir / "data/seq_redkitchen"
    for frame in iterate(open_dataset(scene), stride=5):
        mapper.integrate(frame)
    report = evaluate_targets(mapper.engine(), read_targets(scene / "objects.json"))
    assert report.hits_at(1) >= 7
    assert report.hits_at(3) >= 10
    assert report.oversized == 0
    assert report.median_volume_m3 < 0.05


def test_more_targets_than_one_query_may_ask() -> None:
    """An engine refuses more than ``query.max_texts`` texts at once; the list of a whole building is longer."""

    class StrictEngine(CannedEngine):
        config = Config().query

        def query(self, texts: list[str], **limits: Any) -> list[QueryResult]:
            assert len(texts) <= self.config.max_texts
            return super().query(texts, **limits)

    count = Config().query.max_texts + 44
    engine = StrictEngine({f"thing {i}": [([i, 0, 0], [0.2, 0.2, 0.2], 0.0)] for i in range(count)})
    targets = [Target(f"thing {i}", np.array([[float(i), 0.0, 0.0]])) for i in range(count)]
    report = evaluate_targets(engine, targets)  # type: ignore[arg-type]
    assert [row.text for row in report.rows] == [target.text for target in targets] and report.hits_at(1) == count
