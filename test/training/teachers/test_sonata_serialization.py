"""Curves: bits by hand, Hilbert's property, orders and permutations, limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geopurify_core.errors import DatasetError, InvalidConfigError
from training.teachers.sonata.serialization import MAX_DEPTH, ORDERS, depth_of, encode, serialize


def z_by_hand(x: int, y: int, z: int) -> int:
    return sum(
        ((x >> i & 1) << (3 * i + 2)) | ((y >> i & 1) << (3 * i + 1)) | ((z >> i & 1) << (3 * i)) for i in range(16)
    )


def cube(depth: int) -> torch.Tensor:
    axis = torch.arange(2**depth)
    return torch.cartesian_prod(axis, axis, axis)


@given(st.lists(st.tuples(*[st.integers(0, 2**16 - 2)] * 3), min_size=1, max_size=40))
def test_z_interleaves_bits_x_highest(points: list[tuple[int, int, int]]) -> None:
    grid = torch.tensor(points)
    assert encode(grid, MAX_DEPTH, "z").tolist() == [z_by_hand(*point) for point in points]
    assert encode(grid, MAX_DEPTH, "z-trans").tolist() == [z_by_hand(y, x, z) for x, y, z in points]


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_hilbert_visits_every_cell_once_in_unit_steps(depth: int) -> None:
    grid = cube(depth)
    for order in ("hilbert", "hilbert-trans"):
        code = encode(grid, depth, order)
        assert torch.equal(code.sort().values, torch.arange(len(grid)))
        steps = grid[code.argsort()].diff(dim=0).abs().sum(dim=1)
        assert bool((steps == 1).all())


@given(st.integers(1, 16), st.integers(0, 2**31))
def test_hilbert_refines_its_coarser_self(depth: int, seed: int) -> None:
    """Codes of deep grids, never enumerated: the three last bits choose among the eight cells of one coarse cell."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 2 ** (depth - 1), (1, 3)) * 2
    grid = torch.from_numpy(corner) + cube(1)
    code = encode(grid, depth, "hilbert")
    assert len(set((code >> 3).tolist())) == 1 and sorted((code & 7).tolist()) == list(range(8))
    steps = grid[code.argsort()].diff(dim=0).abs().sum(dim=1)
    assert bool((steps == 1).all())


def test_trans_is_the_curve_with_x_and_y_exchanged() -> None:
    grid = cube(3)
    for order in ("z", "hilbert"):
        assert torch.equal(encode(grid, 3, f"{order}-trans"), encode(grid[:, [1, 0, 2]], 3, order))


@given(st.integers(1, 60), st.permutations(range(4)), st.integers(0, 1000))
def test_a_permutation_reorders_rows_and_nothing_else(count: int, rows: list[int], seed: int) -> None:
    grid = torch.from_numpy(np.random.default_rng(seed).permutation(512)[:count])
    grid = torch.stack([grid >> 6, (grid >> 3) & 7, grid & 7], dim=1)
    plain, shuffled = serialize(grid), serialize(grid, ORDERS, torch.tensor(rows))
    for k, row in enumerate(rows):
        for part in ("code", "order", "inverse"):
            assert torch.equal(getattr(shuffled, part)[k], getattr(plain, part)[row])
        assert torch.equal(shuffled.inverse[k][shuffled.order[k]], torch.arange(count))
        assert bool((plain.code[row][plain.order[row]].diff() > 0).all())
        assert torch.equal(plain.code[row], encode(grid, plain.depth, ORDERS[row]))


def test_depth_counts_the_bits_of_the_greatest_coordinate_plus_one() -> None:
    for greatest, depth in ((0, 1), (1, 2), (2, 2), (3, 3), (6, 3), (7, 4), (499, 9), (511, 10), (2**16 - 2, 16)):
        assert depth_of(torch.tensor([[0, greatest, 0]])) == depth


@pytest.mark.parametrize("value", [-1, 2**16 - 1, 2**40])
def test_out_of_reach_is_refused(value: int) -> None:
    with pytest.raises(DatasetError, match="grid coordinates"):
        serialize(torch.tensor([[0, 0, value], [0, 0, 0]]))


def test_unknown_curve_is_refused() -> None:
    with pytest.raises(InvalidConfigError, match="peano"):
        serialize(torch.zeros(1, 3, dtype=torch.long), ("z", "peano"))
