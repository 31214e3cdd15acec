"""The hybrid sampler: the released code's picks, and what holds for any points."""

import numpy as np
import pytest
import torch

from training.sampling import NEGATIVES, draw_anchors, hybrid_sample


@pytest.mark.parametrize("chunk", [0, 7])
@pytest.mark.parametrize("kind", ["piecewise", "distinct"])
def test_picks_are_those_of_the_released_code(released_sampler, kind, chunk):
    torch.manual_seed(int(released_sampler["seed"]))  # the anchors come from torch's global generator there
    macro, micro = NEGATIVES["official_code"]
    got = hybrid_sample(
        torch.from_numpy(released_sampler[f"{kind}_feat"]),
        torch.from_numpy(released_sampler["knn96"]),
        macro,
        micro,
        128,
        chunk=chunk,
    )
    for part, name in ((got.anchors, "anchor"), (got.positives, "pos"), (got.negatives, "neg")):
        np.testing.assert_array_equal(part.numpy(), released_sampler[f"{kind}_{name}"])


def test_the_papers_reading_adds_the_16th_micro_negative(released_sampler):
    features, near = torch.from_numpy(released_sampler["distinct_feat"]), torch.from_numpy(released_sampler["knn96"])
    anchors = torch.from_numpy(released_sampler["distinct_anchor"])
    macro, micro = NEGATIVES["paper"]
    assert macro + micro == 64
    got = hybrid_sample(features, near, macro, micro, anchors=anchors)
    np.testing.assert_array_equal(got.negatives[:, :63].numpy(), released_sampler["distinct_neg"])


def _points(count=200, seed=0):
    rng = np.random.default_rng(seed)
    features = torch.from_numpy(rng.standard_normal((count, 5)).astype(np.float32))
    near = torch.from_numpy(np.stack([rng.permutation(np.delete(np.arange(count), i))[:20] for i in range(count)]))
    return features, near


def test_picks_equal_a_loop_over_anchors():
    features, near = _points()
    got = hybrid_sample(features, near, 6, 4, generator=torch.Generator().manual_seed(5))
    unit = torch.nn.functional.normalize(features, dim=1).numpy()
    assert len(got.anchors) == 200 // 3 and len(set(got.anchors.tolist())) == len(got.anchors)
    for anchor, positive, negatives in zip(got.anchors.tolist(), got.positives.tolist(), got.negatives, strict=True):
        similarity = unit @ unit[anchor]
        others = np.delete(np.arange(200), anchor)
        assert positive == others[similarity[others].argmax()]
        pool = np.array([j for j in others if j != positive])
        assert negatives[:6].tolist() == pool[np.argsort(similarity[pool])[:6]].tolist()
        local = np.array([j for j in near[anchor].tolist() if j != positive])
        assert negatives[6:].tolist() == local[np.argsort(similarity[local])[:4]].tolist()


def test_neither_chunk_nor_length_of_features_matters_and_rows_are_all_that_occur():
    features, near = _points(seed=1)
    anchors = torch.arange(0, 60, 2)
    a = hybrid_sample(features, near, 5, 3, anchors=anchors, chunk=1)
    b = hybrid_sample(features * torch.rand(200, 1).add(0.5), near[anchors], 5, 3, anchors=anchors)
    assert torch.equal(a.positives, b.positives) and torch.equal(a.negatives, b.negatives)
    assert set(a.rows().tolist()) == {*anchors.tolist(), *a.positives.tolist(), *a.negatives.reshape(-1).tolist()}


def test_anchors_are_at_most_a_third():
    assert len(draw_anchors(100)) == 33 and len(draw_anchors(100_000)) == 4096
    assert len(draw_anchors(100, limit=10)) == 10


def test_too_few_points_and_features_that_are_not_finite_are_named():
    features, near = _points()
    with pytest.raises(ValueError, match="points"):
        hybrid_sample(features[:40], near[:40].clamp(max=39), 48, 16)
    with pytest.raises(ValueError, match="neighbours"):
        hybrid_sample(features, near[:, :3], 6, 4)
    features[3, 2] = torch.nan
    with pytest.raises(ValueError, match="finite"):
        hybrid_sample(features, near, 6, 4)
