"""A map on disk: one safetensors file, checksummed, written so that a crash never costs the previous one.

The format is safetensors' own (any reader of it can open a map), with the metadata keys ``format``, ``version``,
``sha256`` and ``map``. The checksum covers header and payload, its own 64 digits set to zero. Reading trusts nothing:
sizes are checked against the file's before any memory is taken, and the content against what a map can be.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from geopurify_core.errors import MapFileError
from geopurify_core.mapping.keys import pack_keys
from geopurify_core.mapping.snapshot import MapSnapshot

# For each tensor in file order its numpy dtype and shape.
Layout = dict[str, tuple[str, tuple[int, ...]]]

FORMAT = "geopurify-map"
VERSION, PURIFIED_VERSION = 1, 2  # a reader that knows no purified maps would fuse into them: the version stops it
_NO_CHECKSUM = "0" * 64
_MAX_HEADER_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 22
_CHUNK_ROWS = 1 << 13
_PREFIX_BYTES = 8

# Name in the file: dtype as safetensors and numpy call it, columns (0: one-dimensional, -1: C of them).
_TENSORS: dict[str, tuple[str, str, int]] = {
    "first_seen_ns": ("I64", "<i8", 0),
    "last_seen_ns": ("I64", "<i8", 0),
    "coords": ("I32", "<i4", 3),
    "weight": ("F32", "<f4", 0),
    "geometry_weight": ("F32", "<f4", 0),
    "features": ("F16", "<f2", -1),
    "normals": ("F16", "<f2", 3),
    "rgb": ("U8", "u1", 3),
}
_SCALARS: dict[str, type] = {
    "voxel_size_m": float,
    "frame_id": str,
    "stamp_ns": int,
    "version": int,
    "backbone": str,
    "text_fingerprint": str,
    "purified": str,
}
_DEFAULTS: dict[str, Any] = {"purified": ""}  # of scalars that older files do not have


def save_map(path: str | Path, snapshot: MapSnapshot, extra: dict[str, Any] | None = None) -> None:
    """Write ``snapshot`` to ``path``, atomically: readers see the old file or the new one, whatever happens meanwhile.

    Args:
        path: The file; its folder must exist.
        snapshot: What to save.
        extra: Anything JSON can hold, given back by :func:`read_extra`.

    Raises:
        MapFileError: The folder cannot be written, the disk is full, or ``extra`` is not JSON.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise MapFileError("map file", str(path), "That is a folder, a device or a pipe; name a file.")
    arrays = {
        name: np.ascontiguousarray(getattr(snapshot, name), dtype=kind) for name, (_, kind, _) in _TENSORS.items()
    }
    header = _header(snapshot, arrays, extra)
    checksum = _checksum(header, arrays.values())
    header = header.replace(_NO_CHECKSUM.encode(), checksum.encode(), 1)
    try:
        _remove_leftovers(path)
        with _replacing(path) as file:
            file.write(len(header).to_bytes(_PREFIX_BYTES, "little") + header)
            for array in arrays.values():
                file.write(_bytes(array))
    except OSError as error:
        raise MapFileError("map file", str(path), f"It cannot be written: {error.strerror or error}.") from error


def load_map(path: str | Path) -> MapSnapshot:
    """The snapshot saved at ``path``, bit for bit.

    Raises:
        MapFileError: There is no such file, or it is truncated, foreign, corrupted, of a newer version, or claims what
            no map can be (NaN, voxels out of reach or twice, sizes that do not fit the file).
    """
    with _opened(path) as (file, size):
        header, tensors, scalars, _ = _read_header(path, file, size)
        arrays = {name: np.empty(shape, kind) for name, (kind, shape) in tensors.items()}
        for array in arrays.values():
            if array.nbytes and cast(Any, file).readinto(_bytes(array)) != array.nbytes:
                raise _bad(path, "it ends too early")
    found = json.loads(header)["__metadata__"]["sha256"]
    if _checksum(header.replace(found.encode(), _NO_CHECKSUM.encode(), 1), arrays.values()) != found:
        raise _bad(path, "its checksum does not match")
    _check_content(path, arrays)
    native: dict[str, Any] = {
        name: array.astype(array.dtype.newbyteorder("="), copy=False) for name, array in arrays.items()
    }
    return MapSnapshot(**native, **scalars)


def read_extra(path: str | Path) -> dict[str, Any]:
    """What was given to :func:`save_map` as ``extra``; reads the header only, so the checksum is not verified.

    Raises:
        MapFileError: As :func:`load_map`, as far as the header can tell.
    """
    with _opened(path) as (file, size):
        return _read_header(path, file, size)[3]


# -- writing ---------------------------------------------------------------------------------------------------------


def _header(snapshot: MapSnapshot, arrays: dict[str, NDArray[Any]], extra: dict[str, Any] | None) -> bytes:
    content = {name: getattr(snapshot, name) for name in _SCALARS}
    try:
        described = json.dumps({**content, "extra": extra or {}}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise MapFileError("extra", extra, f"It must be plain JSON: {error}.") from error
    version = PURIFIED_VERSION if snapshot.purified else VERSION
    # The checksum comes first, so that replacing the first run of zeros replaces it and nothing else.
    metadata = {"sha256": _NO_CHECKSUM, "format": FORMAT, "version": str(version), "map": described}
    header: dict[str, Any] = {"__metadata__": metadata}
    start = 0
    for name, array in arrays.items():
        header[name] = {
            "dtype": _TENSORS[name][0],
            "shape": list(array.shape),
            "data_offsets": [start, start + array.nbytes],
        }
        start += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _MAX_HEADER_BYTES:
        raise MapFileError("extra", f"{len(text)} B", f"Keep it below {_MAX_HEADER_BYTES} B.")
    return text


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A temporary file beside ``path`` that takes its place when the block ends well, and vanishes when it does not."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with open(temporary, "xb") as file:
            with contextlib.suppress(OSError):  # some network filesystems have no locks; the rename is safe without
                fcntl.flock(file, fcntl.LOCK_EX)  # held until closed: tells a living writer from a leftover
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)  # the new name itself must survive a power cut
    finally:
        os.close(folder)


def _remove_leftovers(path: Path) -> None:
    """Delete temporary files of writers that died; one that is locked is being written by somebody else."""
    names = [name for name in os.listdir(path.parent) if name.startswith(f".{path.name}.") and name.endswith(".tmp")]
    for name in names:
        with contextlib.suppress(OSError), open(path.with_name(name), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(file.name)


def _bytes(array: NDArray[Any]) -> memoryview:
    return memoryview(cast(Any, array.reshape(-1).view(np.uint8)))


def _checksum(header: bytes, arrays: Any) -> str:
    digest = hashlib.sha256(header)
    for array in arrays:
        data = _bytes(array)
        for start in range(0, len(data), _CHUNK_BYTES):
            digest.update(data[start : start + _CHUNK_BYTES])
    return digest.hexdigest()


# -- reading ---------------------------------------------------------------------------------------------------------


def _bad(path: str | Path, reason: str) -> MapFileError:
    return MapFileError("map file", str(path), f"This is no intact map: {reason}. Load another copy, or map again.")


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[tuple[BinaryIO, int]]:
    try:
        if not Path(path).is_file():
            raise MapFileError("map file", str(path), "There is no such file.")
        with open(path, "rb") as file:
            yield file, os.fstat(file.fileno()).st_size
    except OSError as error:
        raise MapFileError("map file", str(path), f"It cannot be read: {error.strerror or error}.") from error


def _read_header(path: str | Path, file: BinaryIO, size: int) -> tuple[bytes, Layout, dict[str, Any], dict[str, Any]]:
    """Raw header, dtype and shape of each tensor in file order, scalars, extra; checked before any allocation."""
    length = int.from_bytes(file.read(_PREFIX_BYTES), "little")
    if size < _PREFIX_BYTES or length > min(_MAX_HEADER_BYTES, size - _PREFIX_BYTES):
        raise _bad(path, "its header is not one of a safetensors file")
    raw = file.read(length)
    try:
        header = json.loads(raw)
        metadata = header.pop("__metadata__")
        if metadata["format"] != FORMAT:
            raise _bad(path, f"its format is {str(metadata['format'])[:40]!r}")
        version = int(metadata["version"])
        if len(metadata["sha256"]) != len(_NO_CHECKSUM) or raw.index(metadata["sha256"].encode()) > 64:
            raise _bad(path, "its checksum is missing")
        content = json.loads(metadata["map"])
        newest = PURIFIED_VERSION if content.get("purified") else VERSION
        if version > newest:
            raise MapFileError("map file version", version, f"Update this software; it reads versions up to {newest}.")
        scalars = _read_scalars(path, content)
        tensors = _read_layout(path, header, size - _PREFIX_BYTES - length)
        extra = content["extra"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _bad(path, f"its header cannot be read ({type(error).__name__})") from error
    if version < 1 or not isinstance(extra, dict):
        raise _bad(path, "its header makes no sense")
    return raw, tensors, scalars, extra


def _read_scalars(path: str | Path, content: dict[str, Any]) -> dict[str, Any]:
    known = {**_DEFAULTS, **content}
    scalars = {name: known[name] for name in _SCALARS}
    for name, kind in _SCALARS.items():
        if type(scalars[name]) is not kind:
            raise _bad(path, f"{name} is not {kind.__name__}")
    if not (math.isfinite(scalars["voxel_size_m"]) and scalars["voxel_size_m"] > 0):
        raise _bad(path, "its voxel size is not positive")
    if not (0 <= scalars["stamp_ns"] < 1 << 63 and 0 <= scalars["version"] < 1 << 63):
        raise _bad(path, "its stamps are out of range")
    return scalars


def _read_layout(path: str | Path, header: dict[str, Any], payload: int) -> Layout:
    """Dtype and shape of each tensor in file order; they must fill the payload exactly."""
    if set(header) != set(_TENSORS):
        raise _bad(path, "its arrays are not those of a map")
    rows, channels = header["features"]["shape"]
    if not all(type(n) is int and n >= 0 for n in (rows, channels)) or channels < 1:
        raise _bad(path, "its shape makes no sense")
    layout: Layout = {}
    end = 0
    for name in sorted(header, key=lambda name: header[name]["data_offsets"]):
        stored, kind, columns = _TENSORS[name]
        shape = (rows,) if columns == 0 else (rows, channels if columns < 0 else columns)
        start, end = end, end + math.prod(shape) * np.dtype(kind).itemsize
        if header[name] != {"dtype": stored, "shape": list(shape), "data_offsets": [start, end]}:
            raise _bad(path, f"{name} is not laid out as {stored} {shape}")
        layout[name] = (kind, shape)
    if end != payload:
        raise _bad(path, f"it holds {payload} B of voxels instead of {end}")
    return layout


def _check_content(path: str | Path, arrays: dict[str, NDArray[Any]]) -> None:
    for name in ("features", "normals", "weight", "geometry_weight"):
        array = arrays[name]
        for start in range(0, len(array), _CHUNK_ROWS):
            if not np.isfinite(array[start : start + _CHUNK_ROWS]).all():
                raise _bad(path, f"{name} hold NaN or infinity")
    if (arrays["weight"] < 0).any() or (arrays["geometry_weight"] < 0).any():
        raise _bad(path, "a weight is negative")
    if (arrays["first_seen_ns"] < 0).any() or (arrays["first_seen_ns"] > arrays["last_seen_ns"]).any():
        raise _bad(path, "a voxel was last seen before it was first seen")
    keys = pack_keys(arrays["coords"])
    if (keys < 0).any():
        raise _bad(path, "a voxel lies out of reach")
    keys.sort()
    if (keys[1:] == keys[:-1]).any():
        raise _bad(path, "a voxel is there twice")
