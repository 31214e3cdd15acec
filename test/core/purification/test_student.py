"""The student network against MinkowskiEngine's numbers, and against what its geometry promises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file

from geopurify_core.errors import InvalidConfigError, PurificationError, SparseError
from geopurify_core.purification import StudentAffinityNetwork
from geopurify_core.sparse import CoordinateMap, SparseTensor

Golden = tuple[StudentAffinityNetwork, dict[str, NDArray[np.generic]]]


@pytest.fixture
def golden(shared_dir: Path) -> Golden:
    folder = shared_dir / "golden" / "minkowski"
    network = StudentAffinityNetwork(18, 16, 8)
    network.load_state_dict(load_file(str(folder / "student_small_weights.safetensors")))
    with np.load(folder / "student_small.npz") as file:
        return network, dict(file)


def seeded(in_channels: int = 9, hidden: int = 8, out: int = 4, blocks: int = 1) -> StudentAffinityNetwork:
    torch.manual_seed(0)
    network = StudentAffinityNetwork(in_channels, hidden, out, blocks)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()


def cloud(count: int, side: int = 12, seed: int = 0) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    picked = rng.choice(side**3, size=count, replace=False)
    coords = np.stack(np.unravel_index(picked, (side, side, side)), axis=1).astype(np.int32)
    return coords, rng.standard_normal((count, 9)).astype(np.float32)


def test_keys_and_shapes_are_the_released_ones(shared_dir: Path) -> None:
    manifest = json.loads((shared_dir / "reference/manifests/geopurify_student_manifest.json").read_text())
    with torch.device("meta"):
        network = StudentAffinityNetwork()
    state = {name: list(value.shape) for name, value in network.state_dict().items()}
    assert state == {name: entry["shape"] for name, entry in manifest["state_dict"].items()}
    assert sum(parameter.numel() for parameter in network.parameters()) == manifest["info"]["n_params"]


def test_evaluation_equals_minkowski_engine(golden: Golden) -> None:
    network, data = golden
    expected = data["out_eval"]
    found = network.embed(data["coords"], data["feats"]).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    network.eval()
    np.testing.assert_allclose(network(data["coords"], data["feats"]).detach().numpy(), expected, atol=1e-5, rtol=0)


def test_training_statistics_equal_minkowski_engine(golden: Golden) -> None:
    network, data = golden
    network.train()
    found = network(torch.from_numpy(data["coords"]), torch.from_numpy(data["feats"]))
    np.testing.assert_allclose(found.detach().numpy(), data["out_train"], atol=1e-5, rtol=0)


def test_float64_tells_how_much_is_rounding(golden: Golden) -> None:
    network, data = golden
    network.double()
    found = network.embed(data["coords"], data["feats"])
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), data["out_eval"], atol=1e-5, rtol=0)


def test_coordinates_and_features_come_in_either_order_and_kind() -> None:
    network = seeded()
    coords, features = cloud(300)
    expected = network.embed(coords, features)
    tensors = torch.from_numpy(coords), torch.from_numpy(features)
    for first, second in ((features, coords), tensors, tensors[::-1], (coords.astype(np.int64), features)):
        assert torch.equal(network.embed(first, second), expected)
        assert torch.equal(network(first, second).detach(), expected)
    assert torch.equal(network.embed(coords, features.astype(np.float64)), expected)
    alone = network.embed(SparseTensor(tensors[1], CoordinateMap(coords)))
    torch.testing.assert_close(alone, expected, atol=1e-6, rtol=0)


def test_read_only_and_strided_arrays_are_taken_without_a_change() -> None:
    network = seeded()
    coords, features = cloud(200)
    expected = network.embed(coords, features)
    wide = np.repeat(features, 2, axis=1)[:, ::2]
    coords.setflags(write=False)
    assert torch.equal(network.embed(coords, wide), expected)
    np.testing.assert_array_equal(wide, features)


def test_unusual_numbers_are_taken_or_refused() -> None:
    network = seeded()
    coords, features = cloud(60)
    expected = network.embed(coords, features)
    for kind in ("u1", "u2", "u8", ">i4", "i2"):
        assert torch.equal(network.embed(coords.astype(kind), features), expected)
    assert torch.equal(network.embed(coords, features.astype(">f4")), expected)
    assert torch.equal(network.embed(coords.tolist(), features.tolist()), expected)
    half = network.embed(coords, features.astype(np.float16))
    torch.testing.assert_close(half, expected, atol=1e-2, rtol=0)
    for bad in (features.astype(object), features.astype("U8")):
        with pytest.raises(SparseError, match="that torch knows"):
            network.embed(coords, bad)


@pytest.mark.parametrize("kinds", [(np.int32, np.int64), (np.float32, np.float64), (np.bool_, np.float32)])
def test_two_of_a_kind_are_refused(kinds: tuple[type, type]) -> None:
    coords, features = cloud(20)
    with pytest.raises(SparseError, match="One must be integer"):
        seeded().embed(coords.astype(kinds[0]), features.astype(kinds[1]))


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.integers(2, 300))
def test_rows_in_another_order_give_the_same_rows(seed: int, count: int) -> None:
    network = seeded()
    coords, features = cloud(count, seed=seed)
    order = np.random.default_rng(seed).permutation(count)
    expected = network.embed(coords, features)
    assert torch.equal(network.embed(coords[order], features[order]), expected[torch.from_numpy(order)])


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.tuples(*[st.integers(-(2**20), 2**20 - 12)] * 3))
def test_a_shifted_room_gives_the_same_rows(seed: int, shift: tuple[int, int, int]) -> None:
    network = seeded()
    coords, features = cloud(150, seed=seed)
    expected = network.embed(coords, features)
    assert torch.equal(network.embed(coords + np.array(shift, dtype=np.int32), features), expected)


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.integers(0, 2))
def test_nothing_beyond_the_receptive_field_matters(seed: int, blocks: int) -> None:
    network = seeded(blocks=blocks)
    assert network.receptive_field == 1 + 2 * blocks
    coords, features = cloud(400, seed=seed)
    expected = network.embed(coords, features)
    changed = int(np.random.default_rng(seed).integers(len(coords)))
    features[changed] += 10
    found = network.embed(coords, features)
    distance = np.abs(coords - coords[changed]).max(axis=1)
    same = (found == expected).all(dim=1).numpy()
    assert same[distance > network.receptive_field].all()
    assert not same[changed]


def test_the_receptive_field_is_reached_and_a_removed_voxel_is_local_too() -> None:
    network = seeded(blocks=4)
    assert network.receptive_field == 9
    coords = np.stack(np.meshgrid(*[np.arange(-12, 13), [0, 1], [0]], indexing="ij"), -1).reshape(-1, 3)
    features = np.random.default_rng(0).standard_normal((len(coords), 9)).astype(np.float32)
    expected = network.embed(coords, features).numpy()
    kept = np.flatnonzero((coords != [-12, 0, 0]).any(axis=1))
    difference = np.abs(network.embed(coords[kept], features[kept]).numpy() - expected[kept]).max(axis=1)
    x = coords[kept, 0]
    assert (difference[x > -12 + 9] <= 1e-6).all()  # other row counts may round matrix products otherwise
    assert (difference[x == -12 + 9] > 0).any()


def test_one_voxel_alone() -> None:
    network = seeded(blocks=0)
    features = np.random.default_rng(0).standard_normal((1, 9)).astype(np.float32)
    stem, norm, _ = network.input_layer
    hidden = torch.relu(norm.bn(torch.from_numpy(features) @ stem.kernel[13]))
    expected = hidden @ network.output_layer.kernel
    torch.testing.assert_close(network.embed(np.array([[5, -3, 2**20 - 1]]), features), expected.detach())
    with pytest.raises(SparseError, match="two rows"):
        network.train()(np.array([[0, 0, 0]]), features)


def test_no_voxel_at_all() -> None:
    found = seeded().embed(np.empty((0, 3), dtype=np.int32), np.empty((0, 9), dtype=np.float32))
    assert found.shape == (0, 4)


def test_values_that_are_none_are_counted() -> None:
    coords, features = cloud(100)
    features[[3, 50]] = np.nan
    features[7, 2] = np.inf
    with pytest.raises(PurificationError, match="3 of 100 rows"):
        seeded().embed(coords, features)


def test_large_finite_values_are_no_error() -> None:
    coords, features = cloud(10)
    features[:] = 2e38  # their sum is not finite, they are
    seeded().embed(coords, features)


def test_bad_shapes_and_coordinates_are_named() -> None:
    network = seeded()
    coords, features = cloud(10)
    with pytest.raises(SparseError, match="3 semantic, r g b, nx ny nz"):
        network.embed(coords, features[:, :8])
    with pytest.raises(SparseError, match="one row for each of the 10 voxels"):
        network.embed(coords, features[:9])
    with pytest.raises(SparseError, match="same voxel"):
        network.embed(coords[[0, 1, 2, 1]], features[:4])
    with pytest.raises(SparseError, match="must lie in"):
        network.embed(coords.astype(np.int64) + 2**20, features)
    with pytest.raises(SparseError, match="or one SparseTensor"):
        network.embed(coords)
    with pytest.raises(SparseError, match="give it alone"):
        network.embed(SparseTensor(torch.from_numpy(features), CoordinateMap(coords)), features)


def test_embedding_leaves_the_mode_alone_and_tells_its_progress() -> None:
    network = seeded(blocks=2).train()
    coords, features = cloud(50)
    shares: list[float] = []
    found = network.embed(coords, features, progress=shares.append)
    assert network.training and not found.requires_grad
    assert shares == pytest.approx([i / 5 for i in range(1, 6)])
    statistics = network.input_layer[1].bn.running_mean.clone()
    with pytest.raises(PurificationError, match="cancelled"):
        network.embed(coords, features, cancelled=lambda: True)
    assert network.training
    assert torch.equal(network.input_layer[1].bn.running_mean, statistics)
    torch.testing.assert_close(found, network.eval()(coords, features).detach())


def test_the_memory_it_takes_is_bounded() -> None:
    """Everything torch allocates at once, counted by its profiler, stays below what the network announces."""
    network = StudentAffinityNetwork(134, 160, 32, 1)
    coords = np.random.default_rng(0).permutation(
        np.stack(np.meshgrid(np.arange(90), np.arange(90), [0, 1], indexing="ij"), -1).reshape(-1, 3)
    )
    features = np.zeros((len(coords), 134), dtype=np.float32)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        network.embed(coords, features)
    steps = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    peak = np.cumsum([e.nbytes() for e in sorted(steps, key=lambda e: e.start_ns())]).max()
    assert 3 * 4 * 160 * len(coords) / 2 < peak < network.workspace_bytes(len(coords)) - (32 << 20)


@pytest.mark.parametrize("hidden", [64, 96, 128])
def test_narrow_students_learn(hidden: int) -> None:
    torch.manual_seed(hidden)
    network = StudentAffinityNetwork(9, hidden, 16, blocks=1)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    coords, features = cloud(150)
    side = torch.from_numpy(coords[:, 0] > 5).long()
    losses = []
    for _ in range(8):
        embedding = torch.nn.functional.normalize(network(coords, features), dim=1)
        loss = torch.nn.functional.cross_entropy(embedding[:, :2] / 0.1, side)
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in network.parameters())
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_another_engine_is_named() -> None:
    with pytest.raises(InvalidConfigError, match="torch, minkowski"):
        StudentAffinityNetwork(9, 8, 4, 1, engine="spconv")


@pytest.mark.parametrize(
    "sizes", [(0, 8, 4, 1), (9, 0, 4, 1), (9, 8, 0, 1), (9, 8, 4, -1), (9, 8.0, 4, 1), ("9", 8, 4, 1), (9, 8, True, 1)]
)
def test_sizes_must_make_sense(sizes: tuple[Any, ...]) -> None:
    with pytest.raises(InvalidConfigError):
        StudentAffinityNetwork(*sizes)
