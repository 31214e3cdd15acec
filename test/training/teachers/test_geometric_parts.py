"""Pieces of the geometric teacher against slow or known answers: colours, patches, merging, and how it is scored."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from training.teachers.base import PointCloud, TeacherFeatures
from training.teachers.geometric.cells import Cells, cells_of, lab
from training.teachers.geometric.graph import Geometry, averaging, geometry_of
from training.teachers.geometric.merging import MergeCosts, merge
from training.teachers.geometric.patches import patches_of
from training.teachers.geometric.scores import STRUCTURE, calibration, commonest, groups, pair_scores, segment_scores
from training.teachers.geometric.segments import COLOUR, POSITION, Segments, merged, segments_of


def random_cloud(count: int = 400, extent_m: float = 0.5) -> PointCloud:
    rng = np.random.default_rng(5)
    points = (rng.uniform(size=(count, 3)) * extent_m).astype(np.float32)
    normals = rng.standard_normal((count, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return PointCloud(points, rng.integers(0, 256, (count, 3), dtype=np.uint8), normals.astype(np.float32))


def test_cells_touch_as_a_slow_search_says() -> None:
    for reach in (1, 2):
        cells = cells_of(random_cloud(), 0.05, reach)
        pairs = [
            (i, j)
            for i, j in itertools.combinations(range(len(cells)), 2)
            if np.abs(cells.coords[i] - cells.coords[j]).max() <= reach
        ]
        assert pairs == [tuple(edge) for edge in cells.edges.tolist()]


def test_cells_average_their_points() -> None:
    cloud = random_cloud()
    cells = cells_of(cloud, 0.05)
    low = cloud.points_m.astype(np.float64).min(axis=0)
    for number in (0, len(cells) // 2, len(cells) - 1):
        own = cells.index == number
        expected = (cloud.points_m[own].astype(np.float64) - low).mean(axis=0)
        np.testing.assert_allclose(cells.centers_m[number], expected, atol=0.05 / 4096)
        np.testing.assert_allclose(cells.colour[number], lab(cloud.rgb[own].mean(axis=0)[None] / 255)[0], atol=1e-3)


@pytest.mark.parametrize(
    "rgb, expected",  # CIELAB of sRGB, as any table of colours gives it
    [
        ((1, 1, 1), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((1, 0, 0), (53.2, 80.1, 67.2)),
        ((0, 0, 1), (32.3, 79.2, -107.9)),
    ],
)
def test_lab(rgb: tuple[float, ...], expected: tuple[float, ...]) -> None:
    np.testing.assert_allclose(100 * lab(np.array([rgb], dtype=np.float64))[0], expected, atol=0.6)


def test_averaging_is_a_mean_over_neighbours() -> None:
    edges = np.array([[0, 1], [1, 2]], dtype=np.int32)
    matrix = averaging(edges, np.array([1.0, 0.5], dtype=np.float32), 4)
    expected = [[1 / 2, 1 / 2, 0, 0], [1 / 2.5, 1 / 2.5, 0.5 / 2.5, 0], [0, 0.5 / 1.5, 1 / 1.5, 0], [0, 0, 0, 1]]
    np.testing.assert_allclose(matrix.toarray(), expected, atol=1e-6)


def test_shape_and_normal_of_a_sheet_and_a_rod() -> None:
    step = 0.02
    sheet = np.array([(x, y, 0.0) for x in range(60) for y in range(60)]) * step
    rod = np.array([(x, 0.0, 50.0) for x in range(80)]) * step
    points = np.concatenate([sheet, rod]).astype(np.float32)
    cloud = PointCloud(points, np.full(points.shape, 99, np.uint8), np.zeros_like(points))
    cells = cells_of(cloud, 0.04)
    geometry = geometry_of(cells, (0.08, 0.16), 1)
    in_sheet = cells.centers_m[:, 2] < 0.5
    middle = in_sheet & (np.abs(cells.centers_m[:, :2] - 0.6) < 0.3).all(axis=1)
    linear, planar, scattered = geometry.shape[:, 3:].T
    assert np.abs(geometry.normals[middle, 2]).min() > 0.99
    assert planar[middle].min() > 0.8
    assert scattered[middle].max() < 0.01
    assert linear[~in_sheet].min() > 0.99
    assert (geometry.normals[~in_sheet] == 0).all()


def test_patches_break_where_the_cost_is() -> None:
    edges = np.array([[i, i + 1] for i in range(99)], dtype=np.int32)
    cost = np.full(99, 0.01, dtype=np.float32)
    cost[39] = 0.8
    patch = patches_of(cost, edges, 100, 1.0, 5)
    assert np.array_equal(patch, np.repeat([0, 1], [40, 60]))
    cost[1] = 0.9  # two cells are no patch
    assert np.array_equal(patches_of(cost, edges, 100, 0.1, 5), patch)


def random_segments() -> tuple[Cells, Geometry, NDArray[np.int32], Segments]:
    cells = cells_of(random_cloud(1500), 0.05)
    geometry = geometry_of(cells, (0.08,), 1)
    label = (np.arange(len(cells)) * 12 // len(cells)).astype(np.int32)
    return cells, geometry, label, segments_of(label, cells, geometry)


def test_segments_add_up_as_slow_sums_do() -> None:
    cells, geometry, label, segments = random_segments()
    for number in (0, 5, 11):
        own = label == number
        np.testing.assert_allclose(segments.mean[number, POSITION], cells.centers_m[own].mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(
            segments.mean[number, COLOUR], geometry.colour[own].mean(axis=0), rtol=1e-4, atol=1e-6
        )
    touching = {tuple(sorted(p)) for p in label[cells.edges].tolist() if p[0] != p[1]}
    assert touching == {tuple(border) for border in segments.borders.tolist()}


def test_merged_segments_equal_segments_of_merged_cells() -> None:
    cells, geometry, label, segments = random_segments()
    onto = np.array([0, 0, 1, 2, 2, 2, 3, 4, 4, 5, 1, 0])
    short, long = merged(segments, onto), segments_of(onto[label].astype(np.int32), cells, geometry)
    for name in ("size", "sums", "low", "high", "borders", "touch"):
        np.testing.assert_allclose(getattr(short, name), getattr(long, name), rtol=1e-9, atol=1e-9)


def test_merging_respects_limit_and_kind() -> None:
    _, _, _, segments = random_segments()
    everything, label = merge(segments, MergeCosts(), 100.0)
    assert len(everything) == 1
    assert set(label) == {0}
    nothing, label = merge(segments, MergeCosts(), -100.0)
    assert len(nothing) == len(segments)
    kind = np.array([0, 1] * 6)
    apart, label = merge(segments, MergeCosts(), 100.0, kind)
    assert all(len(set(kind[label == number])) == 1 for number in range(len(apart)))


def test_segment_scores_by_hand() -> None:
    truth = np.array([1, 1, 1, 2, 2, STRUCTURE, STRUCTURE, 0])
    segment = np.array([0, 0, 1, 1, 1, 2, 2, 2])
    found = segment_scores(segment, truth)
    assert found["segments"] == 3
    assert found["purity"] == pytest.approx(100 * 6 / 7)
    assert found["purity of things"] == pytest.approx(100 * 4 / 5)
    assert found["under-segmentation"] == pytest.approx(100 * 2 / 7)  # one of segment 1, for both
    assert commonest(segment, truth).tolist() == [1, 1, 2, 2, 2, STRUCTURE, STRUCTURE, STRUCTURE]


def test_groups_join_structure_and_leave_unknown_out() -> None:
    assert groups(np.array([3, 3, 0, 0, 5]), np.array([7, 8, 1, 2, 0]), [0]).tolist() == [7, 8, STRUCTURE, STRUCTURE, 0]


def test_pairs_of_a_perfect_teacher() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(size=(300, 3))
    truth = 1 + (points[:, 0] > 0.5).astype(np.int64)
    features = TeacherFeatures(np.eye(2, dtype=np.float16), (truth - 1).astype(np.int32))
    found = pair_scores(features, truth, points, 0.5)
    assert all(value == pytest.approx(100) for value in found.values())
    levels = calibration(features, truth, points)
    assert levels["0 to 0.2"]["same thing"] == 0
    assert levels["0.97 to 1"]["same thing"] == 100
    assert sum(row["share of pairs"] for row in levels.values()) == pytest.approx(100)
