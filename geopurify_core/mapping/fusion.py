"""Frames into the map: every trusted depth pixel carries the feature of its cell to its voxel.

The mean of a voxel's features is weighted by cell confidence x range x incidence; colour and normal by range x
incidence alone, so that pixels without a confident feature still add geometry. Reading the features is what costs:
pixels of one voxel and one cell are therefore merged first, and each voxel then sums its few cells once, in float32,
into its float16 row.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopurify_core.camera import PinholeCamera
from geopurify_core.config import DepthConfig, FusionConfig, MapConfig
from geopurify_core.depth import trusted_depth
from geopurify_core.errors import BackboneError, MapMismatchError
from geopurify_core.frame import RGBDFrame
from geopurify_core.jit import HAVE_NUMBA, read_only, run_chunks, run_each
from geopurify_core.mapping import reference
from geopurify_core.mapping.observations import Observations, observe_frame
from geopurify_core.mapping.voxel_map import Placement, VoxelMap
from geopurify_core.vision.base import FeatureMap

log = logging.getLogger(__name__)

_CHECK_BLOCK = 1 << 16  # stays in the cache between masking and comparing
_PARTS = 4
_MOST_CONFIDENT = 1.0 + 1e-5  # one, and the rounding of whoever computed it
ENGINES = ("auto", "numba", "torch")


@dataclass(frozen=True)
class FusionReport:
    """What one frame did to the map.

    Attributes:
        pixels_valid: Depth pixels (or points) worth trusting.
        pixels_used: Of those, the ones fused; the rest lie outside the colour image or out of the map's reach.
        voxels_touched: Distinct voxels changed, new ones included.
        voxels_new: Voxels made.
        voxels_evicted: Voxels forgotten to make room for them.
        voxels_dropped: Voxels of this frame that did not fit the budget even so.
        dropped_out_of_bounds: Pixels beyond ±2^20 voxels.
        pairs_merged: Distinct (voxel, feature cell) pairs with weight.
    """

    pixels_valid: int = 0
    pixels_used: int = 0
    voxels_touched: int = 0
    voxels_new: int = 0
    voxels_evicted: int = 0
    voxels_dropped: int = 0
    dropped_out_of_bounds: int = 0
    pairs_merged: int = 0


def fuse_frame(
    voxel_map: VoxelMap,
    frame: RGBDFrame,
    feature_map: FeatureMap,
    depth_cfg: DepthConfig | None = None,
    fusion_cfg: FusionConfig | None = None,
    *,
    engine: str = "auto",
) -> FusionReport:
    """Fuse one RGB-D frame. Either all of it ends up in the map, or an error is raised and the map is as before.

    Args:
        voxel_map: Changed in place; nobody else may use it meanwhile.
        frame: Depth at full resolution, colour, pose.
        feature_map: (C, h, w) features of ``frame.rgb``, any resolution.
        depth_cfg, fusion_cfg: Which pixels are trusted, and how observations weigh.
        engine: ``numba``, ``torch``, or the faster one there is.

    Returns:
        Counts; all zero for a frame without one trusted pixel, which leaves the map untouched.

    Raises:
        MapMismatchError: The features have another width than the map's.
        BackboneError: Features or confidences are not finite or out of range.
    """
    fusion_cfg = fusion_cfg or FusionConfig()
    compiled = _use_numba(engine)
    check_width(voxel_map, feature_map)
    depth_m = trusted_depth(frame.depth_m, depth_cfg or DepthConfig())
    if not depth_m.any():
        return FusionReport()
    check_values(feature_map)
    observe = observe_frame if compiled else reference.observe_frame
    observations = observe(frame, depth_m, feature_map.confidence.shape, voxel_map.config.voxel_size_m, fusion_cfg)
    return integrate(voxel_map, observations, feature_map, fusion_cfg, engine=engine)


def integrate(
    voxel_map: VoxelMap,
    observations: Observations,
    feature_map: FeatureMap,
    config: FusionConfig,
    *,
    engine: str = "auto",
) -> FusionReport:
    """Bring checked observations into the map; the common end of frames and point clouds."""
    counts = observations.counts
    if counts.used == 0:
        return FusionReport(pixels_valid=counts.valid, dropped_out_of_bounds=counts.outside)
    update = _integrate_numba if _use_numba(engine) else reference.integrate
    placement, pairs = update(voxel_map, observations, feature_map, config)
    voxel_map.commit(placement.rows, observations.stamp_ns)
    return FusionReport(
        pixels_valid=counts.valid,
        pixels_used=counts.used,
        voxels_touched=len(placement.rows) - placement.dropped,
        voxels_new=placement.new,
        voxels_evicted=placement.evicted,
        voxels_dropped=placement.dropped,
        dropped_out_of_bounds=counts.outside,
        pairs_merged=pairs,
    )


def _integrate_numba(
    voxel_map: VoxelMap, observations: Observations, feature_map: FeatureMap, config: FusionConfig
) -> tuple[Placement, int]:
    from geopurify_core.mapping.update_kernels import update_features, update_geometry

    keys, sums, first, cells, weights = _merge(observations, feature_map, config)
    rows = read_only(feature_map.rows)  # a copy perhaps: nothing may fail once the map has begun to change
    stamp_ns = observations.stamp_ns
    placement = voxel_map.place(keys, stamp_ns, observations.camera_m)
    arrays, limit = voxel_map.arrays, np.float32(voxel_map.config.max_weight)
    update_geometry(
        placement.rows, sums, stamp_ns, arrays.geometry_weight, arrays.colour, arrays.normal.view(np.uint16),
        arrays.first_seen_ns, arrays.last_seen_ns, limit,
    )  # fmt: skip
    run_chunks(
        update_features, len(keys), placement.rows, first, cells, weights,
        rows.view(np.uint16) if rows.dtype == np.float16 else rows,
        arrays.features.view(np.uint16), arrays.weight, limit, min_chunk=256, per_thread=4,
    )  # fmt: skip
    return placement, len(cells)


def _merge(observations: Observations, feature_map: FeatureMap, config: FusionConfig) -> tuple[NDArray[Any], ...]:
    """Distinct voxels, their sums, and their (voxel, cell) pairs grouped by voxel.

    Always in four parts, joined afterwards: the result must not depend on how many threads there are.
    """
    from geopurify_core.mapping.merge_kernels import group_pairs, join_voxels, merge_part

    confidence = read_only(feature_map.confidence.reshape(-1))
    cuts = _cuts(observations)
    parts = run_each(
        merge_part,
        [
            (low, high, observations.order, observations.key, observations.cell, observations.weight,
             confidence, float(config.min_confidence), observations.rgb, observations.normal)
            for low, high in pairwise(cuts)
        ],
    )  # fmt: skip
    offsets = np.cumsum([0, *(len(part[0]) for part in parts)])
    keys, sums, number = join_voxels(*(np.concatenate([part[i] for part in parts]) for i in (0, 1)))
    pair_voxel = np.concatenate([part[2] + offset for part, offset in zip(parts, offsets[:-1], strict=True)])
    pair_cell, pair_weight = (np.concatenate([part[i] for part in parts]) for i in (3, 4))
    return (keys, sums, *group_pairs(number, pair_voxel, pair_cell, pair_weight, len(keys)))


def _cuts(observations: Observations) -> list[int]:
    """Bounds of the parts, moved so that no cell is cut in two."""
    order, cell = observations.order, observations.cell
    cuts = [0]
    for part in range(1, _PARTS):
        at = max(cuts[-1], len(order) * part // _PARTS)
        while 0 < at < len(order) and cell[order[at]] == cell[order[at - 1]]:
            at += 1
        cuts.append(at)
    return [*cuts, len(order)]


def check_width(voxel_map: VoxelMap, feature_map: FeatureMap) -> None:
    """Raise MapMismatchError unless the features are as wide as the map's."""
    if feature_map.features.shape[0] != voxel_map.feature_dim:
        raise MapMismatchError(
            "features.shape",
            feature_map.features.shape,
            f"This map holds {voxel_map.feature_dim} channels; use its backbone.",
        )


def check_values(feature_map: FeatureMap) -> None:
    """Raise BackboneError unless every feature is finite and fits float16, and every confidence lies in [0, 1]."""
    confidence = feature_map.confidence
    if not ((confidence >= 0) & (confidence <= _MOST_CONFIDENT)).all():
        raise BackboneError(
            "confidence", _first_bad(confidence), "The backbone must answer with confidences in [0, 1]."
        )
    rows = feature_map.rows.reshape(-1)
    bits, limit = (np.uint16, 0x7BFF) if rows.dtype == np.float16 else (np.uint32, 0x477FE000)  # 65504 in either
    if max(run_chunks(_largest_magnitude, len(rows), rows.view(bits), min_chunk=1 << 18), default=0) > limit:
        raise BackboneError(
            "features", "NaN, infinity or beyond ±65504", "The network diverged on this image; the frame is left out."
        )


def _largest_magnitude(start: int, stop: int, bits: NDArray[np.unsignedinteger]) -> int:
    """Largest float pattern without its sign: patterns sort like magnitudes, infinity and NaN on top."""
    mask = bits.dtype.type(np.iinfo(bits.dtype).max >> 1)
    blocks = (bits[low : min(low + _CHECK_BLOCK, stop)] for low in range(start, stop, _CHECK_BLOCK))
    return max((int((block & mask).max()) for block in blocks), default=0)


def _first_bad(confidence: NDArray[np.float32]) -> float:
    return float(confidence[~((confidence >= 0) & (confidence <= _MOST_CONFIDENT))][0])


def _use_numba(engine: str) -> bool:
    if engine not in ENGINES or (engine == "numba" and not HAVE_NUMBA):
        raise ValueError(f"no fusion engine {engine!r} here; there are {ENGINES}, numba only where it is installed")
    return HAVE_NUMBA and engine != "torch"


def warm_up(feature_dim: int = 8) -> None:
    """Compile (or load from numba's cache) everything the first frame and the first snapshot would wait for."""
    camera = PinholeCamera(40.0, 40.0, 20.0, 15.0, 40, 30)
    rgb, depth_m = np.zeros((30, 40, 3), np.uint8), np.full((30, 40), 2.0, np.float32)
    for kind in (np.float32, np.float16):
        voxel_map = VoxelMap(MapConfig(budget_mb=8), feature_dim, "warm-up", "warm-up")
        for scale in (1, 2):
            lens = camera.scaled(40 * scale, 30 * scale)
            frame = RGBDFrame(rgb.repeat(scale, 0).repeat(scale, 1), depth_m, lens, np.eye(4), 0)
            features = FeatureMap.from_rows(np.ones((3, 4, feature_dim), kind), np.ones((3, 4), np.float32))
            fuse_frame(voxel_map, frame, features)
        voxel_map.snapshot()
