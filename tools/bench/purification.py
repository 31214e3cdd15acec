"""Neighbours, affinity and pooling of a furnished room, features against scores, and what each is measured against.

Baselines in the same run, in turns with ours: scipy's k-d tree, the affinity in torch some rows at a time (the released
code's way, chunked), and for one pooling step scipy's CSR product and ``embedding_bag``, rows in key order (in random
order they are several times slower). scipy multiplies with one thread whatever the machine has, so
``processor_ratio`` compares processor seconds as well, which other load disturbs less. Pooling features against scores
is measured with the affinity packed beforehand, as a purified map keeps it; ``pack_s`` is what that costs once.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

CHANNELS, EMBEDDING, NEIGHBORS, STEPS = 512, 128, 96, 18
TEXTS = (1, 16, 20, 32, 64)


def run(quick: bool) -> dict[str, Any]:
    """Seconds, ratios to the baselines, memory; 100 000 voxels (30 000 if quick) at 2 cm."""
    coords = room(30_000 if quick else 100_000)
    rounds = 2 if quick else 5
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((len(coords), EMBEDDING), dtype=np.float32)
    features = rng.standard_normal((len(coords), CHANNELS), dtype=np.float32).astype(np.float16)
    results: dict[str, Any] = {"voxels": len(coords), "channels": CHANNELS, "K": NEIGHBORS, "T": STEPS}
    results["neighbours"], neighbors = _neighbours(coords, rounds)
    results["affinity"], affinity = _affinity(coords, embeddings, neighbors, rounds)
    results["pooling"] = _pooling(features, affinity, rounds)
    results["scores"] = _scores(features, affinity, rounds)
    results["memory"] = _memory(features, affinity)
    return results | _on_gpu(features, affinity)


def room(voxels: int, seed: int = 0) -> NDArray[np.int32]:
    """(V, 3) voxels in key order of floor, four walls and twelve boxes, noise of 4 mm, scaled to about that many."""
    scale = 1.0
    for _ in range(6):
        coords = np.unique(np.floor(_surfaces(scale, np.random.default_rng(seed)) / 0.02).astype(np.int32), axis=0)
        if abs(len(coords) / voxels - 1) < 0.01:
            break
        scale *= float(np.sqrt(voxels / len(coords)))
    return coords


def _surfaces(scale: float, rng: np.random.Generator) -> NDArray[np.float64]:
    size = np.array([5.0, 4.0, 2.5]) * scale
    patches = [_patch(np.zeros(3), size * axes[0], size * axes[1], rng) for axes in np.eye(3)[[[0, 1], [0, 2], [1, 2]]]]
    patches += [
        _patch(size * at, size * u, size * v, rng) for at, u, v in np.eye(3)[[[1, 0, 2], [0, 1, 2]]][:, [0, 2, 1]]
    ]
    for i in range(12):
        edges = rng.uniform(0.3, 1.0, 3) * scale
        corner = rng.uniform(0, 1, 3) * (size - edges)
        corner[2] = 0.0 if i < 9 else 0.7 * scale
        for a, b, c in ((0, 1, 2), (0, 2, 1), (1, 2, 0)):
            u, v, w = (edges * np.eye(3)[axis] for axis in (a, b, c))
            patches += [_patch(corner, u, v, rng), _patch(corner + w, u, v, rng)]
    return np.concatenate(patches)


def _patch(corner: Any, u: Any, v: Any, rng: np.random.Generator) -> NDArray[np.float64]:
    normal = np.cross(u, v)
    count = int(np.linalg.norm(normal) / 0.02**2 * 6)
    at = rng.random((count, 2))
    noise = 0.004 * rng.standard_normal((count, 1)) * normal / np.linalg.norm(normal)
    return np.asarray(corner + at[:, :1] * u + at[:, 1:] * v + noise)


def _neighbours(coords: Any, rounds: int) -> tuple[dict[str, Any], Any]:
    from scipy.spatial import cKDTree

    from geopurify_core.purification.affinity.neighbors import nearest_neighbors

    ways = {
        "ours": lambda: nearest_neighbors(coords, NEIGHBORS),
        "scipy": lambda: cKDTree(coords).query(coords, NEIGHBORS + 1, workers=-1),
    }
    return _compared(ways, rounds), nearest_neighbors(coords, NEIGHBORS)


def _affinity(coords: Any, embeddings: Any, neighbors: Any, rounds: int) -> tuple[dict[str, Any], Any]:
    from geopurify_core.purification.affinity.build import affinity_rows, build_affinity, weights_in_torch

    everyone = np.arange(len(coords))
    ways = {
        "ours": lambda: affinity_rows(embeddings, neighbors),
        "torch": lambda: weights_in_torch(embeddings, everyone, neighbors, 20.0),
    }
    result = _compared(ways, min(rounds, 3))
    affinity = build_affinity(coords, embeddings, neighbors=neighbors)
    result["largest_difference"] = float(np.abs(affinity.weights - ways["torch"]()).max())
    return result, affinity


def _pooling(features: Any, affinity: Any, rounds: int) -> dict[str, Any]:
    """All steps of ours; one step of each baseline, times T."""
    import torch
    from scipy.sparse import csr_matrix
    from torch.nn.functional import embedding_bag

    from geopurify_core.purification.pooling.pool import pool

    shape, wide = (len(affinity),) * 2, features.astype(np.float32)
    starts = np.arange(0, affinity.neighbors.size + 1, NEIGHBORS).astype(np.int32)
    matrix = csr_matrix((affinity.weights.ravel(), affinity.neighbors.ravel(), starts), shape=shape)
    nearest, weights, tensor = (torch.from_numpy(part) for part in (affinity.neighbors, affinity.weights, wide))
    ways = {
        "ours": lambda: pool(features, affinity, STEPS),
        "scipy": lambda: matrix @ wide,
        "embedding_bag": lambda: embedding_bag(nearest, tensor, per_sample_weights=weights, mode="sum"),
    }
    result = _compared(ways, rounds, {"scipy": STEPS, "embedding_bag": STEPS})
    difference = np.abs(pool(wide, affinity, 1) - matrix @ wide)
    target = np.empty_like(wide)
    copy = min(_timed(lambda: np.copyto(target, wide))[0] for _ in range(5))
    gathered = STEPS * affinity.neighbors.size * CHANNELS * 4 / result["ours_s"]
    return result | {
        "largest_difference_of_a_step": float(difference.max()),
        "gathered_gb_per_s": gathered / 1e9,
        "share_of_copy_bandwidth": gathered / (2 * wide.nbytes / copy),
        "gflop_per_s": STEPS * 2 * affinity.neighbors.size * CHANNELS / result["ours_s"] / 1e9,
    }


def _scores(features: Any, affinity: Any, rounds: int) -> dict[str, Any]:
    """Scores of n texts against pooling all features, both with a packed affinity."""
    from geopurify_core.purification.pooling.packed import PackedAffinity
    from geopurify_core.purification.pooling.pool import pool, pool_scores

    packed = PackedAffinity(affinity)
    result: dict[str, Any] = {"pack_s": _timed(lambda: packed.merged)[0]}
    texts = np.random.default_rng(1).standard_normal((max(TEXTS), CHANNELS), dtype=np.float32)
    ways: dict[str, Callable[[], Any]] = {
        f"texts_{n}": lambda n=n: pool_scores(features, texts[:n], packed, STEPS) for n in TEXTS
    }
    ways["features"] = lambda: pool(features, packed, STEPS)
    seconds, processor = _measured(ways, rounds)
    result["features_s"] = seconds["features"]
    for name in (name for name in ways if name != "features"):
        result[name] = {
            "s": seconds[name],
            "ratio_to_features": seconds["features"] / seconds[name],
            "processor_ratio": processor["features"] / processor[name],
        }
    exact = pool(features.astype(np.float32), packed, STEPS) @ texts[:20].T
    winners = pool_scores(features, texts[:20], packed, STEPS).argmax(axis=0)
    result["argmax_disagreements_of_20_texts"] = int((exact.argmax(axis=1) != winners).sum())
    return result


def _memory(features: Any, affinity: Any) -> dict[str, Any]:
    """Most resident memory while pooling, beyond what was there before and the result itself."""
    from geopurify_core.purification.pooling.packed import PackedAffinity
    from geopurify_core.purification.pooling.pool import pool, pool_scores

    texts = np.ones((32, CHANNELS), dtype=np.float32)
    packed = PackedAffinity(affinity)
    result = {"packed_bytes_per_voxel": 0.0}
    result["features_extra_mb"] = _peak_mb(lambda: pool(features, packed, 2)) - features.nbytes / 1e6
    result["scores_of_32_extra_mb"] = _peak_mb(lambda: pool_scores(features, texts, packed, 2)) - len(features) * 128e-6
    result["packed_bytes_per_voxel"] = packed.nbytes / len(features)
    result["affinity_bytes_per_voxel"] = affinity.nbytes / len(features)
    return result


def _on_gpu(features: Any, affinity: Any) -> dict[str, Any]:
    import torch

    if not torch.cuda.is_available():
        return {}
    from geopurify_core.purification.pooling.pool import pool

    tensor = torch.from_numpy(features).cuda()
    block = torch.empty((len(features), CHANNELS), device="cuda")

    def finished(work: Callable[[], Any]) -> float:
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        return time.perf_counter() - started

    seconds = min(finished(lambda: pool(tensor, affinity, STEPS)) for _ in range(3))
    copy = min(finished(block.clone) for _ in range(5))
    gathered = STEPS * affinity.neighbors.size * CHANNELS * 4 / seconds
    share = gathered / (2 * block.nbytes / copy)
    return {"gpu": {"features_s": seconds, "gathered_gb_per_s": gathered / 1e9, "share_of_copy_bandwidth": share}}


def _compared(ways: dict[str, Callable[[], Any]], rounds: int, times: dict[str, int] | None = None) -> dict[str, Any]:
    """Seconds of each way (times so many, where given) and how many of ours they make."""
    seconds, processor = _measured(ways, rounds)
    result: dict[str, Any] = {"ours_s": seconds["ours"]}
    for name in (name for name in ways if name != "ours"):
        factor = (times or {}).get(name, 1)
        result[f"{name}_s"] = factor * seconds[name]
        result[f"ratio_to_{name}"] = factor * seconds[name] / seconds["ours"]
        result[f"processor_ratio_to_{name}"] = factor * processor[name] / processor["ours"]
    return result


def _measured(ways: dict[str, Callable[[], Any]], rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """Least seconds on the clock, and of all processors, of each way; in turns, after one round that compiles."""
    clock: dict[str, list[float]] = {name: [] for name in ways}
    processor: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, work in ways.items():
            seconds = _timed(work)
            if turn:
                clock[name].append(seconds[0])
                processor[name].append(seconds[1])
    return ({name: min(values) for name, values in clock.items()}, {n: min(v) for n, v in processor.items()})


def _timed(work: Callable[[], Any]) -> tuple[float, float]:
    started, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started, time.process_time() - used


def _peak_mb(work: Callable[[], Any]) -> float:
    page, peak, done = os.sysconf("SC_PAGE_SIZE"), 0, threading.Event()

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * page

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, resident())

    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # what was freed would be used again, and not be counted
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = resident()
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        held = work()
        peak = max(peak, resident())
        del held
    finally:
        done.set()
        watcher.join()
    return (peak - before) / 1e6


if __name__ == "__main__":
    import json

    print(json.dumps(run("--quick" in sys.argv), indent=2))
