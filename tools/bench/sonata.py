"""What Sonata's teacher costs: the published architecture with random weights on one cloud; time and memory as JSON.

``python tools/bench/sonata.py --points 100000`` takes a furnished room of about that many 2 cm cells, ``--scan F.ply``
a scan. Weights are random: they change no shape, and so neither time nor memory. Processor seconds are printed beside
those of the clock, which other load disturbs more.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))


def run(points: int, scan: Path | None, rounds: int, threads: int) -> dict[str, Any]:
    """Sizes, seconds of each round, memory in MB."""
    import torch

    from training.teachers.sonata import Sonata, SonataConfig, prepare

    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = Sonata(SonataConfig()).eval().requires_grad_(False)
    cloud = _scan(scan, points) if scan else _room(points)
    start = time.perf_counter()
    given = prepare(cloud)
    results: dict[str, Any] = {
        "points": len(cloud), "cells_2cm": len(given.coord), "parameters": sum(p.numel() for p in model.parameters()),
        "threads": torch.get_num_threads(), "transform_s": round(time.perf_counter() - start, 3),
        "memory_before_mb": round(_peak_mb()),
    }  # fmt: skip
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    seconds, processor = [], []
    for _ in range(rounds):
        clock, cpu = time.perf_counter(), time.process_time()
        with torch.inference_mode():
            rows, _ = model.describe(given.coord, given.grid_coord, given.feat)
        seconds.append(round(time.perf_counter() - clock, 2))
        processor.append(round(time.process_time() - cpu, 2))
    return results | {
        "device": device, "cells_8cm": len(rows), "seconds": seconds, "processor_seconds": processor,
        "cells_per_processor_second": round(len(given.coord) / min(processor)), "memory_peak_mb": round(_peak_mb()),
    }  # fmt: skip


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _room(cells: int) -> Any:
    from tools.bench.purification import room
    from training.teachers.base import PointCloud

    rng = np.random.default_rng(0)
    points = ((room(cells) + 0.5) * 0.02).astype(np.float32)
    normals = np.zeros_like(points)
    normals[:, 2] = 1
    return PointCloud(points, rng.integers(0, 256, points.shape, dtype=np.uint8), normals)


def _scan(path: Path, points: int) -> Any:
    from geopurify_core.scans.scannet import read_labelled_cloud
    from training.teachers.base import PointCloud

    scan = read_labelled_cloud(path)
    rows = np.sort(np.random.default_rng(0).permutation(len(scan))[:points])
    return PointCloud(scan.points_m[rows], scan.rgb[rows], scan.normals[rows])


def main() -> None:
    """Read the options and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--scan", type=Path)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    print(json.dumps(run(options.points, options.scan, options.rounds, options.threads), indent=2))


if __name__ == "__main__":
    main()
