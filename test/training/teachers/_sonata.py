"""A small Sonata with random weights, clouds for it, and the golden network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from training.teachers.base import PointCloud
from training.teachers.sonata import Sonata

CONFIG: dict[str, Any] = {
    "in_channels": 9, "order": ["z", "z-trans", "hilbert", "hilbert-trans"], "stride": [2, 2, 2, 2],
    "enc_depths": [2, 5, 1, 1, 1], "enc_channels": [8, 12, 16, 24, 32], "enc_num_head": [2, 3, 2, 4, 4],
    "enc_patch_size": [16, 16, 8, 8, 8], "mlp_ratio": 2, "enc_mode": True, "mask_token": True, "drop_path": 0.3,
    "shuffle_orders": True, "enable_flash": True, "enable_rpe": False, "traceable": True,
}  # fmt: skip


def small(seed: int = 0, **changes: Any) -> Sonata:
    """A network with weights that are large enough for every part to count."""
    torch.manual_seed(seed)
    model = Sonata.from_config({**CONFIG, **changes})
    for name, value in model.named_parameters():
        fan = 1 if value.ndim < 2 else value[0].numel()
        noise = torch.randn(value.shape) * (0.2 if value.ndim < 2 else fan**-0.5)
        value.data.copy_(noise + (1.0 if value.ndim == 1 and name.endswith("weight") else 0.0))
    return model


def cells(count: int, seed: int = 0, extent: int = 14) -> NDArray[np.int64]:
    """(count, 3) different cells in random order, dense enough to have neighbours."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(extent**3)[:count]
    return np.stack(np.unravel_index(chosen, (extent,) * 3), axis=1).astype(np.int64)


def network_input(count: int, seed: int = 0, extent: int = 14) -> tuple[Tensor, Tensor, Tensor]:
    """coord, grid_coord and feat of ``count`` points."""
    rng = np.random.default_rng(seed + 1)
    grid = cells(count, seed, extent)
    coord = ((grid + rng.random(grid.shape)) * 0.02).astype(np.float32)
    feat = np.concatenate([coord, rng.random((count, 6), dtype=np.float32)], axis=1)
    return torch.from_numpy(coord), torch.from_numpy(grid), torch.from_numpy(feat)


def room(points: int = 3000, seed: int = 0) -> PointCloud:
    """A floor, a wall and a block, 1.2 m wide."""
    rng = np.random.default_rng(seed)
    place = rng.random((points, 3)) * 1.2
    normals = np.zeros((points, 3), np.float32)
    floor, wall = place[:, 2] < 0.4, (place[:, 2] >= 0.4) & (place[:, 2] < 0.8)
    place[floor, 2], normals[floor, 2] = 0.0, 1.0
    place[wall, 1], normals[wall, 1] = 0.0, 1.0
    rest = ~floor & ~wall
    place[rest] = 0.3 + place[rest] * 0.3
    rgb = rng.integers(0, 256, (points, 3), dtype=np.uint8)
    return PointCloud(place.astype(np.float32), rgb, normals)


def golden(shared_dir: Path) -> tuple[Sonata, dict[str, NDArray[Any]]]:
    """The golden network and its numbers."""
    folder = shared_dir / "golden" / "sonata"
    config = json.loads((folder / "small_config.json").read_text())["config"]
    with np.load(folder / "small_noshuffle.npz") as file:
        numbers = {name: file[name] for name in file.files}
    return Sonata.from_config(config, load_file(folder / "small_weights.safetensors")), numbers
