"""The posed images of a scan, wherever they lie: an exported folder or a ``.sens`` beside the mesh."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geopurify_core.datasets.base import RGBDDataset, check_range, iterate
from geopurify_core.datasets.scannet import ScanNetFolder, is_scannet_folder
from geopurify_core.datasets.sens import SensFile
from geopurify_core.frame import RGBDFrame


def find_frames(folder: Path, name: str) -> RGBDDataset | None:
    """The recording of a scene: exported into its folder or ``exported/`` below it, or ``NAME.sens``; None: no images.

    Raises:
        DatasetError: There is one, but a part of it is missing or damaged.
    """
    for candidate in (folder, folder / "exported"):
        if is_scannet_folder(candidate):
            return ScanNetFolder(candidate)
    sens = folder / f"{name}.sens"
    return SensFile(sens) if sens.is_file() else None


class PosedFrames:
    """What ``Scan.frames`` holds: called with a stride, it gives the frames whose *number* is a multiple of it.

    An export often holds every 20th frame already, under its number in the recording; by number, a stride of 20 then
    gives all of them.

    Args:
        recording: Where the frames come from.
        T_scan_map: (4, 4), moves the cameras with the points where a scan was aligned to its axes.
    """

    def __init__(self, recording: RGBDDataset, T_scan_map: NDArray[np.float64] | None = None) -> None:
        self._recording, self._T = recording, T_scan_map

    @property
    def skipped(self) -> Mapping[str, int]:
        """Reason → number of frames that the last pass had to leave out: no pose, a damaged image."""
        return dict(self._recording.skipped)

    def __call__(self, stride: int) -> Iterator[RGBDFrame]:
        for frame in _numbered(self._recording, stride):
            yield frame if self._T is None else replace(frame, T_map_camera=self._T @ frame.T_map_camera)


def opener(recording: RGBDDataset | None, T_scan_map: NDArray[np.float64] | None = None) -> PosedFrames | None:
    """The frames of a recording; None where there is none."""
    return None if recording is None else PosedFrames(recording, T_scan_map)


def left_out(frames: object) -> dict[str, int]:
    """Reason → frames that could not be read in the last pass over ``Scan.frames``; nothing where it does not count."""
    return dict(getattr(frames, "skipped", {}))


def _numbered(recording: RGBDDataset, stride: int) -> Iterator[RGBDFrame]:
    check_range(stride, 0, None)
    if not isinstance(recording, ScanNetFolder):
        return iterate(recording, stride=stride)
    return recording.select(position for position, number in enumerate(recording.numbers) if number % stride == 0)


def camera_centres(folder: Path) -> NDArray[np.float64] | None:
    """(K, 3) camera centres of an exported folder, read without its images; None where there are none."""
    for candidate in (folder, folder / "exported"):
        centres = [_centre(path) for path in sorted((candidate / "pose").glob("*.txt"))]
        finite = [centre for centre in centres if centre is not None]
        if finite:
            return np.stack(finite)
    return None


def _centre(path: Path) -> NDArray[np.float64] | None:
    try:
        pose = np.loadtxt(path, dtype=np.float64)
    except (OSError, ValueError):
        return None
    return pose[:3, 3] if pose.shape == (4, 4) and np.isfinite(pose).all() else None
