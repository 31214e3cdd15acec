"""ScanNet's binary recording, `.sens` version 4, read frame by frame.

The layout (little-endian), as published with ScanNet's SensReader:

    uint32 version; uint64 length, sensor name; 4 x float32[16]: intrinsic and extrinsic of colour, then of depth;
    int32 colour compression, int32 depth compression; uint32 colour width, height, depth width, height;
    float32 depth shift (units in one metre); uint64 frames
    for each frame: float32[16] camera-to-world, uint64 colour stamp (µs), uint64 depth stamp, uint64 colour bytes,
    uint64 depth bytes, the colour bytes, the depth bytes

What follows the last frame (inertial measurements) is not read.
"""

from __future__ import annotations

import io
import logging
import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from geopurify_core.camera import PinholeCamera
from geopurify_core.datasets.base import FrameSource, SkipFrame, depth_to_metres, skip_reason
from geopurify_core.datasets.image_codec import MAX_SIDE, decode_picture
from geopurify_core.datasets.scannet import DEFAULT_RATE_HZ
from geopurify_core.errors import BadMessageError, DatasetError, GeoPurifyError
from geopurify_core.frame import RGBDFrame

log = logging.getLogger(__name__)

VERSION = 4
COLOR_RAW, COLOR_PNG, COLOR_JPEG = 0, 1, 2
DEPTH_RAW, DEPTH_ZLIB = 0, 1
_MAX_NAME_BYTES = 4096
_SIZES = struct.Struct("<ii4IfQ")
_FRAME = struct.Struct("<16f4Q")


@dataclass(frozen=True)
class SensHeader:
    """The fixed part of a `.sens` file; ``first_frame`` is the byte offset behind it."""

    sensor: str
    K_color: NDArray[np.float64]
    K_depth: NDArray[np.float64]
    color_compression: int
    depth_compression: int
    color_size: tuple[int, int]
    depth_size: tuple[int, int]
    depth_shift: float
    num_frames: int
    first_frame: int


@dataclass(frozen=True)
class _RawFrame:
    T_map_camera: NDArray[np.float64]
    stamp_us: int
    color: bytes
    depth: bytes


class SensFile(FrameSource):
    """A `.sens` recording. Never more than the prefetched frames are in memory.

    Raises:
        DatasetError: Not version 4, an unknown compression, or (while reading) a truncated or hostile file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        super().__init__(self.path.stem)
        try:
            with self.path.open("rb") as handle:
                self.header = read_header(handle)
                _check_length(self.header, handle.seek(0, io.SEEK_END))
        except OSError as error:
            raise DatasetError("sens file", str(path), f"It cannot be opened: {error.strerror}.") from error

    def __len__(self) -> int:
        return self.header.num_frames

    def _read(self, start: int, stop: int | None, stride: int) -> Iterator[RGBDFrame | SkipFrame]:
        wanted = range(start, min(len(self), len(self) if stop is None else stop), stride)
        last_stamp = -1
        with self.path.open("rb") as handle:
            size = handle.seek(0, io.SEEK_END)
            handle.seek(self.header.first_frame)
            for index in range(wanted.stop if wanted else 0):
                raw = _next_frame(handle, size, index, decode=index in wanted)
                if raw is None:
                    continue
                # many published recordings carry no stamps at all: then the frame's number is the only clock
                stamp_ns = raw.stamp_us * 1000 if raw.stamp_us else round(index * 1e9 / DEFAULT_RATE_HZ)
                if stamp_ns <= last_stamp or stamp_ns >= 2**63:
                    yield SkipFrame("unsorted stamp", f"frame {index}: {stamp_ns} ns after {last_stamp} ns")
                    continue
                last_stamp = stamp_ns
                yield self._decode(raw, stamp_ns)

    def _decode(self, raw: _RawFrame, stamp_ns: int) -> RGBDFrame | SkipFrame:
        header = self.header
        try:
            return RGBDFrame(
                rgb=_decode_color(raw.color, header),
                depth_m=depth_to_metres(_decode_depth(raw.depth, header), header.depth_shift),
                camera=PinholeCamera.from_matrix(header.K_color, *header.color_size),
                depth_camera=PinholeCamera.from_matrix(header.K_depth, *header.depth_size),
                T_map_camera=raw.T_map_camera,
                stamp_ns=stamp_ns,
            )
        except GeoPurifyError as error:
            return skip_reason(error)


def read_header(handle: BinaryIO) -> SensHeader:
    """The header at the start of ``handle``. Raises DatasetError where it is not one."""
    (version,) = struct.unpack("<I", _take(handle, 4, "version"))
    if version != VERSION:
        raise DatasetError("sens.version", version, f"Only version {VERSION} of ScanNet's .sens format is known.")
    (length,) = struct.unpack("<Q", _take(handle, 8, "sensor name"))
    if length > _MAX_NAME_BYTES:
        raise DatasetError(
            "sens.sensor_name length", length, f"More than {_MAX_NAME_BYTES} bytes; the file is damaged."
        )
    sensor = _take(handle, length, "sensor name").decode("utf-8", "replace")
    K_color, T_color, K_depth, T_depth = (_take_matrix(handle) for _ in range(4))
    numbers = _SIZES.unpack(_take(handle, _SIZES.size, "image sizes"))
    color_compression, depth_compression, *sides, depth_shift, num_frames = numbers
    if color_compression not in (COLOR_RAW, COLOR_PNG, COLOR_JPEG):
        raise DatasetError("sens.color_compression", color_compression, "Known: 0 raw, 1 png, 2 jpeg.")
    if depth_compression not in (DEPTH_RAW, DEPTH_ZLIB):
        raise DatasetError(
            "sens.depth_compression", depth_compression, "Known: 0 raw, 1 zlib; export the scene instead."
        )
    if not all(1 <= side <= MAX_SIDE for side in sides):
        raise DatasetError("sens image sizes", sides, f"Sides must lie in 1..{MAX_SIDE}; the file is damaged.")
    if not (math.isfinite(depth_shift) and depth_shift > 0):
        raise DatasetError("sens.depth_shift", depth_shift, "It must be positive; the file is damaged.")
    _check_registered(T_color, T_depth)
    try:
        PinholeCamera.from_matrix(K_color, sides[0], sides[1])
        PinholeCamera.from_matrix(K_depth, sides[2], sides[3])
    except GeoPurifyError as error:
        raise DatasetError("sens intrinsics", error.value, error.remedy) from error
    return SensHeader(
        sensor, K_color, K_depth, color_compression, depth_compression,
        (sides[0], sides[1]), (sides[2], sides[3]), float(depth_shift), num_frames, handle.tell(),
    )  # fmt: skip


def _check_length(header: SensHeader, file_bytes: int) -> None:
    """A count of frames that even empty ones would not fit into the file is damage, not a recording."""
    if header.num_frames > (file_bytes - header.first_frame) // _FRAME.size:
        raise DatasetError(
            "sens.num_frames", header.num_frames, f"The file has {file_bytes} bytes; it is truncated or damaged."
        )


def _check_registered(T_color: NDArray[np.float64], T_depth: NDArray[np.float64]) -> None:
    """ScanNet's cameras share their centre to a few millimetres; a wide offset would smear colours over edges."""
    offset_m = np.abs(T_color[:3, 3] - T_depth[:3, 3]).max()
    if np.isfinite(offset_m) and offset_m > 0.02:
        log.warning("The colour and depth cameras are %.0f mm apart; depth is used as if registered.", offset_m * 1000)


def _take(handle: BinaryIO, count: int, what: str) -> bytes:
    data = handle.read(count)
    if len(data) != count:
        raise DatasetError(
            f"sens {what}", f"{len(data)} of {count} bytes", "The file is truncated; copy or download it again."
        )
    return data


def _take_matrix(handle: BinaryIO) -> NDArray[np.float64]:
    return np.frombuffer(_take(handle, 64, "calibration"), dtype="<f4").reshape(4, 4).astype(np.float64)


def _next_frame(handle: BinaryIO, file_bytes: int, index: int, decode: bool) -> _RawFrame | None:
    """The frame at the current position, or None with the position behind it if it is not wanted.

    The sizes are checked against what is left of the file before a byte is allocated.
    """
    values = _FRAME.unpack(_take(handle, _FRAME.size, f"frame {index}"))
    stamp_us, _, color_bytes, depth_bytes = values[16:]
    left = file_bytes - handle.tell()
    if color_bytes + depth_bytes > left:
        raise DatasetError(
            f"sens frame {index} size", color_bytes + depth_bytes, f"Only {left} bytes are left; the file is truncated."
        )
    if not decode:
        handle.seek(color_bytes + depth_bytes, io.SEEK_CUR)
        return None
    pose = np.array(values[:16], dtype=np.float64).reshape(4, 4)
    return _RawFrame(pose, stamp_us, handle.read(color_bytes), handle.read(depth_bytes))


def _decode_color(data: bytes, header: SensHeader) -> NDArray[np.uint8]:
    width, height = header.color_size
    if header.color_compression == COLOR_RAW:
        if len(data) != width * height * 3:
            raise BadMessageError("sens colour", f"{len(data)} bytes", f"Expected {width}x{height}x3.")
        return np.frombuffer(data, dtype=np.uint8).reshape(height, width, 3)
    rgb = decode_picture(data, "sens colour")
    if rgb.shape != (height, width, 3):
        raise BadMessageError("sens colour", rgb.shape, f"The header says {width}x{height}.")
    return rgb


def _decode_depth(data: bytes, header: SensHeader) -> NDArray[np.uint16]:
    width, height = header.depth_size
    expected = width * height * 2
    if header.depth_compression == DEPTH_ZLIB:
        try:
            # one byte more than expected is enough to notice a bomb without unpacking it
            data = zlib.decompressobj().decompress(data, expected + 1)
        except zlib.error as error:
            raise BadMessageError("sens depth", f"{len(data)} bytes", f"zlib: {error}") from error
    if len(data) != expected:
        raise BadMessageError("sens depth", f"{len(data)} bytes", f"Expected {width}x{height} uint16.")
    return np.frombuffer(data, dtype="<u2").reshape(height, width).astype(np.uint16)
