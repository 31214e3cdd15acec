"""PointCloud2 in and out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sensor_msgs.msg import PointCloud2, PointField

from geopurify_core.errors import BadMessageError
from geopurify_ros.messages import byte_array, header

_OUT = np.dtype(
    {
        "names": ["x", "y", "z", "rgb", "label", "confidence", "instance"],
        "formats": ["<f4", "<f4", "<f4", "<u4", "<i4", "<f4", "<i4"],
    }
)
_TYPES = {
    PointField.INT8: "i1",
    PointField.UINT8: "u1",
    PointField.INT16: "i2",
    PointField.UINT16: "u2",
    PointField.INT32: "i4",
    PointField.UINT32: "u4",
    PointField.FLOAT32: "f4",
    PointField.FLOAT64: "f8",
}
# RViz and PCL read the packed colour as a FLOAT32 field whose bits are 0x00RRGGBB.
_FIELD_TYPES = {"f": PointField.FLOAT32, "u": PointField.FLOAT32, "i": PointField.INT32}
MAX_POINTS = 1 << 26


def to_cloud(
    points_m: NDArray[np.floating],
    rgb: NDArray[np.uint8],
    ns: int,
    frame_id: str,
    *,
    label: ArrayLike = -1,
    confidence: ArrayLike = 0.0,
    instance: ArrayLike = -1,
) -> PointCloud2:
    """A cloud with the fields x y z rgb label confidence instance (28 bytes each point).

    Args:
        points_m: (N, 3) metres in ``frame_id``.
        rgb: (N, 3) uint8.
        ns: Stamp, nanoseconds.
        frame_id: Frame of the points.
        label, confidence, instance: (N,) or one value for all; -1 means none.
    """
    rows = np.zeros(len(points_m), dtype=_OUT)
    rows["x"], rows["y"], rows["z"] = np.asarray(points_m, dtype=np.float32).T
    red, green, blue = rgb.astype(np.uint32).T
    rows["rgb"] = (red << 16) | (green << 8) | blue
    rows["label"], rows["confidence"], rows["instance"] = label, confidence, instance
    return PointCloud2(
        header=header(ns, frame_id),
        height=1,
        width=len(rows),
        fields=[
            PointField(name=name, offset=4 * i, datatype=_FIELD_TYPES[_OUT[name].kind], count=1)
            for i, name in enumerate(_OUT.names or ())
        ],
        is_bigendian=False,
        point_step=_OUT.itemsize,
        row_step=_OUT.itemsize * len(rows),
        data=byte_array(rows),
        is_dense=True,
    )


def cloud_rows(message: PointCloud2) -> NDArray[Any]:
    """Every point as a structured row (a view of the message where no row is padded). Raises BadMessageError."""
    height, width, step, row_step = message.height, message.width, message.point_step, message.row_step
    if not 0 < step <= 65_536 or height * width > MAX_POINTS:
        raise BadMessageError("points.point_step", (step, height, width), f"Send at most {MAX_POINTS} sensible points.")
    if row_step < width * step or len(message.data) != height * row_step:
        raise BadMessageError(
            "points.data",
            f"{len(message.data)} bytes",
            f"{height} rows of {width} points of {step} bytes do not fit it.",
        )
    order = ">" if message.is_bigendian else "<"
    layout: dict[str, tuple[str, int]] = {}
    for field in message.fields:
        kind = _TYPES.get(field.datatype)
        if kind is None or field.count not in (0, 1) or field.offset + np.dtype(kind).itemsize > step:
            if field.name in ("x", "y", "z"):
                raise BadMessageError(f"points.fields.{field.name}", str(field), "Give one number inside point_step.")
            continue
        layout[field.name or f"_{field.offset}"] = (order + kind, field.offset)
    formats, offsets = [v[0] for v in layout.values()], [v[1] for v in layout.values()]
    dtype = np.dtype({"names": list(layout), "formats": formats, "offsets": offsets, "itemsize": step})
    raw = np.frombuffer(message.data, dtype=np.uint8).reshape(height, row_step)[:, : width * step]
    return np.ascontiguousarray(raw).reshape(-1).view(dtype)


def cloud_points(message: PointCloud2) -> NDArray[np.float32]:
    """The finite points (N, 3), metres, of any cloud with x, y and z fields. Raises BadMessageError."""
    rows = cloud_rows(message) if message.width * message.height else np.zeros(0, _OUT)
    missing = [axis for axis in ("x", "y", "z") if axis not in (rows.dtype.names or ())]
    if missing:
        raise BadMessageError("points.fields", missing, "The cloud needs the fields x, y and z.")
    with np.errstate(over="ignore", invalid="ignore"):
        points = np.stack([rows[axis].astype(np.float32) for axis in ("x", "y", "z")], axis=1)
    return points[np.isfinite(points).all(axis=1)]
