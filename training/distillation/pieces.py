"""What the student is shown of a scene in a step: the whole of it or a column cut from it, turned and repainted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geopurify_core.errors import DatasetError
from geopurify_core.geometry import level_rotation
from geopurify_core.purification.affinity.neighbors import nearest_neighbors_of
from geopurify_core.purification.student.voxelise import random_frame, voxelise_points
from training.distillation.basis import GEOMETRY
from training.distillation.recipe import Recipe
from training.distillation.shards import TrainingScene


@dataclass(frozen=True)
class Piece:
    """Points of a scene and the voxels they are in.

    Attributes:
        scene: Where it is from.
        points: (N,) int64, which of the scene's points.
        index: (N,) int64 tensor, the row of each point in ``rows``.
        rows: (M, D) float32 unit descriptors of the teacher.
        voxel_of: (N,) int64 tensor, the voxel of each point; None where points are voxels.
        coords: (V, 3) int32.
        inputs: (V, R + 6) float32.
        first: (V,) int64 tensor, a point of each voxel; None where points are voxels.
    """

    scene: TrainingScene
    points: NDArray[np.int64]
    index: Tensor
    rows: Tensor
    coords: Tensor
    inputs: Tensor
    voxel_of: Tensor | None = None
    first: Tensor | None = None

    def __len__(self) -> int:
        return len(self.points)

    def voxels(self, points: Tensor) -> Tensor:
        """The voxels of points of this piece."""
        return points if self.voxel_of is None else self.voxel_of[points]

    def near_points(self, points: Tensor, k: int) -> Tensor:
        """(n, min(k, N - 1)) int64 nearest other points of this piece (Euclidean), nearest first."""
        if self.voxel_of is None:
            return self.near_voxels(points, k)
        whole = len(self) == len(self.scene)
        tree = self.scene.tree if whole else _tree(self.scene.points_m[self.points])
        own = points.numpy()
        _, found = tree.query(self.scene.points_m[self.points[own]], min(k + 1, len(self)), workers=-1)
        return torch.from_numpy(_without(found.astype(np.int64), own))

    def near_voxels(self, voxels: Tensor, k: int) -> Tensor:
        """(n, min(k, V - 1)) int64 nearest other voxels of this piece, nearest first."""
        return torch.from_numpy(nearest_neighbors_of(self.coords.numpy(), voxels.numpy(), k).astype(np.int64))


def draw_piece(scene: TrainingScene, recipe: Recipe, rng: np.random.Generator) -> Piece:
    """The augmented piece of a step: the whole scene, or with ``crops`` a column of it.

    With ``sampled``, scan points come without voxels: ``only_sampled`` makes them once the samples are known.
    """
    if recipe.view == "sampled" and scene.coords is None:
        nothing, none = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3)
        index = torch.from_numpy(scene.index)
        return Piece(scene, np.arange(len(scene)), index, scene.rows, none.int(), none, nothing, nothing)
    if recipe.view == "crops" and scene.coords is not None:
        piece = column(_of_map(scene), recipe.crop, rng)  # before all of it is widened
        piece = replace(piece, inputs=piece.inputs.float())
    else:
        piece = whole_scene(scene, recipe, rng if recipe.random_frame else None)
        piece = column(piece, recipe.crop, rng) if recipe.view == "crops" else piece
    return augmented(piece, recipe, rng) if recipe.augment else piece


def whole_scene(scene: TrainingScene, recipe: Recipe, frame_rng: np.random.Generator | None = None) -> Piece:
    """All points; scan points voxelised, in a random frame where there is a source for one."""
    if scene.coords is not None:
        piece = _of_map(scene)
        return replace(piece, inputs=piece.inputs.float())
    return _voxelised(scene, np.arange(len(scene)), recipe.voxel_size_m, frame_rng)


def _of_map(scene: TrainingScene) -> Piece:
    """All voxels of a map, their inputs still in float16."""
    coords, inputs, index = (torch.from_numpy(part) for part in (scene.coords, scene.inputs, scene.index))
    return Piece(scene, np.arange(len(scene)), index, scene.rows, coords, inputs)


def only_sampled(piece: Piece, points: Tensor, recipe: Recipe, rng: np.random.Generator) -> tuple[Piece, Tensor]:
    """The piece of those points alone, and where each point of ``piece`` is in it (-1: nowhere)."""
    place = torch.full((len(piece),), -1, dtype=torch.int64)
    place[points] = torch.arange(len(points))
    kept = piece.points[points.numpy()]
    if piece.voxel_of is None:
        part = replace(
            piece, points=kept, index=piece.index[points], coords=piece.coords[points], inputs=piece.inputs[points]
        )
        return part, place
    part = _voxelised(piece.scene, kept, recipe.voxel_size_m, rng if recipe.random_frame else None)
    return augmented(part, recipe, rng) if recipe.augment else part, place


def _voxelised(
    scene: TrainingScene, points: NDArray[np.int64], voxel_size_m: float, frame_rng: np.random.Generator | None
) -> Piece:
    positions = scene.points_m[points].astype(np.float64)
    if frame_rng is not None:
        positions = positions @ random_frame(frame_rng).T
    made = voxelise_points(positions, voxel_size_m)
    if len(made.coords) < 2:
        raise DatasetError(f"scene {scene.name}", len(made.coords), "It is a single voxel: leave it out.")
    return Piece(
        scene,
        points,
        torch.from_numpy(scene.index[points]),
        scene.rows,
        torch.from_numpy(made.coords),
        torch.from_numpy(made.mean(scene.inputs[points])),
        torch.from_numpy(made.inverse),
        torch.from_numpy(made.first),
    )


def column(piece: Piece, size: int, rng: np.random.Generator) -> Piece:
    """The ``size`` voxels nearest a random one, seen from above: a square column from floor to ceiling."""
    coords = piece.coords.numpy()
    if len(coords) <= size:
        return piece
    centre = coords[rng.integers(len(coords))]
    off = np.maximum(*(np.abs(along) for along in _level(coords - centre, piece.scene.up)))
    voxels = np.sort(np.argpartition(off, size)[:size])
    place = torch.full((len(coords),), -1, dtype=torch.int64)
    place[torch.from_numpy(voxels)] = torch.arange(size)
    if piece.voxel_of is None:
        inside, voxel_of, first = torch.from_numpy(voxels), None, None
    else:
        inside = torch.nonzero(place[piece.voxel_of] >= 0)[:, 0]
        voxel_of = place[piece.voxel_of[inside]]
        first = torch.full((size,), len(inside)).scatter_reduce(0, voxel_of, torch.arange(len(inside)), "amin")
    present, index = torch.unique(piece.index[inside], return_inverse=True)
    return Piece(
        piece.scene, piece.points[inside.numpy()], index, piece.rows[present], piece.coords[voxels],
        piece.inputs[voxels], voxel_of, first,
    )  # fmt: skip


def _level(offset: NDArray[np.int32], up: tuple[float, float, float]) -> list[NDArray[Any]]:
    """(V, 3) offsets along the two level directions, also of a map that lies on its side."""
    rows = level_rotation(up)[:2]
    return [sum(offset[:, axis] * row[axis] for axis in range(3) if row[axis]) for row in rows]


def augmented(piece: Piece, recipe: Recipe, rng: np.random.Generator) -> Piece:
    """Quarter turns and mirroring about the vertical, other light and paint, and a weaker semantic part."""
    coords, inputs = piece.coords.clone(), piece.inputs.clone()
    normals = inputs[:, -3:]
    vertical = int(np.abs(piece.scene.up).argmax())  # the grid's axis nearest to it: voxels must stay voxels
    x, y = (vertical + 1) % 3, (vertical + 2) % 3
    for _ in range(int(rng.integers(4))):
        for vectors in (coords, normals):
            vectors[:, [x, y]] = torch.stack([-vectors[:, y], vectors[:, x]], dim=1)
    if rng.uniform() < 0.5:
        for vectors in (coords, normals):
            vectors[:, x] = -vectors[:, x]
    inputs[:, -6:-3] = _repainted(inputs[:, -6:-3], rng)
    _weaken(inputs[:, :-GEOMETRY], rng, recipe.semantic_drop, recipe.semantic_noise)
    return replace(piece, coords=coords, inputs=inputs)


def _repainted(colour: Tensor, rng: np.random.Generator) -> Tensor:
    gain, shift = rng.uniform(0.75, 1.25, 3), rng.uniform(-0.08, 0.08, 3)
    grey = colour.mean(dim=1, keepdim=True)
    colour = grey + (colour - grey) * float(rng.uniform(0.5, 1.3))
    noise = torch.from_numpy(rng.standard_normal((len(colour), 3), dtype=np.float32)) * float(rng.uniform(0, 0.03))
    return (colour * torch.tensor(gain).float() + torch.tensor(shift).float() + noise).clamp(0, 1)


def _weaken(semantic: Tensor, rng: np.random.Generator, drop: float, noise: float) -> None:
    """In place: all of it away, or some voxels without it and noise on the rest."""
    if rng.uniform() < drop:
        semantic.zero_()
        return
    if noise > 0:
        spread = noise * float(semantic.std()) * float(rng.uniform())
        semantic += spread * torch.from_numpy(rng.standard_normal(tuple(semantic.shape), dtype=np.float32))
    semantic[torch.from_numpy(rng.uniform(size=len(semantic)) < drop)] = 0


def _tree(positions: NDArray[np.float32]) -> Any:
    from scipy.spatial import cKDTree

    return cKDTree(positions)


def _without(found: NDArray[np.int64], own: NDArray[np.int64]) -> NDArray[np.int64]:
    """Drop the point itself from each row; where others lie on the same spot it need not come first, or at all."""
    itself = found == own[:, None]
    itself[~itself.any(axis=1), -1] = True
    kept: NDArray[np.int64] = found[~itself].reshape(len(found), found.shape[1] - 1)
    return kept
