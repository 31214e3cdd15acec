"""Latency of queries over 200 000 voxels with 512 half-precision features.

Baselines in the same run, for the product of all features with one text alone: widening the features to fp32 first
(what one writes without thinking), the same against features already kept in fp32 (twice the memory), and torch's fp16
product (fast or a hundred times slower, as the CPU has it).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

CHANNELS, VOXELS = 512, 200_000
_TEXTS = ("chair", "table", "lamp", "red sofa", "white cup", "wooden shelf")


class _Encoder:
    """Texts as fixed random directions around a common one, as sentence embeddings are; encoding costs nothing."""

    name = fingerprint = text_fingerprint = "bench"
    licence = "Apache-2.0"
    feature_dim = CHANNELS

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows = [
            np.random.default_rng(sum(text.encode()) * 7919 + len(text)).standard_normal(CHANNELS) for text in texts
        ]
        raw = np.stack(rows) + 0.6
        return (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)


def run(quick: bool) -> dict[str, Any]:
    """Milliseconds (p50, p95) of a product, a whole query, and the first query after the map has changed."""
    import torch

    from geopurify_core.querying.engine import QueryEngine
    from geopurify_core.querying.products import dots

    rounds = 5 if quick else 30
    snapshot, encoder = _snapshot(), _Encoder()
    features, text = snapshot.features, encoder.encode_text(["chair"])
    half, kept = torch.from_numpy(features.copy()), torch.from_numpy(features.astype(np.float32))
    vector = torch.from_numpy(text[0])
    product = _times(lambda: dots(features, text), rounds)
    naive = _times(lambda: features.astype(np.float32) @ text[0], min(rounds, 8))
    torch_naive = _times(lambda: half.float() @ vector, min(rounds, 8))
    torch_kept = _times(lambda: kept @ vector, min(rounds, 8))
    torch_half = _times(lambda: half @ vector.half(), 3)
    engine = QueryEngine(snapshot, encoder)
    scores = [engine.query([name], max_objects=1) for name in _TEXTS]
    assert all(np.isfinite(result[0].scores).all() for result in scores)
    whole = [
        seconds for name in _TEXTS for seconds in _raw(lambda name=name: engine.query([name]), max(rounds // 5, 2))
    ]
    processor = {name: _processor_ms(lambda name=name: engine.query([name]), rounds) for name in (*_TEXTS, "floor")}
    index = engine._index  # the part of a query that reads all features
    directions = engine._directions([_parsed("chair")])
    scored = _times(lambda: index.scores(directions), rounds)
    first = _times(lambda: QueryEngine(snapshot, encoder).query(["chair"]), min(rounds, 8))
    return {
        "voxels": VOXELS,
        "channels": CHANNELS,
        "product_ms": product,
        "scores_ms": scored,
        "query_ms": _summary(whole),
        "query_processor_ms": processor,  # all threads together; "floor" covers four fifths of the map
        "first_query_ms": first,
        "baseline_numpy_fp32_ms": naive,
        "baseline_torch_fp32_ms": torch_naive,
        "baseline_torch_fp32_kept_ms": torch_kept,
        "baseline_torch_fp16_ms": torch_half,
        "ratio_to_numpy_fp32": naive["p50"] / product["p50"],
        "ratio_to_torch_fp32": torch_naive["p50"] / product["p50"],
        "ratio_to_torch_fp32_kept": torch_kept["p50"] / product["p50"],
        "ratio_to_torch_fp16": torch_half["p50"] / product["p50"],
        "product_gb_per_s": features.nbytes / product["p50"] / 1e6,
    }


def _parsed(text: str) -> Any:
    from geopurify_core.querying.colour import parse_text

    return parse_text(text)


def _snapshot() -> Any:
    """A floor of 400 x 400 voxels with 100 blocks of 400 voxels on it; features near one of ten texts, with noise."""
    from geopurify_core.mapping.snapshot import MapSnapshot

    rng = np.random.default_rng(0)
    floor = np.stack(np.meshgrid(np.arange(400), np.arange(400), [0], indexing="ij"), axis=-1).reshape(-1, 3)
    cube = np.stack(np.meshgrid(np.arange(5), np.arange(8), np.arange(1, 11), indexing="ij"), axis=-1).reshape(-1, 3)
    blocks = [cube + np.array([40 * i + 10, 40 * j + 10, 0]) for i in range(10) for j in range(10)]
    coords = np.concatenate([floor, *blocks]).astype(np.int32)
    names = ["floor"] * len(floor) + [name for i in range(100) for name in [f"{_TEXTS[i % 6].split()[-1]}"] * len(cube)]
    known = sorted(set(names))
    vectors = _Encoder().encode_text(known)
    rows = vectors[np.searchsorted(known, names)]
    for start in range(0, len(rows), 20_000):
        block = rows[start : start + 20_000]
        block += 0.02 * rng.standard_normal(block.shape, dtype=np.float32)
    n = len(coords)
    normals = np.zeros((n, 3), dtype=np.float16)
    normals[:, 2] = 1
    stamps = np.zeros(n, dtype=np.int64)
    return MapSnapshot(
        coords, rows.astype(np.float16), np.full(n, 9, np.float32), rng.integers(0, 255, (n, 3)).astype(np.uint8),
        normals, stamps, stamps.copy(), 0.04, "map", 1, 1, "bench", "bench",
    )  # fmt: skip


def _raw(work: Callable[[], Any], rounds: int) -> list[float]:
    work()
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return seconds


def _processor_ms(work: Callable[[], Any], rounds: int) -> float:
    """Median processor time, which other programs disturb less than the time on the clock."""
    work()
    used = []
    for _ in range(rounds):
        started = time.process_time()
        work()
        used.append(time.process_time() - started)
    return 1e3 * float(np.median(used))


def _times(work: Callable[[], Any], rounds: int) -> dict[str, float]:
    return _summary(_raw(work, rounds))


def _summary(seconds: list[float]) -> dict[str, float]:
    return {"p50": 1e3 * float(np.median(seconds)), "p95": 1e3 * float(np.quantile(seconds, 0.95))}


if __name__ == "__main__":
    import json

    print(json.dumps(run("--quick" in sys.argv), indent=2))
