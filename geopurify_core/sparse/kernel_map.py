"""Which input row meets which output row under which offset of the kernel."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geopurify_core.jit import HAVE_NUMBA, read_only, run_each
from geopurify_core.mapping.keys import COORD_LIMIT
from geopurify_core.sparse.kernels import match_keys

if TYPE_CHECKING:
    from geopurify_core.sparse.coordinates import CoordinateMap

_BITS = 21


def voxel_keys(coords: Tensor) -> Tensor:
    """(V,) int64 keys of (V, 3) integer coordinates in [-2^20, 2^20); they sort by x, then y, then z.

    The same numbers as :func:`geopurify_core.mapping.keys.pack_keys`.
    """
    shifted = coords.to(torch.int64) + COORD_LIMIT
    return (shifted[:, 0] << (2 * _BITS)) | (shifted[:, 1] << _BITS) | shifted[:, 2]


def unpack_keys(keys: Tensor) -> Tensor:
    """(V, 3) int64 coordinates of (V,) keys; the inverse of :func:`voxel_keys`."""
    mask = (1 << _BITS) - 1
    return torch.stack([keys >> (2 * _BITS), (keys >> _BITS) & mask, keys & mask], dim=1) - COORD_LIMIT


class KernelMap:
    """Pairs (input row, output row) for each offset of a kernel.

    Attributes:
        pairs: For each offset (in_rows, out_rows), int32, ascending in the output row; each output row at most once.
        num_in, num_out: Rows on both sides.
        centre: Index of the offset 0, which pairs each row with itself and has no pairs stored, or None.
    """

    def __init__(self, pairs: list[tuple[Tensor, Tensor]], num_in: int, num_out: int, centre: int | None) -> None:
        self.pairs, self.num_in, self.num_out, self.centre = pairs, num_in, num_out, centre
        self._bounds: dict[int, list[list[int]]] = {}
        self._transposed: KernelMap | None = None

    @property
    def volume(self) -> int:
        """Offsets of the kernel."""
        return len(self.pairs)

    @property
    def num_pairs(self) -> int:
        """Row products of one convolution, the centre's included."""
        return sum(len(pair[0]) for pair in self.pairs) + (self.num_out if self.centre is not None else 0)

    @property
    def nbytes(self) -> int:
        """Bytes of the pairs: 8 for each but the centre's."""
        return sum(8 * len(pair[0]) for pair in self.pairs)

    @cached_property
    def arrays(self) -> list[tuple[NDArray[np.int32], NDArray[np.int32]]]:
        """``pairs`` as read-only arrays (CPU)."""
        return [(read_only(in_rows.numpy()), read_only(out_rows.numpy())) for in_rows, out_rows in self.pairs]

    def bounds(self, block_rows: int) -> list[list[int]]:
        """Where each offset's pairs begin in each block of output rows, and one list more for the end.

        Block b, offset k owns the pairs ``[bounds[b][k], bounds[b + 1][k])``.
        """
        if block_rows not in self._bounds:
            device = self.pairs[0][1].device
            edges = torch.arange(0, self.num_out + block_rows, block_rows, dtype=torch.int32, device=device)
            columns = [torch.searchsorted(out_rows, edges) for _, out_rows in self.pairs]
            self._bounds[block_rows] = torch.stack(columns, dim=1).tolist()
        return self._bounds[block_rows]

    def transposed(self) -> KernelMap:
        """The same pairs with the roles of input and output exchanged, offset by offset."""
        if self._transposed is None:
            if self.centre is not None:  # the pairs of -d are those of d, exchanged
                pairs = self.pairs[::-1]
            else:
                pairs = [ascending(out_rows, in_rows) for in_rows, out_rows in self.pairs]
            self._transposed = KernelMap(pairs, self.num_out, self.num_in, self.centre)
            if self.centre is None:
                self._transposed._transposed = self
        return self._transposed


def ascending(in_rows: Tensor, out_rows: Tensor) -> tuple[Tensor, Tensor]:
    """The same pairs as int32, in order of the output row."""
    out, order = torch.sort(out_rows, stable=True)
    return in_rows[order].to(torch.int32), out.to(torch.int32)


def kernel_offsets(kernel_size: int) -> Tensor:
    """(k³, 3) int64 offsets of a cubic kernel in MinkowskiEngine's order, x fastest; centred where the size is odd."""
    steps = torch.arange(kernel_size) - (kernel_size // 2 if kernel_size % 2 else 0)
    dz, dy, dx = torch.meshgrid(steps, steps, steps, indexing="ij")
    return torch.stack([dx.reshape(-1), dy.reshape(-1), dz.reshape(-1)], dim=1)


def submanifold_map(coordinates: CoordinateMap, kernel_size: int) -> KernelMap:
    """Output row o meets input row i under offset d where ``coords[i] == coords[o] + stride * d``.

    Only the first half of the offsets is looked up: the pairs of -d are those of d with the roles exchanged.
    """
    offsets = kernel_offsets(kernel_size) * coordinates.stride
    num, half = len(coordinates), len(offsets) // 2
    none = torch.empty(0, dtype=torch.int32, device=coordinates.device)
    pairs = [(none, none)] * len(offsets)
    for k, (out, found) in enumerate(_matches(coordinates, offsets[:half])):
        if coordinates.order is None:
            pairs[k], pairs[-1 - k] = (found, out), (out, found)
        else:
            out, found = coordinates.order[out], coordinates.order[found]
            pairs[k], pairs[-1 - k] = ascending(found, out), ascending(out, found)
    return KernelMap(pairs, num, num, centre=half)


def _matches(coordinates: CoordinateMap, offsets: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For each offset the positions in key order (o, i) with coordinate i = coordinate o + offset, int32, ascending."""
    keys, reach = coordinates.sorted_keys, int(offsets.abs().max()) if len(offsets) else 0
    deltas = ((offsets[:, 0] << (2 * _BITS)) + (offsets[:, 1] << _BITS) + offsets[:, 2]).tolist()
    at_rim = coordinates.extent[0] - reach < -COORD_LIMIT or coordinates.extent[1] + reach >= COORD_LIMIT
    if HAVE_NUMBA and keys.device.type == "cpu" and not at_rim:
        array = read_only(keys.numpy())
        return run_each(_merge, [(array, delta) for delta in deltas])
    if not len(keys):
        return [(keys.to(torch.int32),) * 2 for _ in deltas]
    return [
        _search(coordinates, offset if at_rim else None, delta) for offset, delta in zip(offsets, deltas, strict=True)
    ]


def _merge(keys: NDArray[np.int64], delta: int) -> tuple[Tensor, Tensor]:
    out, found = np.empty(len(keys), np.int32), np.empty(len(keys), np.int32)
    count = match_keys(keys, delta, out, found)
    return torch.from_numpy(out[:count].copy()), torch.from_numpy(found[:count].copy())


def _search(coordinates: CoordinateMap, offset: Tensor | None, delta: int) -> tuple[Tensor, Tensor]:
    keys = coordinates.sorted_keys
    wanted = keys + delta
    found = torch.searchsorted(keys, wanted).clamp_(max=len(keys) - 1)
    hit = keys[found] == wanted
    if offset is not None:  # at the rim a key may wrap into the next row of voxels
        moved = unpack_keys(keys) + offset.to(keys.device)
        hit &= ((moved >= -COORD_LIMIT) & (moved < COORD_LIMIT)).all(dim=1)
    out = hit.nonzero().squeeze(1)
    return out.to(torch.int32), found[out].to(torch.int32)


def pool_map(fine: CoordinateMap, coarse: CoordinateMap) -> KernelMap:
    """Kernel 2, stride 2: each fine row meets the coarse row of its cell under its place in the cell."""
    place = torch.div(fine.coords, fine.stride, rounding_mode="floor") & 1
    offset = place[:, 0] + 2 * place[:, 1] + 4 * place[:, 2]
    coarse_row = torch.searchsorted(coarse.sorted_keys, voxel_keys(fine.coords - place * fine.stride))
    pairs = []
    for k in range(8):
        rows = (offset == k).nonzero().squeeze(1)
        pairs.append(ascending(rows, coarse_row[rows]))
    return KernelMap(pairs, len(fine), len(coarse), centre=None)
