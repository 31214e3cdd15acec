"""Orthographic pictures of voxels with numpy alone: no GPU, no window system.

Every voxel is splatted as a square, the nearest one wins each pixel, and edges are darkened where the depth jumps,
which is what lets a heap of flat squares read as furniture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geopurify_core.geometry import level_rotation

_NOTHING = -1
_MAX_PIXELS = 2000
_EDGE_M = 0.30
_LIGHT = np.array([-0.35, 0.25, 0.9])
_MIN_NEIGHBOURS = 5
HEADROOM_M = 2.1


@dataclass(frozen=True)
class View:
    """An orthographic camera: rows of ``R_view_map`` are the picture's right, up, and towards-the-viewer directions."""

    R_view_map: NDArray[np.float64]

    @classmethod
    def top(cls, up: NDArray[np.float64]) -> View:
        """Straight from above; for an upright map, x to the right and y up."""
        return cls(level_rotation(up))

    @classmethod
    def oblique(cls, up: NDArray[np.float64], azimuth_deg: float, elevation_deg: float = 35.0) -> View:
        """From ``azimuth_deg`` (where the viewer stands, counter-clockwise from x) and above."""
        a, e = np.radians(azimuth_deg), np.radians(elevation_deg)
        towards = np.array([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)])
        right = np.array([-np.sin(a), np.cos(a), 0.0])
        return cls(np.stack([right, np.cross(towards, right), towards]) @ level_rotation(up))

    def project(self, points_m: NDArray[np.floating]) -> NDArray[np.float64]:
        """(n, 3): right, up, towards the viewer, metres."""
        projected: NDArray[np.float64] = np.asarray(points_m, dtype=np.float64) @ self.R_view_map.T
        return projected


@dataclass(frozen=True)
class Raster:
    """What each pixel of a picture shows.

    Attributes:
        winner: (H, W) int32, row of the voxel in front; -1 for background. Row 0 is the top of the picture.
        nearness_m: (H, W) float32, metres towards the viewer; -inf for background.
        extent_m: (left, right, bottom, top) of the picture in the view's metres.
        pixel_m: Edge of a pixel.
    """

    winner: NDArray[np.int32]
    nearness_m: NDArray[np.float32]
    extent_m: tuple[float, float, float, float]
    pixel_m: float

    @property
    def covered(self) -> NDArray[np.bool_]:
        """(H, W), where there is a voxel."""
        mask: NDArray[np.bool_] = self.winner != _NOTHING
        return mask


def rasterise(
    points_m: NDArray[np.floating], view: View, voxel_size_m: float, pixels_per_voxel: int = 4, margin_m: float = 0.15
) -> Raster:
    """The front-most of the voxels (n, 3) in each pixel; coarser pixels are used where the picture would get huge."""
    projected = view.project(points_m)
    low, high = projected[:, :2].min(axis=0) - margin_m, projected[:, :2].max(axis=0) + margin_m
    pixel_m = max(voxel_size_m / pixels_per_voxel, float((high - low).max()) / _MAX_PIXELS)
    width, height = (int(np.ceil(side)) for side in (high - low) / pixel_m)
    winner = np.full(height * width, _NOTHING, dtype=np.int32)
    nearness = np.full(height * width, -np.inf, dtype=np.float32)
    order = np.argsort(projected[:, 2], kind="stable").astype(np.int32)  # far to near: the last write of a pixel wins
    column = np.floor((projected[order, 0] - low[0]) / pixel_m).astype(np.int64)
    row = np.floor((high[1] - projected[order, 1]) / pixel_m).astype(np.int64)
    z = projected[order, 2].astype(np.float32)
    # a turned cube covers up to its diagonal; 1.25 edges leave no swollen outlines, and the extra pixel closes the gaps
    # that rounding makes between voxels on a grid whose step is a whole number of pixels
    edge = int(np.ceil(1.25 * voxel_size_m / pixel_m))
    offsets = sorted((i - edge // 2 for i in range(edge)), key=abs)  # its own middle first: equals do not displace it
    for dy in offsets:
        for dx in offsets:
            x, y = column + dx, row + dy
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            pixels = y[inside] * width + x[inside]
            layer = np.full(height * width, -1, dtype=np.int32)
            layer[pixels] = np.flatnonzero(inside)
            hit = np.flatnonzero(layer >= 0)
            nearer = hit[z[layer[hit]] > nearness[hit]]
            winner[nearer] = order[layer[nearer]]
            nearness[nearer] = z[layer[nearer]]
    extent = (float(low[0]), float(low[0] + width * pixel_m), float(high[1] - height * pixel_m), float(high[1]))
    return Raster(winner.reshape(height, width), nearness.reshape(height, width), extent, float(pixel_m))


def paint(
    raster: Raster, colors: NDArray[np.uint8], normals: NDArray[np.floating], view: View, relief: float = 1.0
) -> NDArray[np.uint8]:
    """(H, W, 4) RGBA picture of voxel ``colors`` (n, 3), shaded by ``normals`` (n, 3) and depth edges.

    ``relief`` scales the shading; 0 gives flat colours. The background is transparent.
    """
    picture = np.zeros((*raster.winner.shape, 4), dtype=np.uint8)
    covered = raster.covered
    shade = 1.0 - relief * (1.0 - _edges(raster)[covered] * _lambert(normals, view)[raster.winner[covered]])
    picture[covered, :3] = np.clip(colors[raster.winner[covered]] * shade[:, None], 0, 255)
    picture[covered, 3] = 255
    return picture


def _lambert(normals: NDArray[np.floating], view: View) -> NDArray[np.float32]:
    """(n,) brightness 0.72..1.08 under one lamp at the viewer's left shoulder; unknown normals are neutral."""
    light = _LIGHT / np.linalg.norm(_LIGHT)
    facing = np.asarray(normals, dtype=np.float32) @ (view.R_view_map.T @ light).astype(np.float32)
    return np.asarray(0.90 + 0.18 * facing, dtype=np.float32)


def _edges(raster: Raster) -> NDArray[np.float32]:
    """(H, W) in (0.45, 1]: darker where nearer voxels stand beside (a cheap form of eye-dome lighting)."""
    near = np.where(raster.covered, raster.nearness_m, np.float32(0))
    occlusion = np.zeros(near.shape, dtype=np.float32)
    radii = (2, 5)
    for radius in radii:
        for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1)):
            neighbour = np.roll(near, (dy * radius, dx * radius), axis=(0, 1))
            beside = np.roll(raster.covered, (dy * radius, dx * radius), axis=(0, 1))
            step = np.clip(neighbour - near - 1.5 * raster.pixel_m * radius, 0, _EDGE_M) / _EDGE_M
            occlusion += np.where(beside, step, 0)
    strength: NDArray[np.float32] = np.exp(-2.2 * occlusion / (8 * len(radii))).astype(np.float32)
    return strength


def below_ceiling(
    centers_m: NDArray[np.floating], normals: NDArray[np.floating], up: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """(n,) mask without what hides a room from above: everything higher than ``HEADROOM_M`` over its floor, and
    surfaces that look down from more than half of that."""
    height = np.asarray(centers_m, dtype=np.float64) @ up
    over_floor = height - np.percentile(height, 1.0)
    looks_down = np.asarray(normals, dtype=np.float64) @ up < -0.6
    mask: NDArray[np.bool_] = (over_floor < HEADROOM_M) & ~(looks_down & (over_floor > 0.5 * HEADROOM_M))
    return mask


def facing_viewer(normals: NDArray[np.floating], view: View, threshold: float = -0.15) -> NDArray[np.bool_]:
    """(n,) mask without surfaces that turn their back: seen from outside, a room loses its near walls."""
    mask: NDArray[np.bool_] = np.asarray(normals, dtype=np.float64) @ view.R_view_map[2] > threshold
    return mask


def without_specks(coords: NDArray[np.int32], shown: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """``shown`` (n,) less the voxels that have fewer than five shown ones among their 26 neighbours.

    Normals are noisy: on a wall that turns its back a few voxels always seem to face the viewer, and would hang in the
    air.
    """
    grid = coords[shown].astype(np.int64)
    if not len(grid):
        return shown
    grid -= grid.min(axis=0) - 1
    sides = grid.max(axis=0) + 2
    keys = (grid[:, 0] * sides[1] + grid[:, 1]) * sides[2] + grid[:, 2]
    order = np.argsort(keys)
    keys = keys[order]
    neighbours = np.zeros(len(keys), dtype=np.int8)
    for offset in np.ndindex(3, 3, 3):
        if offset == (1, 1, 1):
            continue
        x, y, z = np.array(offset) - 1
        wanted = keys + (x * sides[1] + y) * sides[2] + z
        place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        neighbours += keys[place] == wanted
    kept: NDArray[np.bool_] = np.array(shown)
    kept[np.flatnonzero(shown)[order[neighbours < _MIN_NEIGHBOURS]]] = False
    return kept
