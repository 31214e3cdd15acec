"""Small scenes, slow and obvious convolutions, and the golden files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from geopurify_core.sparse import convolution as convolution_module
from geopurify_core.sparse import kernel_map, kernels


@pytest.fixture
def blob() -> Callable[..., Tensor]:
    """(V, 3) int32 distinct coordinates in a cube, a third of it filled, in random order."""

    def make(seed: int = 0, side: int = 7, fill: float = 0.35, low: int = -3) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        cells = torch.rand(side, side, side, generator=generator) < fill
        coords = cells.nonzero().to(torch.int32) + low
        return coords[torch.randperm(len(coords), generator=generator)]

    return make


@pytest.fixture(params=["compiled", "plain torch"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Once as installed, once as if numba were absent."""
    if request.param == "plain torch":
        without_numba(monkeypatch)
    return str(request.param)


def without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    """No compiled loop may run any more."""

    def forbidden(*_: object) -> None:
        raise AssertionError("a compiled loop was called")

    monkeypatch.setattr(convolution_module.jit, "HAVE_NUMBA", False)
    monkeypatch.setattr(kernel_map, "HAVE_NUMBA", False)
    for module in (convolution_module, kernel_map, kernels):
        for name in ("gather_rows", "add_rows", "match_keys"):
            monkeypatch.setattr(module, name, forbidden, raising=False)


@pytest.fixture
def golden(shared_dir: Path) -> Callable[[str], dict[str, np.ndarray]]:
    """Arrays of one file of the reference outputs; skips where the folder is absent."""

    def load(name: str) -> dict[str, np.ndarray]:
        path = shared_dir / "golden" / "minkowski" / name
        if not path.is_file():
            pytest.skip(f"no reference outputs beside the repository ({name})")
        with np.load(path) as arrays:
            return dict(arrays)

    return load
