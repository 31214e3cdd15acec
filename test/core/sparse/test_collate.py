"""Scenes in one tensor give what each gives alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from geopurify_core.errors import SparseError
from geopurify_core.mapping.keys import COORD_LIMIT
from geopurify_core.sparse import CoordinateMap, SparseConv3d, SparseTensor, SubmanifoldConv3d, collate

Blob = Callable[..., Tensor]


def test_joint_scenes_do_not_meet(blob: Blob) -> None:
    torch.manual_seed(0)
    scenes = [
        SparseTensor(torch.randn(len(coords), 3), CoordinateMap(coords))
        for coords in (blob(0), blob(1, low=-37), blob(2, low=5000, side=9))
    ]
    joint, layout = collate(scenes)
    first, down, second = SubmanifoldConv3d(3, 4), SparseConv3d(4, 4), SubmanifoldConv3d(4, 2, 5)
    for stage in range(4):
        layers = [first, down, down, second][:stage]
        together, alone = joint, list(scenes)
        for layer in layers:
            together, alone = layer(together), [layer(scene) for scene in alone]
        for features, scene, rows, shift in zip(
            layout.split(together), alone, layout.rows(together), layout.shifts, strict=True
        ):
            torch.testing.assert_close(features, scene.features, atol=1e-6, rtol=0)
            moved = scene.coords + torch.tensor([shift, 0, 0])
            assert torch.equal(together.coords[rows].long(), moved.long())


def test_too_many_scenes_are_refused(blob: Blob) -> None:
    ends = torch.tensor([[-COORD_LIMIT, 0, 0], [COORD_LIMIT - 1, 0, 0]])
    wide = SparseTensor(torch.ones(2, 1), CoordinateMap(ends))
    assert len(collate([wide])[0].coords) == 2
    with pytest.raises(SparseError, match="along x"):
        collate([wide, wide])
    with pytest.raises(SparseError, match="one or more"):
        collate([])
    with pytest.raises(SparseError, match="stride 1"):
        collate([SparseConv3d(1, 1)(wide)])
