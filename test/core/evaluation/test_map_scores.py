"""Robot maps judged at scan points."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from geopurify_core.errors import MapMismatchError
from geopurify_core.evaluation.mapped import map_scores, voxel_of_points
from geopurify_core.evaluation.protocol import Protocol
from geopurify_core.mapping.snapshot import MapSnapshot
from geopurify_core.purification.student.network import StudentAffinityNetwork
from geopurify_core.purification.student.trained import Student, StudentInfo
from geopurify_core.purification.update.compute import purify_snapshot

C = 4
TEXTS = np.eye(C, dtype=np.float32)[:3]
SIZE_M = 0.05


def flat_map(side=14, purified=""):
    """A floor of voxels whose left half speaks of class 0 and right half of class 1; one corner without feature."""
    rng = np.random.default_rng(1)
    i, j = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    coords = np.stack([i.ravel(), j.ravel(), np.zeros(side * side, int)], axis=1).astype(np.int32)
    features = (np.eye(C)[(coords[:, 0] >= side // 2).astype(int)] + rng.normal(0, 0.2, (len(coords), C))).astype("f2")
    weight = np.ones(len(coords), np.float32)
    weight[0], features[0] = 0, 0
    stamp = np.zeros(len(coords), np.int64)
    normals = np.tile(np.float16([0, 0, 1]), (len(coords), 1))
    rgb = rng.integers(0, 255, (len(coords), 3), dtype=np.uint8)
    return MapSnapshot(
        coords, features, weight, rgb, normals, stamp, stamp, SIZE_M, "map", 0, 1, "planted:1", "texts:1",
        purified=purified,
    )  # fmt: skip


@pytest.fixture(scope="module")
def student():
    torch.manual_seed(3)
    network = StudentAffinityNetwork(C + 6, 8, 4, 1).eval().requires_grad_(False)
    return Student(network, StudentInfo("planted:1", C, 8, 4, 1, voxel_size_m=SIZE_M), "student:planted")


def test_each_point_takes_the_nearest_voxel_within_reach():
    snapshot = flat_map()
    rng = np.random.default_rng(0)
    points = rng.uniform(-0.3, 1.0, (200, 3)) * [1, 1, 0.3]
    got = voxel_of_points(snapshot, points, 0.1)
    distance = np.linalg.norm(points[:, None] - snapshot.centers_m[None].astype(np.float64), axis=2)
    wanted = np.where(distance.min(1) < 0.1, distance.argmin(1), -1)
    np.testing.assert_array_equal(got >= 0, wanted >= 0)
    near = got >= 0
    np.testing.assert_allclose(distance[near, got[near]], distance.min(1)[near])
    assert near.any() and not near.all()


def test_raw_map_scores_at_its_own_centres_and_nothing_beyond_reach():
    snapshot = flat_map()
    points = np.concatenate([snapshot.centers_m, [[9, 9, 9]]]).astype(np.float32)
    (raw,) = map_scores(snapshot, points, TEXTS, Protocol.preset("map"))
    np.testing.assert_allclose(raw.scores[:-1], snapshot.features[:, :3].astype(np.float32), atol=1e-6)
    assert np.flatnonzero(raw.featureless).tolist() == [0, len(points) - 1]


def test_purified_map_scores_are_those_of_the_purified_map(student):
    from geopurify_core.config import PurificationConfig

    snapshot = flat_map()
    protocol = Protocol.preset("map", steps=(1, 6), neighbors=12)
    results = list(map_scores(snapshot, snapshot.centers_m, TEXTS, protocol, student))
    assert [one.variant for one in results] == ["raw", "T=1", "T=6"]
    for one, steps in zip(results[1:], (1, 6), strict=True):
        config = PurificationConfig(steps=steps, neighbors=12, device="cpu")
        whole = purify_snapshot(snapshot, student, config).as_snapshot()
        rows = {
            tuple(c): f for c, f in zip(whole.coords.tolist(), whole.features[:, :3].astype(np.float32), strict=True)
        }
        wanted = np.array([rows[tuple(c)] for c in snapshot.coords.tolist()])
        np.testing.assert_allclose(one.scores, wanted, atol=2e-3)  # maps hold halves
    assert not results[2].featureless.any()  # the corner has heard of its neighbours


def test_an_empty_map_knows_nothing_and_a_purified_one_is_refused(student):
    empty = MapSnapshot(
        np.zeros((0, 3), np.int32), np.zeros((0, C), np.float16), np.zeros(0, np.float32), np.zeros((0, 3), np.uint8),
        np.zeros((0, 3), np.float16), np.zeros(0, np.int64), np.zeros(0, np.int64), SIZE_M, "map", 0, 0, "planted:1",
        "texts:1",
    )  # fmt: skip
    (raw,) = map_scores(empty, np.zeros((4, 3)), TEXTS, Protocol.preset("map"), student)
    assert raw.featureless.all() and raw.scores.shape == (4, 3)
    with pytest.raises(MapMismatchError, match="purified"):
        list(map_scores(flat_map(purified="student:1"), np.zeros((4, 3)), TEXTS, Protocol.preset("map")))
