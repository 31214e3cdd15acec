"""Affinity against plain float64 loops, and both readings of α."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from geopurify_core.errors import PurificationError
from geopurify_core.purification.affinity import build as module
from geopurify_core.purification.affinity.build import Affinity, affinity_rows, build_affinity
from geopurify_core.purification.affinity.neighbors import nearest_neighbors

TOLERANCE = 4e-6  # of float32 cosines (1e-7) times 20, on weights of at most 1


@pytest.fixture(params=["compiled", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setattr(module, "HAVE_NUMBA", False)
    return str(request.param)


def some_map(seed: int, count: int = 400, width: int = 16) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    coords = rng.permutation(np.unique(rng.integers(0, [30, 30, 3], (count, 3)), axis=0)).astype(np.int32)
    return coords, rng.standard_normal((len(coords), width)).astype(np.float32)


def plain(embeddings: NDArray[np.floating], neighbors: NDArray[np.integer], sharpening: float) -> NDArray[np.float64]:
    """Equation 3, one pair at a time."""
    weights = np.zeros(neighbors.shape)
    for i, row in enumerate(neighbors):
        for j, other in enumerate(row):
            a, b = embeddings[i].astype(np.float64), embeddings[other].astype(np.float64)
            length = np.linalg.norm(a) * np.linalg.norm(b)
            weights[i, j] = np.exp(sharpening * (a @ b / length if length > 0 else 0.0))
        weights[i] /= weights[i].sum()
    return weights


@pytest.mark.parametrize("k", [1, 8, 96, 512])
@pytest.mark.parametrize("width", [1, 5, 128])
def test_equal_to_a_plain_loop(way: str, k: int, width: int) -> None:
    coords, embeddings = some_map(k, 120, width)
    affinity = build_affinity(coords, embeddings, k=k)
    np.testing.assert_array_equal(affinity.neighbors, nearest_neighbors(coords, k))
    assert affinity.weights.dtype == np.float32
    np.testing.assert_allclose(affinity.weights, plain(embeddings, affinity.neighbors, 20.0), atol=TOLERANCE)


@given(st.integers(0, 10**6), st.floats(0, 100), st.sampled_from([1e-30, 1e-6, 1.0, 1e18]))
def test_rows_sum_to_one_whatever_the_length(seed: int, sharpening: float, scale: float) -> None:
    coords, embeddings = some_map(seed, 60, 6)
    affinity = build_affinity(coords, embeddings * np.float32(scale), k=20, sharpening=sharpening)
    np.testing.assert_allclose(affinity.weights.sum(axis=1), 1.0, atol=2e-6)
    assert affinity.weights.min() >= 0
    same = build_affinity(coords, embeddings, k=20, sharpening=sharpening)
    np.testing.assert_allclose(affinity.weights, same.weights, atol=2e-7 * max(1.0, sharpening) + 1e-6)


def test_both_readings_of_alpha() -> None:
    """20 listens to those that look alike; 0.05, as the paper writes it, to everybody alike."""
    coords, embeddings = some_map(1, 900)
    embeddings[coords[:, 0] >= 15] += 8.0  # two kinds of voxels
    kind = coords[:, 0] >= 15
    code, literal = (build_affinity(coords, embeddings, sharpening=alpha) for alpha in (20.0, 0.05))
    border = (kind[code.neighbors] != kind[:, None]).mean(axis=1)
    mixed = (border > 0.3) & (border < 0.7)
    foreign = kind[code.neighbors] != kind[:, None]
    assert mixed.sum() > 20
    listens_across = [(a.weights * foreign)[mixed].sum(axis=1) for a in (code, literal)]
    assert np.median(listens_across[0]) < 0.01  # sharpened: hardly any weight crosses the border
    np.testing.assert_allclose(listens_across[1], border[mixed], atol=0.05)  # literal: as much as there are neighbours
    uniform = 1 / code.weights.shape[1]
    assert np.abs(literal.weights / uniform - 1).max() < np.exp(0.1) - 1  # e^±0.05 against a mean within e^±0.05
    assert code.weights.max() > 5 * uniform


def test_a_row_without_direction_has_cosine_zero(way: str) -> None:
    coords, embeddings = some_map(2, 100)
    embeddings[7] = 0
    affinity = build_affinity(coords, embeddings, k=10)
    np.testing.assert_allclose(affinity.weights[7], 0.1, atol=1e-7)
    np.testing.assert_allclose(affinity.weights, plain(embeddings, affinity.neighbors, 20.0), atol=TOLERANCE)


def test_some_rows_are_those_of_all_to_the_last_bit() -> None:
    coords, embeddings = some_map(3, 2000, 128)
    affinity = build_affinity(coords, embeddings, k=50)
    rows = np.random.default_rng(3).choice(len(coords), 300, replace=False)
    again = affinity_rows(embeddings, affinity.neighbors[rows], rows)
    np.testing.assert_array_equal(again, affinity.weights[rows])


def test_rows_in_another_order_and_another_place() -> None:
    coords, embeddings = some_map(4)
    shuffle = np.random.default_rng(4).permutation(len(coords))
    first = build_affinity(coords, embeddings, k=20)
    second = build_affinity(coords[shuffle] + [700, -5, 90], embeddings[shuffle], k=20)
    np.testing.assert_array_equal(first.weights[shuffle], second.weights)


def test_kinds_and_precisions() -> None:
    coords, embeddings = some_map(5)
    exact = build_affinity(coords, embeddings, k=9)
    tensor = build_affinity(torch.from_numpy(coords), torch.from_numpy(embeddings), k=9)
    assert isinstance(tensor.weights, torch.Tensor) and isinstance(tensor.neighbors, torch.Tensor)
    np.testing.assert_array_equal(tensor.weights.numpy(), exact.weights)
    np.testing.assert_allclose(
        build_affinity(coords, embeddings.astype(np.float64), k=9).weights, exact.weights, atol=2e-6
    )
    np.testing.assert_allclose(
        build_affinity(coords, embeddings.astype(np.float16), k=9).weights, exact.weights, atol=2e-2
    )
    with torch.no_grad():
        bfloat = build_affinity(coords, torch.from_numpy(embeddings).bfloat16(), k=9)
    np.testing.assert_allclose(bfloat.weights.numpy(), exact.weights, atol=0.1)


def test_given_neighbours_are_taken_as_they_are() -> None:
    coords, embeddings = some_map(6)
    mine = np.random.default_rng(6).integers(0, len(coords), (len(coords), 5))
    affinity = build_affinity(coords, embeddings, k=96, neighbors=mine)
    np.testing.assert_array_equal(affinity.neighbors, mine)
    np.testing.assert_allclose(affinity.weights, plain(embeddings, mine, 20.0), atol=TOLERANCE)


def test_a_single_voxel_and_none() -> None:
    for count in (0, 1):
        affinity = build_affinity(np.zeros((count, 3), dtype=int), np.ones((count, 4), dtype=np.float32))
        assert affinity.weights.shape == affinity.neighbors.shape == (count, 0)


def test_the_record_cannot_be_changed() -> None:
    affinity = build_affinity(*some_map(7), k=3)
    with pytest.raises(AttributeError):
        affinity.weights = None  # type: ignore[misc]
    assert isinstance(affinity, Affinity) and affinity.nbytes == len(affinity) * (3 * 8 + 4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"embeddings": np.full((3, 4), np.nan, np.float32)}, "embeddings"),
        ({"embeddings": np.full((3, 4), np.inf, np.float32)}, "embeddings"),
        ({"embeddings": np.ones((2, 4), np.float32)}, "embeddings"),
        ({"embeddings": np.ones(3, np.float32)}, "embeddings"),
        ({"embeddings": np.ones((3, 4), int)}, "embeddings"),
        ({"sharpening": float("nan")}, "sharpening"),
        ({"sharpening": -1.0}, "sharpening"),
        ({"sharpening": float("inf")}, "sharpening"),
        ({"sharpening": "steep"}, "sharpening"),
        ({"sharpening": None}, "sharpening"),
        ({"embeddings": [[1.0] * 4] * 3}, "embeddings"),
        ({"k": 0}, "k"),
        ({"coords": np.zeros((3, 3), int)}, "coords"),
        ({"neighbors": np.array([[1], [2], [3]])}, "neighbors"),
        ({"neighbors": np.array([[1], [2], [-1]])}, "neighbors"),
        ({"neighbors": np.array([[1], [2]])}, "neighbors"),
        ({"neighbors": np.ones((3, 1))}, "neighbors"),
    ],
)
def test_bad_input_is_named(change: dict[str, object], said: str) -> None:
    good: dict[str, object] = {"coords": np.eye(3, dtype=int), "embeddings": np.ones((3, 4), np.float32)}
    with pytest.raises(PurificationError) as error:
        build_affinity(**(good | change))  # type: ignore[arg-type]
    assert error.value.field == said
