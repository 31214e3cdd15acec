"""Choosing the engine; and, where MinkowskiEngine is installed, both of them side by side."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from geopurify_core.errors import InvalidConfigError, NotAvailableError, SparseError
from geopurify_core.sparse import CoordinateMap, Engine, load_engine
from geopurify_core.sparse import minkowski as minkowski_module
from geopurify_core.sparse.minkunet import MinkUNet18A

Blob = Callable[..., Tensor]


def test_the_built_in_engine_is_the_default() -> None:
    assert load_engine() == load_engine("torch")
    assert load_engine().name == "torch"


def test_an_unknown_engine_is_named() -> None:
    with pytest.raises(InvalidConfigError, match="spconv"):
        load_engine("spconv")


def test_minkowski_says_how_to_get_it_where_it_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    minkowski_module.minkowski_engine.cache_clear()
    monkeypatch.setitem(sys.modules, "MinkowskiEngine", None)
    with pytest.raises(NotAvailableError, match=r"docs/sparse\.md"):
        load_engine("minkowski")


@pytest.fixture
def engines() -> Iterator[tuple[Engine, Engine]]:
    minkowski_module.minkowski_engine.cache_clear()
    try:
        yield load_engine("torch"), load_engine("minkowski")
    except NotAvailableError:
        pytest.skip("MinkowskiEngine is not installed; `make test-minkowski` builds it and runs this")


def run_both(
    engines: tuple[Engine, Engine], build: Callable[[Engine], nn.Module], coords: Tensor, channels: int
) -> list[dict[str, Tensor]]:
    """Output by coordinate, and all gradients, of the same weights on the same input in both engines."""
    features = torch.randn(len(coords), channels, generator=torch.Generator().manual_seed(0))
    coordinates, results, state = CoordinateMap(coords), [], None
    for engine in engines:
        network = build(engine)
        network.load_state_dict(state or network.state_dict())
        state = network.state_dict()
        leaf = features.clone().requires_grad_()
        out = network(engine.SparseTensor(leaf, coordinates))
        out = out["final"] if isinstance(out, dict) else out
        keys = (out.coords.double() @ torch.tensor([1e8, 1e4, 1.0], dtype=torch.float64)).argsort()
        rows = out.features[keys]
        weights = torch.randn(rows.shape, generator=torch.Generator().manual_seed(1))
        (rows * weights).sum().backward()
        gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
        results.append({"out": rows.detach(), "coords": out.coords[keys], "input": leaf.grad, **gradients})
    return results


@pytest.mark.minkowski
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("bias", [False, True])
def test_submanifold_convolutions_agree(
    engines: tuple[Engine, Engine], blob: Blob, kernel_size: int, bias: bool
) -> None:
    ours, theirs = run_both(engines, lambda e: e.SubmanifoldConv3d(12, 8, kernel_size, bias), blob(0, side=12), 12)
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], atol=1e-5 * float(value.abs().max()), rtol=0, msg=name)


@pytest.mark.minkowski
def test_down_and_up_agree(engines: tuple[Engine, Engine], blob: Blob) -> None:
    def build(engine: Engine) -> nn.Module:
        return nn.Sequential(
            engine.SparseConv3d(6, 8),
            engine.SparseBatchNorm(8),
            engine.SubmanifoldConv3d(8, 8),
            engine.SparseReLU(),
            engine.SparseConvTranspose3d(8, 4, bias=True),
        )

    ours, theirs = run_both(engines, build, blob(1, side=14), 6)
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], atol=2e-5 * float(value.abs().max()), rtol=0, msg=name)


@pytest.mark.minkowski
def test_the_whole_minkunet_agrees(engines: tuple[Engine, Engine], blob: Blob) -> None:
    def build(engine: Engine) -> nn.Module:
        torch.manual_seed(0)
        return MinkUNet18A(heads={"final": 5}, engine=engine).eval()

    ours, theirs = run_both(engines, build, blob(2, side=24, fill=0.2), 3)
    assert torch.equal(ours["coords"], theirs["coords"])
    torch.testing.assert_close(ours["out"], theirs["out"], atol=1e-5 * float(ours["out"].abs().max()), rtol=0)


@pytest.mark.minkowski
def test_wrong_input_is_named_there_too(engines: tuple[Engine, Engine], blob: Blob) -> None:
    engine, coordinates = engines[1], CoordinateMap(blob(3))
    with pytest.raises(SparseError, match="4 channels"):
        engine.SubmanifoldConv3d(4, 4)(engine.SparseTensor(torch.ones(len(coordinates), 3), coordinates))
    with pytest.raises(SparseError, match="one row for each"):
        engine.SparseTensor(torch.ones(2, 3), coordinates)
    with pytest.raises(SparseError, match="odd"):
        engine.SubmanifoldConv3d(4, 4, 2)
