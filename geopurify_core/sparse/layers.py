"""Sparse layers with MinkowskiEngine's parameter names, shapes, offset order and initial values.

``kernel`` is (volume, in, out), or (in, out) for kernel size 1; ``bias`` is (1, out). A state dict of the same network
built from MinkowskiEngine's layers loads as it is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from geopurify_core.errors import SparseError
from geopurify_core.sparse.convolution import convolve
from geopurify_core.sparse.kernel_map import KernelMap
from geopurify_core.sparse.tensor import SparseTensor
from geopurify_core.sparse.workers import share_rows


class _Convolution(nn.Module):
    """What the three convolutions share: parameters, their initial values, and the product itself."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, bias: bool) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel_size
        self.block_rows: int | None = None
        volume = kernel_size**3
        shape = (in_channels, out_channels) if volume == 1 else (volume, in_channels, out_channels)
        self.kernel = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(1, out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in ±1/sqrt(in · volume), as MinkowskiEngine 0.5.4 does it."""
        bound = 1.0 / math.sqrt(self.in_channels * self.kernel_size**3)
        nn.init.uniform_(self.kernel, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def extra_repr(self) -> str:
        """Shown when the network is printed."""
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, bias={self.bias is not None}"

    def _apply_kernel(self, features: Tensor, kernel_map: KernelMap | None) -> Tensor:
        if features.shape[1] != self.in_channels:
            raise SparseError("features.shape", tuple(features.shape), f"This layer takes {self.in_channels} channels.")
        if features.dtype != self.kernel.dtype:
            raise SparseError("features.dtype", str(features.dtype), f"This layer computes in {self.kernel.dtype}.")
        if kernel_map is None:
            out = features @ self.kernel
        else:
            out = convolve(features, self.kernel, kernel_map, self.block_rows)
        return out if self.bias is None else out + self.bias


class SubmanifoldConv3d(_Convolution):
    """Convolution whose output lives on its input's voxels: cubic kernel of odd size, stride 1.

    out[c] = sum over offsets d of in[c + stride · d] @ kernel[d]; offset index (dx + r) + n (dy + r) + n² (dz + r) for
    kernel size n = 2r + 1.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, bias: bool = False) -> None:
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise SparseError("kernel_size", kernel_size, "Submanifold convolutions take an odd size.")
        super().__init__(in_channels, out_channels, kernel_size, bias)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """(V, in) to (V, out) on the same voxels. Raises SparseError for other channels or another dtype."""
        kernel_map = None if self.kernel_size == 1 else x.coordinates.kernel_map(self.kernel_size)
        return x.replace(self._apply_kernel(x.features, kernel_map))


class SparseConv3d(_Convolution):
    """Kernel 2, stride 2: each cell of 2 x 2 x 2 voxels becomes one voxel; offset index dx + 2 dy + 4 dz."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 2, stride: int = 2, bias: bool = False
    ) -> None:
        check_halving(kernel_size, stride)
        super().__init__(in_channels, out_channels, kernel_size, bias)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """(V, in) to (W, out) on the coarser map, whose rows are in key order."""
        features = self._apply_kernel(x.features, x.coordinates.pool_map())
        return SparseTensor(features, x.coordinates.coarser())


class SparseConvTranspose3d(_Convolution):
    """Kernel 2, stride 2 upwards: back to the voxels, in their order, that the coarse map was made from."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 2, stride: int = 2, bias: bool = False
    ) -> None:
        check_halving(kernel_size, stride)
        super().__init__(in_channels, out_channels, kernel_size, bias)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """(W, in) to (V, out). Raises SparseError where the tensor was not made by a :class:`SparseConv3d`."""
        finer = x.coordinates.finer
        if finer is None:
            raise SparseError("coordinates", repr(x.coordinates), "Only a map made by a stride-2 layer can go back up.")
        return SparseTensor(self._apply_kernel(x.features, finer.pool_map().transposed()), finer)


class SparseBatchNorm(nn.Module):
    """Batch normalisation over the rows; the parameters are in ``bn``, as MinkowskiEngine has them."""

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(num_features, eps=eps, momentum=momentum)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """(V, C) to (V, C). Raises SparseError in train mode for fewer than two rows, or for other channels."""
        if x.features.shape[1] != self.bn.num_features:
            raise SparseError(
                "features.shape", tuple(x.features.shape), f"This layer takes {self.bn.num_features} channels."
            )
        if self.training and x.features.shape[0] < 2:
            raise SparseError("features.shape", tuple(x.features.shape), "Statistics of a batch need two rows or more.")
        return x.replace(self._in_blocks(x.features) if without_autograd(x.features) else self.bn(x.features))

    def _in_blocks(self, features: Tensor) -> Tensor:
        if self.training:
            return self.bn(features)  # type: ignore[no-any-return]
        out = torch.empty_like(features)

        def normalise(low: int, high: int) -> None:
            out[low:high] = self.bn(features[low:high])

        share_rows(normalise, len(out))
        return out


class SparseReLU(nn.Module):
    """max(x, 0) on the features."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, x: SparseTensor) -> SparseTensor:
        """(V, C) to (V, C)."""
        return x.replace(add_relu_(x.features) if self.inplace else torch.relu(x.features))


def add_relu_(features: Tensor, other: Tensor | None = None) -> Tensor:
    """max(features + other, 0), in place; both (V, C)."""
    if not without_autograd(features):
        return (features if other is None else features.add_(other)).relu_()

    def add_and_cut(low: int, high: int) -> None:
        rows = features[low:high]
        if other is not None:
            rows.add_(other[low:high])
        rows.relu_()

    share_rows(add_and_cut, len(features))
    return features


def without_autograd(features: Tensor) -> bool:
    """On the CPU, and no gradients are being recorded: rows may be worked on in any thread."""
    return features.device.type == "cpu" and not torch.is_grad_enabled()


def check_halving(kernel_size: int, stride: int) -> None:
    """Raise SparseError for anything but kernel 2, stride 2."""
    if (kernel_size, stride) != (2, 2):
        raise SparseError("kernel_size, stride", (kernel_size, stride), "Strided convolutions are built for 2 and 2.")
