"""A small text space and small maps that every query test may use."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from geopurify_core.mapping.snapshot import MapSnapshot

DIM = 64


class WordEncoder:
    """Texts as normalised sums of fixed random word vectors: shared words are similar, others nearly orthogonal."""

    name = "words"
    feature_dim = DIM
    licence = "Apache-2.0"
    fingerprint = "words:1"
    text_fingerprint = "words:1"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.asked += texts
        rows = np.stack([sum(self._word(word) for word in ["thing", *text.lower().split()]) for text in texts])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    @staticmethod
    def _word(word: str) -> NDArray[np.float64]:
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "little")
        return np.random.default_rng(seed).standard_normal(DIM)


def build_snapshot(
    coords: NDArray[np.integer],
    features: NDArray[np.floating],
    rgb: NDArray[np.integer] | None = None,
    voxel_size_m: float = 0.05,
) -> MapSnapshot:
    n = len(coords)
    normals = np.zeros((n, 3), dtype=np.float16)
    normals[:, 2] = 1
    return MapSnapshot(
        coords=np.asarray(coords, dtype=np.int32).reshape(-1, 3).copy(),
        features=np.array(features, dtype=np.float16),
        weight=np.full(n, 5.0, dtype=np.float32),
        rgb=(np.full((n, 3), 128) if rgb is None else np.asarray(rgb)).astype(np.uint8),
        normals=normals,
        first_seen_ns=np.zeros(n, dtype=np.int64),
        last_seen_ns=np.zeros(n, dtype=np.int64),
        voxel_size_m=voxel_size_m,
        frame_id="map",
        stamp_ns=1,
        version=1,
        backbone="words:1",
        text_fingerprint="words:1",
    )


def voxel_block(origin: Sequence[int], size: Sequence[int]) -> NDArray[np.int32]:
    """Every voxel of a cuboid."""
    axes = [np.arange(start, start + count) for start, count in zip(origin, size, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3).astype(np.int32)


Room = tuple[MapSnapshot, dict[str, NDArray[np.bool_]]]


@pytest.fixture
def encoder() -> WordEncoder:
    return WordEncoder()


@pytest.fixture
def make_snapshot() -> Callable[..., MapSnapshot]:
    return build_snapshot


@pytest.fixture
def block() -> Callable[..., NDArray[np.int32]]:
    return voxel_block


@pytest.fixture
def make_room(encoder: WordEncoder) -> Callable[..., Room]:
    """A floor with named coloured blocks on it: (snapshot, name → mask of its voxels)."""

    def make(things: dict[str, tuple[Sequence[int], Sequence[int], Sequence[int]]], noise: float = 0.02) -> Room:
        things = {"floor": ((-40, -40, -1), (80, 80, 1), (90, 90, 90)), **things}
        rng = np.random.default_rng(0)
        coords, features, rgb, owner = [], [], [], []
        for name, (origin, size, colour) in things.items():
            voxels = voxel_block(origin, size)
            coords.append(voxels)
            features.append(encoder.encode_text([name.rsplit("#", 1)[0]]).repeat(len(voxels), axis=0))
            rgb.append(np.tile(colour, (len(voxels), 1)))
            owner += [name] * len(voxels)
        noisy = np.concatenate(features) + noise * rng.standard_normal((len(owner), DIM))
        snapshot = build_snapshot(np.concatenate(coords), noisy, np.concatenate(rgb))
        return snapshot, {name: np.array([item == name for item in owner]) for name in things}

    return make
