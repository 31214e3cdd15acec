"""The 2D features in fewer directions, so that the student's first layer is cheap to train; and the way back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from training.scenes.prepared import PreparedScene

GEOMETRY = 6  # r g b nx ny nz


def semantic_basis(features: Iterable[NDArray[Any]], rank: int, rows: int = 4000) -> NDArray[np.float32]:
    """(C, R) basis in which training sees the semantic features, R ≤ rank directions, each scaled down by its spread.

    A backbone whose features leave a linear layer of ``rank`` inputs (nano: 96) loses nothing by it, and the first
    layer of the student becomes several times cheaper to train; ``expanded`` turns the trained layer back into one for
    the full features.

    Args:
        features: (N, C) of some scenes; one after the other is held.
        rank: Most directions; those that carry nothing are left out.
        rows: Random rows to look at in each scene.
    """
    rng = np.random.default_rng(0)
    parts = [part[rng.integers(0, len(part), min(rows, len(part)))].astype(np.float64) for part in features]
    stacked = np.concatenate(parts)
    square, vectors = np.linalg.eigh(stacked.T @ stacked / len(stacked))
    order = np.argsort(-square)[:rank]
    order = order[square[order] > 1e-9 * square.max()]
    scale = np.sqrt(len(order) * square[order] / max(square[order].sum(), 1e-12))  # 1 on average
    return np.asarray(vectors[:, order] / np.maximum(scale, 1e-2) ** 0.5, dtype=np.float32)


def expanded(kernel: Tensor, basis: Tensor) -> Tensor:
    """The first layer for full features: (27, R + 6, H) → (27, C + 6, H), the same function of what the basis spans."""
    import torch

    rank = basis.shape[1]
    semantic = torch.einsum("cr,krh->kch", basis, kernel[:, :rank])
    return torch.cat([semantic, kernel[:, rank:]], dim=1)


def in_basis(scene: PreparedScene, basis: NDArray[np.float32], chunk: int = 1 << 14) -> NDArray[np.float16]:
    """(N, R + 6) float16 inputs: features in the basis (as they are where it is empty), colour in [0, 1], normal."""
    width = basis.shape[1] if basis.size else scene.features.shape[1]
    inputs = np.empty((len(scene), width + GEOMETRY), dtype=np.float16)
    for start in range(0, len(scene), chunk):
        part = slice(start, start + chunk)
        features = scene.features[part]
        inputs[part, :width] = features.astype(np.float32) @ basis if basis.size else features
    inputs[:, width:-3] = scene.rgb.astype(np.float32) / 255
    inputs[:, -3:] = scene.normals
    return inputs
