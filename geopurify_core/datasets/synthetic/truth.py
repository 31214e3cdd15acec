"""Labels of points in space: the nearest sample of the labelled surfaces."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from geopurify_core.datasets.synthetic.raycast import Primitives
from geopurify_core.datasets.synthetic.shapes import BOX, CYLINDER

_SPACING_M = 0.03
_LEAST, _MOST = 3, 400


def _face_grid(a: float, b: float) -> NDArray[np.float64]:
    """(n, 2) points of the square [-1, 1]² about ``_SPACING_M`` apart when scaled by half extents a, b."""
    n, m = (int(np.clip(2 * half / _SPACING_M, _LEAST, _MOST)) for half in (a, b))
    u, v = np.meshgrid(np.linspace(-1, 1, n), np.linspace(-1, 1, m), indexing="ij")
    return np.stack([u.ravel(), v.ravel()], axis=1)


def _unit_box(half: NDArray[np.float64]) -> NDArray[np.float64]:
    faces = []
    for axis in range(3):
        others = [i for i in range(3) if i != axis]
        grid = _face_grid(half[others[0]], half[others[1]])
        for sign in (-1.0, 1.0):
            face = np.full((len(grid), 3), sign)
            face[:, others] = grid
            faces.append(face)
    return np.concatenate(faces)


def _unit_cylinder(half: NDArray[np.float64]) -> NDArray[np.float64]:
    round_m = float(np.pi * (half[0] + half[1]) / 2)
    side = _face_grid(round_m, half[2])
    angle = side[:, 0] * np.pi
    wall = np.stack([np.cos(angle), np.sin(angle), side[:, 1]], axis=1)
    disc = _face_grid(half[0], half[1])
    disc = disc[(disc**2).sum(axis=1) <= 1.0]
    caps = [np.column_stack([disc, np.full(len(disc), sign)]) for sign in (-1.0, 1.0)]
    return np.concatenate([wall, *caps])


def _unit_sphere(half: NDArray[np.float64]) -> NDArray[np.float64]:
    n = int(np.clip(4 * np.pi * (half.mean() / _SPACING_M) ** 2, 12, 2000))
    k = np.arange(n) + 0.5
    z, angle = 1 - 2 * k / n, np.pi * (1 + 5**0.5) * k
    ring = np.sqrt(1 - z**2)
    return np.stack([ring * np.cos(angle), ring * np.sin(angle), z], axis=1)


class SurfaceLabels:
    """Nearest labelled surface point of a scene.

    Args:
        scene: The labelled primitives; their surfaces are sampled about every 3 cm.
    """

    def __init__(self, scene: Primitives) -> None:
        points, owners = [], []
        for shape, center, half, turn, instance in zip(
            scene.shape, scene.center_m, scene.half_m, scene.rotation, scene.instance, strict=True
        ):
            unit = (
                _unit_box(half) if shape == BOX else _unit_cylinder(half) if shape == CYLINDER else _unit_sphere(half)
            )
            points.append(center + (unit * half) @ turn.T)
            owners.append(np.full(len(unit), instance))
        self._owner = np.concatenate(owners)
        self._tree = cKDTree(np.concatenate(points))

    def instance(self, points_m: NDArray[np.floating], max_distance_m: float) -> NDArray[np.int64]:
        """(N,) instance id of the nearest surface of (N, 3) points; 0 beyond ``max_distance_m``."""
        _, nearest = self._tree.query(np.asarray(points_m, dtype=np.float64), distance_upper_bound=max_distance_m)
        owners: NDArray[np.int64] = np.append(self._owner, 0)[nearest]
        return owners
