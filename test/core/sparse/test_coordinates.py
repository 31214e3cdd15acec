"""Coordinates are checked, sorted once, and their kernel maps are right and shared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from geopurify_core.errors import SparseError
from geopurify_core.mapping.keys import COORD_LIMIT, pack_keys
from geopurify_core.sparse import CoordinateMap, SparseTensor, SubmanifoldConv3d, voxel_keys
from geopurify_core.sparse.kernel_map import kernel_offsets, unpack_keys

Blob = Callable[..., Tensor]


def naive_pairs(coords: Tensor, kernel_size: int, stride: int = 1) -> list[set[tuple[int, int]]]:
    """For each offset, x fastest, the pairs (input row, output row) by looking every voxel up."""
    row = {tuple(c): i for i, c in enumerate(coords.tolist())}
    reach = range(-(kernel_size // 2), kernel_size // 2 + 1)
    offsets = [(x * stride, y * stride, z * stride) for z in reach for y in reach for x in reach]
    result = []
    for offset in offsets:
        moved = {o: tuple(np.add(c, offset).tolist()) for c, o in row.items()}
        result.append({(row[c], o) for o, c in moved.items() if c in row})
    return result


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("in_key_order", [True, False])
def test_pairs_are_those_of_a_naive_lookup(blob: Blob, both_ways: str, kernel_size: int, in_key_order: bool) -> None:
    coords = blob(1)
    if in_key_order:
        coords = coords[torch.argsort(voxel_keys(coords))]
    coordinates = CoordinateMap(coords)
    assert (coordinates.order is None) == in_key_order
    kernel_map = coordinates.kernel_map(kernel_size)
    for k, expected in enumerate(naive_pairs(coords, kernel_size)):
        in_rows, out_rows = kernel_map.pairs[k]
        if k == kernel_map.centre:
            assert len(in_rows) == 0
            continue
        assert set(zip(in_rows.tolist(), out_rows.tolist(), strict=True)) == expected
        assert len(in_rows) == len(expected)
        assert (out_rows[1:] > out_rows[:-1]).all()
    assert kernel_map.num_pairs == sum(map(len, naive_pairs(coords, kernel_size)))


@given(st.sets(st.tuples(*[st.integers(-3, 3)] * 3), min_size=1, max_size=60), st.randoms(use_true_random=False))
def test_pairs_of_any_set_in_any_order(cells: set[tuple[int, int, int]], random: Any) -> None:
    rows = sorted(cells)
    random.shuffle(rows)
    coords = torch.tensor(rows, dtype=torch.int64)
    kernel_map = CoordinateMap(coords).kernel_map(3)
    for k, expected in enumerate(naive_pairs(coords, 3)):
        if k != kernel_map.centre:
            assert set(zip(*(side.tolist() for side in kernel_map.pairs[k]), strict=True)) == expected


def test_voxels_at_opposite_rims_are_no_neighbours(both_ways: str) -> None:
    low, high = -COORD_LIMIT, COORD_LIMIT - 1
    coords = torch.tensor([[0, 0, high], [0, 1, low], [0, high, 5], [1, low, 5], [low, 0, 0], [high, 0, 0]])
    kernel_map = CoordinateMap(coords).kernel_map(3)
    assert kernel_map.num_pairs == len(coords), "a key wrapped into the next row of voxels"
    touching = CoordinateMap(torch.tensor([[0, 0, high], [0, 0, high - 1], [low, low, low]])).kernel_map(3)
    assert touching.num_pairs == 5


def test_keys_are_the_map_s_keys() -> None:
    coords = torch.randint(-COORD_LIMIT, COORD_LIMIT, (200, 3), generator=torch.Generator().manual_seed(0))
    assert voxel_keys(coords).tolist() == pack_keys(coords.numpy()).tolist()
    assert torch.equal(unpack_keys(voxel_keys(coords)), coords)


def test_offsets_run_x_fastest() -> None:
    offsets = kernel_offsets(3).tolist()
    assert offsets[:4] == [[-1, -1, -1], [0, -1, -1], [1, -1, -1], [-1, 0, -1]]
    assert kernel_offsets(2).tolist()[:3] == [[0, 0, 0], [1, 0, 0], [0, 1, 0]]


def test_maps_are_built_once_and_shared(blob: Blob) -> None:
    coordinates = CoordinateMap(blob(2))
    x = SparseTensor(torch.ones(len(coordinates), 2), coordinates)
    first, second = SubmanifoldConv3d(2, 3), SubmanifoldConv3d(3, 2)
    y = second(first(x))
    assert y.coordinates is coordinates
    assert coordinates.kernel_map(3) is coordinates.kernel_map(3)
    assert coordinates.coarser() is coordinates.coarser()
    assert coordinates.coarser().finer is coordinates
    assert coordinates.pool_map() is coordinates.pool_map()
    assert len(coordinates._maps) == 1


def test_coarser_cells_follow_floor_division(blob: Blob) -> None:
    coordinates = CoordinateMap(blob(3))
    coarse = coordinates.coarser()
    expected = sorted({tuple((np.floor(np.array(c) / 2) * 2).astype(int)) for c in coordinates.coords.tolist()})
    assert [tuple(c) for c in coarse.coords.tolist()] == expected
    assert coarse.stride == 2
    assert coarse.coarser().stride == 4


@pytest.mark.parametrize(
    ("coords", "named"),
    [
        (np.zeros((4, 2), np.int32), "shape"),
        (np.zeros(3, np.int32), "shape"),
        (np.zeros((1, 3), np.float32), "dtype"),
        (np.zeros((1, 3), bool), "dtype"),
        (np.array([["a", "b", "c"]]), "dtype"),
        (torch.zeros(1, 3), "dtype"),
        (torch.zeros(1, 3, dtype=torch.bool), "dtype"),
        (np.array([[0, 0, COORD_LIMIT]]), "coords"),
        (np.array([[-COORD_LIMIT - 1, 0, 0]]), "coords"),
        (np.array([[2**40, 0, 0]]), "coords"),
        (np.array([[1, 2, 3], [4, 5, 6], [1, 2, 3]]), "Rows 0 and 2"),
        (np.array([[1, 2, 3], [1, 2, 3]]), "Rows 0 and 1"),
    ],
)
def test_bad_coordinates_are_named(coords: Any, named: str) -> None:
    with pytest.raises(SparseError, match=named):
        CoordinateMap(coords)


def test_bad_strides_and_kernel_sizes_are_named(blob: Blob) -> None:
    with pytest.raises(SparseError, match="multiple of the stride"):
        CoordinateMap(torch.tensor([[0, 1, 0]]), stride=2)
    with pytest.raises(SparseError, match="stride"):
        CoordinateMap(torch.tensor([[0, 1, 0]]), stride=0)
    for size in (0, 2, -1):
        with pytest.raises(SparseError, match="odd"):
            CoordinateMap(blob()).kernel_map(size)


def test_the_outermost_coordinates_are_accepted() -> None:
    rim = torch.tensor([[-COORD_LIMIT] * 3, [COORD_LIMIT - 1] * 3])
    assert len(CoordinateMap(rim).coarser()) == 2


@pytest.mark.parametrize("num", [0, 1])
def test_nothing_and_a_single_voxel(both_ways: str, num: int) -> None:
    coordinates = CoordinateMap(torch.zeros(num, 3, dtype=torch.int64))
    assert coordinates.kernel_map(3).num_pairs == num
    assert len(coordinates.coarser()) == num


def test_the_caller_s_coordinates_are_copied_and_may_be_read_only() -> None:
    given = np.array([[0, 0, 0], [0, 0, 1]], dtype=np.int32)
    coordinates, from_tensor = CoordinateMap(given), CoordinateMap(tensor := torch.from_numpy(given.copy()))
    given[:], tensor[:] = 7, 7
    assert coordinates.coords.tolist() == from_tensor.coords.tolist() == [[0, 0, 0], [0, 0, 1]]
    given = np.array([[0, 0, 0]], dtype=np.uint16)
    given.setflags(write=False)
    assert CoordinateMap(given).coords.dtype == torch.int32
