"""Attention, convolution and pooling against loops; whole blocks under shuffled curves against a naive network."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from geopurify_core.sparse.coordinates import CoordinateMap
from training.teachers.sonata import Sonata
from training.teachers.sonata.layers import SubmanifoldConvolution, attend_in_patches
from training.teachers.sonata.serialization import depth_of, encode

from ._sonata import cells, network_input, small


def attend_with_borrowed_points(qkv: Tensor, patch: int, scale: float) -> Tensor:
    """The reference's recipe to the letter: complete the last patch with the points before it, drop their answers."""
    rows = list(range(len(qkv)))
    if len(rows) > patch and len(rows) % patch:
        missing = patch - len(rows) % patch
        rows += rows[len(rows) - len(rows) % patch - missing : len(rows) - len(rows) % patch]
    size, out = min(patch, len(qkv)), torch.zeros(len(qkv), qkv.shape[2] * qkv.shape[3])
    for start in range(0, len(rows), size):
        members = rows[start : start + size]
        assert len(members) == size
        for head in range(qkv.shape[2]):
            q, k, v = (qkv[members, i, head] for i in range(3))
            answer = torch.softmax(scale * q @ k.T, dim=1) @ v
            for place, row in enumerate(members):
                if start + place < len(qkv):  # borrowed points come after all others
                    out[row, head * qkv.shape[3] : (head + 1) * qkv.shape[3]] = answer[place]
    return out


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 15, 16, 17, 23, 24, 40, 41])
def test_patches_of_eight_against_a_loop(count: int) -> None:
    qkv = torch.randn(count, 3, 2, 5, generator=torch.Generator().manual_seed(count))
    assert torch.allclose(attend_in_patches(qkv, 8, 0.4), attend_with_borrowed_points(qkv, 8, 0.4), atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(1, 20), st.integers(1, 4))
def test_patches_of_any_size_against_a_loop(count: int, patch: int, heads: int) -> None:
    qkv = torch.randn(count, 3, heads, 3, generator=torch.Generator().manual_seed(count + patch))
    ours, loop = attend_in_patches(qkv, patch, 0.7), attend_with_borrowed_points(qkv, patch, 0.7)
    assert torch.allclose(ours, loop, atol=2e-6)


def test_batches_of_patches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    qkv = torch.randn(100, 3, 2, 4)
    whole = attend_in_patches(qkv, 8, 0.5)
    monkeypatch.setattr("training.teachers.sonata.layers._LOGITS", 2 * 8 * 8 * 3)  # three patches at once
    assert torch.allclose(attend_in_patches(qkv, 8, 0.5), whole, atol=1e-6)


def convolve_by_hand(weight: Tensor, bias: Tensor, features: Tensor, grid: Tensor) -> Tensor:
    """spconv's convention: (out, x, y, z, in), cross-correlation, offset = index - 1."""
    rows = {tuple(cell): i for i, cell in enumerate(grid.tolist())}
    out = bias.repeat(len(grid), 1)
    for i, (x, y, z) in enumerate(grid.tolist()):
        for a in range(3):
            for b in range(3):
                for c in range(3):
                    j = rows.get((x + a - 1, y + b - 1, z + c - 1))
                    if j is not None:
                        out[i] += weight[:, a, b, c] @ features[j]
    return out


def convolution(channels: int) -> SubmanifoldConvolution:
    layer = SubmanifoldConvolution(channels).requires_grad_(False)
    generator = torch.Generator().manual_seed(channels)
    weight = torch.randn(channels, 3, 3, 3, channels, generator=generator) / channels
    layer.load_state_dict({"weight": weight, "bias": torch.randn(channels, generator=generator)})
    assert torch.equal(layer.weight, weight)
    return layer


@pytest.mark.parametrize("channels", [5, 24, 48])
def test_convolution_against_a_loop(channels: int) -> None:
    layer, grid = convolution(channels), torch.from_numpy(cells(300, 3, 9))
    features = torch.randn(300, channels)
    by_hand = convolve_by_hand(layer.weight, layer.bias, features, grid)
    assert torch.allclose(layer(features, CoordinateMap(grid)), by_hand, atol=2e-5)


def test_the_convolutions_weight_is_stored_once() -> None:
    layer = SubmanifoldConvolution(4)
    assert layer.weight.shape == (4, 3, 3, 3, 4)
    assert layer.kernel().data_ptr() == layer.weight.data_ptr()
    moved = layer.double()
    assert moved.kernel().data_ptr() == moved.weight.data_ptr()


def test_convolution_against_spconv() -> None:
    """Against the library itself where it is installed, on one thread: with more its sums on a CPU are a data race."""
    spconv = pytest.importorskip("spconv.pytorch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        layer, grid = convolution(24), torch.from_numpy(cells(1500, 3))
        theirs = spconv.SubMConv3d(24, 24, 3, bias=True)
        theirs.load_state_dict(layer.state_dict())
        features, indices = torch.randn(1500, 24), F.pad(grid, (1, 0)).int()
        with torch.no_grad():
            answer = theirs(spconv.SparseConvTensor(features, indices, [110] * 3, 1)).features
        assert torch.allclose(layer(features, CoordinateMap(grid)), answer, atol=1e-5)
    finally:
        torch.set_num_threads(threads)


class Naive:
    """The encoder once more, point by point and curve by curve, from a state dict alone."""

    def __init__(self, model: Sonata) -> None:
        self.weights, self.config = model.state_dict(), model.config

    def linear(self, name: str, rows: Tensor) -> Tensor:
        return rows @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, name: str, rows: Tensor) -> Tensor:
        centred = rows - rows.mean(dim=1, keepdim=True)
        unit = centred / torch.sqrt((centred**2).mean(dim=1, keepdim=True) + 1e-5)
        return unit * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def gelu(self, rows: Tensor) -> Tensor:
        return rows * 0.5 * (1 + torch.erf(rows / math.sqrt(2)))

    def attention(self, name: str, rows: Tensor, curve: str, grid: Tensor, stage: int) -> Tensor:
        line = sorted(range(len(grid)), key=encode(grid, depth_of(grid), curve).tolist().__getitem__)
        heads, patch = self.config.enc_num_head[stage], self.config.enc_patch_size[stage]
        qkv = self.linear(f"{name}.qkv", rows)[line].view(len(rows), 3, heads, -1)
        attended = attend_with_borrowed_points(qkv, patch, qkv.shape[3] ** -0.5)
        back = torch.empty_like(attended)
        back[line] = attended
        return self.linear(f"{name}.proj", back)

    def block(self, name: str, x: Tensor, curve: str, grid: Tensor, stage: int) -> Tensor:
        kernel, bias = self.weights[f"{name}.cpe.0.weight"], self.weights[f"{name}.cpe.0.bias"]
        position = self.linear(f"{name}.cpe.1", convolve_by_hand(kernel, bias, x, grid))
        x = x + self.norm(f"{name}.cpe.2", position)
        x = x + self.attention(f"{name}.attn", self.norm(f"{name}.norm1.0", x), curve, grid, stage)
        hidden = self.gelu(self.linear(f"{name}.mlp.0.fc1", self.norm(f"{name}.norm2.0", x)))
        return x + self.linear(f"{name}.mlp.0.fc2", hidden)

    def pool(self, name: str, x: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.linear(f"{name}.proj", x)
        members: dict[tuple[int, ...], list[int]] = {}
        for i, cell in enumerate((grid // 2).tolist()):
            members.setdefault(tuple(cell), []).append(i)
        coarse = sorted(members)
        greatest = torch.stack([rows[members[cell]].max(dim=0).values for cell in coarse])
        return self.gelu(self.norm(f"{name}.norm.0", greatest)), torch.tensor(coarse)

    def __call__(self, grid: Tensor, feat: Tensor, permutations: list[list[int]]) -> list[Tensor]:
        x = self.gelu(self.norm("embedding.stem.norm", self.linear("embedding.stem.linear", feat)))
        answers = []
        for stage, permutation in enumerate(permutations):
            if stage:
                x, grid = self.pool(f"enc.enc{stage}.down", x, grid)
            for index in range(self.config.enc_depths[stage]):
                curve = self.config.order[permutation[index % 4]]
                x = self.block(f"enc.enc{stage}.block{index}", x, curve, grid, stage)
            answers.append(x)
        return answers


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_shuffled_curves_against_the_naive_network(seed: int) -> None:
    """Every stage ≤ 1e-4; the second stage has five blocks, so that the curves come round."""
    model, (coord, grid, feat) = small(seed), network_input(330 + 7 * seed, seed, 12)
    generator = torch.Generator().manual_seed(seed)
    permutations = torch.stack([torch.randperm(4, generator=generator) for _ in range(5)])
    ours = model.stages(coord, grid, feat, permutations)
    for stage, answer in enumerate(Naive(model)(grid, feat, permutations.tolist())):
        assert torch.allclose(ours[f"enc{stage}_feat"], answer, atol=1e-4), stage
    plain = model.stages(coord, grid, feat)
    assert not torch.allclose(plain["enc1_feat"], ours["enc1_feat"], atol=1e-2)  # it does make a difference
