"""Scores at scan points: planted features, points without one, and purification against a dense computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from geopurify_core.errors import DatasetError, InvalidConfigError, StudentError
from geopurify_core.evaluation.points import point_scores, products, seen_points, with_features
from geopurify_core.evaluation.protocol import Protocol
from geopurify_core.purification.affinity.build import build_affinity
from geopurify_core.purification.student.network import StudentAffinityNetwork
from geopurify_core.purification.student.normals import fill_normals
from geopurify_core.purification.student.trained import Student, StudentInfo
from geopurify_core.purification.student.voxelise import random_frame, voxelise_points
from geopurify_core.scans.scan import LiftedScan, Scan

C = 5
TEXTS = np.eye(C, dtype=np.float32)[:3]


@pytest.fixture(scope="module")
def student():
    torch.manual_seed(3)
    network = StudentAffinityNetwork(C + 6, 8, 4, 1).eval().requires_grad_(False)
    return Student(network, StudentInfo("planted:1", C, 8, 4, 1, voxel_size_m=0.05), "student:planted")


def planted(count=600, unseen=0.2, seed=0):
    """Points on a plane, whose left half is class 0 and right half class 1, with noise; some seen by no view."""
    rng = np.random.default_rng(seed)
    points = np.stack([rng.uniform(0, 2, count), rng.uniform(0, 1, count), np.zeros(count)], axis=1).astype(np.float32)
    features = (np.eye(C)[(points[:, 0] > 1).astype(int)] + rng.normal(0, 0.3, (count, C))).astype(np.float16)
    views = (rng.random(count) > unseen).astype(np.int32)
    features[views == 0] = 0
    normals = np.tile(np.float32([0, 0, 1]), (count, 1))
    rgb = rng.integers(0, 255, (count, 3), dtype=np.uint8)
    return LiftedScan(Scan("plane", points, rgb, normals), features, views, "planted:1", "texts:1")


def test_raw_scores_are_products_and_unseen_points_have_no_feature():
    lifted = planted()
    (raw,) = point_scores(lifted, TEXTS, Protocol.preset("openscene"))
    assert raw.variant == "raw"
    np.testing.assert_allclose(raw.scores, lifted.features[:, :3].astype(np.float32), atol=1e-6)
    np.testing.assert_array_equal(raw.featureless, lifted.views == 0)


def test_a_row_of_zeros_is_no_feature_even_where_a_view_saw_the_point():
    lifted = planted(unseen=0.0)
    lifted.features[7] = 0
    assert np.flatnonzero(~seen_points(lifted)).tolist() == [7]


def test_nearest_copies_the_nearest_seen_point():
    lifted = planted()
    features, featureless = with_features(lifted, "nearest")
    assert not featureless.any()
    points, seen = lifted.scan.points_m.astype(np.float64), lifted.views > 0
    for i in np.flatnonzero(~seen)[:40]:
        distance = np.linalg.norm(points - points[i], axis=1)
        distance[~seen] = np.inf
        np.testing.assert_array_equal(features[i], lifted.features[distance.argmin()])
    np.testing.assert_array_equal(features[seen], lifted.features[seen])


def test_copied_features_of_unseen_points_are_dropped_where_the_protocol_says_so():
    lifted = planted()
    lifted.features[lifted.views == 0] = 1  # a lifting that fills
    features, featureless = with_features(lifted, "drop")
    assert not features[featureless].any() and featureless.sum() == (lifted.views == 0).sum()


def test_a_scan_that_nobody_saw_stays_without_features():
    lifted = planted(unseen=1.1)
    assert with_features(lifted, "nearest")[1].all()


def dense(lifted, student, protocol, frame):
    """T → (N, 3) scores, by dense matrices and features instead of columns."""
    voxels = voxelise_points(lifted.scan.points_m.astype(np.float64) @ frame.T, student.voxel_size_m)
    has = lifted.views > 0
    count, mean = np.zeros(len(voxels.coords)), np.zeros((len(voxels.coords), C))
    for i, voxel in enumerate(voxels.inverse):
        if has[i]:
            count[voxel] += 1
            mean[voxel] += lifted.features[i]
    mean /= np.maximum(count, 1)[:, None]
    colours = voxels.mean(lifted.scan.rgb / np.float32(255))
    normals = fill_normals(voxels.coords, voxels.mean(lifted.scan.normals))
    inputs = torch.from_numpy(np.concatenate([mean, colours, normals], axis=1).astype(np.float32))
    embeddings = student.network.embed(voxels.coords, inputs).numpy()
    affinity = build_affinity(voxels.coords, embeddings, protocol.neighbors, protocol.sharpening)
    A = np.zeros((len(mean), len(mean)))
    np.put_along_axis(A, affinity.neighbors.astype(np.int64), affinity.weights.astype(np.float64), axis=1)
    return {
        t: ((np.linalg.matrix_power(A, t) @ mean) @ TEXTS.T.astype(np.float64))[voxels.inverse] for t in protocol.steps
    }


@pytest.mark.parametrize("turned", [False, True])
def test_purified_scores_are_those_of_pooled_features(student, turned):
    protocol = Protocol.preset("openscene", steps=(1, 6), repeats=1, neighbors=12, random_frame=turned)
    lifted = planted()
    frame = random_frame(np.random.RandomState(protocol.seed)) if turned else np.eye(3)
    wanted = dense(lifted, student, protocol, frame)
    _, one, six = point_scores(lifted, TEXTS, protocol, student)
    assert (one.variant, six.variant) == ("T=1", "T=6")
    np.testing.assert_allclose(one.scores, wanted[1], atol=2e-5)
    np.testing.assert_allclose(six.scores, wanted[6], atol=2e-5)


def test_repeats_sum_the_scores_of_successive_frames(student):
    lifted = planted()
    protocol = Protocol.preset("openscene", steps=(2, 4), repeats=3, neighbors=12)
    rng = np.random.RandomState(protocol.seed)
    frames = [random_frame(rng) for _ in range(3)]
    singles = [dense(lifted, student, protocol, frame) for frame in frames]
    _, two, four = point_scores(lifted, TEXTS, protocol, student)
    np.testing.assert_allclose(two.scores, sum(single[2] for single in singles), atol=6e-5)
    np.testing.assert_allclose(four.scores, sum(single[4] for single in singles), atol=6e-5)


def test_steps_in_one_go_equal_each_alone(student):
    lifted = planted()
    together = list(point_scores(lifted, TEXTS, Protocol.preset("geopurify", steps=(1, 6, 18)), student))
    for i, steps in enumerate((1, 6, 18), start=1):
        alone = list(point_scores(lifted, TEXTS, Protocol.preset("geopurify", steps=(steps,)), student))[1]
        assert together[i].variant == alone.variant
        np.testing.assert_allclose(together[i].scores, alone.scores, atol=1e-5)


def test_purification_reaches_points_that_no_view_saw_and_helps_the_noisy(student):
    lifted = planted()
    truth = (lifted.scan.points_m[:, 0] > 1).astype(int)
    protocol = Protocol.preset("openscene", steps=(4,), repeats=1, random_frame=False, neighbors=12, sharpening=0.0)
    raw, purified = point_scores(lifted, TEXTS, protocol, student)
    assert raw.featureless.any() and not purified.featureless.any()

    def right(one):
        return (one.scores.argmax(1) == truth)[lifted.views > 0].mean()

    assert right(purified) > right(raw)


def test_a_far_cluster_that_nobody_saw_stays_featureless(student):
    lifted = planted(unseen=0.0)
    points = lifted.scan.points_m.copy()
    points[:200, 0] += 50  # its 12 nearest neighbours are its own
    lifted.views[:200] = 0
    lifted.features[:200] = 0
    scan = Scan("two", points, lifted.scan.rgb, lifted.scan.normals)
    moved = LiftedScan(scan, lifted.features, lifted.views, "planted:1", "texts:1")
    protocol = Protocol.preset("openscene", steps=(18,), repeats=2, neighbors=12)
    _, purified = point_scores(moved, TEXTS, protocol, student)
    assert purified.featureless[:200].all() and not purified.featureless[200:].any()


def test_a_student_of_another_backbone_or_width_is_refused(student):
    lifted = planted()
    other = LiftedScan(lifted.scan, lifted.features, lifted.views, "another:1", "texts:1")
    with pytest.raises(StudentError, match="planted:1"):
        list(point_scores(other, TEXTS, Protocol(), student))
    wide = LiftedScan(lifted.scan, np.ones((600, C + 1), np.float16), lifted.views, "planted:1", "texts:1")
    with pytest.raises(StudentError, match="channels"):
        list(point_scores(wide, np.eye(C + 1, dtype=np.float32)[:3], Protocol(), student))


def test_features_that_are_not_finite_are_refused():
    lifted = planted()
    lifted.features[0, 0] = np.nan
    with pytest.raises(DatasetError, match="finite"):
        list(point_scores(lifted, TEXTS, Protocol()))


def test_products_do_not_depend_on_how_rows_are_cut(monkeypatch):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(100, C)).astype(np.float16)
    whole = products(features, TEXTS)
    monkeypatch.setattr("geopurify_core.evaluation.points._ROWS_AT_ONCE", 7)
    np.testing.assert_allclose(products(features, TEXTS), whole, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"steps": (6, 1)}, "steps"), ({"steps": ()}, "steps"), ({"repeats": 0}, "repeats"),
        ({"featureless": "guess"}, "featureless"), ({"wording": "sonnet"}, "wording"), ({"neighbors": 0}, "neighbors"),
        ({"sharpening": float("nan")}, "sharpening"), ({"colour": 3}, "colour"),
    ],
)  # fmt: skip
def test_protocols_refuse_what_makes_no_sense(changes, field):
    with pytest.raises(InvalidConfigError, match=field):
        Protocol.preset("openscene", **changes)


def test_presets_are_the_published_ones():
    openscene, geopurify = Protocol.preset("openscene"), Protocol.preset("geopurify")
    assert (openscene.featureless, openscene.repeats, openscene.random_frame) == ("drop", 5, True)
    assert (geopurify.featureless, geopurify.repeats, geopurify.steps) == ("nearest", 1, (19,))
    assert geopurify.sharpening == 20 and geopurify.neighbors == 96
    with pytest.raises(InvalidConfigError, match="geopurify"):
        Protocol.preset("mine")
