"""What is known of segments (groups of cells) and of the borders between them; both add up when segments merge."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.teachers.geometric.cells import Cells
from training.teachers.geometric.graph import Geometry


@dataclass(frozen=True)
class Segments:
    """S segments and the B borders at which two of them touch.

    Attributes:
        size: (S,) cells.
        sums: (S, 22) float64 sums over cells: position 3, its products 6, colour 3, its squares 3, products of the
            normal 6, number of cells with one 1.
        low, high: (S, 3) float64 box, metres.
        borders: (B, 2) int64 segments, first < second.
        touch: (B, 4) float64 sums over the edges across: number, difference of colour, bend
            (1 - |cos|), and how convex.
    """

    size: NDArray[np.float64]
    sums: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    borders: NDArray[np.int64]
    touch: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.size)

    @property
    def mean(self) -> NDArray[np.float64]:
        """(S, 22) ``sums`` for each cell."""
        return np.asarray(self.sums / self.size[:, None])


_PAIRS = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
_MATRIX = np.array([[0, 1, 2], [1, 3, 4], [2, 4, 5]])
POSITION, PRODUCTS, COLOUR, SQUARES, NORMALS, KNOWN = (
    slice(0, 3),
    slice(3, 9),
    slice(9, 12),
    slice(12, 15),
    slice(15, 21),
    21,
)


def segments_of(label: NDArray[np.int32], cells: Cells, geometry: Geometry) -> Segments:
    """Segments of cells; ``label`` (C,) numbers them from 0 without gaps."""
    count = int(label.max()) + 1
    position, colour, normal = (
        part.astype(np.float64) for part in (cells.centers_m, geometry.colour, geometry.normals)
    )
    columns = np.concatenate(
        [
            position,
            np.stack([position[:, a] * position[:, b] for a, b in _PAIRS], axis=1),
            colour,
            colour**2,
            np.stack([normal[:, a] * normal[:, b] for a, b in _PAIRS], axis=1),
            (np.abs(normal).sum(axis=1, keepdims=True) > 0).astype(np.float64),
        ],
        axis=1,
    )
    low, high = np.full((count, 3), np.inf), np.full((count, 3), -np.inf)
    np.minimum.at(low, label, position)
    np.maximum.at(high, label, position)
    across = cells.edges[label[cells.edges[:, 0]] != label[cells.edges[:, 1]]]
    borders, touch = _grouped(label[across].astype(np.int64), _across(across, cells, geometry), count)
    return Segments(
        np.bincount(label, minlength=count).astype(np.float64), _added(label, columns, count), low, high, borders, touch
    )


def _across(edges: NDArray[np.int32], cells: Cells, geometry: Geometry) -> NDArray[np.float64]:
    first, second = edges.T
    normals, signed = geometry.normals, geometry.signed[edges].all(axis=1)
    step = np.sqrt(np.square(geometry.colour[first] - geometry.colour[second]).sum(axis=1))
    bend = 1 - np.abs(np.einsum("ij,ij->i", normals[first], normals[second])).clip(0, 1)
    way = cells.centers_m[second] - cells.centers_m[first]
    way /= np.maximum(np.linalg.norm(way, axis=1, keepdims=True), 1e-6)
    convex = np.where(signed, np.einsum("ij,ij->i", normals[second] - normals[first], way), 0)
    return np.stack([np.ones(len(edges)), step, bend, convex], axis=1).astype(np.float64)


def _added(label: NDArray[np.integer], columns: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    return np.stack([np.bincount(label, weights=c, minlength=count) for c in columns.T], axis=1)


def _grouped(
    pairs: NDArray[np.int64], columns: NDArray[np.float64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    pairs = np.sort(pairs, axis=1)
    keys, place = np.unique(pairs[:, 0] * count + pairs[:, 1], return_inverse=True)
    return np.stack([keys // count, keys % count], axis=1), _added(place.reshape(-1), columns, len(keys))


def merged(segments: Segments, label: NDArray[np.int64]) -> Segments:
    """The same with segment i become part of segment ``label[i]``; numbered from 0 without gaps."""
    count = int(label.max()) + 1
    low, high = np.full((count, 3), np.inf), np.full((count, 3), -np.inf)
    np.minimum.at(low, label, segments.low)
    np.maximum.at(high, label, segments.high)
    across = label[segments.borders]
    keep = across[:, 0] != across[:, 1]
    borders, touch = _grouped(across[keep], segments.touch[keep], count)
    size = np.bincount(label, weights=segments.size, minlength=count).astype(np.float64)
    return Segments(size, _added(label, segments.sums, count), low, high, borders, touch)


def planes_of(segments: Segments) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(S, 3) ascending standard deviations along the principal axes, metres, and (S, 3) the direction of the least.

    The direction is that of the cells' normals where most know one.
    """
    mean = segments.mean
    centre = mean[:, POSITION]
    spread = mean[:, PRODUCTS][:, _MATRIX] - centre[:, :, None] * centre[:, None, :]
    values, vectors = np.linalg.eigh(spread)
    _, directions = np.linalg.eigh(mean[:, NORMALS][:, _MATRIX])
    known = mean[:, KNOWN] > 0.5
    return np.sqrt(np.maximum(values, 0)), np.where(known[:, None], directions[:, :, 2], vectors[:, :, 0])
