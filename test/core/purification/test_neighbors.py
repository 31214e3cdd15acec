"""Nearest voxels against a plain sort of all pairs, on surfaces, strays and corners of the coordinate range."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from geopurify_core.errors import PurificationError
from geopurify_core.mapping.keys import COORD_LIMIT, pack_keys
from geopurify_core.purification.affinity import columns, neighbors
from geopurify_core.purification.affinity.neighbors import nearest_neighbors, nearest_neighbors_of, neighbor_reach
from geopurify_core.purification.pooling.visiting import visit_order


def surfaces(seed: int, count: int = 1500) -> NDArray[np.int32]:
    """A floor and two walls, thickened by noise, rows in no order."""
    rng = np.random.default_rng(seed)
    flat = rng.integers(0, 40, (count, 3))
    flat[np.arange(count), rng.integers(0, 3, count)] = rng.integers(0, 2, count)
    return rng.permutation(np.unique(flat - 20, axis=0)).astype(np.int32)


def plain(coords: NDArray[np.integer], k: int) -> NDArray[np.int64]:
    """Every voxel against every other: by distance, then by key."""
    points, keys = coords.astype(np.int64), pack_keys(coords)
    rows = []
    for i in range(len(points)):
        square = ((points - points[i]) ** 2).sum(axis=1)
        order = np.lexsort((keys, square))
        rows.append(order[order != i][:k])
    return np.array(rows).reshape(len(points), min(k, max(len(points) - 1, 0)))


@pytest.fixture(params=["stencil", "tree"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the compiled stencil, and by k-d tree alone as where numba is absent."""
    if request.param == "tree":
        monkeypatch.setattr(neighbors, "HAVE_NUMBA", False)
    return str(request.param)


@pytest.mark.parametrize("k", [1, 2, 7, 96, 512])
def test_equal_to_sorting_all_pairs(way: str, k: int) -> None:
    coords = surfaces(k)
    found = nearest_neighbors(coords, k)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, plain(coords, k))


def test_a_full_block_is_all_ties(way: str) -> None:
    coords = np.stack(np.meshgrid(*[np.arange(9)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    np.testing.assert_array_equal(nearest_neighbors(coords, 96), plain(coords, 96))


@given(st.lists(st.tuples(*[st.integers(-6, 6)] * 3), min_size=1, max_size=40, unique=True), st.integers(1, 50))
def test_small_sets_and_fewer_voxels_than_neighbours(points: list[tuple[int, int, int]], k: int) -> None:
    coords = np.array(points)
    np.testing.assert_array_equal(nearest_neighbors(coords, k), plain(coords, k))


def test_strays_far_away_and_the_ends_of_the_range(way: str) -> None:
    rng = np.random.default_rng(0)
    far = rng.integers(-COORD_LIMIT, COORD_LIMIT, (60, 3))
    corners = np.array([[-COORD_LIMIT] * 3, [COORD_LIMIT - 1] * 3, [COORD_LIMIT - 1, -COORD_LIMIT, 0]])
    line = np.stack([np.arange(200), np.zeros(200), np.zeros(200)], axis=1).astype(np.int64)
    coords = np.concatenate([surfaces(3, 400), far, corners, line + 5000])
    np.testing.assert_array_equal(nearest_neighbors(coords, 96), plain(coords, 96))


def test_scattered_voxels_do_not_ask_for_a_huge_grid() -> None:
    coords = np.random.default_rng(1).integers(-COORD_LIMIT, COORD_LIMIT, (700, 3))
    assert columns.columns_for(coords[np.argsort(pack_keys(coords))].astype(np.int64), 96) is None
    np.testing.assert_array_equal(nearest_neighbors(coords, 20), plain(coords, 20))


def test_rows_in_another_order_give_the_same_neighbours(way: str) -> None:
    coords, shuffle = surfaces(5), np.random.default_rng(5).permutation(len(surfaces(5)))
    first, second = nearest_neighbors(coords, 30), nearest_neighbors(coords[shuffle], 30)
    np.testing.assert_array_equal(coords[first][shuffle], coords[shuffle][second])


def test_moving_the_map_changes_nothing(way: str) -> None:
    coords = surfaces(6)
    np.testing.assert_array_equal(
        nearest_neighbors(coords, 30), nearest_neighbors(coords + np.array([4000, -90_000, COORD_LIMIT - 100]), 30)
    )


def test_some_rows_are_those_of_all(way: str) -> None:
    coords = surfaces(7)
    rows = np.random.default_rng(7).choice(len(coords), 100, replace=False)
    np.testing.assert_array_equal(nearest_neighbors_of(coords, rows, 50), nearest_neighbors(coords, 50)[rows])


def test_reach_is_the_distance_to_the_last_neighbour() -> None:
    coords, rows = surfaces(8), np.array([3, 1, 77])
    found = nearest_neighbors(coords, 12)
    expected = ((coords[found] - coords[:, None]) ** 2).sum(axis=2).max(axis=1)
    np.testing.assert_array_equal(neighbor_reach(coords, found), expected)
    np.testing.assert_array_equal(neighbor_reach(coords, found[rows], rows), expected[rows])
    assert neighbor_reach(coords[:1], np.zeros((1, 0), dtype=np.int32)).tolist() == [-1]


def test_golden_neighbours_up_to_ties(shared_dir) -> None:  # type: ignore[no-untyped-def]
    golden = np.load(shared_dir / "golden/geopurify/pooling.npz")
    coords, theirs = golden["voxel_coords"], golden["neighbor_indices"]
    ours = nearest_neighbors(coords, 96)
    squares = [((coords[found] - coords[:, None]) ** 2).sum(axis=2) for found in (ours, theirs)]
    np.testing.assert_array_equal(*squares)
    for mine, other, square in zip(ours, theirs, squares[0], strict=True):  # nearer than the last: the same voxels
        sure = square < square[-1]
        assert set(mine[sure]) == set(other[sure])


def test_torch_in_torch_out() -> None:
    coords = surfaces(9, 300)
    found = nearest_neighbors(torch.from_numpy(coords), 9)
    assert isinstance(found, torch.Tensor) and found.dtype == torch.int32
    np.testing.assert_array_equal(found.numpy(), nearest_neighbors(coords, 9))


@pytest.mark.parametrize("count", [0, 1])
def test_nobody_to_listen_to(count: int) -> None:
    assert nearest_neighbors(np.zeros((count, 3), dtype=np.int32), 96).shape == (count, 0)


@pytest.mark.parametrize(
    ("coords", "k", "said"),
    [
        (np.zeros((2, 3), dtype=int), 5, "coords"),
        (np.array([[0, 0, COORD_LIMIT], [0, 0, 0]]), 5, "coords"),
        (np.array([[0, 0, -COORD_LIMIT - 1], [0, 0, 0]]), 5, "coords"),
        (np.zeros((2, 3)), 5, "coords"),
        (np.zeros((2, 2), dtype=int), 5, "coords"),
        (np.eye(3, dtype=int), 0, "k"),
        (np.eye(3, dtype=int), -1, "k"),
        (np.eye(3, dtype=int), 2.0, "k"),
        (np.eye(3, dtype=int), True, "k"),
        (np.eye(3, dtype=int), 10**6, "k"),
    ],
)
def test_bad_input_is_named(coords: NDArray[np.generic], k: int, said: str) -> None:
    with pytest.raises(PurificationError) as error:
        nearest_neighbors(coords, k)
    assert error.value.field == said


@pytest.mark.parametrize("rows", [[-1], [3], [0.5]])
def test_bad_rows_are_named(rows: list[float]) -> None:
    with pytest.raises(PurificationError, match="rows"):
        nearest_neighbors_of(np.eye(3, dtype=int), np.array(rows), 2)


def test_visiting_order_is_kept_when_voxels_come_and_go() -> None:
    coords = surfaces(10)
    order, kept = visit_order(coords), np.random.default_rng(0).random(len(surfaces(10))) < 0.5
    np.testing.assert_array_equal(coords[order][kept[order]], coords[kept][visit_order(coords[kept])])
    steps = np.abs(np.diff(coords[order].astype(int), axis=0)).sum(axis=1)
    assert np.median(steps) <= 4  # those that follow each other are near each other; at random it is about 25
