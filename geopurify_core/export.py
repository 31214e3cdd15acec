"""Maps as point clouds in files: binary PLY and PCD, with colours, normals, labels and confidence."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geopurify_core.errors import InvalidConfigError
from geopurify_core.mapping.snapshot import MapSnapshot

_PLY_NAMES = {"<f4": "float", "|u1": "uchar", "<i4": "int"}
_UNSEEN = np.array([150, 150, 150], dtype=np.uint8)
_CLOUD = np.dtype(
    [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("nx", "<f4"), ("ny", "<f4"), ("nz", "<f4"),
     ("red", "u1"), ("green", "u1"), ("blue", "u1"), ("label", "<i4"), ("confidence", "<f4")]
)  # fmt: skip


def write_cloud(
    snapshot: MapSnapshot,
    path: str | Path,
    names: Sequence[str] = (),
    label: NDArray[np.int32] | None = None,
    confidence: NDArray[np.float32] | None = None,
    palette: NDArray[np.uint8] | None = None,
    *,
    paint_labels: bool = True,
) -> None:
    """Write one point for each voxel: its centre (metres), normal, colour, label and confidence.

    Args:
        snapshot: The map.
        path: A `.ply` or `.pcd` file; its folder is made, a file there is replaced once the new one is complete.
        names: What the labels mean; written as comments, as is whether the map's features are raw or purified.
        label: (N,) int32 index into ``names``, -1 for none; by default -1 everywhere.
        confidence: (N,) float32 in [0, 1]; by default 0.
        palette: (len(names), 3) uint8 label colours; by default :func:`distinct_colors`.
        paint_labels: Colour labelled voxels by their label instead of as seen.

    Raises:
        InvalidConfigError: The suffix is another, the file cannot be written, or a label has no name.
    """
    target = Path(path)
    writers = {".ply": _ply_header, ".pcd": _pcd_header}
    if target.suffix.lower() not in writers:
        raise InvalidConfigError("cloud file", str(path), f"Give a name that ends in {' or '.join(writers)}.")
    if target.exists() and not target.is_file():
        raise InvalidConfigError("cloud file", str(path), "That is a folder, a device or a pipe; name a file.")
    points = to_points(snapshot, names, label, confidence, palette, paint_labels)
    notes = [f"features purified by {snapshot.purified}" if snapshot.purified else "features raw"]
    notes += [f"label {index} {name}" for index, name in enumerate(names)]
    header, points = writers[target.suffix.lower()](points, [_one_line(note) for note in notes])
    partial = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as handle:
            handle.write(header.encode())
            handle.write(points.tobytes())
        partial.replace(target)
    except OSError as error:
        raise InvalidConfigError("cloud file", str(path), f"It cannot be written: {error.strerror}.") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def to_points(
    snapshot: MapSnapshot,
    names: Sequence[str],
    label: NDArray[np.int32] | None,
    confidence: NDArray[np.float32] | None,
    palette: NDArray[np.uint8] | None,
    paint_labels: bool,
) -> NDArray[np.void]:
    """(N,) structured array of the fields that the files hold."""
    count = len(snapshot)
    index = np.full(count, -1, dtype=np.int32) if label is None else np.asarray(label, dtype=np.int32)
    if index.shape != (count,) or (count and not -1 <= index.min() <= index.max() < max(len(names), 1)):
        raise InvalidConfigError("label", index.shape, f"Give {count} labels, each -1 or below {len(names)}.")
    points = np.zeros(count, dtype=_CLOUD)
    points["x"], points["y"], points["z"] = snapshot.centers_m.T
    points["nx"], points["ny"], points["nz"] = snapshot.normals.astype(np.float32).T
    colors = snapshot.rgb
    if len(names) and paint_labels:
        table = distinct_colors(len(names)) if palette is None else np.asarray(palette, dtype=np.uint8)
        colors = np.vstack([table, _UNSEEN])[index]  # -1 takes the last row
    points["red"], points["green"], points["blue"] = colors.T
    points["label"] = index
    points["confidence"] = 0.0 if confidence is None else confidence
    return points


def distinct_colors(count: int) -> NDArray[np.uint8]:
    """(count, 3) uint8 colours that stay apart: hues by the golden angle, lightness in three steps."""
    hues = (np.arange(count) * 0.61803398875) % 1.0
    colors = [colorsys.hls_to_rgb(hue, (0.45, 0.60, 0.35)[i % 3], 0.75) for i, hue in enumerate(hues)]
    table: NDArray[np.uint8] = np.rint(np.array(colors).reshape(count, 3) * 255).astype(np.uint8)
    return table


def _ply_header(points: NDArray[np.void], notes: Sequence[str]) -> tuple[str, NDArray[np.void]]:
    fields = [f"property {_PLY_NAMES[points.dtype[name].str]} {name}" for name in points.dtype.names or ()]
    comments = [f"comment {note}" for note in notes]
    lines = [
        "ply", "format binary_little_endian 1.0", "comment written by geopurify; metres", *comments,
        f"element vertex {len(points)}", *fields, "end_header",
    ]  # fmt: skip
    return "\n".join(lines) + "\n", points


def _pcd_header(points: NDArray[np.void], notes: Sequence[str]) -> tuple[str, NDArray[np.void]]:
    """PCL packs a colour into the bits of one float."""
    kept = [name for name in points.dtype.names or () if name not in ("red", "green", "blue")]
    packed = np.zeros(len(points), dtype=[*((name, points.dtype[name].str) for name in kept), ("rgb", "<u4")])
    for name in kept:
        packed[name] = points[name]
    packed["rgb"] = sum(
        points[name].astype(np.uint32) << shift for name, shift in (("red", 16), ("green", 8), ("blue", 0))
    )
    comments = [f"# {note}" for note in notes]
    fields = [f"normal_{name[1]}" if name in ("nx", "ny", "nz") else name for name in (*kept, "rgb")]
    types = ["I" if name == "label" else "F" for name in (*kept, "rgb")]
    lines = [
        "# .PCD v0.7 - Point Cloud Data file format", *comments, "VERSION 0.7", f"FIELDS {' '.join(fields)}",
        f"SIZE {' '.join('4' for _ in types)}", f"TYPE {' '.join(types)}", f"COUNT {' '.join('1' for _ in types)}",
        f"WIDTH {len(points)}", "HEIGHT 1", "VIEWPOINT 0 0 0 1 0 0 0", f"POINTS {len(points)}", "DATA binary",
    ]  # fmt: skip
    return "\n".join(lines) + "\n", packed


def _one_line(text: str) -> str:
    return " ".join(text.split())
