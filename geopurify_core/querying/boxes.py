"""Boxes around sets of points: tight, upright, robust against stray voxels, and honest about what they hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull, QhullError

from geopurify_core.geometry import level_rotation
from geopurify_core.querying.order import trimmed_range

_TRIM_PERCENT = 1.0
_CUTS_PER_AXIS = 12
_MAX_PARTS = 8
_ENOUGH_POINTS = 3000
_CONVEX_SHARE = 0.15


@dataclass(frozen=True)
class Box:
    """A box in the map frame.

    Attributes:
        center_m: (3,) metres.
        size_m: (3,) edge lengths along its own axes, metres.
        R_map_box: (3, 3), columns are its axes in the map frame; the third is the vertical of upright boxes.
        yaw_rad: Its rotation about the map's vertical, in (−π/4, π/4].
    """

    center_m: NDArray[np.float64]
    size_m: NDArray[np.float64]
    R_map_box: NDArray[np.float64]
    yaw_rad: float

    @property
    def volume_m3(self) -> float:
        return float(np.prod(self.size_m))


def axis_aligned_box(points_m: NDArray[np.floating], voxel_size_m: float) -> Box:
    """The box along the map's axes of voxel centres (n, 3), one percent trimmed from each end of each axis."""
    return _box_in_frame(np.asarray(points_m, dtype=np.float64), np.eye(3), 0.0, voxel_size_m)


def upright_box(points_m: NDArray[np.floating], up: NDArray[np.floating], voxel_size_m: float) -> Box:
    """The box of voxel centres (n, 3) that stands upright and whose footprint has the least area."""
    points = np.asarray(points_m, dtype=np.float64)
    frame = level_rotation(up).T
    yaw = _least_area_yaw(_sampled(points) @ frame[:, :2])
    turn = np.array([[np.cos(yaw), -np.sin(yaw), 0.0], [np.sin(yaw), np.cos(yaw), 0.0], [0.0, 0.0, 1.0]])
    return _box_in_frame(points, frame @ turn, yaw, voxel_size_m)


def _box_in_frame(points: NDArray[np.float64], frame: NDArray[np.float64], yaw: float, voxel_size_m: float) -> Box:
    local = points @ frame
    low, high = trimmed_range(local, _TRIM_PERCENT)
    return Box(frame @ ((low + high) / 2.0), high - low + voxel_size_m, frame, yaw)


def _least_area_yaw(footprint: NDArray[np.float64]) -> float:
    """Rotating calipers: the least rectangle around a hull has a side along one of the hull's edges. In (−π/4, π/4]."""
    try:
        hull = footprint[ConvexHull(footprint).vertices]
    except (QhullError, ValueError):
        hull = footprint
        if len(footprint) < 2:
            return 0.0
        direction = np.linalg.svd(footprint - footprint.mean(axis=0), full_matrices=False)[2][0]
        edges = direction[None, :]
    else:
        edges = np.roll(hull, -1, axis=0) - hull
    yaw = np.arctan2(edges[:, 1], edges[:, 0])
    yaw = np.unique(np.round(np.mod(yaw + np.pi / 4, np.pi / 2) - np.pi / 4, 9))
    c, s = np.cos(yaw)[:, None], np.sin(yaw)[:, None]
    along = c * hull[:, 0] + s * hull[:, 1]
    across = -s * hull[:, 0] + c * hull[:, 1]
    area = np.ptp(along, axis=1) * np.ptp(across, axis=1)
    return float(yaw[np.argmin(area)])


def split_until_tight(
    points_m: NDArray[np.floating],
    normals: NDArray[np.floating],
    up: NDArray[np.floating],
    voxel_size_m: float,
    min_volume_m3: float,
    gain: float,
) -> list[NDArray[np.int64]]:
    """Cut a set of points where its box is mostly air, such as two walls that meet in a corner.

    A box above ``min_volume_m3`` is cut across one of its axes where the two halves' boxes are smallest together, if
    they need no more than ``gain`` of its volume; the halves are tried again. What turns its surfaces outwards is left
    whole: a bed is seen as a top and two sides, and the air between them is the bed.

    Args:
        points_m: (n, 3) voxel centres, metres.
        normals: (n, 3) surface normals towards the cameras; 0 where unknown.
        up: (3,) the map's vertical.
        voxel_size_m: Edge of a voxel, metres.
        min_volume_m3: Smaller boxes are never cut.
        gain: Share of the volume that the halves may need.

    Returns:
        Index arrays, largest first.
    """
    points, facing = np.asarray(points_m, dtype=np.float64), np.asarray(normals, dtype=np.float64)
    open_parts = [np.arange(len(points))]
    done: list[NDArray[np.int64]] = []
    while open_parts:
        part = open_parts.pop()
        cut = None
        if len(done) + len(open_parts) + 2 <= _MAX_PARTS:
            cut = _best_cut(points[part], facing[part], up, voxel_size_m, min_volume_m3, gain)
        if cut is None:
            done.append(part)
        else:
            open_parts += [part[cut], part[~cut]]
    return sorted(done, key=len, reverse=True)


def _best_cut(
    points: NDArray[np.float64],
    normals: NDArray[np.float64],
    up: NDArray[np.floating],
    voxel_size_m: float,
    min_volume_m3: float,
    gain: float,
) -> NDArray[np.bool_] | None:
    sample = _sampled(points)
    whole = upright_box(sample, up, voxel_size_m)
    if whole.volume_m3 <= min_volume_m3 or _is_convex(sample - whole.center_m, _sampled(normals)):
        return None
    local = (sample - whole.center_m) @ whole.R_map_box
    best: tuple[int, float] | None = None
    best_volume = gain * whole.volume_m3
    for axis in range(3):
        for share in np.linspace(-0.5, 0.5, _CUTS_PER_AXIS + 2)[1:-1]:
            mask = local[:, axis] < share * whole.size_m[axis]
            if min(mask.sum(), (~mask).sum()) < max(8, len(sample) // 50):
                continue
            volume = sum(_extent_volume(local[side], voxel_size_m) for side in (mask, ~mask))
            if volume < best_volume:
                best, best_volume = (axis, share * whole.size_m[axis]), volume
    if best is None:
        return None
    axis, position = best
    return np.asarray((points - whole.center_m) @ whole.R_map_box[:, axis] < position)


def _is_convex(offsets: NDArray[np.float64], normals: NDArray[np.float64]) -> bool:
    """Whether surfaces look away from the middle, as a thing's do, and not towards it, as a room's."""
    outward = np.einsum("ij,ij->i", offsets, normals).sum()
    return bool(outward > _CONVEX_SHARE * np.linalg.norm(offsets, axis=1).sum())


def _sampled(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Every so many-th point: shape shows in a few thousand."""
    return points[:: max(1, len(points) // _ENOUGH_POINTS)]


def _extent_volume(local: NDArray[np.float64], voxel_size_m: float) -> float:
    low, high = trimmed_range(local, _TRIM_PERCENT)
    return float(np.prod(high - low + voxel_size_m))


def distance_to_box(
    points_m: NDArray[np.floating],
    center_m: NDArray[np.floating],
    size_m: NDArray[np.floating],
    R_map_box: NDArray[np.floating],
) -> NDArray[np.float64]:
    """(n,) metres from each point (n, 3) to a box; 0 inside."""
    local = np.abs((np.asarray(points_m, dtype=np.float64) - center_m) @ R_map_box)
    return np.asarray(np.linalg.norm(np.maximum(local - np.asarray(size_m) / 2.0, 0.0), axis=1))
