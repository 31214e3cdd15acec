"""Sampling over distinct descriptors against sampling over points, and the options that only this one has."""

import numpy as np
import pytest
import torch

from training.distillation.samples import Choice, PointRows, anchors_of, sample_rows
from training.sampling import NEGATIVES, hybrid_sample


def scene(count=300, rows=300, width=6, seed=0):
    """Unit rows, index with every row used, and 20 neighbours of each point."""
    rng = np.random.default_rng(seed)
    unit = torch.nn.functional.normalize(torch.from_numpy(rng.standard_normal((rows, width)).astype(np.float32)), dim=1)
    index = torch.from_numpy(rng.permutation(np.concatenate([np.arange(rows), rng.integers(0, rows, count - rows)])))
    near = torch.from_numpy(np.stack([rng.permutation(np.delete(np.arange(count), i))[:20] for i in range(count)]))
    return PointRows(unit, index), near


@pytest.mark.parametrize("chunk", [0, 7])
def test_picks_over_distinct_descriptors_are_those_of_the_released_code(released_sampler, chunk):
    features, near = torch.from_numpy(released_sampler["distinct_feat"]), torch.from_numpy(released_sampler["knn96"])
    anchors = torch.from_numpy(released_sampler["distinct_anchor"])
    points = PointRows(torch.nn.functional.normalize(features, dim=1), torch.arange(len(features)))
    macro, micro = NEGATIVES["official_code"]
    got = sample_rows(points, anchors, near[anchors], Choice(macro, micro), chunk)
    np.testing.assert_array_equal(got.positives, released_sampler["distinct_pos"])
    np.testing.assert_array_equal(got.negatives, released_sampler["distinct_neg"])


def test_shared_descriptors_give_the_released_codes_picks_up_to_equal_ones(released_sampler):
    """Same positives; the same similarities, sorted, of the negatives: which of equal points is unspecified there."""
    features, near = torch.from_numpy(released_sampler["piecewise_feat"]), torch.from_numpy(released_sampler["knn96"])
    rows, index = torch.unique(features, dim=0, return_inverse=True)
    assert len(rows) < len(features) / 3
    points = PointRows(torch.nn.functional.normalize(rows, dim=1), index)
    anchors = torch.from_numpy(released_sampler["piecewise_anchor"])
    macro, micro = NEGATIVES["official_code"]
    got = sample_rows(points, anchors, near[anchors], Choice(macro, micro))
    np.testing.assert_array_equal(got.positives, released_sampler["piecewise_pos"])
    unit = torch.nn.functional.normalize(features, dim=1)
    expected = torch.from_numpy(released_sampler["piecewise_neg"])
    for part in (slice(0, macro), slice(macro, None)):
        ours, theirs = ((unit[n[:, part]] * unit[anchors][:, None]).sum(2) for n in (got.negatives, expected))
        torch.testing.assert_close(ours.sort(1).values, theirs.sort(1).values, atol=2e-6, rtol=0)


@pytest.mark.parametrize(("count", "rows"), [(300, 300), (300, 40), (60, 3), (12, 1)])
def test_picks_equal_the_dense_sampler_up_to_ties(count, rows):
    points, near = scene(count, rows)
    dense, macro, micro = points.rows[points.index], min(20, count - 2), 5
    anchors = torch.randperm(count, generator=torch.Generator().manual_seed(1))[: count // 3]
    got = sample_rows(points, anchors, near[anchors, :11], Choice(macro, micro), chunk=9)
    expected = hybrid_sample(dense, near[anchors, :11], macro, micro, anchors=anchors)
    if rows == count:
        assert torch.equal(got.positives, expected.positives) and torch.equal(got.negatives, expected.negatives)
    for name in ("positives", "negatives"):
        ours, theirs = (getattr(s, name).reshape(len(anchors), -1) for s in (got, expected))
        cosine = [(dense[p] * dense[anchors][:, None]).sum(2) for p in (ours, theirs)]
        torch.testing.assert_close(cosine[0], cosine[1], atol=1e-6, rtol=0)
        assert not bool((ours == anchors[:, None]).any())
    for row in got.negatives[:, :macro].tolist():
        assert len(set(row)) == macro


def test_cosines_told_are_those_of_the_points():
    points, near = scene(200, 50)
    anchors = torch.arange(0, 60)
    got = sample_rows(points, anchors, near[anchors], Choice(10, 5))
    dense = points.rows[points.index]
    for cosine, others in (
        (got.negative_cosine, got.negatives), (got.near_cosine, near[anchors]),
        (got.positive_cosine[:, None], got.positives[:, None]),
    ):  # fmt: skip
        torch.testing.assert_close(cosine, (dense[others] * dense[anchors][:, None]).sum(2), atol=1e-6, rtol=0)


def test_random_ties_spread_over_all_points_of_a_descriptor():
    points, near = scene(400, 4, width=8)
    anchors = torch.arange(0, 130)
    first = sample_rows(points, anchors, near[anchors], Choice(10, 5))
    spread = sample_rows(points, anchors, near[anchors], Choice(10, 5, None, torch.Generator().manual_seed(0)))
    assert len(torch.unique(spread.negatives[:, :10])) > 2 * len(torch.unique(first.negatives[:, :10]))
    torch.testing.assert_close(spread.negative_cosine[:, :10], first.negative_cosine[:, :10])
    assert torch.equal(points.index[spread.positives], points.index[anchors])
    assert not bool((spread.positives == anchors).any()) and len(torch.unique(spread.positives)) > 80


def test_positives_above_a_threshold_are_drawn_from_all_points_there():
    angles = torch.tensor([0.0, 0.3, 2.0])  # rows 0 and 1 belong together, row 2 does not
    rows = torch.stack([angles.cos(), angles.sin()], dim=1)
    index = torch.cat([torch.zeros(30), torch.ones(90), torch.full((80,), 2.0)]).long()
    anchors, near = torch.arange(30), torch.arange(100, 120).expand(30, -1)
    choice = Choice(5, 3, above=0.9, generator=torch.Generator().manual_seed(0))
    drawn = [index[sample_rows(PointRows(rows, index), anchors, near, choice).positives] for _ in range(20)]
    share = torch.bincount(torch.cat(drawn), minlength=3) / 600
    assert float(share[2]) == 0 and 0.15 < float(share[0]) < 0.35  # 29 of 119
    alone = PointRows(rows, torch.tensor([0] + [2] * 199))
    got = sample_rows(alone, torch.tensor([0]), near[:1], choice)
    assert float(got.positive_cosine) < 0  # nothing belongs to it: the most similar one, which the cosine tells


def test_contested_anchors_come_first():
    """A line of two halves: the recipe prefers anchors whose neighbours the teacher tells apart."""
    rows = torch.eye(2)
    index = (torch.arange(900) >= 450).long()
    points = PointRows(rows, index)

    def near_of(anchors):
        offsets = torch.tensor([*range(-10, 0), *range(1, 11)])
        return (anchors[:, None] + offsets).clamp(0, 899)

    def at_border(same_above):
        anchors, near = anchors_of(points, near_of, 100, same_above, torch.Generator().manual_seed(3))
        assert torch.equal(near, near_of(anchors)) and len(torch.unique(anchors)) == 100
        return int(((anchors - 449).abs() < 10).sum())

    assert at_border(0.7) > 2 * max(at_border(None), 1)


def test_too_few_points_or_neighbours_are_named():
    points, near = scene(40, 40)
    with pytest.raises(ValueError, match="50 points"):
        sample_rows(points, torch.arange(5), near[:5], Choice(48, 5))
    with pytest.raises(ValueError, match="20 neighbours"):
        sample_rows(points, torch.arange(5), near[:5], Choice(10, 21))
