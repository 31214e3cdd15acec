"""Several scenes in one sparse tensor, kept apart by distance.

A batch index would need a fourth coordinate; instead each scene is moved along x by a multiple of 1024 voxels, further
than any kernel on any stride up to 256 reaches. Convolutions, strides and their shifts are the same for moved scenes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from geopurify_core.errors import SparseError
from geopurify_core.mapping.keys import COORD_LIMIT
from geopurify_core.sparse.coordinates import CoordinateMap
from geopurify_core.sparse.tensor import SparseTensor

_STEP = 1024


@dataclass(frozen=True)
class SceneLayout:
    """Where the scenes of a joint tensor are: scene s was moved by ``shifts[s]`` and owns x in
    ``[borders[s], borders[s + 1])``."""

    shifts: tuple[int, ...]
    borders: tuple[int, ...]

    def rows(self, x: SparseTensor) -> list[Tensor]:
        """For each scene the int64 rows of ``x`` that are its own, in their order; for any stride."""
        along = x.coords[:, 0]
        pairs = itertools.pairwise(self.borders)
        return [((along >= low) & (along < high)).nonzero().squeeze(1) for low, high in pairs]

    def split(self, x: SparseTensor) -> list[Tensor]:
        """The (V_s, C) features of each scene; those of a stride-1 tensor in the order they were given in."""
        return [x.features[rows] for rows in self.rows(x)]


def collate(scenes: Sequence[SparseTensor]) -> tuple[SparseTensor, SceneLayout]:
    """One tensor that holds the rows of all scenes, one scene after the other, and where each of them is.

    Raises:
        SparseError: No scenes, scenes of another stride than 1, or more than 2^21 voxels along x in all.
    """
    if not scenes or any(scene.stride != 1 for scene in scenes):
        raise SparseError("scenes", [scene.stride for scene in scenes], "Give one or more scenes of stride 1.")
    border, borders, shifts = -COORD_LIMIT, [-COORD_LIMIT], []
    for scene in scenes:
        along = scene.coords[:, 0]
        low, high = (int(along.min()), int(along.max())) if len(along) else (0, 0)
        shift = -(-(border - low) // _STEP) * _STEP
        border = high + shift + _STEP
        shifts.append(shift)
        borders.append(border - _STEP // 2)  # a coarser cell may begin a little before its scene
    if border - _STEP >= COORD_LIMIT:
        raise SparseError("scenes", len(scenes), f"Together they need more than {2 * COORD_LIMIT} voxels along x.")
    moved = [
        scene.coords + torch.tensor([shift, 0, 0], dtype=torch.int32, device=scene.coords.device)
        for scene, shift in zip(scenes, shifts, strict=True)
    ]
    joint = CoordinateMap(torch.cat(moved))
    return SparseTensor(torch.cat([scene.features for scene in scenes]), joint), SceneLayout(
        tuple(shifts), tuple(borders)
    )
