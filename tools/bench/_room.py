"""A furnished room as a raw map, and what a small change in it looks like. Shared by the benchmarks of purification."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NOISE_M = 0.004
_FEATURE_NOISE = 0.5  # length of the noise on each voxel's feature, whose clean part has length 1


def furnished_room(voxels: int, channels: int, voxel_size_m: float = 0.02, seed: int = 0) -> Any:
    """A room of about ``voxels`` voxels: floor, four walls, boxes and cylinders, each thing with its own feature.

    Surfaces are sampled with 4 mm of depth noise, which thickens them to 12-13 occupied voxels of 27, as real maps are.
    """
    room_m = 3.0 * np.array([1.0, 0.8, 0.4]) * np.sqrt(voxels / 100_000) * (voxel_size_m / 0.02)
    for _ in range(4):  # the density of voxels is found by trying
        built = _build(room_m, channels, voxel_size_m, seed)
        if abs(len(built) / voxels - 1) < 0.02:
            break
        room_m *= np.sqrt(voxels / len(built))
    return built


def _build(room_m: NDArray[np.float64], channels: int, size_m: float, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    parts = [*_shell(room_m, size_m, rng), *_furniture(room_m, size_m, rng)]
    points = np.concatenate([part[0] for part in parts])
    normals = np.concatenate([part[1] for part in parts])
    things = np.concatenate([np.full(len(part[0]), i) for i, part in enumerate(parts)])
    cells, first = np.unique(np.floor(points / size_m).astype(np.int32), axis=0, return_index=True)
    return _snapshot(cells, normals[first], things[first], channels, size_m, rng)


def _plane(origin: Any, u: Any, v: Any, normal: Any, size_m: float, rng: np.random.Generator) -> Any:
    origin, u, v, normal = (np.asarray(x, dtype=np.float64) for x in (origin, u, v, normal))
    count = int(12 * np.linalg.norm(u) * np.linalg.norm(v) / size_m**2) + 1
    a, b = rng.random((2, count, 1))
    points = origin + a * u + b * v + normal * rng.normal(0, _NOISE_M * size_m / 0.02, (count, 1))
    return points, np.tile(normal, (count, 1))


def _shell(room_m: NDArray[np.float64], size_m: float, rng: np.random.Generator) -> list[Any]:
    x, y, z = room_m
    faces = [
        ((0, 0, 0), (x, 0, 0), (0, y, 0), (0, 0, 1)), ((0, 0, 0), (x, 0, 0), (0, 0, z), (0, 1, 0)),
        ((0, y, 0), (x, 0, 0), (0, 0, z), (0, -1, 0)), ((0, 0, 0), (0, y, 0), (0, 0, z), (1, 0, 0)),
        ((x, 0, 0), (0, y, 0), (0, 0, z), (-1, 0, 0)),
    ]  # fmt: skip
    return [_plane(*face, size_m, rng) for face in faces]


def _box(low: NDArray[np.float64], size: NDArray[np.float64], size_m: float, rng: np.random.Generator) -> Any:
    x, y, z = np.diag(size)
    faces = [
        (low + z, x, y, (0, 0, 1)), (low, x, z, (0, -1, 0)), (low + y, x, z, (0, 1, 0)),
        (low, y, z, (-1, 0, 0)), (low + x, y, z, (1, 0, 0)),
    ]  # fmt: skip
    sides = [_plane(*face, size_m, rng) for face in faces]
    return np.concatenate([s[0] for s in sides]), np.concatenate([s[1] for s in sides])


def _furniture(room_m: NDArray[np.float64], size_m: float, rng: np.random.Generator) -> list[Any]:
    things = []
    for i in range(16):
        size = room_m * rng.uniform([0.08, 0.1, 0.2], [0.22, 0.25, 0.7])
        low = (room_m - size) * rng.random(3)
        low[2] = 0.0 if i < 12 else 0.4 * room_m[2]  # some stand, some hang
        things.append(_box(low, size, size_m, rng))
    return things


def _snapshot(
    coords: NDArray[np.int32], normals: Any, things: Any, channels: int, size_m: float, rng: np.random.Generator
) -> Any:
    from geopurify_core.mapping.snapshot import MapSnapshot

    count = int(things.max()) + 1
    means = rng.standard_normal((count, channels)) + 0.6
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    colours = rng.integers(20, 236, (count, 3))
    order = rng.permutation(len(coords))  # as fusion meets them: in no order
    coords, normals, things = coords[order], normals[order], things[order]
    n = len(coords)
    stamps = np.zeros(n, dtype=np.int64)
    return MapSnapshot(
        coords, noisy_features(means[things], rng), rng.uniform(1, 20, n).astype(np.float32),
        np.clip(colours[things] + rng.normal(0, 8, (n, 3)), 0, 255).astype(np.uint8), normals.astype(np.float16),
        stamps, stamps.copy(), size_m, "map", 1, 1, "bench", "bench",
    )  # fmt: skip


def noisy_features(clean: NDArray[np.floating], rng: np.random.Generator) -> NDArray[np.float16]:
    """(n, C) float16 with noise of length about 0.5 on rows of length 1."""
    out = np.empty(clean.shape, dtype=np.float16)
    for low in range(0, len(clean), 8192):
        part = clean[low : low + 8192]
        out[low : low + 8192] = part + rng.standard_normal(part.shape) * (_FEATURE_NOISE / np.sqrt(part.shape[1]))
    return out


def changed_room(snapshot: Any, edge_m: float, seed: int = 1) -> Any:
    """The same map after a cube of ``edge_m`` was looked at again: what is in it has new features and colours, a third
    of the voxels of a slab in it is gone, and as many new ones have come."""
    rng = np.random.default_rng(seed)
    half = edge_m / snapshot.voxel_size_m / 2
    middle = snapshot.coords[_central(snapshot)]
    inside = (np.abs(snapshot.coords - middle) <= half).all(axis=1)
    slab = inside & (snapshot.coords[:, 0] > middle[0])
    gone = slab & (rng.random(len(snapshot)) < 1 / 3)
    features, rgb = snapshot.features.copy(), snapshot.rgb.copy()
    rows = np.flatnonzero(inside)
    features[rows] = noisy_features(features[rows].astype(np.float32) * 0.9, rng)
    rgb[rows] = np.clip(rgb[rows] + rng.normal(0, 6, (len(rows), 3)), 0, 255)
    source = np.flatnonzero(gone)
    new = np.unique(snapshot.coords[source] + rng.integers(-2, 3, (len(source), 3), dtype=np.int32), axis=0)
    from geopurify_core.mapping.keys import pack_keys

    new = new[~np.isin(pack_keys(new), pack_keys(snapshot.coords))]
    source = source[: len(new)]
    new = new[: len(source)]
    rows = np.concatenate([np.flatnonzero(~gone), source])
    coords = np.concatenate([snapshot.coords[~gone], new])
    values = {"features": features, "rgb": rgb}
    names = ("features", "weight", "rgb", "normals", "first_seen_ns", "last_seen_ns", "geometry_weight")
    taken = {name: values.get(name, getattr(snapshot, name))[rows] for name in names}
    return replace(snapshot, coords=coords, stamp_ns=snapshot.stamp_ns + 1, version=snapshot.version + 1, **taken)


def _central(snapshot: Any) -> int:
    """A voxel of furniture near the middle of the room: the worst place for a change, everything is around it."""
    middle = (snapshot.coords.min(axis=0) + snapshot.coords.max(axis=0)) / 2
    return int(((snapshot.coords - middle) ** 2).sum(axis=1).argmin())
