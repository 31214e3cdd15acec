"""ROS images to arrays and back, without ROS: `sensor_msgs/Image` and `CompressedImage` fields in, numpy out.

Used for recorded bags and, by the ROS package, for live messages; both therefore refuse the same broken images with
the same words. Encodings follow `sensor_msgs/image_encodings.hpp`; the compressed forms follow image_transport's
`compressed` and `compressedDepth` plugins.
"""

from __future__ import annotations

import io
import struct
from array import array
from dataclasses import dataclass
from typing import Any, Union

import numpy as np
from numpy.typing import NDArray

from geopurify_core.errors import BadMessageError

Buffer = Union[bytes, bytearray, memoryview, "array[int]", NDArray[np.uint8]]

MAX_SIDE = 16_384
_COMPRESSED_DEPTH_HEADER = struct.Struct("<iff")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class _Layout:
    """How one pixel is stored: the item type, the items for one pixel, and which of them are red, green and blue."""

    item: str
    channels: int
    rgb: tuple[int, int, int] | None

    @property
    def pixel_bytes(self) -> int:
        return np.dtype(self.item).itemsize * self.channels


# "8UC3" says nothing about colour order; OpenCV programs publish it, and OpenCV's order is blue, green, red.
_LAYOUTS = {
    "rgb8": _Layout("u1", 3, (0, 1, 2)),
    "bgr8": _Layout("u1", 3, (2, 1, 0)),
    "rgba8": _Layout("u1", 4, (0, 1, 2)),
    "bgra8": _Layout("u1", 4, (2, 1, 0)),
    "8UC3": _Layout("u1", 3, (2, 1, 0)),
    "8UC4": _Layout("u1", 4, (2, 1, 0)),
    "mono8": _Layout("u1", 1, (0, 0, 0)),
    "8UC1": _Layout("u1", 1, (0, 0, 0)),
    "16UC1": _Layout("u2", 1, None),
    "mono16": _Layout("u2", 1, None),
    "32FC1": _Layout("f4", 1, None),
}
COLOR_ENCODINGS = tuple(name for name, layout in _LAYOUTS.items() if layout.rgb)
DEPTH_ENCODINGS = tuple(name for name, layout in _LAYOUTS.items() if layout.rgb is None)


def decode_image(
    encoding: str, height: int, width: int, step: int, data: Buffer, is_bigendian: int = 0
) -> NDArray[Any]:
    """The pixels of one `sensor_msgs/Image`.

    Args:
        encoding: One of ``COLOR_ENCODINGS`` or ``DEPTH_ENCODINGS``.
        height, width: Pixels.
        step: Bytes from one row to the next; may exceed the row (padding).
        data: ``height * step`` bytes: bytes, array('B'), memoryview or a uint8 array.
        is_bigendian: 0 or 1, the byte order of 16- and 32-bit items.

    Returns:
        Colour encodings: (H, W, 3) uint8 RGB. 16UC1 and mono16: (H, W) uint16. 32FC1: (H, W) float32.
        C-contiguous; a read-only view of ``data`` where no conversion is needed.

    Raises:
        BadMessageError: Unknown encoding, a size or step that does not fit, too few or too many bytes, bad endian flag.
    """
    layout = _LAYOUTS.get(encoding) if isinstance(encoding, str) else None
    if layout is None:
        raise BadMessageError("image.encoding", encoding, f"Publish one of {', '.join(_LAYOUTS)}.")
    rows = _rows(layout, height, width, step, data)
    if is_bigendian not in (0, 1):
        raise BadMessageError("image.is_bigendian", is_bigendian, "Set it to 0 or 1.")
    stored = np.dtype(layout.item).newbyteorder(">" if is_bigendian else "<")
    pixels: NDArray[Any] = np.ascontiguousarray(rows).view(stored).reshape(height, width, layout.channels)
    if layout.rgb is None:
        return np.ascontiguousarray(pixels[..., 0], dtype=np.dtype(layout.item))
    if layout.rgb == (0, 1, 2) and layout.channels == 3:
        return pixels
    return np.ascontiguousarray(pixels[..., list(layout.rgb)])


def _rows(layout: _Layout, height: int, width: int, step: int, data: Buffer) -> NDArray[np.uint8]:
    """The bytes of the image as (height, width * pixel_bytes), padding cut off."""
    for name, side in (("height", height), ("width", width)):
        if not isinstance(side, (int, np.integer)) or not 1 <= side <= MAX_SIDE:
            raise BadMessageError(f"image.{name}", side, f"It must lie in 1..{MAX_SIDE} pixels.")
    row_bytes = width * layout.pixel_bytes
    if not isinstance(step, (int, np.integer)) or step < row_bytes:
        raise BadMessageError("image.step", step, f"A row of {width} pixels needs at least {row_bytes} bytes.")
    raw = _as_bytes("image.data", data)
    if raw.size != height * step:
        raise BadMessageError(
            "image.data", f"{raw.size} bytes", f"height x step asks for {height} x {step} = {height * step} bytes."
        )
    return raw.reshape(height, step)[:, :row_bytes]


def _as_bytes(field: str, data: Buffer) -> NDArray[np.uint8]:
    try:
        return np.frombuffer(data, dtype=np.uint8)
    except (TypeError, ValueError, BufferError) as error:  # empty, or not a contiguous buffer
        raise BadMessageError(field, type(data).__name__, "Send a non-empty, contiguous block of bytes.") from error


def decode_compressed(format_: str, data: Buffer) -> NDArray[Any]:
    """The pixels of one `sensor_msgs/CompressedImage`: JPEG or PNG, colour or 16-bit depth, or compressedDepth.

    Returns:
        (H, W, 3) uint8 RGB; for a 16-bit PNG (H, W) uint16; for a compressedDepth of 32FC1 (H, W) float32 metres.

    Raises:
        BadMessageError: Another format (RVL, TIFF, …), a truncated or oversized picture.
    """
    raw = _as_bytes("compressed_image.data", data).tobytes()
    if "compressedDepth" in format_:
        return _decode_compressed_depth(format_, raw)
    return decode_picture(raw, "compressed_image.data")


def _decode_compressed_depth(format_: str, raw: bytes) -> NDArray[Any]:
    """Depth PNG behind an optional 12-byte header; 32FC1 is stored as quantised inverse depth, depth = a / (v - b)."""
    if "rvl" in format_.lower():
        raise BadMessageError("compressed_image.format", format_, "Set compressedDepth's format parameter to png.")
    a = b = 0.0
    if raw[:8] != _PNG_SIGNATURE:
        if len(raw) <= _COMPRESSED_DEPTH_HEADER.size:
            raise BadMessageError("compressed_image.data", f"{len(raw)} bytes", "Send a PNG behind the 12-byte header.")
        _, a, b = _COMPRESSED_DEPTH_HEADER.unpack_from(raw)
        raw = raw[_COMPRESSED_DEPTH_HEADER.size :]
    pixels = decode_picture(raw, "compressed_image.data")
    if pixels.dtype != np.uint16:
        raise BadMessageError("compressed_image.data", f"{pixels.dtype} PNG", "compressedDepth carries a 16-bit PNG.")
    if not format_.strip().startswith("32FC1"):
        return pixels
    if not (np.isfinite(a) and np.isfinite(b) and a > 0):
        raise BadMessageError("compressed_image.header", (a, b), "32FC1 needs its quantisation in a 12-byte header.")
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        depth = np.float32(a) / (pixels.astype(np.float32) - np.float32(b))
    metres: NDArray[np.float32] = np.where((pixels > 0) & np.isfinite(depth) & (depth > 0), depth, 0).astype(np.float32)
    return metres


def decode_picture(raw: bytes, field: str) -> NDArray[Any]:
    """The pixels of a JPEG or PNG file: (H, W, 3) uint8 RGB, or (H, W) uint16 for a 16-bit grey PNG.

    Raises:
        BadMessageError: Not a JPEG or PNG, truncated, or larger than ``MAX_SIDE``.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(raw), formats=("JPEG", "PNG")) as picture:
            if max(picture.size) > MAX_SIDE:
                raise BadMessageError(f"{field} size", picture.size, f"Sides may have at most {MAX_SIDE} pixels.")
            if picture.mode.startswith("I"):
                return np.asarray(picture).astype(np.uint16)
            return np.asarray(picture.convert("RGB"))
    except BadMessageError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever their parsing meets, from struct.error to SyntaxError
        raise BadMessageError(field, f"{len(raw)} bytes", f"It is no readable JPEG or PNG: {error}") from error


def encode_png16(depth: NDArray[np.uint16]) -> bytes:
    """A 16-bit grey PNG of (H, W) uint16 pixels."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(depth)).save(out, format="PNG", compress_level=1)
    return out.getvalue()
