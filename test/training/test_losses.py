"""InfoNCE and the affinity's cross-entropy, against golden numbers and against loops."""

import math

import numpy as np
import pytest
import torch

from training.losses import affinity_loss, affinity_terms, info_nce


@pytest.fixture
def golden(shared_dir):
    path = shared_dir / "golden" / "geopurify" / "pooling.npz"
    if not path.exists():
        pytest.skip("golden data of the released code are not there")
    return np.load(path)


@pytest.mark.parametrize("chunk", [0, 1, 50])
def test_info_nce_gives_the_value_of_the_released_code(golden, chunk):
    parts = [torch.from_numpy(golden[f"infonce_{name}"]) for name in ("emb", "anchor", "pos", "neg")]
    assert float(info_nce(*parts, chunk=chunk)) == pytest.approx(float(golden["infonce_loss"]), abs=1e-6)


def test_info_nce_equals_a_loop():
    torch.manual_seed(0)
    embeddings = torch.randn(30, 5) * 3
    anchors, positives = torch.tensor([0, 7, 29]), torch.tensor([1, 8, 2])
    negatives = torch.randint(0, 30, (3, 4))
    losses = []
    for a, p, row in zip(anchors.tolist(), positives.tolist(), negatives.tolist(), strict=True):
        cosines = [float(torch.cosine_similarity(embeddings[a], embeddings[j], dim=0)) / 0.2 for j in (p, *row)]
        losses.append(math.log(sum(math.exp(c) for c in cosines)) - cosines[0])
    assert float(info_nce(embeddings, anchors, positives, negatives, 0.2)) == pytest.approx(np.mean(losses), abs=1e-5)


def test_info_nce_does_not_depend_on_the_chunk_nor_on_length_and_has_the_right_gradient():
    torch.manual_seed(1)
    embeddings = torch.randn(20, 4, dtype=torch.float64, requires_grad=True)
    anchors, positives, negatives = torch.arange(6), torch.arange(6, 12), torch.randint(12, 20, (6, 5))

    def value(x, chunk=0):
        return info_nce(x, anchors, positives, negatives, 0.5, chunk)

    assert torch.autograd.gradcheck(lambda x: value(x, 4), (embeddings,))
    torch.testing.assert_close(value(embeddings, 1), value(embeddings))
    torch.testing.assert_close(value(embeddings * 7), value(embeddings))


@pytest.mark.parametrize("chunk", [0, 2])
def test_info_nce_leaves_out_negatives_that_do_not_count_and_anchors_without_any(chunk):
    torch.manual_seed(3)
    embeddings, negatives = torch.randn(20, 4, dtype=torch.float64), torch.randint(12, 20, (5, 6))
    anchors, positives = torch.arange(5), torch.arange(5, 10)
    usable = torch.rand(5, 6) < 0.5
    usable[3], usable[0, 2] = False, True
    each = [
        float(info_nce(embeddings, anchors[i : i + 1], positives[i : i + 1], negatives[i, usable[i]][None]))
        for i in range(5)
        if bool(usable[i].any())
    ]
    got = info_nce(embeddings, anchors, positives, negatives, chunk=chunk, usable=usable)
    assert len(each) == 4 and float(got) == pytest.approx(np.mean(each), abs=1e-9)
    assert float(info_nce(embeddings, anchors, positives, negatives, usable=torch.zeros(5, 6).bool())) == 0
    everything = info_nce(embeddings, anchors, positives, negatives, usable=torch.ones(5, 6).bool())
    assert torch.equal(everything, info_nce(embeddings, anchors, positives, negatives))


def test_affinity_terms_leave_neighbours_out_that_are_neither_same_nor_known():
    torch.manual_seed(4)
    embeddings, rows = torch.randn(9, 3, dtype=torch.float64), torch.tensor([0, 4])
    neighbors = torch.tensor([[1, 2, 3, 5], [1, 2, 6, 8]])
    same = torch.tensor([[True, False, True, False], [False, True, False, False]])
    known = torch.tensor([[False, True, True, False], [True, False, False, True]])  # what is the same is known
    groups = torch.tensor([[1, 3, 2], [2, 1, 8]])
    got = affinity_terms(embeddings, rows, neighbors, same, known, 2.0)
    unit = embeddings / embeddings.norm(dim=1, keepdim=True)
    masses = []
    for row, counts, mine in zip(rows, groups, ([1, 3], [2]), strict=True):
        weight = {int(j): math.exp(2.0 * float(unit[row] @ unit[j])) for j in counts}
        masses.append(-math.log(sum(weight[j] for j in mine) / sum(weight.values())))
    assert float(got[0]) == pytest.approx(np.mean(masses), abs=1e-9)


def test_info_nce_without_anchors_is_zero_and_bad_arguments_are_named():
    embeddings, none = torch.randn(4, 2, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    loss = info_nce(embeddings, none, none, none.view(0, 3))
    loss.backward()
    assert loss.item() == 0 and bool((embeddings.grad == 0).all())
    one = torch.tensor([1])
    with pytest.raises(ValueError, match="negatives"):
        info_nce(embeddings, one, one, torch.zeros((2, 3), dtype=torch.int64))
    with pytest.raises(ValueError, match="temperature"):
        info_nce(embeddings, one, one, torch.tensor([[2]]), temperature=0.0)


def _by_loop(embeddings, rows, neighbors, groups, sharpening):
    unit = embeddings / embeddings.norm(dim=1, keepdim=True)
    own_mass, spread = [], []
    for row, near in zip(rows.tolist(), neighbors.tolist(), strict=True):
        mine = int(groups[row])
        known = [j for j in near if int(groups[j]) != 0]
        same = [j for j in known if int(groups[j]) == mine]
        if mine == 0 or not same:
            continue
        weight = {j: math.exp(sharpening * float(unit[row] @ unit[j])) for j in known}
        total = sum(weight.values())
        spread.append(-np.mean([math.log(weight[j] / total) for j in same]) - math.log(len(same)))
        if len(same) < len(known):
            own_mass.append(-math.log(sum(weight[j] for j in same) / total))
    return float(np.mean(own_mass)) if own_mass else 0.0, float(np.mean(spread)) if spread else 0.0


def test_affinity_loss_equals_a_loop():
    rng = np.random.default_rng(0)
    embeddings = torch.from_numpy(rng.standard_normal((40, 6)))
    groups = torch.from_numpy(rng.integers(0, 4, 40))
    rows = torch.from_numpy(rng.permutation(40)[:25])
    neighbors = torch.from_numpy(np.stack([rng.permutation(40)[:7] for _ in range(25)]))
    got = affinity_loss(embeddings, rows, neighbors, groups, 5.0)
    np.testing.assert_allclose([float(v) for v in got], _by_loop(embeddings, rows, neighbors, groups, 5.0), atol=1e-9)


def test_affinity_loss_is_the_leak_that_pooling_would_have():
    """Two groups side by side: exp(-loss) of a row is the mass its affinity row puts on its own group."""
    embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.5, 1.0]])
    groups, neighbors = torch.tensor([1, 1, 2, 2]), torch.tensor([[1, 2, 3]])
    unit = torch.nn.functional.normalize(embeddings, dim=1)
    mass = torch.softmax(20 * (unit[1:] @ unit[0]), dim=0)[0]
    own, _ = affinity_loss(embeddings, torch.tensor([0]), neighbors, groups)
    assert float(own) == pytest.approx(-math.log(float(mass)), abs=1e-6)


def test_affinity_loss_is_zero_for_the_perfect_embedding_and_for_rows_that_do_not_count():
    groups = torch.tensor([1, 1, 1, 2, 2, 0])
    perfect = torch.nn.functional.one_hot(groups, 3).double()
    neighbors = torch.tensor([[1, 2, 3, 5], [0, 2, 4, 5]])
    own, spread = affinity_loss(perfect, torch.tensor([0, 1]), neighbors, groups)
    assert float(own) == pytest.approx(0, abs=1e-8) and float(spread) == pytest.approx(0, abs=1e-8)
    embeddings = torch.randn(6, 3, requires_grad=True)
    parts = affinity_loss(embeddings, torch.tensor([5]), torch.tensor([[0, 1, 2, 3]]), groups)
    sum(parts).backward()
    assert [v.item() for v in parts] == [0, 0] and bool((embeddings.grad == 0).all())


def test_affinity_loss_has_the_right_gradient():
    torch.manual_seed(2)
    embeddings = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    groups, neighbors = torch.tensor([0, 1, 1, 2, 2, 1, 2, 0, 1]), torch.randint(0, 9, (4, 6))
    rows = torch.tensor([1, 3, 5, 0])
    assert torch.autograd.gradcheck(lambda x: affinity_loss(x, rows, neighbors, groups, 2.0), (embeddings,))
