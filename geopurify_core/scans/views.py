"""One image of a scan, seen by a backbone: which of its feature rows belongs to which point."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geopurify_core.camera import PinholeCamera
from geopurify_core.frame import RGBDFrame
from geopurify_core.scans.lift_settings import LiftSettings
from geopurify_core.scans.projection import SeenPoints, centred_camera, seen_points
from geopurify_core.vision.base import FeatureMap
from geopurify_core.vision.xdecoder.views import ViewFeatures, nearest_known


@dataclass(frozen=True)
class View:
    """The n points that an image sees, with features stored once for each cell they fall into.

    Attributes:
        points: (n,) int32, which points of the scan.
        index: (n,) int32, the row of each.
        rows: (m, C) float32 features.
        confidence: (m,) float32, the backbone's confidence in them.
    """

    points: NDArray[np.int32]
    index: NDArray[np.int32]
    rows: NDArray[np.float32]
    confidence: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.points)


def prepared_image(frame: RGBDFrame, settings: LiftSettings) -> tuple[NDArray[np.uint8], PinholeCamera, PinholeCamera]:
    """The image for the backbone in the recipe's size, its camera, and the camera of the depth image."""
    width, height = settings.image_size or (frame.camera.width, frame.camera.height)
    rgb, camera, depth_camera = frame.rgb, frame.camera, frame.depth_camera
    if (width, height) != (camera.width, camera.height):
        rgb = _resized(rgb, width, height)
    same = depth_camera == camera.scaled(depth_camera.width, depth_camera.height)
    if settings.centred:
        depth_camera = centred_camera(depth_camera, depth_camera.width, depth_camera.height)
        camera = centred_camera(camera, width, height)
    else:
        camera = camera.scaled(width, height)
    if same and (depth_camera.width, depth_camera.height) == (width, height):
        depth_camera = camera  # registered and of one size: then one pixel is one pixel, whatever rounding does
    return rgb, camera, depth_camera


def _resized(rgb: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Bicubic, as the released code resizes its images."""
    from PIL import Image

    return np.array(Image.fromarray(rgb).resize((width, height), Image.Resampling.BICUBIC))


def see(
    points_m: NDArray[np.floating],
    frame: RGBDFrame,
    camera: PinholeCamera,
    depth_camera: PinholeCamera,
    settings: LiftSettings,
) -> SeenPoints | None:
    """The points that a frame sees; None where they are too few or too many for the recipe."""
    seen = seen_points(points_m, frame.T_map_camera, camera, frame.depth_m, settings.test, depth_camera)
    too_many = settings.max_points is not None and len(seen) > settings.max_points
    return None if len(seen) < settings.min_points or too_many else seen


def view_of(
    seen: SeenPoints,
    points_m: NDArray[np.floating],
    camera: PinholeCamera,
    features: FeatureMap,
    settings: LiftSettings,
) -> View | None:
    """Features of the seen points, from the cells their pixels lie in; None where no cell has one.

    A cell of no confidence, or with a row of zeros, has no feature: its points are left out, or copy the nearest point
    of the view (``settings.fill_view``).
    """
    height, width = features.confidence.shape
    row = (2 * seen.rows + 1) * height // (2 * camera.height)
    column = (2 * seen.columns + 1) * width // (2 * camera.width)
    cells, index = np.unique(row * width + column, return_inverse=True)
    index = index.reshape(-1)
    rows = features.rows[cells].astype(np.float32)
    confidence = features.confidence.reshape(-1)[cells]
    length = np.linalg.norm(rows, axis=1)
    known = ((confidence > 0) & (length > 0) & np.isfinite(length))[index]
    if not known.any():
        return None
    if settings.unit:
        rows /= np.maximum(length, 1e-12)[:, None]
    points = seen.points
    if settings.fill_view:
        index = index[nearest_known(points_m[points], known)]
    else:
        points, index = points[known], index[known]
    return View(points.astype(np.int32), index.astype(np.int32), rows, confidence)


class StoredViews(Sequence[ViewFeatures]):
    """Views with their logits, kept in a folder, so that any number of them fits; each is read when it is asked for.

    Args:
        folder: Where the rows go.
        text: (L, C) unit text vectors.
        logit_scale: Factor of the cosines.
    """

    def __init__(self, folder: Path, text: NDArray[np.float32], logit_scale: float) -> None:
        self._folder, self._text, self._scale = folder, text, logit_scale
        self._points: list[tuple[NDArray[np.int32], NDArray[np.int32]]] = []

    def append(self, view: View) -> None:
        """Keep one view; half floats are enough, as the fused features become half floats too."""
        used, index = np.unique(view.index, return_inverse=True)
        np.save(self._path(len(self)), view.rows[used].astype(np.float16))
        self._points.append((view.points, index.reshape(-1).astype(np.int32)))

    def __len__(self) -> int:
        return len(self._points)

    def __getitem__(self, i: int) -> ViewFeatures:  # type: ignore[override]
        points, index = self._points[i]
        rows = np.load(self._path(range(len(self))[i])).astype(np.float32)
        logits = (self._scale * rows @ self._text.T).astype(np.float32)
        return ViewFeatures(points, rows[index], logits[index])

    def __iter__(self) -> Iterator[ViewFeatures]:
        return (self[i] for i in range(len(self)))

    def _path(self, i: int) -> Path:
        return self._folder / f"{i}.npy"
