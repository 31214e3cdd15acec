"""The sparse layers on MinkowskiEngine 0.5.4, where it is installed. The same parameters, names and results.

Version 0.5.4 imports ``collections.Sequence``, which Python 3.10 removed; the name is put back for the import.
"""

from __future__ import annotations

import collections
import collections.abc
import importlib
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from geopurify_core.errors import NotAvailableError, SparseError
from geopurify_core.sparse.coordinates import CoordinateMap
from geopurify_core.sparse.layers import check_halving

_REMEDY = "MinkowskiEngine is not on PyPI as a wheel; docs/sparse.md says how to build it. Or set sparse.engine: torch."


@lru_cache(maxsize=1)
def minkowski_engine() -> Any:
    """The MinkowskiEngine module. Raises NotAvailableError where it cannot be imported."""
    if not hasattr(collections, "Sequence"):
        collections.Sequence = collections.abc.Sequence  # type: ignore[attr-defined]
    try:
        return importlib.import_module("MinkowskiEngine")
    except (ImportError, OSError) as error:
        raise NotAvailableError("sparse.engine", f"minkowski ({error})", _REMEDY) from error


# One manager for each coordinate map, so that all tensors on it share MinkowskiEngine's kernel maps as well.
_managers: WeakKeyDictionary[CoordinateMap, tuple[Any, Any]] = WeakKeyDictionary()


class MinkowskiTensor:
    """What :class:`geopurify_core.sparse.SparseTensor` is, held by MinkowskiEngine.

    Args:
        features: (V, C) floating point on the CPU, or on the GPU that MinkowskiEngine was built for.
        coordinates: Where the rows are. The order of the rows is kept.
    """

    def __init__(self, features: Tensor, coordinates: CoordinateMap) -> None:
        engine = minkowski_engine()
        if features.dim() != 2 or features.shape[0] != len(coordinates):
            raise SparseError(
                "features.shape", tuple(features.shape), f"Give one row for each of the {len(coordinates)} voxels."
            )
        if coordinates in _managers:
            manager, key = _managers[coordinates]
            self.wrapped = engine.SparseTensor(features, coordinate_map_key=key, coordinate_manager=manager)
            return
        batch = torch.zeros(len(coordinates), 1, dtype=torch.int32, device=coordinates.device)
        rows = torch.cat([batch, coordinates.coords], dim=1)
        self.wrapped = engine.SparseTensor(features, coordinates=rows, tensor_stride=coordinates.stride)
        if not torch.equal(self.wrapped.C, rows):
            raise SparseError("coords", "row order", "MinkowskiEngine reordered the rows; use sparse.engine: torch.")
        _managers[coordinates] = (self.wrapped.coordinate_manager, self.wrapped.coordinate_map_key)

    @classmethod
    def wrap(cls, wrapped: Any) -> MinkowskiTensor:
        """Around a ``MinkowskiEngine.SparseTensor`` of one scene."""
        tensor = cls.__new__(cls)
        tensor.wrapped = wrapped
        return tensor

    @property
    def features(self) -> Tensor:
        """(V, C) rows."""
        features: Tensor = self.wrapped.F
        return features

    @property
    def coords(self) -> Tensor:
        """(V, 3) int32 voxel coordinates of the rows."""
        coords: Tensor = self.wrapped.C[:, 1:]
        return coords

    @property
    def stride(self) -> int:
        """Edge of the voxels in voxels of the finest map."""
        return int(self.wrapped.tensor_stride[0])

    def replace(self, features: Tensor) -> MinkowskiTensor:
        """Other features on the same voxels."""
        return self.wrap(
            minkowski_engine().SparseTensor(
                features,
                coordinate_map_key=self.wrapped.coordinate_map_key,
                coordinate_manager=self.wrapped.coordinate_manager,
            )
        )


class _Convolution(nn.Module):
    """Owns the parameters of a MinkowskiEngine layer under their own names."""

    def __init__(self, kind: str, in_channels: int, out_channels: int, **options: Any) -> None:
        super().__init__()
        layer = getattr(minkowski_engine(), kind)(in_channels, out_channels, dimension=3, **options)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel, self.bias = layer.kernel, layer.bias
        self.__dict__["_layer"] = layer  # not a submodule: the parameters would be listed twice

    def forward(self, x: MinkowskiTensor) -> MinkowskiTensor:
        """As the layer of the same name in :mod:`geopurify_core.sparse.layers`."""
        if x.features.shape[1] != self.in_channels:
            raise SparseError(
                "features.shape", tuple(x.features.shape), f"This layer takes {self.in_channels} channels."
            )
        layer = self.__dict__["_layer"]
        layer.kernel, layer.bias = self.kernel, self.bias  # moving a network to another device may replace them
        return MinkowskiTensor.wrap(layer(x.wrapped))


class SubmanifoldConv3d(_Convolution):
    """Cubic kernel of odd size, stride 1."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, bias: bool = False) -> None:
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise SparseError("kernel_size", kernel_size, "Submanifold convolutions take an odd size.")
        super().__init__("MinkowskiConvolution", in_channels, out_channels, kernel_size=kernel_size, bias=bias)


class SparseConv3d(_Convolution):
    """Kernel 2, stride 2."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 2, stride: int = 2, bias: bool = False
    ) -> None:
        check_halving(kernel_size, stride)
        super().__init__("MinkowskiConvolution", in_channels, out_channels, kernel_size=2, stride=2, bias=bias)


class SparseConvTranspose3d(_Convolution):
    """Kernel 2, stride 2 upwards."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 2, stride: int = 2, bias: bool = False
    ) -> None:
        check_halving(kernel_size, stride)
        super().__init__("MinkowskiConvolutionTranspose", in_channels, out_channels, kernel_size=2, stride=2, bias=bias)
