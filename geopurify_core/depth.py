"""Depth images: from their encodings to metres (REP-117, REP-118), and which of their pixels to trust."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from geopurify_core.config import DepthConfig
from geopurify_core.errors import InvalidFrameError
from geopurify_core.jit import HAVE_NUMBA, compiled, run_chunks

_MILLIMETRES = ("16UC1", "mono16")
_METRES = ("32FC1",)
_UINT16_SATURATED = 65_535


def decode_depth(image: NDArray[np.generic], encoding: str) -> NDArray[np.float32]:
    """Depth in metres, with 0 wherever the sensor did not measure.

    Args:
        image: (h, w) pixels as they came: uint16 millimetres for ``16UC1`` and ``mono16``, float32 metres for
            ``32FC1``; either byte order.
        encoding: ROS name of the pixel format.

    Returns:
        A new (h, w) float32 array, metres. NaN, ±Inf, negative values, and 65535 (saturated) become 0.

    Raises:
        InvalidFrameError: The encoding is another one, or dtype or shape do not fit it.
    """
    if encoding not in _MILLIMETRES + _METRES:
        raise InvalidFrameError(
            "depth.encoding", encoding, "Publish depth as 16UC1 (millimetres) or 32FC1 (metres), REP-118."
        )
    image = np.asarray(image)
    if image.ndim != 2 or image.size == 0:
        raise InvalidFrameError("depth.shape", image.shape, "Give a non-empty (h, w) single-channel image.")
    expected = np.dtype(np.uint16 if encoding in _MILLIMETRES else np.float32)
    if image.dtype.newbyteorder("=") != expected:
        raise InvalidFrameError("depth.dtype", str(image.dtype), f"{encoding} pixels are {expected}.")
    depth = image.astype(np.float32)
    with np.errstate(invalid="ignore"):
        usable = np.isfinite(depth) & (depth > 0) & (depth != _UINT16_SATURATED)
    depth[~usable] = 0
    if encoding in _MILLIMETRES:
        depth /= np.float32(1000)  # a division rounds correctly, so the same scene in metres gives the same bits
    return depth


def trusted_depth(depth_m: NDArray[np.float32], config: DepthConfig) -> NDArray[np.float32]:
    """Only the measurements worth fusing: in range, and not on a depth edge.

    A pixel is on an edge when one of its four neighbours was measured and lies more than ``edge_jump`` times the
    pixel's own depth before or behind it: such pixels mix both surfaces ("flying pixels"). Neighbours without a
    measurement say nothing.

    Args:
        depth_m: (h, w) float32 metres; anything not finite or not positive counts as no measurement.
        config: Range limits and edge threshold.

    Returns:
        A new (h, w) float32 array, 0 where not trusted.

    Raises:
        InvalidFrameError: Not a (h, w) float32 array.
    """
    if depth_m.ndim != 2 or depth_m.dtype != np.float32:
        raise InvalidFrameError(
            "depth_m", f"{depth_m.dtype}{depth_m.shape}", "Give (h, w) float32 metres (see decode_depth)."
        )
    if not HAVE_NUMBA:
        return trusted_depth_numpy(depth_m, config)
    depth = np.ascontiguousarray(depth_m)
    out = np.empty_like(depth)
    limits = (np.float32(config.min_range_m), np.float32(config.max_range_m), np.float32(config.edge_jump))
    run_chunks(_filter_rows, len(depth), depth, *limits, out, min_chunk=64)
    return out


def trusted_depth_numpy(depth_m: NDArray[np.float32], config: DepthConfig) -> NDArray[np.float32]:
    """The same as :func:`trusted_depth` in plain numpy: the tested reference, and the path without numba."""
    with np.errstate(invalid="ignore"):
        measured = np.isfinite(depth_m) & (depth_m > 0)
        keep = measured & (depth_m >= np.float32(config.min_range_m)) & (depth_m <= np.float32(config.max_range_m))
    depth = np.where(measured, depth_m, np.float32(0))
    if config.edge_jump > 0:
        keep &= ~_on_edge(depth, measured, np.float32(config.edge_jump))
    return np.where(keep, depth, np.float32(0))


def _on_edge(depth: NDArray[np.float32], measured: NDArray[np.bool_], edge_jump: np.float32) -> NDArray[np.bool_]:
    edge = np.zeros(depth.shape, dtype=bool)
    for axis in (0, 1):
        low: tuple[slice, ...] = (slice(None, -1), slice(None)) if axis == 0 else (slice(None), slice(None, -1))
        high: tuple[slice, ...] = (slice(1, None), slice(None)) if axis == 0 else (slice(None), slice(1, None))
        both = measured[low] & measured[high]
        jump = np.abs(depth[high] - depth[low])
        edge[low] |= both & (jump > edge_jump * depth[low])
        edge[high] |= both & (jump > edge_jump * depth[high])
    return edge


@compiled()
def _filter_rows(start, stop, depth, near, far, edge_jump, out):  # type: ignore[no-untyped-def]
    height, width = depth.shape
    infinity = np.float32(np.inf)
    for v in range(start, stop):
        up, down = max(v - 1, 0), min(v + 1, height - 1)
        for u in range(width):
            d = depth[v, u]
            keep = d >= near and d <= far and d > 0 and d < infinity
            if keep and edge_jump > 0:
                limit = edge_jump * d
                left, right = max(u - 1, 0), min(u + 1, width - 1)
                for other in (depth[v, left], depth[v, right], depth[up, u], depth[down, u]):
                    if other > 0 and other < infinity and abs(other - d) > limit:
                        keep = False
            out[v, u] = d if keep else np.float32(0)
