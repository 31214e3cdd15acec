"""Sparse layers against dense convolutions and plain loops."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from geopurify_core.errors import SparseError
from geopurify_core.sparse import (
    CoordinateMap,
    SparseBatchNorm,
    SparseConv3d,
    SparseConvTranspose3d,
    SparseReLU,
    SparseTensor,
    SubmanifoldConv3d,
    voxel_keys,
)
from geopurify_core.sparse import product as product_module
from geopurify_core.sparse.convolution import _offset_by_offset, row_sums
from geopurify_core.sparse.layers import add_relu_

Blob = Callable[..., Tensor]


def tensor(coords: Tensor, channels: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> SparseTensor:
    features = torch.randn(len(coords), channels, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return SparseTensor(features, CoordinateMap(coords))


def dense(x: SparseTensor, layer: SubmanifoldConv3d) -> Tensor:
    """The same with torch's conv3d on a zero-filled grid; weights reordered from x fastest to conv3d's layout."""
    n, low = layer.kernel_size, x.coords.min(dim=0).values
    cells = (x.coords - low).long()
    grid = x.features.new_zeros(x.features.shape[1], *(cells.max(dim=0).values + 1))
    grid[:, cells[:, 0], cells[:, 1], cells[:, 2]] = x.features.T
    kernel = layer.kernel.view(n, n, n, layer.in_channels, layer.out_channels)  # z, y, x, in, out
    out = torch.nn.functional.conv3d(grid[None], kernel.permute(4, 3, 2, 1, 0), padding=n // 2)[0]
    return out[:, cells[:, 0], cells[:, 1], cells[:, 2]].T + (0 if layer.bias is None else layer.bias)


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
@pytest.mark.parametrize("bias", [False, True])
def test_submanifold_is_dense_convolution_on_the_voxels(
    blob: Blob, both_ways: str, kernel_size: int, bias: bool
) -> None:
    x = tensor(blob(kernel_size), 5)
    layer = SubmanifoldConv3d(5, 4, kernel_size, bias).double()
    torch.testing.assert_close(layer(x).features, dense(x, layer), atol=1e-12, rtol=0)


@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 6), st.sampled_from([3, 5]), st.floats(0.02, 1))
def test_any_blob_and_width(seed: int, inputs: int, outputs: int, kernel_size: int, fill: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    coords = (torch.rand(5, 4, 6, generator=generator) < fill).nonzero()
    if not len(coords):
        return
    x = tensor(coords[torch.randperm(len(coords), generator=generator)], inputs, seed)
    layer = SubmanifoldConv3d(inputs, outputs, kernel_size).double()
    torch.testing.assert_close(layer(x).features, dense(x, layer), atol=1e-12, rtol=0)


def naive_down(x: SparseTensor, kernel: Tensor) -> dict[tuple[int, ...], Tensor]:
    """Coarse voxel → row, one fine voxel at a time."""
    stride, out = x.stride, {}
    for c, row in zip(x.coords.tolist(), x.features, strict=True):
        cell = tuple((v // (2 * stride)) * 2 * stride for v in c)
        d = [(v - low) // stride for v, low in zip(c, cell, strict=True)]
        out[cell] = out.get(cell, 0) + row @ kernel[d[0] + 2 * d[1] + 4 * d[2]]
    return out


def test_stride_two_is_the_naive_loop_twice_over(blob: Blob, both_ways: str) -> None:
    x = tensor(blob(4, side=9), 3)
    for layer in (SparseConv3d(3, 4).double(), SparseConv3d(4, 2).double()):
        y = layer(x)
        expected = naive_down(x, layer.kernel)
        assert {tuple(c) for c in y.coords.tolist()} == set(expected)
        rows = torch.stack([expected[tuple(c)] for c in y.coords.tolist()])
        torch.testing.assert_close(y.features, rows, atol=1e-12, rtol=0)
        assert torch.equal(voxel_keys(y.coords), y.coordinates.sorted_keys)
        x = y


def test_transposed_restores_voxels_and_their_order(blob: Blob, both_ways: str) -> None:
    fine = tensor(blob(5, side=9), 3)
    coarse = SparseConv3d(3, 4).double()(fine)
    layer = SparseConvTranspose3d(4, 2, bias=True).double()
    up = layer(coarse)
    assert up.coordinates is fine.coordinates
    where = {tuple(c): i for i, c in enumerate(coarse.coords.tolist())}
    for c, row in zip(fine.coords.tolist(), up.features, strict=True):
        d = [v % 2 for v in c]
        parent = coarse.features[where[tuple(v - v % 2 for v in c)]]
        expected = parent @ layer.kernel[d[0] + 2 * d[1] + 4 * d[2]] + layer.bias[0]
        torch.testing.assert_close(row, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_gradients_of_submanifold(blob: Blob, both_ways: str, kernel_size: int) -> None:
    coordinates = CoordinateMap(blob(6, side=4))
    layer = SubmanifoldConv3d(3, 2, kernel_size, bias=True).double()
    features = torch.randn(len(coordinates), 3, dtype=torch.float64, requires_grad=True)

    def run(features: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        parameters = {"kernel": kernel, "bias": bias}
        return torch.func.functional_call(layer, parameters, (SparseTensor(features, coordinates),)).features

    assert torch.autograd.gradcheck(run, (features, layer.kernel, layer.bias))


def test_gradients_of_down_and_up(blob: Blob, both_ways: str) -> None:
    coordinates = CoordinateMap(blob(7, side=4))
    down, up = SparseConv3d(2, 3).double(), SparseConvTranspose3d(3, 2).double()
    features = torch.randn(len(coordinates), 2, dtype=torch.float64, requires_grad=True)

    def run(features: Tensor, first: Tensor, second: Tensor) -> Tensor:
        y = torch.func.functional_call(down, {"kernel": first}, (SparseTensor(features, coordinates),))
        return torch.func.functional_call(up, {"kernel": second}, (y,)).features

    assert torch.autograd.gradcheck(run, (features, down.kernel, up.kernel))


@pytest.mark.parametrize("block_rows", [1, 16, 50, 10_000])
def test_any_block_size_gives_the_same(blob: Blob, both_ways: str, block_rows: int) -> None:
    x = tensor(blob(8, side=10), 6)
    results = []
    for rows in (None, block_rows):
        layer = SubmanifoldConv3d(6, 6).double()
        torch.nn.init.constant_(layer.kernel, 0.1)
        layer.block_rows = rows
        features = x.features.clone().requires_grad_()
        out = layer(x.replace(features)).features
        out.square().sum().backward()
        results.append((out.detach(), features.grad, layer.kernel.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-12)


def test_rows_of_a_part_are_the_rows_of_the_whole(blob: Blob, both_ways: str) -> None:
    coords = blob(9, side=14)
    x, layer = tensor(coords, 24, dtype=torch.float32), SubmanifoldConv3d(24, 16)
    whole = layer(x).features.detach()
    part = coords[:, 0] < 3
    inner = coords[part][:, 0] < 2  # their neighbours are all in the part
    again = layer(SparseTensor(x.features[part], CoordinateMap(coords[part]))).features.detach()
    assert (again[inner] - whole[part][inner]).abs().max() <= 1e-6


def test_twice_the_same_is_the_same_bits(blob: Blob, both_ways: str) -> None:
    x, layer = tensor(blob(10, side=14), 8, dtype=torch.float32), SubmanifoldConv3d(8, 8)
    assert torch.equal(layer(x).features, layer(x).features)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_forwards_and_backwards(blob: Blob, dtype: torch.dtype) -> None:
    x, layer = tensor(blob(17, side=9), 6), SubmanifoldConv3d(6, 5).double()
    results = []
    for kind in (torch.float64, dtype):
        layer = layer.to(kind)
        layer.zero_grad()
        leaf = x.features.to(kind, copy=True).requires_grad_()
        out = layer(x.replace(leaf)).features
        out.sum().backward()
        results.append((out.detach(), leaf.grad, layer.kernel.grad.clone()))
    for exact, half in zip(*results, strict=True):
        assert half.dtype == dtype
        assert (half.double() - exact).abs().max() <= 0.03 * float(exact.abs().max())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_path_for_cuda_gives_the_same(blob: Blob, dtype: torch.dtype) -> None:
    x = tensor(blob(11, side=10), 6)
    down = SparseConv3d(6, 6)(tensor(blob(11, side=10), 6, dtype=torch.float32)).coordinates.finer
    for kernel_map in (x.coordinates.kernel_map(3), down.pool_map(), down.pool_map().transposed()):
        features = torch.randn(kernel_map.num_in, 6, dtype=torch.float64)
        kernel = torch.randn(kernel_map.volume, 6, 5, dtype=torch.float64)
        expected = row_sums(features, kernel, kernel_map)
        out = _offset_by_offset(features.to(dtype), kernel.to(dtype), kernel_map, most_pairs=37)
        assert out.dtype == dtype
        allowed = 1e-12 if dtype == torch.float64 else 0.02 * float(expected.abs().max())
        assert (out.double() - expected).abs().max() <= allowed


def test_runs_in_inference_mode_and_with_one_thread(blob: Blob, both_ways: str) -> None:
    x, layer = tensor(blob(12), 4), SubmanifoldConv3d(4, 4).double()
    expected = layer(x).features.detach()
    with torch.inference_mode():
        torch.testing.assert_close(layer(x).features, expected, atol=0, rtol=0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.testing.assert_close(layer(x).features, expected, atol=1e-12, rtol=0)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    layer(x)
    assert torch.get_num_threads() == threads


def test_features_that_are_not_contiguous(blob: Blob, both_ways: str) -> None:
    x, layer = tensor(blob(13), 8), SubmanifoldConv3d(4, 4).double()
    every_other = x.replace(x.features[:, ::2])
    again = x.replace(x.features[:, ::2].contiguous())
    torch.testing.assert_close(layer(every_other).features, layer(again).features, atol=0, rtol=0)


def test_batch_norm_and_relu_act_on_the_rows(blob: Blob) -> None:
    x, norm = tensor(blob(14), 4), SparseBatchNorm(4).double()
    plain = torch.nn.BatchNorm1d(4).double()
    torch.testing.assert_close(norm(x).features, plain(x.features))
    torch.testing.assert_close(norm.eval()(x).features, plain.eval()(x.features))
    assert set(norm.state_dict()) == {f"bn.{key}" for key in plain.state_dict()}
    assert torch.equal(SparseReLU()(x).features, x.features.clamp(min=0))


def test_names_shapes_and_first_values_are_minkowskis() -> None:
    torch.manual_seed(0)
    wide = SubmanifoldConv3d(64, 32, bias=True)
    assert {key: tuple(value.shape) for key, value in wide.state_dict().items()} == {
        "kernel": (27, 64, 32),
        "bias": (1, 32),
    }
    bound = (64 * 27) ** -0.5
    assert 0.99 * bound < wide.kernel.max() <= bound
    assert -bound <= wide.kernel.min() < -0.99 * bound
    assert tuple(SubmanifoldConv3d(8, 4, 1).kernel.shape) == (8, 4)
    assert tuple(SparseConv3d(8, 4).kernel.shape) == tuple(SparseConvTranspose3d(8, 4).kernel.shape) == (8, 8, 4)


def test_nothing_and_a_single_voxel_run(both_ways: str) -> None:
    for num in (0, 1):
        x = tensor(torch.zeros(num, 3, dtype=torch.int32), 3)
        for layer in (SubmanifoldConv3d(3, 2).double(), SparseConv3d(3, 2).double()):
            assert layer(x).features.shape == (num, 2)
        up = SparseConvTranspose3d(2, 2).double()(SparseConv3d(3, 2).double()(x))
        assert up.features.shape == (num, 2)


def test_bad_input_is_named(blob: Blob) -> None:
    x = tensor(blob(15), 4)
    with pytest.raises(SparseError, match="5 channels"):
        SubmanifoldConv3d(5, 2).double()(x)
    with pytest.raises(SparseError, match="float32"):
        SubmanifoldConv3d(4, 2)(x)
    with pytest.raises(SparseError, match="one row for each"):
        SparseTensor(torch.ones(3, 4), x.coordinates)
    with pytest.raises(SparseError, match="floating point"):
        SparseTensor(torch.ones(len(x.coords), 4, dtype=torch.int32), x.coordinates)
    with pytest.raises(SparseError, match="made by a stride-2 layer"):
        SparseConvTranspose3d(4, 4).double()(x)
    with pytest.raises(SparseError, match="two rows"):
        SparseBatchNorm(2)(SparseTensor(torch.ones(1, 2), CoordinateMap(torch.zeros(1, 3, dtype=torch.int32))))
    with pytest.raises(SparseError, match="3 channels"):
        SparseBatchNorm(3)(x)
    for size in (0, 2, 4):
        with pytest.raises(SparseError, match="odd"):
            SubmanifoldConv3d(4, 4, size)
    for kind in (SparseConv3d, SparseConvTranspose3d):
        with pytest.raises(SparseError, match="2 and 2"):
            kind(4, 4, kernel_size=3)


def test_nan_stays_with_its_neighbourhood(blob: Blob, both_ways: str) -> None:
    coords = blob(16, side=9)
    x, layer = tensor(coords, 3), SubmanifoldConv3d(3, 3).double()
    x.features[0] = torch.nan
    reached = (coords - coords[0]).abs().amax(dim=1) <= 1
    assert torch.equal(layer(x).features.isnan().any(dim=1), reached)


@pytest.mark.parametrize("faster", [True, False])
def test_both_products_give_the_same(blob: Blob, monkeypatch: pytest.MonkeyPatch, faster: bool) -> None:
    if faster and product_module._onednn() is None:
        pytest.skip("this build of torch has no oneDNN")
    monkeypatch.setattr(product_module, "onednn_is_faster", lambda: faster)
    coords = blob(21, side=16)
    x, layer = tensor(coords, 64), SubmanifoldConv3d(64, 48).double()
    leaf, exact = x.features.float().requires_grad_(), layer(x).features.detach()
    single = layer.float()
    out = single(x.replace(leaf)).features
    assert (out.detach().double() - exact).abs().max() <= 1e-5
    out.sum().backward()
    with torch.inference_mode():
        assert torch.equal(single(x.replace(leaf)).features, out.detach())
        part = coords[:, 0] < 3
        inner = coords[part][:, 0] < 2
        again = single(SparseTensor(leaf[part], CoordinateMap(coords[part]))).features
        assert (again[inner] - out.detach()[part][inner]).abs().max() <= 1e-6
    gradient, wide = leaf.grad, leaf.detach().double().requires_grad_()
    layer.double()(x.replace(wide)).features.sum().backward()
    assert (gradient.double() - wide.grad).abs().max() <= 1e-5


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 16), (70, 48), (64, 64), (130, 96), (32, 256)])
@pytest.mark.parametrize("most_vectors", [4, 1])
def test_narrow_layers_without_buffers(
    blob: Blob, monkeypatch: pytest.MonkeyPatch, inputs: int, outputs: int, most_vectors: int
) -> None:
    """Against double precision; and a part with its halo, in another order and other blocks, has the same bits."""
    direct = pytest.importorskip("geopurify_core.sparse.direct")
    monkeypatch.setattr(direct, "MOST_VECTORS", most_vectors)
    assert direct.suits(outputs) == (most_vectors == 4 or outputs <= 128)
    monkeypatch.setattr(direct, "_WIDEST_WITHOUT_AVX512", 256)
    coords = blob(22, side=16)
    x, layer = tensor(coords, inputs), SubmanifoldConv3d(inputs, outputs).double()
    exact = layer(x).features.detach()
    layer.float()
    single = SparseTensor(x.features.float(), x.coordinates)
    out = layer(single).features.detach()
    assert (out.double() - exact).abs().max() <= 1e-5
    part = coords[:, 0] < 3
    inner = coords[part][:, 0] < 2
    layer.block_rows = 37
    again = layer(SparseTensor(single.features[part], CoordinateMap(coords[part]))).features.detach()
    assert torch.equal(again[inner], out[part][inner])
    single.features[0] = torch.nan
    reached = (coords - coords[0]).abs().amax(dim=1) <= 1
    assert torch.equal(layer(single).features.isnan().any(dim=1), reached)


def test_rows_in_threads_are_the_rows_at_once() -> None:
    """Inference normalises and cuts block by block in threads, training in one go: the same bits."""
    side = 22  # several blocks of rows
    coords = torch.stack(torch.meshgrid(*[torch.arange(side)] * 3, indexing="ij"), dim=-1).reshape(-1, 3)
    x, norm = SparseTensor(torch.randn(len(coords), 5), CoordinateMap(coords)), SparseBatchNorm(5)
    norm(x)
    norm.eval()
    other = torch.randn_like(x.features)
    expected = norm(x).features.detach()
    with torch.inference_mode():
        assert torch.equal(norm(x).features, expected)
        assert torch.equal(add_relu_(x.features.clone(), other), torch.relu(x.features + other))
        assert torch.equal(add_relu_(x.features.clone()), torch.relu(x.features))
        norm.train()(x)  # statistics need all rows at once
    assert int(norm.bn.num_batches_tracked) == 2
