"""The geometric teacher on a room built by hand: what belongs together, what does not, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from geopurify_core.errors import DatasetError, InvalidConfigError
from training.teachers.base import PointCloud, TeacherFeatures
from training.teachers.geometric import GeometricTeacher

STEP = 0.02
WALL, FLOOR, BOX, BALL = 1, 2, 3, 4


def sheet(origin: list[float], a: list[float], b: list[float], normal: list[float]) -> tuple[NDArray, NDArray]:
    """Points every 2 cm of the rectangle origin + s a + t b, and their normals."""
    u, v = np.array(a), np.array(b)
    s, t = (np.arange(STEP / 2, np.linalg.norm(w), STEP) / np.linalg.norm(w) for w in (u, v))
    points = np.array(origin) + (s[:, None, None] * u + t[:, None] * v).reshape(-1, 3)
    return points, np.tile(np.array(normal, dtype=np.float64), (len(points), 1))


def room() -> tuple[PointCloud, NDArray[np.int64]]:
    """A floor of 4 m x 3 m with two walls, a red box on it and a blue ball on the box."""
    parts = [
        (FLOOR, *sheet([0, 0, 0], [4, 0, 0], [0, 3, 0], [0, 0, 1]), (120, 90, 60)),
        (WALL, *sheet([0, 0, 0], [4, 0, 0], [0, 0, 2.4], [0, 1, 0]), (200, 200, 190)),
        (WALL, *sheet([0, 0, 0], [0, 3, 0], [0, 0, 2.4], [1, 0, 0]), (195, 196, 186)),
    ]
    low, size = np.array([2.0, 1.4, 0.0]), np.array([0.8, 0.6, 0.72])
    ex, ey, ez = np.diag(size)
    red = (190, 40, 30)
    parts += [
        (BOX, *sheet(list(low + ez), list(ex), list(ey), [0, 0, 1]), red),
        (BOX, *sheet(list(low), list(ex), list(ez), [0, -1, 0]), red),
        (BOX, *sheet(list(low + ey), list(ex), list(ez), [0, 1, 0]), red),
        (BOX, *sheet(list(low), list(ey), list(ez), [-1, 0, 0]), red),
        (BOX, *sheet(list(low + ex), list(ey), list(ez), [1, 0, 0]), red),
    ]
    turn, height = np.arange(600) * 2.399963, 1 - 2 * (np.arange(600) + 0.5) / 600
    ring = np.sqrt(1 - height**2)
    out = np.stack([ring * np.cos(turn), ring * np.sin(turn), height], axis=1)
    parts.append((BALL, out * 0.2 + [2.4, 1.7, 0.94], out, (30, 50, 180)))
    points = np.concatenate([p for _, p, _, _ in parts])
    colour = np.concatenate([np.tile(np.array(c, dtype=np.uint8), (len(p), 1)) for _, p, _, c in parts])
    normals = np.concatenate([n for _, _, n, _ in parts])
    group = np.concatenate([np.full(len(p), g) for g, p, _, _ in parts])
    return PointCloud(points.astype(np.float32), colour, normals.astype(np.float32)), group


def cosines(features: TeacherFeatures, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    dense = features.dense()[rows]
    dense /= np.linalg.norm(dense, axis=1, keepdims=True)
    return np.asarray(dense @ dense.T)


@pytest.fixture(scope="module")
def described() -> tuple[PointCloud, NDArray[np.int64], TeacherFeatures]:
    cloud, group = room()
    return cloud, group, GeometricTeacher().describe(cloud)


def test_things_hold_together_and_apart(described: tuple[PointCloud, NDArray[np.int64], TeacherFeatures]) -> None:
    _, group, features = described
    rows = np.sort(np.random.default_rng(0).permutation(len(group))[:1500])
    same = group[rows][:, None] == group[rows]
    said = cosines(features, rows) >= GeometricTeacher.SAME
    assert said[same].mean() > 0.9
    assert (~said)[~same].mean() > 0.97


@pytest.mark.parametrize("one, other", [(WALL, FLOOR), (BOX, FLOOR), (BALL, BOX)])
def test_neighbours_of_another_kind_are_told_apart(
    described: tuple[PointCloud, NDArray[np.int64], TeacherFeatures], one: int, other: int
) -> None:
    _, group, features = described
    rows = np.flatnonzero((group == one) | (group == other))[::7]
    cosine = cosines(features, rows)
    across = (group[rows][:, None] == one) & (group[rows] == other)
    assert (cosine[across] < GeometricTeacher.SAME).mean() > 0.97


def test_rows_are_few_and_lengths_are_one(described: tuple[PointCloud, NDArray[np.int64], TeacherFeatures]) -> None:
    cloud, _, features = described
    assert len(features) == len(cloud)
    assert len(features.rows) < len(cloud) / 100
    np.testing.assert_allclose(np.linalg.norm(features.rows.astype(np.float32), axis=1), 1, atol=0.01)
    assert set(features.index) == set(range(len(features.rows)))


def test_same_cloud_same_answer_whatever_the_order_of_its_rows(
    described: tuple[PointCloud, NDArray[np.int64], TeacherFeatures],
) -> None:
    cloud, _, features = described
    order = np.random.default_rng(1).permutation(len(cloud))
    shuffled = PointCloud(cloud.points_m[order], cloud.rgb[order], cloud.normals[order])
    again = GeometricTeacher().describe(shuffled)
    assert np.array_equal(again.dense(), features.dense()[order])


def test_moving_the_cloud_changes_nothing() -> None:
    cloud, _ = room()
    points = np.round(cloud.points_m * 1024) / 1024  # so that moving by whole metres rounds nothing
    here = GeometricTeacher().describe(PointCloud(points, cloud.rgb, cloud.normals))
    moved = PointCloud((points + np.float32([8, -16, 32])).astype(np.float32), cloud.rgb, cloud.normals)
    assert np.array_equal(GeometricTeacher().describe(moved).dense(), here.dense())


def test_normals_may_be_missing_or_nan(described: tuple[PointCloud, NDArray[np.int64], TeacherFeatures]) -> None:
    cloud, group, _ = described
    rows = np.sort(np.random.default_rng(2).permutation(len(group))[:1500])
    same = group[rows][:, None] == group[rows]
    for value in (0.0, np.nan):
        features = GeometricTeacher().describe(
            PointCloud(cloud.points_m, cloud.rgb, np.full_like(cloud.normals, value))
        )
        said = cosines(features, rows) >= GeometricTeacher.SAME
        assert said[same].mean() > 0.8
        assert (~said)[~same].mean() > 0.9


@pytest.mark.parametrize("count", [1, 2, 3, 60])
@pytest.mark.parametrize("extent_m", [0.0, 0.01, 1.0, 50.0])
def test_few_and_scattered_points(count: int, extent_m: float) -> None:
    rng = np.random.default_rng(count)
    points = (rng.uniform(size=(count, 3)) * extent_m).astype(np.float32)
    cloud = PointCloud(points, rng.integers(0, 256, (count, 3), dtype=np.uint8), np.zeros((count, 3), dtype=np.float32))
    features = GeometricTeacher().describe(cloud)
    assert len(features) == count
    assert np.isfinite(features.rows).all()


def test_one_plane_of_one_colour_is_one_thing() -> None:
    points, normals = sheet([0, 0, 0], [3, 0, 0], [0, 3, 0], [0, 0, 1])
    cloud = PointCloud(points.astype(np.float32), np.full((len(points), 3), 90, np.uint8), normals.astype(np.float32))
    features = GeometricTeacher().describe(cloud)
    assert cosines(features, np.arange(0, len(points), 31)).min() >= GeometricTeacher.SAME


def test_refuses_an_extent_that_cells_cannot_number() -> None:
    points, normals = sheet([0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1])
    points = np.concatenate([points, points + np.array([40_000.0, 0, 0])])
    cloud = PointCloud(
        points.astype(np.float32), np.full((len(points), 3), 90, np.uint8), np.tile(normals, (2, 1)).astype(np.float32)
    )
    with pytest.raises(DatasetError, match="points_m"):
        GeometricTeacher(cell_m=0.01).describe(cloud)


def test_refuses_what_is_no_cloud() -> None:
    empty = np.zeros((0, 3), dtype=np.float32)
    with pytest.raises(DatasetError, match="points_m"):
        GeometricTeacher().describe(PointCloud(empty, empty.astype(np.uint8), empty))
    points = np.ones((4, 3), dtype=np.float32)
    points[2, 1] = np.inf
    with pytest.raises(DatasetError, match="not finite"):
        GeometricTeacher().describe(PointCloud(points, np.zeros((4, 3), np.uint8), np.zeros((4, 3), np.float32)))
    with pytest.raises(DatasetError, match="cloud"):
        GeometricTeacher().describe(PointCloud(points[:2], np.zeros((4, 3), np.uint8), np.zeros((4, 3), np.float32)))


def test_every_option_changes_the_fingerprint() -> None:
    default = GeometricTeacher()
    options = {
        "cell_m": 0.05,
        "scales_m": (0.1, 0.2),
        "smoothing": 4,
        "colour_weight": 1.0,
        "normal_weight": 2.0,
        "patch_scale": 0.1,
        "patch_cells": 7,
        "surface": {"bend": 0.1},
        "surface_limit": 0.01,
        "thing": {"light": 0.9},
        "thing_limits": (0.1, 0.2),
        "structure": {"tint": 0.9},
        "level_weights": (0.1, 0.2, 0.3),
        "look_weight": 0.3,
        "width": 16,
    }
    assert set(options) == set(vars(default.settings))
    prints = [GeometricTeacher(**{name: value}).fingerprint for name, value in options.items()]
    assert len({default.fingerprint, *prints}) == len(options) + 1
    assert GeometricTeacher().fingerprint == default.fingerprint
    assert GeometricTeacher(scales_m=[0.1, 0.2]).fingerprint == GeometricTeacher(scales_m=(0.1, 0.2)).fingerprint


@pytest.mark.parametrize(
    "options",
    [
        {"cell_m": 0.0},
        {"scales_m": ()},
        {"scales_m": (0.2, 0.1)},
        {"thing_limits": (0.9, 0.1)},
        {"level_weights": (1.0,)},
        {"look_weight": 1.5},
        {"width": 0},
        {"cell_m": "four"},
        {"surface": 3},
    ],
)
def test_refuses_options_out_of_range(options: dict[str, object]) -> None:
    with pytest.raises(InvalidConfigError):
        GeometricTeacher(**options)


def test_a_sparse_scan_gets_larger_cells() -> None:
    points, normals = sheet([0, 0, 0], [3, 0, 0], [0, 3, 0], [0, 0, 1])
    rows = np.random.default_rng(0).permutation(len(points))[:1500]  # 8 cm apart on average
    grey = np.full((1500, 3), 90, np.uint8)
    cloud = PointCloud(points[rows].astype(np.float32), grey, normals[rows].astype(np.float32))
    assert GeometricTeacher().cells(cloud).size_m > 0.04
    together = cosines(GeometricTeacher().describe(cloud), np.arange(0, 1500, 7)) >= GeometricTeacher.SAME
    assert together.mean() > 0.9  # a few points have no other within reach
