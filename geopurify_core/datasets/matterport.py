"""Images, depth and poses of a Matterport3D house, as downloaded (undistorted) or exported for OpenScene.

As downloaded, in the house's folder ``H``:

    undistorted_camera_parameters/H.conf     lines ``intrinsics_matrix fx 0 cx 0 fy cy 0 0 1`` for the images to come,
                                             and ``scan DEPTH COLOR`` with a 4x4 camera-to-world matrix, row by row
    undistorted_color_images/P_iC_Y.jpg      1280x1024; P panorama, C camera, Y yaw
    undistorted_depth_images/P_dC_Y.png      uint16, 0.25 mm, 0 unknown

The matrices of the .conf file belong to cameras that look along -z with +y up; here they look along +z with +y down.
Exported, as OpenScene's and GeoPurify's scripts do: ``color/P_iC_Y.jpg``, ``depth/P_dC_Y.png``, ``pose/P_iC_Y.txt``
(+z forward already) and ``intrinsic/P_iC_Y.txt`` (3x3 or 4x4), 640x512.

Not checked against real data, which needs a signed agreement: written from the data set's published description and the
scripts that read it. That description also says that images have their origin at the bottom left; like those scripts,
this reader takes cy from the top.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopurify_core.camera import PinholeCamera, check_pose
from geopurify_core.datasets.base import FrameSource, SkipFrame, depth_to_metres, skip_reason
from geopurify_core.datasets.image_codec import decode_picture
from geopurify_core.errors import BadMessageError, DatasetError, GeoPurifyError
from geopurify_core.frame import RGBDFrame

log = logging.getLogger(__name__)
UNITS_PER_METRE = 4000.0
NEAREST_VIEWS = 100
_PERIOD_NS = 1_000_000_000  # panoramas have no clock
_Y_UP_TO_Y_DOWN = np.diag([1.0, -1.0, -1.0, 1.0])
_FOLDERS = ("color", "depth", "pose", "intrinsic")
_CONF_FOLDER = "undistorted_camera_parameters"


@dataclass(frozen=True)
class _Shot:
    """One image: its files and its camera."""

    color: Path
    depth: Path
    K: NDArray[np.float64]
    T_map_camera: NDArray[np.float64]


def is_matterport_house(folder: Path) -> bool:
    """Whether ``folder`` holds a house's images, as downloaded or exported (intrinsics for each image)."""
    return (folder / _CONF_FOLDER).is_dir() or _is_export(folder)


def _is_export(folder: Path) -> bool:
    if not all((folder / name).is_dir() for name in _FOLDERS):
        return False
    return not (folder / "intrinsic" / "intrinsic_color.txt").exists()  # ScanNet's layout has that


class MatterportHouse(FrameSource):
    """The images of a house, sorted by name.

    Args:
        folder: The house's folder.
        box_m: (2, 3) lowest and highest corner of a region: only cameras inside it; if there are none, the 100 nearest
            to its centre, as GeoPurify and OpenScene's tests do.

    Raises:
        DatasetError: Camera parameters or all images are missing or damaged.
    """

    def __init__(self, folder: str | Path, box_m: NDArray[np.floating] | None = None) -> None:
        root = Path(folder)
        super().__init__(root.resolve().name)
        shots = _exported(root) if _is_export(root) else _downloaded(root)
        if not shots:
            raise DatasetError("Matterport3D house", str(root), "It has no images.")
        shots.sort(key=lambda shot: shot.color.name)
        lost = [shot.color.name for shot in shots if not np.isfinite(shot.T_map_camera).all()]
        if lost and box_m is not None:  # nobody knows what region they show, so no pass over its frames counts them
            log.warning("%s: %d images have no usable pose and are left out, as %s", self.name, len(lost), lost[0])
        self._shots = shots if box_m is None else [shots[i] for i in views_of_region(_centres(shots), box_m)]

    def __len__(self) -> int:
        return len(self._shots)

    @property
    def centres_m(self) -> NDArray[np.float64]:
        """(K, 3) camera centres."""
        return _centres(self._shots)

    def _read(self, start: int, stop: int | None, stride: int) -> Iterator[RGBDFrame | SkipFrame]:
        for position in range(len(self._shots))[start:stop:stride]:
            yield _load(self._shots[position], position)


def _centres(shots: Sequence[_Shot]) -> NDArray[np.float64]:
    return np.stack([shot.T_map_camera[:3, 3] for shot in shots])


def views_of_region(centres_m: NDArray[np.floating], box_m: NDArray[np.floating]) -> NDArray[np.int64]:
    """Which cameras (K, 3) stand strictly inside a box (2, 3), in order; if none, the 100 nearest to its centre."""
    inside = ((centres_m > box_m[0]) & (centres_m < box_m[1])).all(axis=1)
    finite = np.isfinite(centres_m).all(axis=1)
    if inside.any():
        return np.flatnonzero(inside)
    distance = np.where(finite, np.linalg.norm(centres_m - np.mean(box_m, axis=0), axis=1), np.inf)
    nearest = np.argsort(distance, kind="stable")[: min(NEAREST_VIEWS, int(finite.sum()))]
    return np.sort(nearest)


def _load(shot: _Shot, position: int) -> RGBDFrame | SkipFrame:
    try:
        pose = check_pose(shot.T_map_camera)
        rgb, depth = _picture(shot.color), _picture(shot.depth)
        if rgb.ndim != 3 or depth.dtype != np.uint16:
            raise SkipFrame("unreadable image", f"{shot.color.name}: {rgb.shape}, depth {depth.dtype}")
        height, width = rgb.shape[:2]
        camera = PinholeCamera.from_matrix(shot.K, width, height)
        metres = depth_to_metres(depth, UNITS_PER_METRE)
        return RGBDFrame(rgb, metres, camera, pose, position * _PERIOD_NS)
    except SkipFrame as skip:
        return skip
    except GeoPurifyError as error:
        return skip_reason(error)


def _picture(path: Path) -> NDArray[Any]:
    try:
        return decode_picture(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise SkipFrame("missing image", str(path)) from None
    except (OSError, BadMessageError) as error:
        raise SkipFrame("unreadable image", str(error)) from error


# -- as downloaded ---------------------------------------------------------------------------------------------------


def _downloaded(root: Path) -> list[_Shot]:
    confs = sorted((root / _CONF_FOLDER).glob("*.conf"))
    if len(confs) != 1:
        raise DatasetError(f"{_CONF_FOLDER}/", str(root), f"It must hold one .conf file, not {len(confs)}.")
    shots, K = [], None
    lines = confs[0].read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        command, *values = line.split() or [""]
        if command == "intrinsics_matrix":
            K = _matrix(values, 3, confs[0], number)
        elif command == "scan":
            if K is None or len(values) != 18:
                raise DatasetError(confs[0].name, f"line {number}", "A scan needs intrinsics before it and 18 values.")
            pose = _matrix(values[2:], 4, confs[0], number) @ _Y_UP_TO_Y_DOWN
            color = root / "undistorted_color_images" / values[1]
            shots.append(_Shot(color, root / "undistorted_depth_images" / values[0], K, pose))
    return shots


def _matrix(values: Sequence[str], side: int, path: Path, line: int) -> NDArray[np.float64]:
    try:
        return np.array(values, dtype=np.float64).reshape(side, side)
    except ValueError as error:
        raise DatasetError(path.name, f"line {line}", f"It needs {side * side} numbers: {error}") from error


# -- as exported -----------------------------------------------------------------------------------------------------


def _exported(root: Path) -> list[_Shot]:
    colors = sorted(path for path in (root / "color").iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    return [
        _Shot(
            path,
            root / "depth" / f"{_depth_name(path.stem)}.png",
            _text_matrix(root / "intrinsic" / f"{path.stem}.txt"),
            _text_matrix(root / "pose" / f"{path.stem}.txt"),
        )
        for path in colors
    ]


def _depth_name(color: str) -> str:
    """``P_i1_3`` → ``P_d1_3``; any other name stays."""
    panorama, separator, rest = color.rpartition("_i")
    return f"{panorama}_d{rest}" if separator else color


def _text_matrix(path: Path) -> NDArray[np.float64]:
    """The matrix of a file; one that cannot be read is full of NaN, so that its image alone is skipped."""
    try:
        matrix = np.loadtxt(path, dtype=np.float64)
    except (OSError, ValueError):
        matrix = np.full((4, 4), np.nan)
    return matrix if matrix.shape in ((3, 3), (4, 4)) else np.full((4, 4), np.nan)
