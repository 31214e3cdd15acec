"""Products from rows and products pooled as scores: the same answers, by a plain loop and on a real small map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from geopurify_core.config import Config, PurificationConfig
from geopurify_core.mapping.snapshot import MapSnapshot
from geopurify_core.querying.engine import QueryEngine
from geopurify_core.querying.sources import DenseRows, PooledScores

DIM = 64


class NaivePurification:
    """Random neighbours and weights, pooled by a plain loop in float64; rows in key order like the real one."""

    def __init__(self, snapshot: MapSnapshot, steps: int = 3, k: int = 5) -> None:
        rng = np.random.default_rng(1)
        n = len(snapshot)
        self.snapshot, self.fingerprint, self.steps = snapshot, "naive|steps=3", steps
        self.order = np.lexsort(snapshot.coords.T[::-1])
        self.neighbors = rng.integers(0, n, (n, k))
        self.shares = rng.dirichlet(np.ones(k), n)
        exact = self._pool(snapshot.features[self.order].astype(np.float64))
        self.exact = exact
        self.features: NDArray[np.float16] | None = exact.astype(np.float16)
        self.length = np.linalg.norm(exact, axis=1).astype(np.float32)
        self.weight = self._pool(snapshot.weight[self.order].astype(np.float64)[:, None])[:, 0].astype(np.float32)

    def _pool(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        for _ in range(self.steps):
            rows = np.stack([self.shares[i] @ rows[self.neighbors[i]] for i in range(len(rows))])
        return rows

    def pool_scores(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        raw = self.snapshot.features[self.order].astype(np.float64) @ vectors.astype(np.float64).T
        return self._pool(raw).T.astype(np.float32)

    def as_snapshot(self) -> MapSnapshot:
        assert self.features is not None
        moved = {name: getattr(self.snapshot, name)[self.order] for name in ("coords", "rgb", "normals")}
        return replace(self.snapshot, **moved, features=self.features, weight=self.weight, purified=self.fingerprint)


@pytest.fixture
def naive(make_room: Callable[..., Any]) -> NaivePurification:
    snapshot, _ = make_room({"chair": ((0, 0, 0), (8, 8, 16), (1, 2, 3)), "lamp": ((20, 5, 0), (4, 4, 20), (9, 9, 9))})
    shuffled = np.random.default_rng(0).permutation(len(snapshot))[:2500]
    rng = np.random.default_rng(2)
    arrays = {name: getattr(snapshot, name)[shuffled] for name in ("coords", "features", "rgb", "normals")}
    stamps = {name: getattr(snapshot, name)[shuffled] for name in ("first_seen_ns", "last_seen_ns")}
    weight = rng.uniform(0, 9, len(shuffled)).astype(np.float32)
    return NaivePurification(replace(snapshot, **arrays, **stamps, weight=weight, geometry_weight=weight))


def test_pooled_products_are_those_of_the_pooled_rows(naive: NaivePurification) -> None:
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(5, DIM)).astype(np.float32)
    pooled, dense = PooledScores(naive), DenseRows(naive.features, naive.weight)  # type: ignore[arg-type]
    exact = naive.exact @ vectors.T.astype(np.float64)
    np.testing.assert_allclose(pooled.dots(vectors)[:, naive.order], exact.T, atol=1e-5)
    np.testing.assert_array_equal(pooled.weight[naive.order], naive.weight)
    for mine, theirs in zip(pooled.mean_dot_and_length(vectors[0]), dense.mean_dot_and_length(vectors[0]), strict=True):
        # rows of length |F'| rounded to half precision: 2^-11 of |F'| |v|
        limit = 2.0**-11 * naive.length.max() * np.linalg.norm(vectors[0])
        np.testing.assert_allclose(mine[naive.order], theirs, atol=limit)


def test_engines_over_both_give_the_same_scores_and_labels(naive: NaivePurification, encoder: Any) -> None:
    dense = QueryEngine.of_purification(naive, encoder)  # type: ignore[arg-type]
    assert dense.snapshot.purified == "naive|steps=3"
    rows_kept, naive.features = naive.features, None
    pooled = QueryEngine.of_purification(naive, encoder)  # type: ignore[arg-type]
    assert pooled.snapshot.purified == "naive|steps=3" and rows_kept is not None
    np.testing.assert_array_equal(pooled.snapshot.coords[naive.order], dense.snapshot.coords)
    assert not pooled.snapshot.features.any() and pooled.snapshot.features.strides == (0, 0)
    for mine, theirs in zip(pooled.query(["chair", "lamp"]), dense.query(["chair", "lamp"]), strict=True):
        np.testing.assert_allclose(mine.scores[naive.order], theirs.scores, atol=5e-3)
        assert mine.snapshot is pooled.snapshot and theirs.snapshot is dense.snapshot
    (mine, _), (theirs, _) = pooled.segment(["chair", "lamp", "floor"]), dense.segment(["chair", "lamp", "floor"])
    assert (mine[naive.order] == theirs).mean() > 0.999


def test_an_answer_names_the_map_it_is_about(naive: NaivePurification, encoder: Any) -> None:
    engine = QueryEngine(naive.snapshot, encoder)
    assert all(result.snapshot is naive.snapshot for result in engine.query(["chair", "lamp"]))
    assert not engine.snapshot.purified and "snapshot" not in repr(engine.query(["chair"])[0])
    nobody = replace(
        naive.snapshot, **{name: getattr(naive.snapshot, name)[:0] for name in ("coords", "features", "weight", "rgb")}
    )
    assert QueryEngine(nobody, encoder).query(["chair"])[0].snapshot is nobody


def test_both_sources_agree_on_a_real_map() -> None:
    """The procedural apartment through the built-in backbone, purified by a small student of random weights."""
    torch = pytest.importorskip("torch")
    from geopurify_core.datasets import iterate, open_dataset
    from geopurify_core.pipeline import SemanticMapper
    from geopurify_core.purification.student.network import StudentAffinityNetwork
    from geopurify_core.purification.student.trained import Student, StudentInfo
    from geopurify_core.purification.update.compute import purify_snapshot

    mapper = SemanticMapper(Config.from_dict({"map": {"voxel_size_m": 0.08}}))
    for frame in iterate(open_dataset("synthetic:3", num_frames=6, width=120, height=90)):
        mapper.integrate(frame)
    snapshot, encoder = mapper.snapshot(), mapper.backbone
    torch.manual_seed(0)
    network = StudentAffinityNetwork(snapshot.feature_dim + 6, 16, 16, 1)
    student = Student(network, StudentInfo(snapshot.backbone, snapshot.feature_dim, 16, 16, 1), "student:random")
    texts, labels = ["bed", "red chair", "window"], ["wall", "floor", "bed", "chair", "table", "door"]
    engines = {}
    for pool in ("features", "scores"):
        made = purify_snapshot(snapshot, student, PurificationConfig(device="cpu", pool=pool))
        assert (made.features is None) == (pool == "scores")
        engines[pool] = QueryEngine.of_purification(made, encoder)
    order = made.order
    answers = {pool: engine.query(texts) for pool, engine in engines.items()}
    raw = mapper.query(texts)
    for dense, pooled, before in zip(answers["features"], answers["scores"], raw, strict=True):
        scale = np.abs(dense.scores).max()
        np.testing.assert_allclose(pooled.scores[order], dense.scores, atol=0.005 * scale)
        assert np.abs(before.scores[order] - dense.scores).max() > 0.1 * scale, "purification changed nothing"
        assert dense.objects[0].num_voxels == pytest.approx(pooled.objects[0].num_voxels, rel=0.02)
        np.testing.assert_allclose(dense.objects[0].center_m, pooled.objects[0].center_m, atol=0.02)
    (mine, _), (theirs, _) = engines["scores"].segment(labels), engines["features"].segment(labels)
    differ = mine[order] != theirs
    assert differ.mean() < 0.005
