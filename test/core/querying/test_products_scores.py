"""Half-precision products and standardised scores against plain float64 loops."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from geopurify_core.querying.products import dots, mean_dot_and_length
from geopurify_core.querying.scores import ContrastBank, FeatureIndex, contrast_nouns
from geopurify_core.querying.sources import DenseRows


def unit(rows: NDArray[np.floating]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(("count", "channels", "texts"), [(1, 8, 1), (5000, 384, 1), (3001, 512, 5), (257, 33, 9)])
def test_products_equal_float64(count: int, channels: int, texts: int) -> None:
    rng = np.random.default_rng(count)
    features = rng.standard_normal((count, channels)).astype(np.float16)
    vectors = rng.standard_normal((texts, channels)).astype(np.float32)
    exact = vectors.astype(np.float64) @ features.astype(np.float64).T
    # fp32 sums of C products of size about 1: error below C · 2⁻²³
    np.testing.assert_allclose(dots(features, vectors), exact, atol=channels * 2e-7 * 8)
    projection, length = mean_dot_and_length(features, vectors[0])
    np.testing.assert_allclose(projection, exact[0], atol=channels * 2e-7 * 8)
    np.testing.assert_allclose(length, np.linalg.norm(features.astype(np.float64), axis=1), rtol=1e-6)


def test_products_read_every_kind_of_half() -> None:
    values = np.array([0.0, -0.0, 6e-8, -6.1e-5, 1.0, -65504.0, 65504.0, 0.333], dtype=np.float16)
    np.testing.assert_array_equal(
        dots(values[:, None], np.ones((1, 1), dtype=np.float32))[0], values.astype(np.float32)
    )


def test_ranking_equals_the_exact_one() -> None:
    rng = np.random.default_rng(7)
    features = rng.standard_normal((20_000, 384)).astype(np.float16)
    vector = rng.standard_normal((1, 384)).astype(np.float32)
    exact = features.astype(np.float64) @ vector[0].astype(np.float64)
    fast = dots(features, vector)[0]
    best = np.argsort(-exact)[:1000]
    gaps = -np.diff(exact[best])
    clear = np.flatnonzero(gaps > 1e-4)  # neighbours closer than fp32's rounding may swap
    assert len(clear) > 500
    assert (fast[best[clear]] > fast[best[clear + 1]]).all()


def naive_scores(
    features: NDArray[np.float16], weight: NDArray[np.float32], bank: NDArray[np.float32], text: NDArray[np.float32]
) -> NDArray[np.float64]:
    """The equations of the module, one voxel and one noun at a time."""
    mean = bank.astype(np.float64).mean(axis=0)

    def centred_cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        x, y = a - mean, b - mean
        return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))

    t = text.astype(np.float64)
    reference = [centred_cosine(b, t) for b in bank.astype(np.float64)]
    lengths = np.linalg.norm(features.astype(np.float64), axis=1)
    result = np.zeros(len(features))
    for i, f in enumerate(features.astype(np.float64)):
        if lengths[i] == 0:
            continue
        z = (centred_cosine(f / lengths[i], t) - np.mean(reference)) / np.std(reference)
        seen = lengths[i] / (lengths[i] + 0.2 * np.quantile(lengths, 0.9))
        result[i] = z * seen * weight[i] / (weight[i] + np.median(weight))
    return result


def test_scores_equal_the_naive_loop() -> None:
    rng = np.random.default_rng(3)
    bank = unit(rng.standard_normal((40, 48)) + 0.7)
    texts = unit(rng.standard_normal((3, 48)) + 0.7)
    features = (unit(rng.standard_normal((200, 48)) + 0.5) * rng.uniform(0.1, 2, (200, 1))).astype(np.float16)
    features[5] = 0
    weight = rng.uniform(0.1, 30, 200).astype(np.float32)
    prepared = ContrastBank(bank, np.ones(40))
    fast = FeatureIndex(DenseRows(features, weight), prepared).scores([prepared.direction(text) for text in texts])
    for row, text in zip(fast, texts, strict=True):
        np.testing.assert_allclose(row, naive_scores(features, weight, bank, text), atol=2e-4)
    assert (fast[:, 5] == 0).all()


def test_a_common_component_of_all_texts_does_not_matter() -> None:
    """What every noun shares is no evidence for any: adding it to a voxel's feature keeps the ranking of texts."""
    rng = np.random.default_rng(4)
    common = rng.standard_normal(48)
    bank = unit(rng.standard_normal((40, 48)) + 3 * common)
    prepared = ContrastBank(bank, np.ones(40))
    index = FeatureIndex(DenseRows(bank[:5].astype(np.float16), np.ones(5, np.float32)), prepared)
    raw = bank[:5] @ bank[:5].T
    scores = index.scores([prepared.direction(text) for text in bank[:5]])
    assert raw[~np.eye(5, dtype=bool)].min() > 0.7  # raw cosines are compressed …
    assert np.diag(scores).min() > 1.5 * scores[~np.eye(5, dtype=bool)].max()  # … standardised ones are not
    assert np.abs(scores[~np.eye(5, dtype=bool)]).mean() < 0.5


def test_expected_sizes_follow_the_nearest_nouns_and_the_head() -> None:
    bank = np.eye(6, dtype=np.float32)
    prepared = ContrastBank(bank, np.array([4.0, 0.1, 1.0, 1.0, 1.0, 1.0]))
    assert prepared.direction(bank[0]).size_m == pytest.approx(4.0, rel=0.01)
    assert prepared.direction(bank[1]).size_m == pytest.approx(0.1, rel=0.01)
    mixed = prepared.direction(bank[1], head=bank[0])
    assert mixed.size_m == pytest.approx(np.sqrt(0.4), rel=0.02)  # geometric mean


def test_the_bank_is_broad_and_sane() -> None:
    nouns = contrast_nouns()
    assert 150 <= len(nouns) <= 300
    assert len({noun for noun, _ in nouns}) == len(nouns)
    assert all(0.01 < size < 10 for _, size in nouns)
