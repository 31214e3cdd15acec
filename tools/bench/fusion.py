"""Speed and memory of fusing full-resolution frames, against torch and against the memory itself.

The baseline is what one writes first, and well: ``torch.unique``, ``searchsorted`` and one ``index_add_`` of feature
rows into float32 sums. It does less than the real thing (no normals, colours, stamps, float16 rows or finiteness
check), sees depth that is already filtered, and has its voxels made beforehand.

Wall-clock ratios suffer from other load on the machine, and the baseline suffers more; ``one_thread_cpu_ratio``
compares processor seconds of a single thread each, which hardly do.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

CHANNELS, GRID = 512, (120, 160)
_CHUNK = 1 << 15


def run(quick: bool) -> dict[str, Any]:
    """Milliseconds (medians over the walk), ratios to the baseline, bytes moved, bytes for each voxel."""
    frames = _frames(3 if quick else 8)
    results: dict[str, Any] = {"frame": "640x480 depth, (512, 120, 160) features", "frames": len(frames)}
    for size_m in (0.02, 0.04):
        for kind in (np.float32, np.float16):
            name = f"voxels_{round(size_m * 100)}cm_{np.dtype(kind).name}"
            results[name] = _compare(frames, size_m, kind, rounds=1 if quick else 3)
    results["frame_without_depth_ms"] = _without_depth(frames[0])
    return results | {"memory": _memory(frames), "snapshot": _snapshot(frames)}


def _frames(count: int) -> list[Any]:
    from geopurify_core.datasets.synthetic import SyntheticDataset

    recording = SyntheticDataset(seed=3, num_frames=40 * count, width=640, height=480)
    return [recording[i] for i in range(count)]


def _features(kind: type) -> Any:
    from geopurify_core.vision.base import FeatureMap

    rng = np.random.default_rng(0)
    rows = rng.standard_normal((*GRID, CHANNELS), dtype=np.float32) / np.sqrt(CHANNELS)
    return FeatureMap.from_rows(rows.astype(kind), rng.uniform(0.2, 1, GRID).astype(np.float32))


def _compare(frames: list[Any], size_m: float, kind: type, rounds: int) -> dict[str, Any]:
    """Both ways in turns on the same frames, after a first look that compiles and makes the voxels."""
    from geopurify_core.config import DepthConfig, MapConfig
    from geopurify_core.depth import trusted_depth
    from geopurify_core.mapping.fusion import fuse_frame
    from geopurify_core.mapping.voxel_map import VoxelMap

    features = _features(kind)
    depths = [trusted_depth(frame.depth_m, DepthConfig()) for frame in frames]
    voxel_map = VoxelMap(MapConfig(voxel_size_m=size_m, budget_mb=2048), CHANNELS, "bench", "bench")
    baseline = Baseline(frames, depths, features, size_m)
    times: dict[str, list[float]] = {"ours": [], "baseline": [], "copy": []}
    source = features.rows.view(np.uint8)
    target = np.empty_like(source)
    reports = []
    for turn in range(rounds + 1):
        for frame, depth in zip(frames, depths, strict=True):
            seconds = {
                "ours": _seconds(lambda frame=frame: reports.append(fuse_frame(voxel_map, frame, features))),
                "baseline": _seconds(lambda frame=frame, depth=depth: baseline.fuse(frame, depth)),
                "copy": _seconds(lambda: np.copyto(target, source)),
            }
            if turn:
                for name, value in seconds.items():
                    times[name].append(value)
    cpu = _one_thread(
        lambda i: fuse_frame(voxel_map, frames[i], features), lambda i: baseline.fuse(frames[i], depths[i]), len(frames)
    )
    ours, theirs, copy = (float(np.median(times[name])) for name in times)
    touched = float(np.mean([report.voxels_touched for report in reports[len(frames) :]]))
    moved = 2 * source.nbytes + 2 * touched * 2 * CHANNELS  # features checked and read, rows read and written
    return {
        "ms": 1e3 * ours,
        "baseline_ms": 1e3 * theirs,
        "ratio": theirs / ours,
        "one_thread_cpu_ratio": cpu[1] / cpu[0],
        "one_thread_cpu_ms": 1e3 * cpu[0],
        "voxels_touched": touched,
        "pairs": float(np.mean([report.pairs_merged for report in reports[len(frames) :]])),
        "megabytes_moved": moved / 1e6,
        "share_of_copy_bandwidth": (moved / ours) / (2 * source.nbytes / copy),
    }


class Baseline:
    """Sums of features and weights for each voxel in float32, every pixel by itself."""

    def __init__(self, frames: list[Any], depths: list[Any], features: Any, size_m: float) -> None:
        self.inverse = 1.0 / size_m
        self.rows = torch.from_numpy(features.rows)
        self.confidence = torch.from_numpy(features.confidence).reshape(-1)
        height, width = depths[0].shape
        camera = frames[0].camera
        self.ray_x = (torch.arange(width) - camera.cx) / camera.fx
        self.ray_y = (torch.arange(height) - camera.cy) / camera.fy
        self.cell = (
            torch.arange(height)[:, None] * GRID[0] // height * GRID[1] + torch.arange(width)[None] * GRID[1] // width
        )
        pairs = zip(frames, depths, strict=True)
        self.keys = torch.unique(torch.cat([self._keys(frame, torch.from_numpy(depth))[0] for frame, depth in pairs]))
        self.sums, self.weights = torch.zeros(len(self.keys), CHANNELS), torch.zeros(len(self.keys))

    def _keys(self, frame: Any, depth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        used = depth > 0
        camera_m = torch.stack([(self.ray_x * depth)[used], (self.ray_y[:, None] * depth)[used], depth[used]], dim=1)
        T = torch.from_numpy(frame.T_map_camera).float()
        cells = torch.floor((camera_m @ T[:3, :3].T + T[:3, 3]) * self.inverse).long() + (1 << 20)
        return (cells[:, 0] << 42) | (cells[:, 1] << 21) | cells[:, 2], used

    def fuse(self, frame: Any, depth_m: Any) -> None:
        """One frame."""
        depth = torch.from_numpy(depth_m)
        keys, used = self._keys(frame, depth)
        distinct, inverse = torch.unique(keys, return_inverse=True)
        row = torch.searchsorted(self.keys, distinct)[inverse]
        cell = self.cell[used]
        weight = self.confidence[cell] / (1 + (depth[used] / 2) ** 2)
        self.weights.index_add_(0, row, weight)
        for start in range(0, len(row), _CHUNK):  # in pieces, or the gathered rows alone would take 600 MB
            part = slice(start, start + _CHUNK)
            self.sums.index_add_(0, row[part], self.rows[cell[part]].float() * weight[part, None])


def _without_depth(frame: Any) -> float:
    """A frame that measured nothing must cost next to nothing."""
    from dataclasses import replace

    from geopurify_core.config import MapConfig
    from geopurify_core.mapping.fusion import fuse_frame
    from geopurify_core.mapping.voxel_map import VoxelMap

    voxel_map, features = VoxelMap(MapConfig(), CHANNELS, "bench", "bench"), _features(np.float32)
    empty = replace(frame, depth_m=np.full_like(frame.depth_m, np.nan))
    return 1e3 * float(np.median([_seconds(lambda: fuse_frame(voxel_map, empty, features)) for _ in range(20)]))


def _memory(frames: list[Any]) -> dict[str, Any]:
    from geopurify_core.config import MapConfig
    from geopurify_core.mapping.fusion import fuse_frame
    from geopurify_core.mapping.voxel_map import VoxelMap

    voxel_map = VoxelMap(MapConfig(voxel_size_m=0.02, budget_mb=2048), CHANNELS, "bench", "bench")
    for frame in frames:
        fuse_frame(voxel_map, frame, _features(np.float16))
    living = voxel_map.nbytes / len(voxel_map)
    return {
        "voxels": len(voxel_map),
        "bytes_per_voxel": living,
        "beside_features_bytes_per_voxel": living - 2 * CHANNELS,
    }


def _snapshot(frames: list[Any]) -> dict[str, Any]:
    """How long the map's lock is held: the first snapshot, one with a reader on the last, and one without."""
    from geopurify_core.config import MapConfig
    from geopurify_core.mapping.fusion import fuse_frame
    from geopurify_core.mapping.voxel_map import VoxelMap

    voxel_map, features = (
        VoxelMap(MapConfig(voxel_size_m=0.02, budget_mb=2048), CHANNELS, "b", "b"),
        _features(np.float16),
    )
    for frame in frames:
        fuse_frame(voxel_map, frame, features)
    result: dict[str, Any] = {"voxels": len(voxel_map), "megabytes": len(voxel_map) * (2 * CHANNELS + 45) / 1e6}
    voxel_map.snapshot()
    held = None
    for name in ("nobody_reads_the_last_ms", "somebody_reads_the_last_ms"):
        seconds = []
        for _ in range(3):
            held = voxel_map.snapshot() if name.startswith("somebody") else None
            fuse_frame(voxel_map, frames[0], features)
            seconds.append(_seconds(voxel_map.snapshot))
        result[name] = 1e3 * float(np.median(seconds))
    del held
    return result


def _one_thread(ours: Callable[[int], Any], theirs: Callable[[int], Any], count: int) -> tuple[float, float]:
    """Median processor seconds of one call of each, both held to one thread."""
    cpus, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, {min(cpus)})  # the fusion asks for it, torch does not
    torch.set_num_threads(1)
    try:
        medians = []
        for work in (ours, theirs):
            started = [(time.thread_time(), work(i))[0] for i in range(count)]
            medians.append(float(np.median(np.diff([*started, time.thread_time()]))))
        return medians[0], medians[1]
    finally:
        os.sched_setaffinity(0, cpus)
        torch.set_num_threads(threads)


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    import json

    print(json.dumps(run("--quick" in sys.argv), indent=2))
