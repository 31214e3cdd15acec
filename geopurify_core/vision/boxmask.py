"""Which cells inside a box belong to the object, told by the depth.

A box also covers what lies behind the object and what it stands on. Both continue outside of the box, so the surfaces
seen in a ring around it say what is background. A plane in space is affine in image coordinates once depth is
inverted (1/z = a·u + b·v + c), so planes are found without knowing the camera. What no ring plane explains, and what
is not behind all of them, is the object. Objects that lie flush with their support (a magazine, a picture) leave
nothing; for them the middle of the box counts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

_RING = 0.35  # width of the ring, as a share of the box
_MAX_PLANES = 3
_HYPOTHESES = 48
_MIN_RING_POINTS = 12
_MAX_RING_POINTS = 300
_MIN_PLANE_SHARE = 0.15  # of the ring's points
_FLAT_SHARE = 0.15  # less foreground than this: the object is flush with its support
_FOCAL_PER_WIDTH = 0.85  # typical of depth cameras (60° wide); only scales how deep an object may be


def box_mask(box: Array, depth_cells: Array | None, grid: tuple[int, int]) -> tuple[slice, slice, Array]:
    """Weights of the cells inside a box.

    Args:
        box: (4,) x0, y0, x1, y1 in cells.
        depth_cells: (h, w) metres for each cell, 0 where unknown, or None for no depth at all.
        grid: (h, w).

    Returns:
        Row and column slices, and (rows, columns) float32 weights in [0, 1] there; empty for a box outside of the grid.
    """
    rows, columns = _span(box[1], box[3], grid[0]), _span(box[0], box[2], grid[1])
    v, u = np.mgrid[rows, columns].astype(np.float32)
    middle = _ellipse(box, u, v)
    if depth_cells is None or middle.size == 0:
        return rows, columns, middle
    depth = depth_cells[rows, columns]
    known = depth > 0
    if known.sum() < 3:
        return rows, columns, middle
    inverse = np.zeros_like(depth)
    np.divide(1.0, depth, out=inverse, where=known)
    front = known & ~_background(inverse, u, v, ring_planes(box, depth_cells))
    standing = front.sum() >= _FLAT_SHARE * known.sum()
    candidates = front if standing else known
    near = candidates & _same_depth(depth, candidates, middle, box, grid[1])
    weight = np.where(near, 1.0 if standing else middle, 0.0)
    return rows, columns, np.where(known, weight, middle).astype(np.float32)


def ring_planes(box: Array, depth_cells: Array) -> Array:
    """(k, 3) planes a, b, c with 1/z = a·u + b·v + c that the surroundings of a box lie on; k ≤ 3, strongest first."""
    height, width = depth_cells.shape
    margin = 1.0 + _RING * np.maximum(box[2:] - box[:2], 1.0)
    rows = _span(box[1] - margin[1], box[3] + margin[1], height)
    columns = _span(box[0] - margin[0], box[2] + margin[0], width)
    v, u = np.mgrid[rows, columns].astype(np.float32)
    depth = depth_cells[rows, columns]
    outside = (u < box[0] - 0.5) | (u > box[2] - 0.5) | (v < box[1] - 0.5) | (v > box[3] - 0.5)
    ring = outside & (depth > 0)
    points = np.stack([u[ring], v[ring], 1.0 / depth[ring]], axis=1)
    if len(points) > _MAX_RING_POINTS:
        points = points[:: -(-len(points) // _MAX_RING_POINTS)]
    enough = max(_MIN_RING_POINTS, _MIN_PLANE_SHARE * len(points))
    planes: list[Array] = []
    while len(points) >= enough and len(planes) < _MAX_PLANES:
        plane, inside = _strongest_plane(points)
        if inside.sum() < enough:
            break
        planes.append(plane)
        points = points[~inside]
    return np.array(planes, dtype=np.float32).reshape(-1, 3)


def _strongest_plane(points: Array) -> tuple[Array, NDArray[np.bool_]]:
    """The plane most points lie on (samples from a fixed seed, then least squares) and which points those are."""
    samples = np.random.default_rng(0).integers(0, len(points), size=(_HYPOTHESES, 3))
    corners = points[samples]
    system = np.concatenate([corners[..., :2], np.ones((*corners.shape[:2], 1), np.float32)], axis=2).astype(np.float64)
    usable = np.abs(np.linalg.det(system)) > 1e-3
    homogeneous = np.concatenate([points[:, :2], np.ones((len(points), 1), np.float32)], axis=1)
    if not usable.any():
        return np.zeros(3, np.float32), np.zeros(len(points), dtype=bool)
    planes = np.linalg.solve(system[usable], corners[usable][:, :, 2:].astype(np.float64))[..., 0].astype(np.float32)
    inside = np.abs(homogeneous @ planes.T - points[:, 2:]) < _tolerance(points[:, 2:])
    best = inside[:, inside.sum(axis=0).argmax()]
    plane = np.linalg.lstsq(homogeneous[best], points[best, 2], rcond=None)[0].astype(np.float32)
    return plane, np.abs(homogeneous @ plane - points[:, 2]) < _tolerance(points[:, 2])


def _background(inverse: Array, u: Array, v: Array, planes: Array) -> NDArray[np.bool_]:
    """Cells on one of the planes, or behind all of them."""
    if len(planes) == 0:
        return np.zeros(inverse.shape, dtype=bool)
    on_plane = planes[:, 0, None, None] * u + planes[:, 1, None, None] * v + planes[:, 2, None, None]
    difference = inverse - on_plane
    margin = _tolerance(inverse)
    return np.asarray((np.abs(difference) < margin).any(axis=0) | (difference < 0).all(axis=0))


def _tolerance(inverse: Array) -> Array:
    """Noise of inverse depth: constant for triangulating cameras (σ_z ∝ z²), plus a share for uneven surfaces."""
    return np.asarray(0.006 + 0.008 * inverse, dtype=np.float32)


def _same_depth(
    depth: Array, candidates: NDArray[np.bool_], middle: Array, box: Array, width: int
) -> NDArray[np.bool_]:
    """Cells about as deep as the object's middle: an object is not much deeper than it is large."""
    weight = middle[candidates] + 1e-3
    values = depth[candidates]
    order = np.argsort(values)
    total = np.cumsum(weight[order])
    centre = values[order][np.searchsorted(total, total[-1] / 2)]
    extent = max(box[2] - box[0], box[3] - box[1]) * centre / (_FOCAL_PER_WIDTH * width)
    return np.asarray(np.abs(depth - centre) <= max(extent, 0.05))


def _ellipse(box: Array, u: Array, v: Array) -> Array:
    """1 in the middle of the box, falling to 0.37 at the inscribed ellipse and 0 outside of it."""
    centre, half = (box[:2] + box[2:]) / 2 - 0.5, np.maximum((box[2:] - box[:2]) / 2, 0.5)
    radius = np.square((u - centre[0]) / half[0]) + np.square((v - centre[1]) / half[1])
    return np.where(radius <= 1.0, np.exp(-radius), 0.0).astype(np.float32)


def _span(low: float, high: float, size: int) -> slice:
    """Cells whose centre lies in [low, high), at least the one in the middle where the box is smaller than a cell."""
    first, last = int(np.ceil(low - 0.5)), int(np.ceil(high - 0.5))
    if first == last:
        first = int(np.floor((low + high) / 2))
        last = first + 1
    return slice(min(max(first, 0), size), min(max(last, 0), size))
