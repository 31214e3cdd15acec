"""Fusion in plain torch: the tested reference of the compiled kernels, and the way without numba.

It treats every pixel alone, with no merging of pairs, and finds voxels by sorting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geopurify_core.config import FusionConfig
from geopurify_core.frame import RGBDFrame
from geopurify_core.mapping.keys import COORD_LIMIT, NO_KEY
from geopurify_core.mapping.observations import ObservationCounts, Observations, pixel_tables
from geopurify_core.mapping.observe_kernels import LEAST_COSINE, NORMAL_JUMP, UNKNOWN_COSINE
from geopurify_core.mapping.voxel_map import Placement, VoxelMap
from geopurify_core.vision.base import FeatureMap

if TYPE_CHECKING:
    import torch

_CHUNK = 1 << 15


def observe_frame(
    frame: RGBDFrame,
    depth_m: NDArray[np.float32],
    grid_shape: tuple[int, int],
    voxel_size_m: float,
    config: FusionConfig,
) -> Observations:
    """Every trusted pixel as an observation; arguments and result as ``observations.observe_frame``, row by row."""
    import torch

    tables = pixel_tables(frame.depth_camera, frame.camera, *grid_shape)
    depth = torch.from_numpy(depth_m.astype(np.float64))
    points = torch.stack(
        [
            torch.from_numpy(tables.ray_x[tables.step : -tables.step])[None, :] * depth,
            torch.from_numpy(tables.ray_y[tables.step : -tables.step])[:, None] * depth,
            depth,
        ],
        dim=-1,
    )
    T = torch.from_numpy(frame.T_map_camera)
    scaled = [
        torch.floor(
            (T[i, 0] * points[..., 0] + T[i, 1] * points[..., 1] + T[i, 2] * points[..., 2] + T[i, 3])
            * (1.0 / voxel_size_m)
        )
        for i in range(3)
    ]
    reachable = torch.stack([(c >= -COORD_LIMIT) & (c < COORD_LIMIT) for c in scaled]).all(dim=0)
    known = torch.from_numpy((tables.cell_row[:, None] >= 0) & (tables.cell_column[None, :] >= 0))
    measured = depth > 0
    used = measured & known & reachable
    x, y, z = (torch.where(used, c, 0.0).to(torch.int64) + COORD_LIMIT for c in scaled)
    key = torch.where(used, (x << 42) | (y << 21) | z, NO_KEY)
    normal, cosine = _normals(points, measured, tables.step)
    weight = _weights(depth, cosine, config)
    cell = tables.cell_row[:, None].astype(np.int32) * grid_shape[1] + tables.cell_column[None, :]
    colours = frame.rgb[tables.rgb_row[:, None], tables.rgb_column[None, :]]
    counts = ObservationCounts(int(measured.sum()), int(used.sum()), int((measured & known & ~reachable).sum()))
    return Observations(
        counts,
        frame.stamp_ns,
        frame.T_map_camera[:3, 3],
        key.reshape(-1).numpy(),
        cell.reshape(-1).astype(np.int32),
        weight.reshape(-1).to(torch.float32).numpy(),
        colours.reshape(-1, 3),
        (normal @ T[:3, :3].T).reshape(-1, 3).T.to(torch.float32).numpy(),
        tables.order,
    )


def _weights(depth: torch.Tensor, cosine: torch.Tensor, config: FusionConfig) -> torch.Tensor:
    import torch

    weight = torch.ones_like(depth)
    if config.range_weight_m > 0:
        weight = 1.0 / (1.0 + (depth / config.range_weight_m) ** 2)
    if config.incidence_weight:
        weight = weight * torch.where(cosine >= 0, cosine.clamp(min=LEAST_COSINE), UNKNOWN_COSINE)
    return weight


def _normals(points: torch.Tensor, measured: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit normals (h, w, 3) towards the camera, in its frame, and their cosine to the ray; 0 and -1 where unknown."""
    import torch

    across, has_across = _difference(points, measured, step, axis=1)
    down, has_down = _difference(points, measured, step, axis=0)
    normal = torch.linalg.cross(down, across)
    length = normal.norm(dim=-1)
    known = has_across & has_down & (length > 0)
    normal = normal / torch.where(known, length, 1.0)[..., None]
    cosine = -(normal * points).sum(dim=-1) / points.norm(dim=-1).clamp(min=1e-12)
    normal = torch.where((cosine < 0)[..., None], -normal, normal)
    return torch.where(known[..., None], normal, 0.0), torch.where(known, cosine.abs(), -1.0)


def _difference(
    points: torch.Tensor, measured: torch.Tensor, step: int, axis: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Point ``step`` pixels after minus point ``step`` before, or the pixel itself where one is not on its surface."""
    import torch

    depth = points[..., 2]
    ends = []
    found = torch.zeros_like(measured)
    for shift in (step, -step):
        other = torch.roll(points, -shift, dims=axis)
        index = torch.arange(depth.shape[axis]) + shift
        inside = ((index >= 0) & (index < depth.shape[axis])).reshape((-1, 1) if axis == 0 else (1, -1))
        same = inside & (other[..., 2] > 0) & ((other[..., 2] - depth).abs() <= NORMAL_JUMP * depth)
        ends.append(torch.where(same[..., None], other, points))
        found = found | same
    return ends[0] - ends[1], found & measured


def integrate(
    voxel_map: VoxelMap,
    observations: Observations,
    feature_map: FeatureMap,
    config: FusionConfig,
) -> tuple[Placement, int]:
    """Update the map with observations; returns where their voxels live and how many (voxel, cell) pairs there were."""
    import torch

    used = observations.key >= 0
    keys, voxel = torch.unique(torch.from_numpy(observations.key[used]), return_inverse=True)
    cell = torch.from_numpy(observations.cell[used]).long()
    weight = torch.from_numpy(observations.weight[used]).double()
    details = np.concatenate([observations.rgb[used].astype(np.float64), observations.normal[:, used].T], axis=1)
    geometry = torch.zeros(len(keys), dtype=torch.float64).index_add_(0, voxel, weight)
    colour_normal = torch.zeros(len(keys), 6, dtype=torch.float64).index_add_(
        0, voxel, weight[:, None] * torch.from_numpy(details)
    )
    confidence = torch.from_numpy(np.ascontiguousarray(feature_map.confidence)).reshape(-1)[cell].double()
    confident = (confidence > 0) & (confidence >= config.min_confidence)
    voxel_c, cell_c, weight_c = voxel[confident], cell[confident], (weight * confidence)[confident]
    added = torch.zeros(len(keys), dtype=torch.float64).index_add_(0, voxel_c, weight_c)
    total = sum_features(feature_map.rows, voxel_c, cell_c, weight_c, len(keys))
    placement = voxel_map.place(keys.numpy(), observations.stamp_ns, observations.camera_m)
    kept = placement.rows >= 0
    sums = [part.numpy()[kept] for part in (total, added, geometry, colour_normal)]
    update_rows(voxel_map, placement.rows[kept], sums, observations.stamp_ns)
    pairs = len(torch.unique(voxel_c * feature_map.confidence.size + cell_c))
    return placement, pairs


def sum_features(
    rows: NDArray[np.floating], voxel: torch.Tensor, cell: torch.Tensor, weight: torch.Tensor, voxels: int
) -> torch.Tensor:
    """(voxels, C) float32 weighted sums of feature rows, pixel by pixel."""
    import torch

    source = torch.from_numpy(rows)
    total = torch.zeros(voxels, rows.shape[1], dtype=torch.float32)
    for start in range(0, len(voxel), _CHUNK):
        part = slice(start, start + _CHUNK)
        total.index_add_(0, voxel[part], source[cell[part]].float() * weight[part, None].float())
    return total


def update_rows(
    voxel_map: VoxelMap,
    rows: NDArray[np.int32],
    sums: list[NDArray[Any]],
    stamp_ns: int,
) -> None:
    """mean ← (W·mean + Σ) / (W + Σw), W ← min(W + Σw, max_weight), for features and for colour with normal."""
    arrays, limit = voxel_map.arrays, voxel_map.config.max_weight
    total, added, geometry, colour_normal = sums
    seen = added > 0
    at, old = rows[seen], arrays.weight[rows[seen]].astype(np.float64)
    mean: NDArray[Any] = old[:, None] * arrays.features[at] + total[seen]
    arrays.features[at] = mean / (old + added[seen])[:, None]
    arrays.weight[at] = np.minimum(old + added[seen], limit)
    old = arrays.geometry_weight[rows].astype(np.float64)
    scale = 1.0 / (old + geometry)[:, None]
    arrays.colour[rows] = (old[:, None] * arrays.colour[rows] + colour_normal[:, :3]) * scale
    arrays.normal[rows] = (old[:, None] * arrays.normal[rows] + colour_normal[:, 3:]) * scale
    arrays.geometry_weight[rows] = np.minimum(old + geometry, limit)
    arrays.first_seen_ns[rows] = np.minimum(arrays.first_seen_ns[rows], stamp_ns)
    arrays.last_seen_ns[rows] = np.maximum(arrays.last_seen_ns[rows], stamp_ns)
