"""ScanNet's exported layout: `color/ depth/ pose/ intrinsic/`, one numbered file for each frame.

Depth is uint16 (millimetres by default); a pose is a 4x4 camera-to-world matrix, infinite where tracking was lost.
An optional `frames.csv` (columns frame, source_frame, timestamp_s) gives the times; without it 30 Hz are assumed.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopurify_core.camera import PinholeCamera, check_pose
from geopurify_core.datasets.base import (
    PREFETCH_FRAMES,
    FrameSource,
    SkipFrame,
    depth_to_metres,
    prefetched,
    skip_reason,
)
from geopurify_core.datasets.image_codec import decode_picture
from geopurify_core.errors import BadMessageError, DatasetError, GeoPurifyError, InvalidPoseError
from geopurify_core.frame import RGBDFrame

log = logging.getLogger(__name__)

DEFAULT_RATE_HZ = 30.0
_FOLDERS = ("color", "depth", "pose", "intrinsic")
_COLOR_SUFFIXES = (".jpg", ".jpeg", ".png")


def is_scannet_folder(path: Path) -> bool:
    """Whether ``path`` looks like (at least half of) this layout."""
    return path.is_dir() and sum((path / name).is_dir() for name in _FOLDERS) >= 2


@dataclass(frozen=True)
class _Entry:
    color: Path
    depth: Path
    pose: Path
    stamp_ns: int


class ScanNetFolder(FrameSource):
    """A scene in the exported layout.

    Args:
        path: The scene's folder.
        depth_shift: Depth units in one metre.

    Raises:
        DatasetError: A folder, the intrinsics, or all frames are missing.
    """

    def __init__(self, path: str | Path, depth_shift: float = 1000.0) -> None:
        root = Path(path)
        super().__init__(root.resolve().name)
        self.path = root
        if not depth_shift > 0:
            raise DatasetError("depth_shift", depth_shift, "Give the number of depth units in one metre (1000 for mm).")
        self.depth_shift = float(depth_shift)
        for name in _FOLDERS:
            if not (root / name).is_dir():
                raise DatasetError(
                    f"{name}/", str(root / name), "The folder is missing; export color/, depth/, pose/ and intrinsic/."
                )
        self._K_color = _read_matrix(root / "intrinsic", "color")
        self._K_depth = _read_matrix(root / "intrinsic", "depth")
        self._entries = _list_entries(root)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def numbers(self) -> list[int]:
        """The frames' numbers as their files bear them, in order; an export may hold every 20th only."""
        return [int(entry.color.stem) for entry in self._entries]

    def select(self, positions: Iterable[int]) -> Iterator[RGBDFrame]:
        """Usable frames at some positions, in the order given; what is unusable is counted as in a whole pass."""
        self.skipped.clear()
        for item in prefetched((self._load(self._entries[i]) for i in positions), PREFETCH_FRAMES):
            if isinstance(item, RGBDFrame):
                yield item
            else:
                self._count(item)

    def _read(self, start: int, stop: int | None, stride: int) -> Iterator[RGBDFrame | SkipFrame]:
        for entry in self._entries[start:stop:stride]:
            yield self._load(entry)

    def _load(self, entry: _Entry) -> RGBDFrame | SkipFrame:
        try:
            pose = _read_pose(entry.pose)
            rgb = _read_color(entry.color)
            depth = _read_depth(entry.depth)
            return RGBDFrame(
                rgb=rgb,
                depth_m=depth_to_metres(depth, self.depth_shift),
                camera=PinholeCamera.from_matrix(self._K_color, rgb.shape[1], rgb.shape[0]),
                depth_camera=PinholeCamera.from_matrix(self._K_depth, depth.shape[1], depth.shape[0]),
                T_map_camera=pose,
                stamp_ns=entry.stamp_ns,
            )
        except SkipFrame as skip:
            return skip
        except GeoPurifyError as error:
            return skip_reason(error)


def _read_matrix(folder: Path, name: str) -> NDArray[np.float64]:
    """`intrinsic_<name>.txt`, 3x3 or 4x4."""
    path = folder / f"intrinsic_{name}.txt"
    try:
        matrix = np.loadtxt(path, dtype=np.float64)
    except FileNotFoundError as error:
        raise DatasetError(f"intrinsic/intrinsic_{name}.txt", str(path), "The file is missing; export it.") from error
    except (OSError, ValueError) as error:
        raise DatasetError(f"intrinsic/intrinsic_{name}.txt", str(path), f"It holds no matrix: {error}") from error
    try:
        PinholeCamera.from_matrix(matrix, 1, 1)
    except GeoPurifyError as error:
        raise DatasetError(f"intrinsic/intrinsic_{name}.txt", matrix.tolist(), error.remedy) from error
    return matrix


def _read_pose(path: Path) -> NDArray[np.float64]:
    try:
        return check_pose(np.loadtxt(path, dtype=np.float64))
    except FileNotFoundError:
        raise SkipFrame("missing pose file", str(path)) from None
    except InvalidPoseError as error:
        raise SkipFrame("invalid pose", f"{path.name}: {error}") from error
    except (OSError, ValueError) as error:
        raise SkipFrame("invalid pose", f"{path.name}: {error}") from error


def _read_picture(path: Path) -> NDArray[Any]:
    try:
        return decode_picture(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise SkipFrame(f"missing {path.parent.name} file", str(path)) from None
    except (OSError, BadMessageError) as error:
        raise SkipFrame("unreadable image", str(error)) from error


def _read_color(path: Path) -> NDArray[np.uint8]:
    pixels = _read_picture(path)
    if pixels.ndim != 3:
        raise SkipFrame("unreadable image", f"{path}: expected a colour picture, found {pixels.dtype}{pixels.shape}")
    return pixels


def _read_depth(path: Path) -> NDArray[np.uint16]:
    pixels = _read_picture(path)
    if pixels.dtype != np.uint16:
        raise SkipFrame("unreadable image", f"{path}: expected 16-bit grey, found {pixels.dtype}{pixels.shape}")
    return pixels


def _list_entries(root: Path) -> list[_Entry]:
    """One entry for each number that has a colour or a depth picture, in numeric order."""
    colors = _numbered(root / "color", _COLOR_SUFFIXES)
    depths = _numbered(root / "depth", (".png",))
    poses = _numbered(root / "pose", (".txt",))
    for name, found in (("color", colors), ("depth", depths), ("pose", poses)):
        if not found:
            raise DatasetError(
                f"{name}/", str(root / name), "It holds no numbered files (0, 1, 2, …); export the scene."
            )
    numbers = sorted({*colors, *depths})
    stamps = _stamps(root / "frames.csv", numbers)
    return [
        _Entry(
            colors.get(number, root / "color" / f"{number}.jpg"),
            depths.get(number, root / "depth" / f"{number}.png"),
            poses.get(number, root / "pose" / f"{number}.txt"),
            stamp_ns,
        )
        for number, stamp_ns in zip(numbers, stamps, strict=True)
    ]


def _numbered(folder: Path, suffixes: tuple[str, ...]) -> dict[int, Path]:
    """Number → file, for files named by a number (leading zeros allowed) with one of the suffixes."""
    return {int(p.stem): p for p in folder.iterdir() if p.suffix.lower() in suffixes and p.stem.isdecimal()}


def _stamps(path: Path, numbers: list[int]) -> list[int]:
    """Nanoseconds of each frame: from `frames.csv` where it covers them all in increasing order, else 30 Hz."""
    recorded = _read_csv(path) if path.exists() else {}
    stamps = [recorded[number] for number in numbers if number in recorded]
    if len(stamps) == len(numbers) and all(a < b for a, b in pairwise(stamps)):
        return stamps
    if recorded:
        log.warning("%s misses frames or is not increasing; assuming %g Hz instead.", path, DEFAULT_RATE_HZ)
    return [round(number * 1e9 / DEFAULT_RATE_HZ) for number in numbers]


def _read_csv(path: Path) -> dict[int, int]:
    """Frame number → nanoseconds."""
    try:
        with path.open(newline="", encoding="utf-8") as handle:
            stamps = {int(row["frame"]): round(float(row["timestamp_s"]) * 1e9) for row in csv.DictReader(handle)}
    except (OSError, KeyError, TypeError, ValueError, OverflowError, csv.Error) as error:
        raise DatasetError(
            "frames.csv", str(path), f"It needs the columns frame and timestamp_s (or remove it): {error!r}"
        ) from error
    if any(stamp < 0 for stamp in stamps.values()):
        raise DatasetError("frames.csv timestamp_s", min(stamps.values()) / 1e9, "Stamps must not be negative.")
    return stamps
