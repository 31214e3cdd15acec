"""Which implementation of the sparse layers a network is built from (``sparse.engine`` in the configuration).

Both offer the same layers under the same parameter names, so a state dict moves freely between them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from geopurify_core.errors import InvalidConfigError
from geopurify_core.sparse import layers
from geopurify_core.sparse.tensor import SparseTensor


@dataclass(frozen=True)
class Engine:
    """Constructors of one implementation: ``engine.SubmanifoldConv3d(18, 16)(engine.SparseTensor(features, map))``."""

    name: str
    SparseTensor: Callable[..., Any]
    SubmanifoldConv3d: Callable[..., nn.Module]
    SparseConv3d: Callable[..., nn.Module]
    SparseConvTranspose3d: Callable[..., nn.Module]
    SparseBatchNorm: Callable[..., nn.Module] = layers.SparseBatchNorm
    SparseReLU: Callable[..., nn.Module] = layers.SparseReLU


def load_engine(name: str = "torch") -> Engine:
    """The engine called ``torch`` (built in) or ``minkowski``.

    Raises:
        NotAvailableError: MinkowskiEngine is not installed or does not import.
        InvalidConfigError: Another name.
    """
    if name == "torch":
        return Engine(name, SparseTensor, layers.SubmanifoldConv3d, layers.SparseConv3d, layers.SparseConvTranspose3d)
    if name == "minkowski":
        from geopurify_core.sparse import minkowski

        minkowski.minkowski_engine()
        return Engine(
            name,
            minkowski.MinkowskiTensor,
            minkowski.SubmanifoldConv3d,
            minkowski.SparseConv3d,
            minkowski.SparseConvTranspose3d,
        )
    raise InvalidConfigError("sparse.engine", name, "Choose one of torch, minkowski.")
