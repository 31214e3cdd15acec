"""Which input row meets which output row under which offset of the kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from geopurify_core.mapping.keys import COORD_LIMIT

if TYPE_CHECKING:
    from geopurify_core.sparse.coordinates import CoordinateMap

_BITS = 21


def voxel_keys(coords: Tensor) -> Tensor:
    """(V,) int64 keys of (V, 3) integer coordinates in [-2^20, 2^20); they sort by x, then y, then z.

    The same numbers as :func:`geopurify_core.mapping.keys.pack_keys`.
    """
    shifted = coords.to(torch.int64) + COORD_LIMIT
    return (shifted[:, 0] << (2 * _BITS)) | (shifted[:, 1] << _BITS) | shifted[:, 2]


class KernelMap:
    """Pairs (input row, output row), grouped by kernel offset and ascending in the output row within each group.

    Attributes:
        in_rows, out_rows: (P,) int32 rows; offset k owns ``[starts[k], starts[k + 1])``.
        centre: Index of the offset 0, which pairs each row with itself and has no pairs stored, or None.
    """

    def __init__(self, pairs: list[tuple[Tensor, Tensor]], num_in: int, num_out: int, centre: int | None) -> None:
        self.num_in, self.num_out, self.centre = num_in, num_out, centre
        self.volume = len(pairs)
        self.in_rows = torch.cat([pair[0] for pair in pairs])
        self.out_rows = torch.cat([pair[1] for pair in pairs])
        self.starts = [0]
        for pair in pairs:
            self.starts.append(self.starts[-1] + len(pair[0]))
        self._bounds: dict[int, list[list[int]]] = {}
        self._transposed: KernelMap | None = None

    @property
    def num_pairs(self) -> int:
        """Row products of one convolution, the centre's included."""
        return len(self.in_rows) + (self.num_out if self.centre is not None else 0)

    def bounds(self, block_rows: int) -> list[list[int]]:
        """For each block of output rows, where each offset's pairs begin: one list of ``volume`` indices a block.

        There is one list more than blocks, so that block b, offset k owns ``[bounds[b][k], bounds[b + 1][k])``.
        """
        if block_rows not in self._bounds:
            edges = torch.arange(
                0, self.num_out + block_rows, block_rows, dtype=torch.int32, device=self.out_rows.device
            )
            columns = [
                torch.searchsorted(self.out_rows[low:high], edges) + low
                for low, high in zip(self.starts[:-1], self.starts[1:], strict=True)
            ]
            self._bounds[block_rows] = torch.stack(columns, dim=1).tolist()
        return self._bounds[block_rows]

    def transposed(self) -> KernelMap:
        """The same pairs with the roles of input and output exchanged, offset by offset."""
        if self._transposed is None:
            pairs = []
            for low, high in zip(self.starts[:-1], self.starts[1:], strict=True):
                order = torch.argsort(self.in_rows[low:high], stable=True)
                pairs.append((self.out_rows[low:high][order], self.in_rows[low:high][order]))
            self._transposed = KernelMap(pairs, self.num_out, self.num_in, self.centre)
            self._transposed._transposed = self
        return self._transposed


def kernel_offsets(kernel_size: int) -> Tensor:
    """(k³, 3) int64 offsets of a cubic kernel in MinkowskiEngine's order, x fastest; centred where the size is odd."""
    steps = torch.arange(kernel_size) - (kernel_size // 2 if kernel_size % 2 else 0)
    dz, dy, dx = torch.meshgrid(steps, steps, steps, indexing="ij")
    return torch.stack([dx.reshape(-1), dy.reshape(-1), dz.reshape(-1)], dim=1)


def submanifold_map(coordinates: CoordinateMap, kernel_size: int) -> KernelMap:
    """Output row o meets input row i under offset d where ``coords[i] == coords[o] + stride * d``.

    Only the first half of the offsets is looked up: the pairs of -d are those of d with the roles exchanged.
    """
    offsets = kernel_offsets(kernel_size).to(coordinates.device) * coordinates.stride
    num, half = len(coordinates), len(offsets) // 2
    none = torch.empty(0, dtype=torch.int32, device=coordinates.device)
    pairs = [(none, none)] * len(offsets)
    order = None if coordinates.is_sorted else coordinates.order
    for k in range(half):
        out, found = _matches(coordinates, offsets[k])
        pairs[k] = _by_output(out, found, order)
        pairs[-1 - k] = _by_output(found, out, order)
    return KernelMap(pairs, num, num, centre=half)


def _matches(coordinates: CoordinateMap, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Positions in key order (o, i) with coordinate i = coordinate o + offset; both ascending."""
    keys = coordinates.sorted_keys
    if not len(keys):
        return keys, keys
    wanted = keys + ((offset[0] << (2 * _BITS)) + (offset[1] << _BITS) + offset[2])
    found = torch.searchsorted(keys, wanted).clamp_(max=len(keys) - 1)
    hit = keys[found] == wanted
    reach = int(offset.abs().max())
    if coordinates.extent[0] - reach < -COORD_LIMIT or coordinates.extent[1] + reach >= COORD_LIMIT:
        moved = coordinates.coords[coordinates.order] + offset  # at the rim a key may wrap into the next row of voxels
        hit &= ((moved >= -COORD_LIMIT) & (moved < COORD_LIMIT)).all(dim=1)
    out = hit.nonzero().squeeze(1)
    return out, found[out]


def _by_output(out: Tensor, found: Tensor, order: Tensor | None) -> tuple[Tensor, Tensor]:
    """(in_rows, out_rows) of positions in key order, ascending in the output row."""
    if order is not None:
        out, ascending = torch.sort(order[out])
        found = order[found][ascending]
    return found.to(torch.int32), out.to(torch.int32)


def pool_map(fine: CoordinateMap, coarse: CoordinateMap) -> KernelMap:
    """Kernel 2, stride 2: each fine row meets the coarse row of its cell under its place in the cell."""
    place = torch.div(fine.coords, fine.stride, rounding_mode="floor") & 1
    offset = place[:, 0] + 2 * place[:, 1] + 4 * place[:, 2]
    cell = fine.coords - place * fine.stride
    coarse_row = coarse.order[torch.searchsorted(coarse.sorted_keys, voxel_keys(cell))]
    pairs = []
    for k in range(8):
        rows = (offset == k).nonzero().squeeze(1)
        pairs.append(_by_output_row(rows, coarse_row[rows]))
    return KernelMap(pairs, len(fine), len(coarse), centre=None)


def _by_output_row(in_rows: Tensor, out_rows: Tensor) -> tuple[Tensor, Tensor]:
    out, ascending = torch.sort(out_rows, stable=True)
    return in_rows[ascending].to(torch.int32), out.to(torch.int32)
