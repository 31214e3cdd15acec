"""Small maps, small students, and edits of the former for the tests of purification's computation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from geopurify_core.mapping.keys import pack_keys
from geopurify_core.mapping.snapshot import MapSnapshot
from geopurify_core.purification.student.checkpoint import Student, StudentInfo
from geopurify_core.purification.student.network import StudentAffinityNetwork

CHANNELS = 12
PER_VOXEL = ("features", "weight", "rgb", "normals", "first_seen_ns", "last_seen_ns", "geometry_weight")


def small_student(seed: int = 0, channels: int = CHANNELS, blocks: int = 1, hidden: int = 6) -> Student:
    """Random weights, batch statistics that are not trivial, and embeddings that tell voxels apart."""
    torch.manual_seed(seed)
    network = StudentAffinityNetwork(channels + 6, hidden=hidden, out=5, blocks=blocks).eval()
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.endswith("running_mean"):
                value.normal_(0.0, 0.1)
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
    return Student(network, StudentInfo("bb", channels, hidden, 5, blocks), f"student:{seed}")


def strip(length: int, rng: np.random.Generator, width: int = 5, channels: int = CHANNELS) -> MapSnapshot:
    """A bumpy strip of floor, long enough that a change at one end does not reach the other; a wall at one side."""
    floor = np.stack(np.meshgrid(np.arange(length), np.arange(width), [0], indexing="ij"), -1).reshape(-1, 3)
    wall = np.stack(np.meshgrid(np.arange(length), [0], np.arange(1, 3), indexing="ij"), -1).reshape(-1, 3)
    floor[:, 2] += rng.random(len(floor)) < 0.2
    return random_map(np.concatenate([floor, wall]) - length // 2, rng, channels)


def random_map(coords: NDArray[Any], rng: np.random.Generator, channels: int = CHANNELS) -> MapSnapshot:
    """Two kinds of features in halves, noise on both; every ninth normal unknown; rows in no order."""
    coords = np.unique(coords.astype(np.int32), axis=0)
    coords = rng.permutation(coords)
    n = len(coords)
    features = rng.standard_normal((n, channels)) * 0.2 / np.sqrt(channels)
    features[np.arange(n), np.where(coords[:, 1] > 0, 1, 2) % channels] += 1.0
    normals = np.zeros((n, 3))
    normals[:, 2] = 1.0
    normals[rng.random(n) < 1 / 9] = 0.0
    stamps = np.arange(n, dtype=np.int64)
    return MapSnapshot(
        coords, features.astype(np.float16), rng.uniform(0, 9, n).astype(np.float32),
        rng.integers(0, 256, (n, 3)).astype(np.uint8), normals.astype(np.float16), stamps, stamps + 1,
        0.05, "map", 1, 1, "bb", "text",
    )  # fmt: skip


def take(snapshot: MapSnapshot, rows: NDArray[Any], **values: Any) -> MapSnapshot:
    """These rows, some columns replaced before; the next version."""
    taken = {name: values.get(name, getattr(snapshot, name))[rows] for name in (*PER_VOXEL, "coords")}
    return replace(snapshot, version=snapshot.version + 1, stamp_ns=snapshot.stamp_ns + 1, **taken)


def spot(snapshot: MapSnapshot, rng: np.random.Generator, radius: int = 2) -> NDArray[np.int64]:
    """Rows within ``radius`` of some voxel."""
    centre = snapshot.coords[rng.integers(len(snapshot))]
    return np.flatnonzero((np.abs(snapshot.coords - centre) <= radius).all(axis=1))


def change_features(snapshot: MapSnapshot, rng: np.random.Generator) -> MapSnapshot:
    features, rows = snapshot.features.copy(), spot(snapshot, rng)
    features[rows] = rng.standard_normal((len(rows), snapshot.feature_dim)) * 0.3
    return take(snapshot, np.arange(len(snapshot)), features=features)


def change_colours(snapshot: MapSnapshot, rng: np.random.Generator) -> MapSnapshot:
    rgb, rows = snapshot.rgb.copy(), spot(snapshot, rng)
    rgb[rows] = 255 - rgb[rows]
    return take(snapshot, np.arange(len(snapshot)), rgb=rgb)


def change_weights(snapshot: MapSnapshot, rng: np.random.Generator) -> MapSnapshot:
    weight, rows = snapshot.weight.copy(), spot(snapshot, rng)
    weight[rows] += 1.0
    return take(snapshot, np.arange(len(snapshot)), weight=weight)


def add_voxels(snapshot: MapSnapshot, rng: np.random.Generator) -> MapSnapshot:
    near = snapshot.coords[spot(snapshot, rng)] + np.array([0, 0, 2])
    new = np.unique(near[~np.isin(pack_keys(near), pack_keys(snapshot.coords))], axis=0)
    rows = np.concatenate([np.arange(len(snapshot)), rng.integers(0, len(snapshot), len(new))])
    grown = take(snapshot, rows)
    coords = np.concatenate([snapshot.coords, new]).astype(np.int32)
    return replace(grown, coords=coords)


def evict_voxels(snapshot: MapSnapshot, rng: np.random.Generator) -> MapSnapshot:
    gone = spot(snapshot, rng, radius=1)
    return take(snapshot, np.setdiff1d(np.arange(len(snapshot)), gone)) if len(gone) < len(snapshot) else snapshot


def only_reorder(snapshot: MapSnapshot, rng: np.random.Generator) -> MapSnapshot:
    return take(snapshot, rng.permutation(len(snapshot)))


def change_everything(snapshot: MapSnapshot, rng: np.random.Generator) -> MapSnapshot:
    return replace(random_map(snapshot.coords, rng, snapshot.feature_dim), version=snapshot.version + 1)


EDITS = {
    edit.__name__: edit
    for edit in (
        change_features, change_colours, change_weights, add_voxels, evict_voxels, only_reorder, change_everything,
    )
}  # fmt: skip
