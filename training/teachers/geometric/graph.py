"""Averages over the graph of touching cells: smoothing that stops at edges, and geometry at several scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from training.teachers.geometric.cells import Cells, unit


@dataclass(frozen=True)
class Geometry:
    """What surface there is around C cells.

    Attributes:
        normals: (C, 3) float32, unit or zero, smoothed within surfaces; their sign is the cloud's where it had any.
        signed: (C,) bool, whether the sign means something.
        colour: (C, 3) float32 CIELAB / 100, smoothed likewise.
        shape: (C, 3 S) float32 linearity, planarity and scattering at S scales.
    """

    normals: NDArray[np.float32]
    signed: NDArray[np.bool_]
    colour: NDArray[np.float32]
    shape: NDArray[np.float32]


def geometry_of(cells: Cells, scales_m: tuple[float, ...], smoothing: int) -> Geometry:
    """Smoothed normals and colours, and eigenvalue features at several scales."""
    normals, shape = _shapes(cells, scales_m)
    known = np.linalg.norm(cells.normals, axis=1) > 0.5
    normals[known] = cells.normals[known]
    colour = cells.colour
    for _ in range(smoothing):
        normals, colour = _smoothed(cells.edges, normals, colour)
    return Geometry(normals, known, colour, shape)


def averaging(edges: NDArray[np.int32], weight: NDArray[np.float32], count: int) -> Any:
    """(C, C) row-stochastic matrix: each cell's own value with weight 1 and its neighbours' with those of the edges."""
    own = np.arange(count, dtype=np.int32)
    rows = np.concatenate([edges[:, 0], edges[:, 1], own])
    columns = np.concatenate([edges[:, 1], edges[:, 0], own])
    values = np.concatenate([weight, weight, np.ones(count, dtype=np.float32)])
    total = np.bincount(rows, weights=values, minlength=count).astype(np.float32)
    return csr_matrix((values / total[rows], (rows, columns)), shape=(count, count))


def _smoothed(
    edges: NDArray[np.int32], normals: NDArray[np.float32], colour: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """One step of a bilateral filter over touching cells; normals that face each other count as one plane."""
    first, second = edges.T
    cosine = np.einsum("ij,ij->i", normals[first], normals[second])
    step = np.square(colour[first] - colour[second]).sum(axis=1)
    weight = np.exp(-np.square((1 - np.abs(cosine)) / 0.25) - step / 0.08**2).astype(np.float32)
    matrix = averaging(edges, weight, len(normals))
    colour = matrix @ colour
    # Signs may differ across an edge, so the products are averaged and the strongest direction is found by iteration.
    products = np.einsum("ij,ik->ijk", normals, normals).reshape(-1, 9)
    moment = (matrix @ products).reshape(-1, 3, 3)
    for _ in range(3):
        normals = unit(np.einsum("ijk,ik->ij", moment, normals))
    return normals, colour


def _shapes(cells: Cells, scales_m: tuple[float, ...]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Normals from the finest scale, and the features of all.

    Moments spread over the graph step by step. After n steps they come from about 0.8 sqrt(n) cells around, along the
    surface: what is near but does not touch is left out, unlike in a ball.
    """
    count = len(cells)
    local = (cells.centers_m - cells.centers_m.mean(axis=0)).astype(np.float64)
    moments = np.concatenate([local, (local[:, :, None] * local[:, None, :]).reshape(-1, 9)], axis=1)
    matrix = averaging(cells.edges, np.ones(len(cells.edges), dtype=np.float32), count).astype(np.float64)
    done, normals = 0, np.zeros((count, 3), dtype=np.float32)
    features: list[NDArray[np.float64]] = []
    for scale in scales_m:
        steps = max(1, round((scale / cells.size_m / 1.6) ** 2))
        for _ in range(steps - done):
            moments = matrix @ moments
        done = max(done, steps)
        mean = moments[:, :3]
        spread = moments[:, 3:].reshape(-1, 3, 3) - mean[:, :, None] * mean[:, None, :]
        values, vectors = np.linalg.eigh(spread)
        values = np.maximum(values, 0)
        if not features:
            flat = values[:, 1] > 0.05 * np.maximum(values[:, 2], 1e-12)
            normals = np.where(flat[:, None], vectors[:, :, 0], 0).astype(np.float32)
        high = np.maximum(values[:, 2], 1e-12)
        features.append(
            np.stack([1 - values[:, 1] / high, (values[:, 1] - values[:, 0]) / high, values[:, 0] / high], 1)
        )
    return normals, np.concatenate(features, axis=1).astype(np.float32)
