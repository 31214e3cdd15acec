"""Sorting and order statistics against numpy, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest

from geopurify_core.querying.order import descending_order, radix_argsort, trimmed_range


@pytest.mark.parametrize("bits", [1, 11, 12, 40, 63])
def test_radix_order_is_numpys_stable_order(bits: int) -> None:
    keys = np.random.default_rng(bits).integers(0, 2**bits - 1, 5000, dtype=np.uint64, endpoint=True)
    keys[::7] = keys[0]
    np.testing.assert_array_equal(radix_argsort(keys, bits), np.argsort(keys, kind="stable"))


@pytest.mark.parametrize("count", [0, 1, 4000])
def test_descending_order_with_ties_and_both_zeros(count: int) -> None:
    values = np.random.default_rng(0).standard_normal(count).round(1).astype(np.float32)
    assert count < 4000 or (np.signbit(values[values == 0]).any() and not np.signbit(values[values == 0]).all())
    np.testing.assert_array_equal(descending_order(values), np.argsort(-values, kind="stable"))


@pytest.mark.parametrize("count", [1, 2, 9, 257, 3000, 20_001])
@pytest.mark.parametrize("kind", ["normal", "lattice", "constant", "outlier"])
def test_trimmed_range_is_numpys_percentile(count: int, kind: str) -> None:
    points = np.random.default_rng(count).standard_normal((count, 3))
    if kind == "lattice":
        points = np.round(points * 4) * 0.04
    elif kind == "constant":
        points[:] = 0.3
    elif kind == "outlier":
        points[0] = 1e12  # all others share a bin
    for percent in (1.0, 10.0):
        expected = np.percentile(points, [percent, 100.0 - percent], axis=0)
        np.testing.assert_array_equal(trimmed_range(points, percent), expected)
