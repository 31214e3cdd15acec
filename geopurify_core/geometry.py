"""Which way is up, and boxes that stand upright.

A map in REP-105's sense has its z axis up. Recordings whose world is the first camera (7-Scenes, many SLAM systems)
have it along -y, tilted as that camera was held. Boxes and pictures need to know.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geopurify_core.errors import InvalidConfigError
from geopurify_core.mapping.snapshot import MapSnapshot

MAP_UP = np.array([0.0, 0.0, 1.0])
_OPTICAL_UP = np.array([0.0, -1.0, 0.0])
_MIN_NORMALS = 200
_PEAK_COS = np.cos(np.radians(15.0))
_PRIOR_COS = np.cos(np.radians(50.0))
_CANDIDATES = 400


def unit_up(up: ArrayLike) -> NDArray[np.float64]:
    """(3,) float64 of length 1 along ``up``. Raises InvalidConfigError unless it is a finite, non-zero 3-vector."""
    try:
        vector = np.asarray(up, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidConfigError("up", up, "Give three numbers, for example 0 0 1.") from error
    if vector.shape != (3,) or not np.isfinite(vector).all() or np.linalg.norm(vector) < 1e-6:
        raise InvalidConfigError("up", np.asarray(up).tolist(), "Give three finite numbers, not all zero: 0 0 1.")
    unit: NDArray[np.float64] = vector / np.linalg.norm(vector)
    return unit


def level_rotation(up: ArrayLike) -> NDArray[np.float64]:
    """The smallest (3, 3) rotation R_level_map that turns ``up`` onto +z (Rodrigues' formula).

    Straight down has no smallest rotation; there it is half a turn about x.
    """
    a = unit_up(up)
    c = float(a[2])
    if c < -1 + 1e-9:
        return np.diag([1.0, -1.0, -1.0])
    x, y = a[1], -a[0]  # the axis a cross z; its third component is 0
    cross = np.array([[0, 0, y], [0, 0, -x], [-y, x, 0]])
    R: NDArray[np.float64] = np.eye(3) + cross + cross @ cross / (1 + c)
    return R


def corners_m(center_m: ArrayLike, size_m: ArrayLike, R_map_box: NDArray[np.floating]) -> NDArray[np.float64]:
    """(8, 3) corners, metres, of a box whose axes in the map are the columns of ``R_map_box``.

    Corner i lies on the positive side of axis k where bit k of i is set.
    """
    signs = np.array([[(i >> k) & 1 for k in range(3)] for i in range(8)]) - 0.5
    corners: NDArray[np.float64] = np.asarray(center_m) + (signs * np.asarray(size_m)) @ R_map_box.T
    return corners


def estimate_up(snapshot: MapSnapshot) -> NDArray[np.float64]:
    """The up direction (3,) of a map, from the normals of its floors and table tops.

    Looks at directions near +z (REP-105) and near -y (world = first camera) only. Of those, the best has many surfaces
    facing it, few facing away (a room shows its floor more than its ceiling, but opposite walls alike), and a small
    extent (rooms are wider than high). A heuristic: tell the true direction where it is known. (0, 0, 1) if the map
    has too few normals to say.
    """
    normals = snapshot.normals.astype(np.float64)
    known = np.abs(np.linalg.norm(normals, axis=1) - 1) < 0.1
    if known.sum() < _MIN_NORMALS:
        return np.array(MAP_UP)
    normals, centers = normals[known], snapshot.centers_m[known].astype(np.float64)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    best: NDArray[np.float64] = MAP_UP.copy()
    best_score = 0.0
    for prior in (MAP_UP, _OPTICAL_UP):
        peak = _peak(normals, prior)
        if peak is None:
            continue
        along = normals @ peak
        facing, away = float((along > _PEAK_COS).mean()), float((along < -_PEAK_COS).mean())
        height_m = float(np.ptp(np.percentile(centers @ peak, (2, 98)))) + 0.5
        score = facing * facing / (facing + away) / height_m
        if score > best_score:
            best, best_score = peak, score
    return best


def _peak(normals: NDArray[np.float64], prior: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The direction within 50° of ``prior`` that most normals share, averaged over its 15° cone."""
    near = normals[normals @ prior > _PRIOR_COS]
    if len(near) < _MIN_NORMALS // 10:
        return None
    candidates = near[:: max(1, len(near) // _CANDIDATES)]
    support = np.array([(near @ candidate > _PEAK_COS).sum() for candidate in candidates])
    peak: NDArray[np.float64] = candidates[support.argmax()]
    for _ in range(3):
        peak = near[near @ peak > _PEAK_COS].mean(axis=0)
        peak /= np.linalg.norm(peak)
    return peak
