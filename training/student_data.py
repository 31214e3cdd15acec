"""From collected scenes to training crops: compact inputs, groups, augmentation, and samples from known groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from geopurify_core.datasets.synthetic.kinds import CLASS_NAMES
from geopurify_core.mapping.keys import pack_keys
from geopurify_core.purification.student.inputs import student_inputs
from training.sampling import Samples
from training.student_scenes import Scene, load_scene

_STUFF = np.array([CLASS_NAMES.index(name) for name in ("wall", "floor", "ceiling")])
_STUFF_GROUP, _MOST_OBJECTS = 1_000_000, 10_000
GEOMETRY = 6  # r g b nx ny nz
_APART = 20_000  # voxels between crops of one step: more than any apartment is long


@dataclass(frozen=True)
class Prepared:
    """A scene as the training loop wants it, rows in key order.

    Attributes:
        coords: (V, 3) int32.
        inputs: (V, R + 6) float16: semantic features in a basis of R directions, colour in [0, 1], normal.
        groups: (V,) int32, what belongs together has one number; 0 is unknown.
    """

    coords: NDArray[np.int32]
    inputs: NDArray[np.float16]
    groups: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.coords)


def groups_of(scene: Scene) -> NDArray[np.int32]:
    """Which voxels belong together: each object by itself, all walls, all floor and all ceiling; 0 is unknown.

    Two walls that meet in a corner are one group on purpose: mixing their features harms nobody.
    """
    stuff = np.isin(scene.category, _STUFF)
    group = np.where(stuff, _STUFF_GROUP + scene.category.astype(np.int32), scene.instance)
    return np.where(scene.instance == 0, 0, group).astype(np.int32)


def semantic_basis(scenes: list[Path], rank: int, rows: int = 4000) -> NDArray[np.float32]:
    """(C, R) basis in which training sees the semantic features, R ≤ rank directions, each scaled down by its spread.

    A backbone whose features leave a linear layer of ``rank`` inputs (nano: 96) loses nothing by it, and the first
    layer of the student becomes several times cheaper to train; ``expanded`` turns the trained layer back into one for
    the full features.
    """
    rng = np.random.default_rng(0)
    parts = []
    for path in scenes:
        features = load_scene(path).snapshot.features
        parts.append(features[rng.integers(0, len(features), min(rows, len(features)))].astype(np.float64))
    stacked = np.concatenate(parts)
    square, vectors = np.linalg.eigh(stacked.T @ stacked / len(stacked))
    order = np.argsort(-square)[:rank]
    order = order[square[order] > 1e-9 * square.max()]
    scale = np.sqrt(len(order) * square[order] / square[order].sum())  # 1 on average
    return np.asarray(vectors[:, order] / np.maximum(scale, 1e-2) ** 0.5, dtype=np.float32)


def expanded(kernel: Tensor, basis: NDArray[np.float32]) -> Tensor:
    """The first layer for full features: (27, R + 6, H) → (27, C + 6, H), the same function of what the basis spans."""
    rank = basis.shape[1]
    semantic = torch.einsum("cr,krh->kch", torch.from_numpy(basis), kernel[:, :rank])
    return torch.cat([semantic, kernel[:, rank:]], dim=1)


def prepare(scene: Scene, basis: NDArray[np.float32]) -> Prepared:
    """Inputs as purification will see them (the same ``student_inputs``), in the basis."""
    order = np.argsort(pack_keys(scene.snapshot.coords), kind="stable")
    full = student_inputs(scene.snapshot).numpy()
    channels = len(basis)
    inputs = np.concatenate([full[:, :channels] @ basis, full[:, channels:]], axis=1)
    return Prepared(scene.snapshot.coords[order], inputs[order].astype(np.float16), groups_of(scene)[order])


@dataclass(frozen=True)
class Crop:
    """A piece of a scene: coords (n, 3) int32, inputs (n, R + 6) float32, groups (n,) int64."""

    coords: Tensor
    inputs: Tensor
    groups: Tensor


def draw_crop(scene: Prepared, size: int, rng: np.random.Generator) -> Crop:
    """The ``size`` voxels nearest a random one, seen from above: a square column from floor to ceiling."""
    centre = scene.coords[rng.integers(len(scene))]
    off = np.abs(scene.coords[:, :2] - centre[:2]).max(axis=1)
    rows = np.arange(len(scene)) if len(scene) <= size else np.sort(np.argpartition(off, size)[:size])
    return Crop(
        torch.from_numpy(scene.coords[rows]),
        torch.from_numpy(scene.inputs[rows].astype(np.float32)),
        torch.from_numpy(scene.groups[rows].astype(np.int64)),
    )


def joined(crops: Sequence[Crop]) -> Crop:
    """Several crops as one, far apart from each other; no object spans two of them."""
    coords, groups, base = [], [], 0
    for i, crop in enumerate(crops):
        low = crop.coords.min(dim=0).values
        coords.append(crop.coords - low + torch.tensor([_APART * i, 0, 0], dtype=crop.coords.dtype))
        thing = (crop.groups > 0) & (crop.groups < _STUFF_GROUP)
        groups.append(torch.where(thing, crop.groups + base, crop.groups))
        base += _MOST_OBJECTS
    return Crop(torch.cat(coords), torch.cat([crop.inputs for crop in crops]), torch.cat(groups))


def augment(crop: Crop, rng: np.random.Generator, semantic_drop: float, semantic_noise: float) -> Crop:
    """Quarter turns and mirroring about the vertical, other light and paint, and a weaker semantic part.

    Args:
        crop: Is not changed.
        rng: Source of everything random.
        semantic_drop: Chance that a whole crop comes without its semantic channels, and share of voxels that lose
            theirs in the others.
        semantic_noise: Deviation of noise added to them, in units of their own.
    """
    coords, inputs = crop.coords.clone(), crop.inputs.clone()
    normal = slice(inputs.shape[1] - 3, None)
    for _ in range(int(rng.integers(4))):
        coords = torch.stack([-coords[:, 1], coords[:, 0], coords[:, 2]], dim=1)
        x, y, z = inputs[:, normal].unbind(1)
        inputs[:, normal] = torch.stack([-y, x, z], dim=1)
    if rng.uniform() < 0.5:
        coords[:, 0], inputs[:, -3] = -coords[:, 0], -inputs[:, -3]
    colour = inputs[:, -6:-3]
    gain, shift = rng.uniform(0.75, 1.25, 3), rng.uniform(-0.08, 0.08, 3)
    grey = colour.mean(dim=1, keepdim=True)
    colour = grey + (colour - grey) * float(rng.uniform(0.5, 1.3))
    noise = torch.from_numpy(rng.standard_normal((len(colour), 3), dtype=np.float32)) * float(rng.uniform(0, 0.03))
    inputs[:, -6:-3] = (colour * torch.tensor(gain).float() + torch.tensor(shift).float() + noise).clamp(0, 1)
    _weaken(inputs[:, :-GEOMETRY], rng, semantic_drop, semantic_noise)
    return Crop(coords, inputs, crop.groups)


def _weaken(semantic: Tensor, rng: np.random.Generator, drop: float, noise: float) -> None:
    """In place: all of it away, or some voxels without it and noise on the rest."""
    if rng.uniform() < drop:
        semantic.zero_()
        return
    if noise > 0:
        spread = noise * float(semantic.std()) * float(rng.uniform())
        semantic += spread * torch.from_numpy(rng.standard_normal(tuple(semantic.shape), dtype=np.float32))
    semantic[torch.from_numpy(rng.uniform(size=len(semantic)) < drop)] = 0


def draw_rows(groups: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    """(≤ count,) distinct rows of known groups, small groups favoured: chance ∝ 1 / sqrt(size of the group)."""
    values = groups.numpy()
    _, inverse, sizes = np.unique(values, return_inverse=True, return_counts=True)
    weight = np.where(values != 0, sizes[inverse] ** -0.5, 0.0)
    known = int((weight > 0).sum())
    if known == 0:
        return torch.zeros(0, dtype=torch.int64)
    key = rng.exponential(size=len(values)) / np.maximum(weight, 1e-12)  # Efraimidis and Spirakis: smallest keys win
    return torch.from_numpy(np.sort(np.argsort(key)[: min(count, known)]).astype(np.int64))


def nearest(coords: Tensor, rows: Tensor, k: int) -> Tensor:
    """(R, k) int64 nearest other voxels of the crop, for each of ``rows``."""
    points = coords.numpy()
    k = min(k, len(points) - 1)
    _, found = cKDTree(points).query(points[rows.numpy()], k + 1)
    return torch.from_numpy(found[:, 1:].astype(np.int64))


def group_samples(
    groups: Tensor, rows: Tensor, neighbors: Tensor, num_macro: int, num_micro: int, rng: np.random.Generator
) -> Samples:
    """The hybrid sampler where the groups are known instead of guessed from a teacher's features.

    Positive: any voxel of the anchor's group. Macro negatives: any of other groups. Micro negatives: of other groups
    among the neighbours; where there are too few, macro ones take their place. Rows alone in the crop are left out.
    """
    own = groups[rows]
    if len(torch.unique(groups[groups != 0])) < 2:
        empty = rows[:0]
        return Samples(empty, empty, empty.new_zeros((0, num_macro + num_micro)))
    order = torch.argsort(groups, stable=True)
    first = torch.searchsorted(groups[order], own)
    size = torch.searchsorted(groups[order], own, right=True) - first
    pick = torch.from_numpy(rng.uniform(size=len(rows)))
    positives = order[first + (pick * size).long().clamp(max=len(groups) - 1).minimum(size - 1)]
    negatives = _strangers(groups, own, num_macro + num_micro, rng)
    priority = torch.from_numpy(rng.uniform(size=tuple(neighbors.shape)))
    near_groups = groups[neighbors]
    priority[(near_groups == own[:, None]) | (near_groups == 0)] = -1
    best = priority.topk(min(num_micro, neighbors.shape[1]), dim=1)
    micro = neighbors.gather(1, best.indices)
    columns = slice(num_macro, num_macro + micro.shape[1])
    negatives[:, columns] = torch.where(best.values > 0, micro, negatives[:, columns])
    keep = (positives != rows) & (own != 0)
    return Samples(rows[keep], positives[keep], negatives[keep])


def _strangers(groups: Tensor, own: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    """(A, count) rows of known other groups, drawn evenly: with the rows sorted by group, a draw skips the own part."""
    known = torch.nonzero(groups != 0)[:, 0]
    known = known[torch.argsort(groups[known], stable=True)]
    first = torch.searchsorted(groups[known], own)[:, None]
    size = torch.searchsorted(groups[known], own, right=True)[:, None] - first
    others = (len(known) - size).clamp(min=1)
    drawn = (torch.from_numpy(rng.uniform(size=(len(own), count))) * others).long().minimum(others - 1)
    return known[(drawn + size * (drawn >= first)).clamp(max=len(known) - 1)]
