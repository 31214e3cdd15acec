"""What differs between two snapshots, found by comparing them: added, removed and changed voxels.

Nothing is taken on trust from the living map: rows may have moved, voxels may have been forgotten and seen anew. Every
value is compared bit for bit, so "unchanged" means that whatever is computed from it is unchanged too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopurify_core.jit import HAVE_NUMBA, compiled, read_only, run_chunks
from geopurify_core.mapping.keys import unpack_keys
from geopurify_core.mapping.snapshot import MapSnapshot

Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]

_MIN_CHUNK = 2048
_ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class Delta:
    """N voxels now, M before; all rows in key order.

    Attributes:
        source: (N,) int64, each voxel's row before; -1 where it is new.
        target: (M,) int64, each former voxel's row now; -1 where it is gone.
        features, rgb, normals, weight: (N,) bool, whether that value changed; True for new voxels.
        removed_coords: (m, 3) int32 coordinates of the voxels that are gone.
    """

    source: Rows
    target: Rows
    features: Mask
    rgb: Mask
    normals: Mask
    weight: Mask
    removed_coords: NDArray[np.int32]

    @property
    def added(self) -> Mask:
        """(N,) bool."""
        return self.source < 0

    @property
    def same_voxels(self) -> bool:
        """Neither new nor gone voxels: rows are the same."""
        return not len(self.removed_coords) and not bool(self.added.any())

    @property
    def nothing(self) -> bool:
        """No difference at all."""
        changed = self.features | self.rgb | self.normals | self.weight
        return self.same_voxels and not bool(changed.any())


def map_delta(
    before: MapSnapshot, before_keys: Rows, before_order: Rows, now: MapSnapshot, now_keys: Rows, now_order: Rows
) -> Delta:
    """The difference of two snapshots.

    Args:
        before, now: Snapshots of C channels, rows in any order.
        before_keys, now_keys: (M,) and (N,) their keys, ascending.
        before_order, now_order: Row of the snapshot for each key.
    """
    target = _find(now_keys, before_keys)
    source = np.full(len(now_keys), -1, dtype=np.int64)
    survived = target >= 0
    source[target[survived]] = np.flatnonzero(survived)
    ours = np.flatnonzero(source >= 0)
    now_rows, before_rows = now_order[ours], before_order[source[ours]]
    masks = {}
    for name in ("features", "rgb", "normals", "weight"):
        mask = np.ones(len(now_keys), dtype=bool)
        if before is now:
            mask[ours] = False
        else:
            mask[ours] = rows_differ(getattr(now, name), now_rows, getattr(before, name), before_rows)
        masks[name] = mask
    return Delta(source, target, removed_coords=unpack_keys(before_keys[~survived]), **masks)


def _find(keys: Rows, wanted: Rows) -> Rows:
    """(n,) positions of ``wanted`` in ascending ``keys``; -1 where absent."""
    if not len(keys):
        return np.full(len(wanted), -1, dtype=np.int64)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, at, -1).astype(np.int64, copy=False)


def rows_differ(a: NDArray[Any], a_rows: Rows, b: NDArray[Any], b_rows: Rows) -> Mask:
    """(n,) whether row ``a_rows[i]`` of ``a`` and row ``b_rows[i]`` of ``b`` differ in any bit.

    Args:
        a, b: (·, C) or (·,) of the same dtype and width, at most four bytes an element.
    """
    result = np.empty(len(a_rows), dtype=bool)
    a_bits, b_bits = _bits(a), _bits(b)
    if HAVE_NUMBA:
        views = (read_only(a_bits), read_only(a_rows), read_only(b_bits), read_only(b_rows))
        run_chunks(_differ, len(result), *views, result, min_chunk=_MIN_CHUNK)
        return result
    for low in range(0, len(result), _ROWS_AT_ONCE):
        part = slice(low, low + _ROWS_AT_ONCE)
        result[part] = (a_bits[a_rows[part]] != b_bits[b_rows[part]]).any(axis=1)
    return result


def _bits(array: NDArray[Any]) -> NDArray[Any]:
    """(·, C) unsigned integers with the same bits."""
    rows = np.ascontiguousarray(array).reshape(len(array), math.prod(array.shape[1:]))
    return rows.view(f"u{rows.dtype.itemsize}")


@compiled()
def _differ(start: int, stop: int, a: Any, a_rows: Any, b: Any, b_rows: Any, out: Any) -> None:
    for i in range(start, stop):
        left, right = a_rows[i], b_rows[i]
        different = False
        for k in range(a.shape[1]):
            if a[left, k] != b[right, k]:
                different = True
                break
        out[i] = different
