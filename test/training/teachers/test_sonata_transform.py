"""Sonata's input: the golden cells, representatives, colours, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geopurify_core.errors import DatasetError
from training.teachers.base import PointCloud
from training.teachers.sonata import prepare

from ._sonata import golden, room


def test_golden_cells_and_their_points(shared_dir: Path) -> None:
    """Each raw point's cell is the golden one. Which of its points stands for a cell the reference drew by chance: the
    golden rows are ones of that cell's points, and so are ours."""
    _, numbers = golden(shared_dir)
    rgb = numbers["raw_color"].astype(np.uint8)
    cloud = PointCloud(numbers["raw_coord"], rgb, numbers["raw_normal"])
    ours = prepare(cloud)
    assert np.array_equal(ours.grid_coord[ours.inverse], numbers["grid_coord"][numbers["inverse"]])
    assert len(ours.grid_coord) == len(numbers["grid_coord"])
    centred = numbers["raw_coord"] - _shift(numbers["raw_coord"])
    everyone = np.concatenate([centred, rgb / np.float32(255), cloud.normals], axis=1)
    for inverse, feat in ((numbers["inverse"], numbers["feat_in"]), (ours.inverse, ours.feat)):
        close = (np.abs(everyone - feat[inverse]) < 1e-6).all(axis=1)
        assert set(inverse[close]) == set(range(len(feat)))  # each cell's row is that of one of its points
    assert np.array_equal(ours.coord, ours.feat[:, :3]) and ours.feat.dtype == np.float32


def _shift(points: np.ndarray) -> np.ndarray:
    low, high = points.min(axis=0), points.max(axis=0)
    return np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]], dtype=np.float32)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 200), st.integers(0, 10_000), st.sampled_from([0.01, 0.1, 1.0, 10.0]))
def test_cells_cover_all_points_in_order(count: int, seed: int, extent: float) -> None:
    rng = np.random.default_rng(seed)
    points = (rng.standard_normal((count, 3)) * extent).astype(np.float32)
    cloud = PointCloud(points, rng.integers(0, 256, (count, 3), dtype=np.uint8), np.zeros((count, 3), np.float32))
    for generator in (None, torch.Generator().manual_seed(seed)):
        given_ = prepare(cloud, generator=generator)
        assert given_.grid_coord.min(axis=0).tolist() == [0, 0, 0]
        assert (given_.inverse[given_.chosen] == np.arange(len(given_.chosen))).all()
        assert np.unique(given_.grid_coord, axis=0).tolist() == given_.grid_coord.tolist()  # distinct, x then y then z
        centred = points - _shift(points)
        apart = np.abs(centred - given_.coord[given_.inverse]).max()
        assert apart <= 0.02 + 1e-5 * extent


def test_the_point_nearest_to_the_middle_whatever_the_order() -> None:
    cloud = room(4000)
    rows = np.random.default_rng(1).permutation(len(cloud))
    one, other = prepare(cloud), prepare(PointCloud(cloud.points_m[rows], cloud.rgb[rows], cloud.normals[rows]))
    assert np.array_equal(one.feat, other.feat) and np.array_equal(one.inverse[rows], other.inverse)
    assert len(one.feat) < len(cloud)
    middle = (np.floor(one.coord / np.float32(0.02)) + 0.5) * 0.02
    distance = np.linalg.norm(one.coord - middle, axis=1)
    centred = cloud.points_m - _shift(cloud.points_m)
    assert (np.linalg.norm(centred - middle[one.inverse], axis=1) >= distance[one.inverse] - 1e-6).all()


def test_a_generator_draws_and_a_seed_repeats() -> None:
    cloud = room(4000)
    drawn = [prepare(cloud, generator=torch.Generator().manual_seed(seed)).chosen for seed in (1, 1, 2)]
    assert np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], drawn[2])


def test_colours_are_divided_once_or_twice() -> None:
    cloud = room(500)
    once, twice = prepare(cloud), prepare(cloud, double_division=True)
    assert np.allclose(once.feat[:, 3:6], cloud.rgb[once.chosen] / 255)
    assert np.allclose(twice.feat[:, 3:6], once.feat[:, 3:6] / 255) and twice.feat[:, 3:6].max() < 0.00393
    assert np.array_equal(once.feat[:, [0, 1, 2, 6, 7, 8]], twice.feat[:, [0, 1, 2, 6, 7, 8]])


def test_what_cannot_be_prepared_is_refused_by_name() -> None:
    cloud, empty = room(50), np.zeros((0, 3), np.float32)
    nan = np.full((50, 3), np.nan, np.float32)
    for bad, name in (
        (PointCloud(empty, empty.astype(np.uint8), empty), "points_m"),
        (replace(cloud, normals=nan), "normals"),
        (replace(cloud, points_m=nan), "points_m"),
        (replace(cloud, rgb=cloud.rgb[:7]), "rgb"),
        (replace(cloud, normals=cloud.normals[:, :2]), "normals"),
        (replace(cloud, points_m=cloud.points_m * np.float32(1e9)), "points_m"),
    ):
        with pytest.raises(DatasetError, match=name):
            prepare(bad)
