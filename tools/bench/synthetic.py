"""How fast the procedural apartment is rendered, against the same intersections written plainly in numpy."""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

_STEP = 4  # the numpy baseline casts one ray of 16


def run(quick: bool) -> dict[str, Any]:
    """Frames a second at 320 x 240 (medians over a walk) and the ratio to the baseline."""
    from geopurify_core.datasets.synthetic import Apartment, SyntheticDataset

    start = time.perf_counter()
    Apartment.generate(1)
    generating = time.perf_counter() - start
    dataset = SyntheticDataset(seed=1, num_frames=120)
    dataset[0]  # compiles the kernels where they are not cached
    picks = range(3, 120, 24 if quick else 6)
    whole = [_seconds(lambda i=i: dataset[i]) for i in picks]
    rendering = [_seconds(lambda i=i: dataset._render_uncached(i)) for i in picks]
    plain = [_seconds(lambda i=i: _numpy_depth(dataset, i)) * _STEP**2 for i in list(picks)[:3]]
    return {
        "generate_apartment_s": generating,
        "frames_per_second_with_sensor_noise": 1 / statistics.median(whole),
        "frames_per_second_exact": 1 / statistics.median(rendering),
        "depth_only_numpy_vs_full_render": statistics.median(plain) / statistics.median(rendering),
    }


def _seconds(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _numpy_depth(dataset: Any, index: int) -> np.ndarray:
    """Depth of every 4th pixel in both directions, every ray against every primitive's box."""
    scene, camera, pose = dataset.apartment.primitives, dataset.camera, dataset.poses[index]
    u, v = np.meshgrid(np.arange(0, camera.width, _STEP), np.arange(0, camera.height, _STEP))
    rays = np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones(u.shape)], axis=-1)
    rays = rays.reshape(-1, 3) @ pose[:3, :3].T
    best = np.full(len(rays), np.inf)
    for A, center in zip(scene.to_unit(), scene.center_m, strict=True):
        origin, direction = A @ (pose[:3, 3] - center), rays @ A.T
        with np.errstate(divide="ignore"):
            a, b = (-1 - origin) / direction, (1 - origin) / direction
        near, far = np.minimum(a, b).max(axis=1), np.maximum(a, b).min(axis=1)
        best = np.where((near <= far) & (near > 0.03) & (near < best), near, best)
    return best.reshape(u.shape)


if __name__ == "__main__":
    print(json.dumps(run(quick="--quick" in sys.argv), indent=1))
