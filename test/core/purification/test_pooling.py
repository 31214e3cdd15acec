"""Pooling against plain float64 loops, the published result, and what a mean of means must obey."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from geopurify_core.errors import NotAvailableError, PurificationError
from geopurify_core.purification.affinity.build import Affinity, build_affinity
from geopurify_core.purification.pooling.packed import PackedAffinity
from geopurify_core.purification.pooling.pool import pool, pool_and_length, pool_rows, pooled_length

ENGINES = ("numba", "torch")
TOLERANCE = 2e-6  # of float32 means of numbers of size one, after up to 19 of them


def some_map(seed: int, count: int = 400, k: int = 24, span: int = 30) -> tuple[NDArray[np.int32], Affinity]:
    rng = np.random.default_rng(seed)
    coords = rng.permutation(np.unique(rng.integers(0, [span, span, 3], (count, 3)), axis=0)).astype(np.int32)
    return coords, build_affinity(coords, rng.standard_normal((len(coords), 8)).astype(np.float32), k=k)


def some_features(seed: int, rows: int, channels: int = 20, kind: Any = np.float32) -> NDArray[Any]:
    return np.random.default_rng(seed).standard_normal((rows, channels)).astype(kind)


def plain(features: NDArray[np.floating], affinity: Affinity, steps: int) -> NDArray[np.float64]:
    """Equation 4, one voxel at a time."""
    current = features.astype(np.float64)
    for _ in range(steps):
        following = np.zeros_like(current)
        for i in range(len(current)):
            for weight, other in zip(affinity.weights[i], affinity.neighbors[i], strict=True):
                following[i] += float(weight) * current[other]
        current = following
    return current


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("count", "k", "channels"), [(2, 96, 3), (3, 1, 1), (5, 96, 16), (60, 96, 17), (97, 96, 33), (230, 24, 70)]
)
def test_equal_to_a_plain_loop(engine: str, count: int, k: int, channels: int) -> None:
    """Fewer voxels than neighbours, incomplete groups of voxels and of channels, more than one block of them."""
    coords, affinity = some_map(count, count, k)
    features = some_features(count, len(coords), channels)
    for steps in (0, 1, 3):
        pooled = pool(features, affinity, steps, engine=engine)
        assert pooled.dtype == np.float32 and pooled is not features
        np.testing.assert_allclose(pooled, plain(features, affinity, steps), atol=TOLERANCE)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_published_result(engine: str, shared_dir) -> None:  # type: ignore[no-untyped-def]
    """The released code applies A nineteen times; the paper's eighteen is another result."""
    golden = np.load(shared_dir / "golden/geopurify/pooling.npz")
    affinity = build_affinity(golden["voxel_coords"], golden["emb"], neighbors=golden["neighbor_indices"])
    points = {
        steps: pool(golden["vox_feat"], affinity, steps, engine=engine)[golden["inverse"]][:, :512]
        for steps in (18, 19)
    }
    assert np.abs(points[19] - golden["refined_points"]).max() <= 1e-6
    assert 1e-3 < np.abs(points[18] - golden["refined_points"]).max() < 5e-3


def test_the_published_result_with_our_own_neighbours(shared_dir) -> None:  # type: ignore[no-untyped-def]
    """Ties at the K-th distance fall to other voxels than in faiss: close, and no closer than that."""
    golden = np.load(shared_dir / "golden/geopurify/pooling.npz")
    affinity = build_affinity(golden["voxel_coords"], golden["emb"])
    points = pool(golden["vox_feat"], affinity, 19)[golden["inverse"]][:, :512]
    assert np.abs(points - golden["refined_points"]).mean() < 0.01 * np.abs(golden["refined_points"]).mean() + 1e-3


@given(st.integers(0, 10**6), st.integers(2, 150), st.integers(1, 40), st.integers(1, 19))
def test_means_stay_within_what_they_are_means_of(seed: int, count: int, k: int, steps: int) -> None:
    coords, affinity = some_map(seed, count, k)
    features = some_features(seed, len(coords), 5)
    pooled = pool(features, affinity, steps)
    slack = 1e-5 * np.abs(features).max()
    assert (pooled <= features.max(axis=0) + slack).all() and (pooled >= features.min(axis=0) - slack).all()
    np.testing.assert_allclose(pool(np.ones_like(features), affinity, steps), 1.0, atol=1e-5)


@given(st.integers(0, 10**6), st.floats(-3, 3), st.floats(-3, 3))
def test_linear(seed: int, a: float, b: float) -> None:
    coords, affinity = some_map(seed, 120)
    f, g = some_features(seed, len(coords), 5), some_features(seed + 1, len(coords), 5)
    together = pool((a * f + b * g).astype(np.float32), affinity, 4)
    np.testing.assert_allclose(together, a * pool(f, affinity, 4) + b * pool(g, affinity, 4), atol=2e-5)


def test_rows_in_another_order_and_another_place() -> None:
    """To the last bit: the order of a sum follows the coordinates, not the rows."""
    rng = np.random.default_rng(0)
    coords, _ = some_map(0, 900)
    embeddings, features = some_features(1, len(coords), 8), some_features(2, len(coords))
    shuffle = rng.permutation(len(coords))
    first = build_affinity(coords, embeddings, k=24)
    second = build_affinity(coords[shuffle], embeddings[shuffle], k=24)
    np.testing.assert_array_equal(pool(features, first, 5)[shuffle], pool(features[shuffle], second, 5))
    moved = build_affinity(coords + np.array([300, 41, -70]), embeddings, k=24)
    np.testing.assert_allclose(pool(features, moved, 5), pool(features, first, 5), atol=TOLERANCE)


def test_without_a_visiting_order_it_is_only_slower() -> None:
    coords, affinity = some_map(3, 900)
    features = some_features(3, len(coords))
    bare = Affinity(affinity.neighbors, affinity.weights)
    np.testing.assert_allclose(pool(features, bare, 5), pool(features, affinity, 5), atol=TOLERANCE)


def test_some_rows_are_those_of_all_to_the_last_bit() -> None:
    coords, affinity = some_map(4, 3000, 40, span=70)
    packed = PackedAffinity(affinity)
    rng = np.random.default_rng(4)
    for channels in (1, 20, 64, 130):
        features = some_features(4, len(coords), channels)
        whole = pool(features, affinity, 1)
        for count in (0, 1, 5, 777):
            rows = rng.choice(len(coords), count, replace=False)
            np.testing.assert_array_equal(pool_rows(features, packed, rows), whole[rows])
            tolerant = pool_rows(features, affinity, rows, engine="torch")
            np.testing.assert_allclose(tolerant, whole[rows], atol=TOLERANCE)


@pytest.mark.parametrize("engine", ENGINES)
def test_half_precision_is_rounded_once(engine: str) -> None:
    coords, affinity = some_map(5, 500)
    features = some_features(5, len(coords), 70, np.float16)
    pooled = pool(features, affinity, 18, engine=engine)
    assert pooled.dtype == np.float16
    exact = pool(features.astype(np.float32), affinity, 18, engine=engine)
    np.testing.assert_array_equal(pooled, exact.astype(np.float16))
    extreme = np.full((len(coords), 2), 65504.0, dtype=np.float16)
    np.testing.assert_array_equal(pool(extreme, affinity, 18, engine=engine), extreme)


def test_kinds_and_precisions() -> None:
    coords, affinity = some_map(6, 200)
    features = some_features(6, len(coords), 7, np.float64)
    exact = pool(features, affinity, 10)
    assert exact.dtype == np.float64
    np.testing.assert_allclose(exact, plain(features, affinity, 10), atol=1e-12)
    on_torch = Affinity(*(torch.from_numpy(np.asarray(part)) for part in (affinity.neighbors, affinity.weights)))
    for dtype, tolerance in (
        (torch.float64, 1e-12),
        (torch.float32, 3e-6),
        (torch.float16, 2e-3),
        (torch.bfloat16, 2e-2),
    ):
        for given_affinity in (affinity, on_torch):
            pooled = pool(torch.from_numpy(features).to(dtype), given_affinity, 10)
            assert pooled.dtype == dtype
            np.testing.assert_allclose(pooled.double().numpy(), exact, atol=tolerance)
    view = np.asfortranarray(features.astype(np.float32))[:, ::2]
    np.testing.assert_allclose(pool(view, affinity, 10), exact[:, ::2], atol=3e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_lengths_are_those_of_the_pooled_features(engine: str) -> None:
    coords, affinity = some_map(7, 300)
    features = some_features(7, len(coords), 150)
    pooled, length = pool_and_length(features, affinity, 6, engine=engine)
    np.testing.assert_array_equal(pooled, pool(features, affinity, 6, engine=engine))
    exact = np.linalg.norm(pooled.astype(np.float64), axis=1)
    assert length.dtype == np.float32
    np.testing.assert_allclose(length, exact, rtol=1e-6)
    np.testing.assert_array_equal(pooled_length(features, affinity, 6, engine=engine), length)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_single_voxel_keeps_its_feature(engine: str) -> None:
    for count in (0, 1):
        affinity = build_affinity(np.zeros((count, 3), dtype=int), np.ones((count, 2), dtype=np.float32))
        features = some_features(8, count, 5)
        pooled, length = pool_and_length(features, affinity, 18, engine=engine)
        np.testing.assert_array_equal(pooled, features)
        np.testing.assert_allclose(length, np.linalg.norm(features, axis=1), rtol=1e-6)


def test_neighbours_given_twice_count_twice() -> None:
    affinity = Affinity(np.array([[1, 1], [0, 1]]), np.array([[0.5, 0.5], [0.25, 0.75]], dtype=np.float32))
    features = np.array([[1.0], [5.0]], dtype=np.float32)
    for engine in ENGINES:
        np.testing.assert_allclose(pool(features, affinity, 1, engine=engine), [[5.0], [4.0]])


def test_progress_rises_to_one_and_a_cancelled_pooling_ends() -> None:
    coords, affinity = some_map(9, 100)
    features, seen = some_features(9, len(coords), 130), list[float]()
    pool(features, affinity, 4, progress=seen.append)
    assert seen == sorted(seen) and seen[-1] == 1.0 and len(seen) == 4 * 3
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 5

    with pytest.raises(PurificationError, match="cancelled"):
        pool(features, affinity, 4, cancelled=stop)
    assert asked == 6


def test_packed_once_used_often() -> None:
    coords, affinity = some_map(10, 500)
    packed = PackedAffinity(affinity)
    assert packed.nbytes == 0 and len(packed) == len(coords)
    for seed in (1, 2):
        features = some_features(seed, len(coords), 30)
        np.testing.assert_array_equal(pool(features, packed, 3), pool(features, affinity, 3))
    assert packed.nbytes > 0


def _nan(count: int) -> NDArray[np.float32]:
    features = np.ones((3, 4), dtype=np.float32)
    features.ravel()[:count] = np.nan
    return features


@pytest.mark.parametrize(
    ("features", "steps", "said"),
    [
        (_nan(2), 1, "2 values are NaN"),
        (_nan(1).astype(np.float16), 1, "1 values are NaN"),
        (_nan(3).astype(np.float64), 1, "3 values are NaN"),
        (np.full((3, 2), np.inf, np.float32), 1, "6 values are NaN or infinite"),
        (torch.full((3, 2), torch.inf).bfloat16(), 1, "6 values are NaN or infinite"),
        (np.ones((2, 4), np.float32), 1, "one row for each voxel"),
        (np.ones(3, np.float32), 1, "one row for each voxel"),
        (np.ones((3, 4), int), 1, "floating-point"),
        (np.ones((3, 4), np.float32), -1, "at least 0"),
        (np.ones((3, 4), np.float32), 1.5, "at least 0"),
        (np.ones((3, 4), np.float32), True, "at least 0"),
    ],
)
def test_bad_input_is_named(features: Any, steps: Any, said: str) -> None:
    affinity = build_affinity(np.eye(3, dtype=int), np.ones((3, 2), np.float32))
    with pytest.raises(PurificationError, match=said):
        pool(features, affinity, steps)


@pytest.mark.parametrize(
    ("affinity", "said"),
    [
        (Affinity(np.array([[1], [2]]), np.ones((2, 1), np.float32)), "row numbers"),
        (Affinity(np.array([[1], [-1]]), np.ones((2, 1), np.float32)), "row numbers"),
        (Affinity(np.array([[1], [0]]), np.ones((2, 2), np.float32)), "both"),
        (Affinity(np.array([[1], [0]]), np.full((2, 1), np.nan, np.float32)), "finite weights"),
        (Affinity(np.array([[1], [0]]), np.ones((2, 1), np.float32), np.array([0, 0])), "each of the 2 rows once"),
        (Affinity(np.array([[1], [0]]), np.ones((2, 1), np.float32), np.array([0, 2])), "each of the 2 rows once"),
    ],
)
def test_a_broken_affinity_is_named(affinity: Affinity, said: str) -> None:
    for engine in ENGINES:
        with pytest.raises(PurificationError, match=said):
            pool(np.ones((2, 3), np.float32), affinity, 1, engine=engine)


def test_engines_that_do_not_exist_or_do_not_fit() -> None:
    affinity = build_affinity(np.eye(3, dtype=int), np.ones((3, 2), np.float32))
    with pytest.raises(PurificationError, match="engine"):
        pool(np.ones((3, 2), np.float32), affinity, 1, engine="fpga")
    with pytest.raises(NotAvailableError, match="engine"):
        pool(np.ones((3, 2)), affinity, 1, engine="numba")


@pytest.mark.parametrize("most", [1, 2, 4])
def test_narrow_registers_give_the_same_sums(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processors without AVX-512 hold one vector at a time: other code, and the same result to the last bit."""
    from geopurify_core.purification.pooling import kernels as pooling_kernels

    coords, affinity = some_map(11, 300)
    features = some_features(11, len(coords), 100)
    usual = pool(features, affinity, 3)
    monkeypatch.setattr(pooling_kernels, "MOST_VECTORS", most)
    np.testing.assert_array_equal(pool(features, affinity, 3), usual)
