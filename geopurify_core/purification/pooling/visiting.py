"""The order in which pooling visits voxels: along a Morton curve, so that those visited together share neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopurify_core.mapping.keys import COORD_LIMIT
from geopurify_core.purification.kinds import like, to_numpy

# Spreading 21 bits to every third place: shift by so much, keep these.
_SPREAD = (
    (32, 0x001F00000000FFFF),
    (16, 0x001F0000FF0000FF),
    (8, 0x100F00F00F00F00F),
    (4, 0x10C30C30C30C30C3),
    (2, 0x1249249249249249),
)


def visit_order(coords: Any) -> Any:
    """(V,) int32 rows of (V, 3) integer coordinates along the Morton curve that starts at (-2^20, -2^20, -2^20).

    Two voxels keep their order when others come or go. Four that follow each other share about two thirds of their
    neighbours on scanned surfaces, in key order rather less.
    """
    codes = np.zeros(len(coords), dtype=np.uint64)
    for axis, values in enumerate(to_numpy(coords).T):
        codes |= _spread((values.astype(np.int64) + COORD_LIMIT).astype(np.uint64)) << np.uint64(2 - axis)
    return like(np.argsort(codes, kind="stable").astype(np.int32), coords)


def _spread(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    for shift, mask in _SPREAD:
        values = (values | (values << np.uint64(shift))) & np.uint64(mask)
    return values
