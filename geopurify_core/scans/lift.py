"""2D features at the points of a scan, fused over all its views."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geopurify_core.errors import DatasetError, InvalidConfigError
from geopurify_core.scans.frames import left_out
from geopurify_core.scans.lift_settings import LiftSettings
from geopurify_core.scans.scan import LiftedScan, Scan
from geopurify_core.scans.views import StoredViews, View, prepared_image, see, view_of
from geopurify_core.vision.base import SemanticBackbone
from geopurify_core.vision.xdecoder.views import fuse_views, nearest_known

log = logging.getLogger(__name__)
Progress = Callable[[int], None]


def lift(
    scan: Scan,
    backbone: SemanticBackbone,
    settings: LiftSettings | None = None,
    *,
    texts: Sequence[str] = (),
    progress: Progress | None = None,
) -> LiftedScan:
    """Features of every point of the scan, from every frame that sees it.

    Memory stays at one view and a few arrays of N x C; what ``consensus`` must keep of the views waits on disk, in a
    temporary folder.

    Args:
        scan: With frames.
        backbone: Sees each image once.
        settings: The recipe; by default ``LiftSettings.preset("robot")``.
        texts: The vocabulary for ``consensus``; ignored by the others.
        progress: Called with the number of frames read so far.

    Raises:
        DatasetError: The scan has no frames, or no frame sees enough of it.
        InvalidConfigError: ``consensus`` without texts.
        BackboneError, QueryError: From the backbone.
    """
    settings = settings or LiftSettings()
    if settings.fusion == "consensus" and not texts:
        raise InvalidConfigError("lift.texts", list(texts), "The consensus of views needs the labels to be asked for.")
    counts = _Counts()
    views = _views(scan, backbone, settings, counts, progress)
    if settings.fusion == "consensus":
        features, seen = _consensus(scan, views, backbone.encode_text(texts), settings)
    else:
        features, seen = _mean(scan, views, backbone.feature_dim, settings)
    damaged = left_out(scan.frames)
    if not counts.used:
        raise DatasetError(f"frames of {scan.name}", counts.read, _nothing_seen(settings, damaged))
    used = f"{counts.used}/{counts.read + sum(damaged.values())}"
    log.info("%s: %s frames used, %.1f %% of points seen", scan.name, used, 100 * (seen > 0).mean())
    half = np.clip(features, -65504, 65504).astype(np.float16)
    return LiftedScan(scan, half, seen, backbone.fingerprint, backbone.text_fingerprint, used, damaged)


@dataclass
class _Counts:
    """Frames used and read."""

    used: int = 0
    read: int = 0


def _nothing_seen(settings: LiftSettings, damaged: Mapping[str, int]) -> str:
    unread = "".join(f" {count} more: {reason}." for reason, count in damaged.items())
    return (
        f"None of them sees {settings.min_points} points where its depth says they are: are poses, intrinsics and "
        f"depth units those of this scan?{unread}"
    )


def _views(
    scan: Scan, backbone: SemanticBackbone, settings: LiftSettings, counts: _Counts, progress: Progress | None
) -> Iterator[View]:
    if scan.frames is None:
        raise DatasetError(f"frames of {scan.name}", None, "The scan has no images: export them beside it.")
    for frame in scan.frames(settings.stride):
        counts.read += 1
        rgb, camera, depth_camera = prepared_image(frame, settings)
        seen = see(scan.points_m, frame, camera, depth_camera, settings)
        if seen is not None:
            view = view_of(seen, scan.points_m, camera, backbone.encode_image(rgb, frame.depth_m), settings)
            if view is not None:
                counts.used += 1
                yield view
        if progress is not None:
            progress(counts.read)


def _mean(
    scan: Scan, views: Iterator[View], channels: int, settings: LiftSettings
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """(N, C) mean over views, weighted by confidence where the recipe says so, and (N,) number of views."""
    total = np.zeros((len(scan), channels), dtype=np.float32)
    weight, seen = np.zeros(len(scan), dtype=np.float32), np.zeros(len(scan), dtype=np.int32)
    for view in views:
        share = view.confidence if settings.fusion == "confidence" else np.ones_like(view.confidence)
        total[view.points] += (share[:, None] * view.rows)[view.index]
        weight[view.points] += share[view.index]
        seen[view.points] += 1
    np.divide(total, weight[:, None], out=total, where=weight[:, None] > 0)
    if settings.fill_unseen and 0 < np.count_nonzero(seen) < len(seen):
        total = total[nearest_known(scan.points_m, seen > 0)]
    return total, seen


def _consensus(
    scan: Scan, views: Iterator[View], text: NDArray[np.float32], settings: LiftSettings
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """(N, C) fusion of each point's best three views, and (N,) number of views."""
    with tempfile.TemporaryDirectory(prefix="geopurify-views-") as folder:
        stored = StoredViews(Path(folder), text, settings.logit_scale)
        for view in views:
            stored.append(view)
        if not len(stored):
            return np.zeros((len(scan), text.shape[1]), dtype=np.float32), np.zeros(len(scan), dtype=np.int32)
        fused, seen = fuse_views(scan.points_m, stored)
    if not settings.fill_unseen:
        fused[seen == 0] = 0
    return fused, seen
