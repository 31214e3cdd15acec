"""The loss of a step: hybrid InfoNCE, and the cross-entropy of the very affinity that pooling will use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geopurify_core.errors import DatasetError
from training.distillation.pieces import Piece, draw_piece, only_sampled
from training.distillation.recipe import Recipe
from training.distillation.samples import Choice, PointRows, RowSamples, anchors_of, sample_rows
from training.distillation.shards import TrainingScene
from training.losses import affinity_terms, info_nce

_APART = 16_000  # voxels between pieces of one step: more than any scene is long, and 64 of them fit into 2^20


@dataclass(frozen=True)
class Batch:
    """What a step needs, all in voxels (V rows).

    Attributes:
        coords, inputs: (V, 3) int32 and (V, R + 6) float32, what the student sees.
        anchors, positives, negatives: (A,), (A,), (A, macro + micro) int64 voxels.
        usable: (A, macro + micro) bool, negatives that are pushed away.
        rows, neighbors: (B,) and (B, K) int64 voxels, whose affinity is scored; empty where the recipe does not.
        same, known: (B, K) bool, belongs together; counts at all.
        points: Points that stand behind it, for figures of speed.
    """

    coords: Tensor
    inputs: Tensor
    anchors: Tensor
    positives: Tensor
    negatives: Tensor
    usable: Tensor
    rows: Tensor
    neighbors: Tensor
    same: Tensor
    known: Tensor
    points: int

    def to(self, device: torch.device) -> Batch:
        """The same with its tensors on that device; coordinates stay where they are."""
        moved: dict[str, Any] = {
            name: value.to(device) if isinstance(value, Tensor) and name not in ("coords", "inputs") else value
            for name, value in vars(self).items()
        }
        return Batch(**moved)


def make_batch(
    scenes: Sequence[TrainingScene], recipe: Recipe, rng: np.random.Generator, device: torch.device | str = "cpu"
) -> Batch:
    """Pieces of these scenes with their samples; everything random comes from ``rng``.

    The teacher's similarities are computed on ``device``.
    """
    parts, base = [], 0
    for number, scene in enumerate(scenes):
        part = _batch_of(draw_piece(scene, recipe, rng), recipe, rng, torch.device(device))
        parts.append(_shifted(part, base, number))
        base += len(part.coords)
    if len(parts) == 1:
        return parts[0]
    joined: dict[str, Any] = {
        name: torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0]) if name != "points"
    }
    return Batch(**joined, points=sum(part.points for part in parts))


def loss_of(embeddings: Tensor, batch: Batch, recipe: Recipe) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted loss of (V, D) embeddings, and its parts."""
    parts: dict[str, Tensor] = {}
    if recipe.contrast:
        parts["contrast"] = info_nce(
            embeddings, batch.anchors, batch.positives, batch.negatives, recipe.temperature, usable=batch.usable
        )
    if recipe.affinity or recipe.spread:
        parts["affinity"], parts["spread"] = affinity_terms(
            embeddings, batch.rows, batch.neighbors, batch.same, batch.known, recipe.sharpening
        )
    total = torch.stack([getattr(recipe, name) * value for name, value in parts.items()]).sum()
    return total, {name: value.detach() for name, value in parts.items()}


def sample_piece(piece: Piece, recipe: Recipe, rng: np.random.Generator, device: torch.device) -> RowSamples:
    """Anchors with positives and negatives among the points of a piece, on the CPU.

    Raises:
        DatasetError: The piece has too few points, or no point with neighbours enough.
    """
    if len(piece) < recipe.least_points or len(piece) - 1 < recipe.micro:
        raise DatasetError(f"scene {piece.scene.name}", f"{len(piece)} points", f"{recipe.least_points} are needed.")
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    points = PointRows(piece.rows.to(device), piece.index.to(device))
    anchors, near = anchors_of(
        points,
        lambda rows: piece.near_points(rows.cpu(), recipe.neighbors).to(device),
        max(1, recipe.anchors // recipe.crops),
        recipe.same_above if recipe.anchor_draw == "contested" else None,
        generator,
    )
    above = recipe.same_above if recipe.positive == "above" else None
    return sample_rows(
        points,
        anchors,
        near,
        Choice(recipe.macro, recipe.micro, above, generator if recipe.ties == "random" else None, generator),
    )


def _batch_of(piece: Piece, recipe: Recipe, rng: np.random.Generator, device: torch.device) -> Batch:
    samples = sample_piece(piece, recipe, rng, device)
    usable = samples.negative_cosine <= recipe.negative_ceiling
    if recipe.positive == "above":
        usable &= (samples.positive_cosine >= recipe.same_above)[:, None]
    count = len(piece)
    chosen = [part.cpu() for part in (samples.anchors, samples.positives, samples.negatives)]
    affinity = _affinity_rows(piece, samples, recipe)
    if recipe.view == "sampled":
        piece, place = only_sampled(piece, torch.unique(torch.cat([part.reshape(-1) for part in chosen])), recipe, rng)
        chosen = [place[part] for part in chosen]
    anchors, positives, negatives = (piece.voxels(part) for part in chosen)
    return Batch(piece.coords, piece.inputs, anchors, positives, negatives, usable.cpu(), *affinity, points=count)


def _affinity_rows(piece: Piece, samples: RowSamples, recipe: Recipe) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Voxels whose affinity is scored, their neighbours, and what the teacher says of these."""
    if not recipe.affinity + recipe.spread:
        none = torch.zeros(0, dtype=torch.int64)
        return none, none.view(0, 1), none.view(0, 1).bool(), none.view(0, 1).bool()
    anchors = samples.anchors.cpu()
    if piece.first is None:
        rows, near, cosine = anchors, samples.near.cpu(), samples.near_cosine.cpu()
    else:
        rows = torch.unique(piece.voxels(anchors))
        near = piece.near_voxels(rows, recipe.neighbors)
        cosine = _cosines(piece, rows, near)
    same = cosine >= recipe.same_above
    return rows, near, same, same | (cosine <= min(recipe.negative_ceiling, recipe.same_above))


def _cosines(piece: Piece, rows: Tensor, near: Tensor) -> Tensor:
    """(B, K) the teacher's cosines of voxels to their neighbours; a voxel is like its first point."""
    assert piece.first is not None
    return PointRows(piece.rows, piece.index[piece.first]).cosines_to(rows, near)


def _shifted(batch: Batch, base: int, number: int) -> Batch:
    """The batch as the ``number``-th of several, its voxels counted from ``base`` and far from all others."""
    low = batch.coords.min(dim=0).values
    coords = batch.coords - low + torch.tensor([_APART * number, 0, 0], dtype=batch.coords.dtype)
    named = ("anchors", "positives", "negatives", "rows", "neighbors")
    return Batch(**{**vars(batch), "coords": coords, **{name: getattr(batch, name) + base for name in named}})
