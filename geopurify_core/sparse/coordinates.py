"""Where the voxels of a sparse tensor are, and which of them are each other's neighbours.

A :class:`CoordinateMap` is checked and sorted once; the kernel maps built on it are cached and shared by every layer
that runs on it. Strides follow MinkowskiEngine: a map of stride s holds multiples of s, and halving its resolution
takes each coordinate c to ``floor(c / 2s) * 2s``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from geopurify_core.errors import SparseError
from geopurify_core.mapping.keys import COORD_LIMIT
from geopurify_core.sparse.kernel_map import KernelMap, pool_map, submanifold_map, unpack_keys, voxel_keys


class CoordinateMap:
    """Distinct integer voxel coordinates and everything that follows from them alone.

    Rows in key order (x, then y, then z) are fastest: neighbours lie close together in memory.

    Args:
        coords: (V, 3) integer voxel coordinates, tensor or array, in any order; kept as int32.
        stride: Edge of these voxels in voxels of the finest map; every coordinate is a multiple of it.

    Raises:
        SparseError: Coordinates of another shape, not integer, outside [-2^20, 2^20), twice, or off the stride.

    Attributes:
        coords: (V, 3) int32, in the caller's order.
        sorted_keys: (V,) int64 keys in ascending order.
        order: Row of each sorted key, or None where the rows came in key order.
        extent: Least and greatest coordinate on any axis.
        finer: The map that this one was made from by :meth:`coarser`, or None.
    """

    def __init__(self, coords: Any, stride: int = 1) -> None:
        self.coords = _checked(coords, stride)
        self.stride = stride
        self.extent = _extent(self.coords)
        self.sorted_keys, self.order = _sorted(voxel_keys(self.coords))
        twice = (self.sorted_keys[1:] == self.sorted_keys[:-1]).nonzero()
        if len(twice):
            raise _duplicate(self.coords, self.order, int(twice[0, 0]))
        self.finer: CoordinateMap | None = None
        self._coarser: CoordinateMap | None = None
        self._maps: dict[int, KernelMap] = {}
        self._pool: KernelMap | None = None

    def __len__(self) -> int:
        return int(self.coords.shape[0])

    def __repr__(self) -> str:
        return f"CoordinateMap({len(self)} voxels, stride {self.stride}, {self.coords.device})"

    @property
    def device(self) -> torch.device:
        """Where coordinates and kernel maps live."""
        return self.coords.device

    def kernel_map(self, kernel_size: int) -> KernelMap:
        """Pairs of neighbours for an odd cubic kernel, built at the first call. Raises SparseError for an even size."""
        if kernel_size not in self._maps:
            if kernel_size < 1 or kernel_size % 2 == 0:
                raise SparseError("kernel_size", kernel_size, "Submanifold convolutions take an odd size.")
            self._maps[kernel_size] = submanifold_map(self, kernel_size)
        return self._maps[kernel_size]

    def coarser(self) -> CoordinateMap:
        """The map of twice the stride: every occupied cell of 2 x 2 x 2 voxels, in key order."""
        if self._coarser is None:
            stride = 2 * self.stride
            cells = torch.div(self.coords, stride, rounding_mode="floor") * stride
            self._coarser = CoordinateMap(unpack_keys(torch.unique(voxel_keys(cells))), stride)
            self._coarser.finer = self
        return self._coarser

    def pool_map(self) -> KernelMap:
        """Pairs (fine row, coarse row) for kernel 2, stride 2; offset k = dx + 2 dy + 4 dz inside the cell."""
        if self._pool is None:
            self._pool = pool_map(self, self.coarser())
        return self._pool


def _checked(coords: Any, stride: int) -> Tensor:
    tensor = coords if isinstance(coords, Tensor) else _as_tensor(coords)
    if tensor.dim() != 2 or tensor.shape[1] != 3:
        remedy = "Give one row of x, y, z for each voxel: (V, 3), without a batch index."
        raise SparseError("coords.shape", tuple(tensor.shape), remedy)
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise SparseError("coords.dtype", str(tensor.dtype), "Give integer voxel coordinates, floor(point / size).")
    if stride < 1:
        raise SparseError("stride", stride, "Give 1 for a finest map, 2, 4, … for coarser ones.")
    if tensor.numel():
        low, high = _extent(tensor)
        if low < -COORD_LIMIT or high >= COORD_LIMIT:
            raise SparseError("coords", (low, high), f"Coordinates must lie in [-{COORD_LIMIT}, {COORD_LIMIT}).")
        if stride > 1 and bool((tensor % stride).any()):
            raise SparseError("coords", f"stride {stride}", "Every coordinate must be a multiple of the stride.")
    return tensor.to(torch.int32, copy=True).contiguous()


def _extent(coords: Tensor) -> tuple[int, int]:
    """Least and greatest number. By numpy on the CPU: torch's reduction waits for all cores, as its sort does."""
    if not coords.numel():
        return 0, 0
    values: Any = coords.numpy() if coords.device.type == "cpu" else coords
    return int(values.min()), int(values.max())


def _as_tensor(coords: Any) -> Tensor:
    array = np.asarray(coords)
    if array.dtype.kind not in "iu":
        raise SparseError("coords.dtype", str(array.dtype), "Give integer voxel coordinates, floor(point / size).")
    return torch.from_numpy(array.astype(np.int64))


def _sorted(keys: Tensor) -> tuple[Tensor, Tensor | None]:
    """Keys in order, and the rows they came from, or None where they were in order.

    By numpy on the CPU: torch's parallel sort waits for all cores, which takes 50 ms where others use them.
    """
    if keys.device.type == "cpu":
        array = keys.numpy()
        if bool((array[1:] >= array[:-1]).all()):
            return keys, None
        rows = np.argsort(array)
        return torch.from_numpy(array[rows]), torch.from_numpy(rows)
    if bool((keys[1:] >= keys[:-1]).all()):
        return keys, None
    ordered, order = torch.sort(keys)
    return ordered, order


def _duplicate(coords: Tensor, order: Tensor | None, position: int) -> SparseError:
    rows = sorted((position, position + 1) if order is None else order[position : position + 2].tolist())
    return SparseError(
        "coords", tuple(coords[rows[0]].tolist()), f"Rows {rows[0]} and {rows[1]} are the same voxel; keep one of them."
    )
