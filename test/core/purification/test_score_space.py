"""Pooling texts instead of features: the same scores, cosines and winners, on features of a real map and real texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array

from geopurify_core.errors import PurificationError
from geopurify_core.purification.affinity.build import Affinity, build_affinity
from geopurify_core.purification.pooling.packed import PackedAffinity
from geopurify_core.purification.pooling.pool import pool, pool_scores, pooled_length

STEPS = 18
# float32 sums of 384 to 512 products of unit vectors (2e-7 each way), then means of them
TOLERANCE = 3e-6
NAMES = (
    "chair", "table", "sofa", "lamp", "bed", "door", "window", "wall", "floor", "ceiling", "television", "plant",
    "bookshelf", "sink", "fridge", "carpet", "curtain", "picture", "cushion", "cupboard",
)  # fmt: skip


@pytest.fixture(scope="module")
def apartment() -> tuple[NDArray[np.int32], NDArray[np.float16], NDArray[np.float32]]:
    """A few frames of the procedural apartment, fused with the built-in backbone, and its text vectors."""
    from geopurify_core.config import Config
    from geopurify_core.datasets.synthetic import SyntheticDataset
    from geopurify_core.pipeline import SemanticMapper
    from geopurify_core.vision import load_backbone

    backbone = load_backbone("nano")
    mapper = SemanticMapper(Config.from_dict({"map": {"voxel_size_m": 0.1}}), backbone)
    recording = SyntheticDataset(seed=5, num_frames=60, width=160, height=120)
    for i in range(0, 60, 12):
        mapper.integrate(recording[i])
    snapshot = mapper.snapshot()
    assert len(snapshot) > 1000
    return snapshot.coords, snapshot.features, backbone.encode_text(NAMES)


def affinity_of(coords: NDArray[np.int32], features: NDArray[Any]) -> Affinity:
    """Embeddings that a student could give: a projection of the features, voxel by voxel."""
    mix = np.random.default_rng(0).standard_normal((features.shape[1], 32)).astype(np.float32)
    return build_affinity(coords, features.astype(np.float32) @ mix)


def in_float64(features: NDArray[Any], affinity: Affinity) -> NDArray[np.float64]:
    """Features pooled by scipy."""
    rows = np.repeat(np.arange(len(affinity)), affinity.neighbors.shape[1])
    entries = (affinity.weights.ravel().astype(np.float64), (rows, affinity.neighbors.ravel()))
    matrix, pooled = csr_array(entries, shape=(len(affinity),) * 2), features.astype(np.float64)
    for _ in range(STEPS):
        pooled = matrix @ pooled
    return pooled


def compare(coords: NDArray[np.int32], features: NDArray[Any], texts: NDArray[np.float32], engine: str) -> None:
    affinity = PackedAffinity(affinity_of(coords, features))
    exact = in_float64(features, affinity.affinity)
    expected = texts.astype(np.float64) @ exact.T
    scores = pool_scores(features, texts, affinity, STEPS, engine=engine)
    assert scores.dtype == np.float32 and scores.shape == (len(texts), len(coords))
    scale = np.abs(features.astype(np.float64)).sum(axis=1).max() * np.abs(texts).max()
    np.testing.assert_allclose(scores, expected, atol=TOLERANCE * max(1.0, 0.1 * scale))

    length = pooled_length(features, affinity, STEPS, engine=engine)
    np.testing.assert_allclose(length, np.linalg.norm(exact, axis=1), rtol=2e-6)
    seen = length > 1e-3
    cosines, expected_cosines = scores[:, seen] / length[seen], expected[:, seen] / np.linalg.norm(exact[seen], axis=1)
    np.testing.assert_allclose(cosines, expected_cosines, atol=1e-5)

    in_float32 = pool(features.astype(np.float32), affinity, STEPS, engine=engine)
    winners = {
        "exact": expected_cosines.argmax(axis=0),
        "features": (in_float32[seen] @ texts.T).argmax(axis=1),
        "scores": scores[:, seen].argmax(axis=0),  # |F'| is the same for all texts: no need to divide
        "cosines": cosines.argmax(axis=0),
    }
    best_two = np.sort(expected_cosines, axis=0)[-2:]
    clear = best_two[1] - best_two[0] > 2e-5
    assert clear.mean() > 0.99
    for name, winner in winners.items():
        np.testing.assert_array_equal(winner[clear], winners["exact"][clear], err_msg=name)


@pytest.mark.parametrize("engine", ["numba", "torch"])
def test_same_answers_on_a_real_map(apartment, engine: str) -> None:  # type: ignore[no-untyped-def]
    compare(*apartment, engine=engine)


def test_same_answers_with_clip_texts(shared_dir) -> None:  # type: ignore[no-untyped-def]
    """512 channels: each region carries a real CLIP text vector, each voxel two of them mixed, with noise."""
    names = shared_dir / "weights/clip_text_scannet_matterport"
    texts = torch.load(names / "clip_matterport_labels_512.pt", map_location="cpu", weights_only=False)
    texts = np.asarray(texts.detach().float().numpy())
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    rng = np.random.default_rng(0)
    coords = np.unique(rng.integers(0, [40, 40, 2], (1500, 3)), axis=0).astype(np.int32)
    here = (coords[:, 0] // 8 + 5 * (coords[:, 1] // 8)) % len(texts)
    share = rng.uniform(0.5, 1.0, (len(coords), 1))
    features = share * texts[here] + (1 - share) * texts[rng.integers(0, len(texts), len(coords))]
    features += 0.02 * rng.standard_normal(features.shape)
    compare(coords, features.astype(np.float16), texts.astype(np.float32), "auto")


@pytest.mark.parametrize("count", [0, 1, 16, 17, 33, 64, 65, 130])
def test_any_number_of_texts(count: int) -> None:
    rng = np.random.default_rng(count)
    coords = np.unique(rng.integers(0, 12, (300, 3)), axis=0)
    features = rng.standard_normal((len(coords), 37)).astype(np.float16)
    affinity, texts = affinity_of(coords, features), rng.standard_normal((count, 37)).astype(np.float32)
    expected = texts.astype(np.float64) @ pool(features.astype(np.float64), affinity, 4).T
    for engine in ("numba", "torch"):
        np.testing.assert_allclose(pool_scores(features, texts, affinity, 4, engine=engine), expected, atol=2e-5)


def test_a_text_scores_the_same_in_any_company() -> None:
    rng = np.random.default_rng(1)
    coords = np.unique(rng.integers(0, 12, (300, 3)), axis=0)
    features, texts = rng.standard_normal((len(coords), 40)).astype(np.float16), rng.standard_normal((70, 40))
    affinity = affinity_of(coords, features)
    together = pool_scores(features, texts, affinity, 5)
    for i in (0, 17, 69):
        np.testing.assert_array_equal(pool_scores(features, texts[i : i + 1], affinity, 5)[0], together[i])


def test_torch_in_torch_out_and_float32_features() -> None:
    rng = np.random.default_rng(2)
    coords = np.unique(rng.integers(0, 12, (200, 3)), axis=0)
    features, texts = rng.standard_normal((len(coords), 24)).astype(np.float32), rng.standard_normal((3, 24))
    affinity = affinity_of(coords, features)
    scores = pool_scores(torch.from_numpy(features), torch.from_numpy(texts), affinity, 5)
    assert isinstance(scores, torch.Tensor) and scores.dtype == torch.float32
    np.testing.assert_array_equal(scores.numpy(), pool_scores(features, texts, affinity, 5))


@pytest.mark.parametrize("texts", [np.ones((2, 5)), np.ones(4), np.full((1, 4), np.nan)])
def test_bad_texts_are_named(texts: NDArray[np.float64]) -> None:
    affinity = build_affinity(np.eye(3, dtype=int), np.ones((3, 2), np.float32))
    with pytest.raises(PurificationError, match="vectors"):
        pool_scores(np.ones((3, 4), np.float32), texts, affinity, 1)
    with pytest.raises(PurificationError, match="1 values"):
        pool_scores(np.where(np.eye(3, 4) * [[1], [0], [0]] > 0, np.nan, 1.0), np.ones((1, 4)), affinity, 1)
