"""Messages to arrays and back; whatever a message holds, only a typed error escapes."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("rclpy")

from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point, Pose, Quaternion
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2, PointField

from geopurify_core.camera import PinholeCamera
from geopurify_core.errors import GeoPurifyError, InvalidCameraError, InvalidFrameError
from geopurify_core.querying.results import DetectedObject
from geopurify_ros import clouds, markers, messages

pytestmark = pytest.mark.ros
FUZZ = settings(max_examples=1000, deadline=None)
U32 = st.one_of(st.integers(0, 12), st.integers(0, 2**32 - 1))
BYTES = st.binary(max_size=96).map(lambda raw: array("B", raw))
ENCODINGS = st.one_of(st.sampled_from(["rgb8", "bgr8", "mono8", "16UC1", "32FC1", "8UC3", ""]), st.text(max_size=8))


@pytest.mark.parametrize(
    "pixels",
    [
        np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3),
        np.arange(35, dtype=np.uint16).reshape(5, 7) * 1000,
        np.linspace(-1, 9, 35, dtype=np.float32).reshape(5, 7),
        np.arange(70, dtype=np.uint16).reshape(5, 14)[:, ::2],
    ],
)
def test_images_come_back_exactly(pixels: np.ndarray) -> None:
    message = messages.to_image(pixels, 123_456_789_012, "camera")
    assert isinstance(message.data, array)
    assert (messages.image_array(message) == pixels).all()
    assert messages.stamp_ns(message.header.stamp) == 123_456_789_012


def test_colour_is_not_depth_and_depth_is_not_colour() -> None:
    with pytest.raises(InvalidFrameError, match="colour"):
        messages.color_image(messages.to_image(np.zeros((2, 2), np.float32), 1, ""))
    with pytest.raises(InvalidFrameError, match="16UC1"):
        messages.depth_image(messages.to_image(np.zeros((2, 2, 3), np.uint8), 1, ""))


@FUZZ
@given(ENCODINGS, U32, U32, U32, BYTES, st.integers(0, 255), st.booleans())
def test_any_image(encoding: str, height: int, width: int, step: int, data: Any, endian: int, fitting: bool) -> None:
    if fitting:
        step = step % 64
        data = array("B", bytes(min(height, 12) * step))
        height = min(height, 12)
    message = Image(encoding=encoding, height=height, width=width, step=step, data=data, is_bigendian=endian)
    try:
        pixels = messages.image_array(message)
    except InvalidFrameError:
        return
    assert pixels.shape[:2] == (height, width)


@FUZZ
@given(st.text(max_size=30), st.binary(max_size=64), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"]))
def test_any_compressed_image(text: str, tail: bytes, head: bytes) -> None:
    with pytest.raises(InvalidFrameError):
        messages.color_image(CompressedImage(format=text, data=array("B", head + tail)))


NUMBER = st.one_of(st.just(0.0), st.floats(), st.floats(1, 1000))


@FUZZ
@given(st.lists(NUMBER, min_size=9, max_size=9), st.lists(NUMBER, max_size=5), U32, U32)
def test_any_camera_info(k: list[float], d: list[float], width: int, height: int) -> None:
    try:
        camera = messages.camera_of(CameraInfo(k=k, d=d, width=width, height=height))
    except InvalidCameraError:
        return
    assert camera.fx > 0
    assert np.isfinite(camera.K).all()


def test_an_uncalibrated_camera_is_refused_and_a_rectified_one_uses_p() -> None:
    with pytest.raises(InvalidCameraError, match="Calibrate"):
        messages.camera_of(CameraInfo(width=640, height=480))
    info = messages.to_camera_info(PinholeCamera(500.0, 501.0, 320.0, 240.0, 640, 480), 1, "camera")
    assert messages.camera_of(info) == PinholeCamera(500.0, 501.0, 320.0, 240.0, 640, 480)
    assert not messages.is_distorted(info)
    info.d = [0.1, 0.0, 0.0, 0.0, 0.0]
    info.p[0] = 450.0
    assert messages.is_distorted(info)
    assert messages.camera_of(info).fx == 450.0


@FUZZ
@given(st.lists(st.one_of(st.floats(), st.just(0.0)), min_size=7, max_size=7))
def test_any_pose(values: list[float]) -> None:
    t, q = values[:3], values[3:]
    pose = Pose(
        position=Point(**dict(zip("xyz", t, strict=True))), orientation=Quaternion(**dict(zip("xyzw", q, strict=True)))
    )
    try:
        T = messages.pose_matrix(pose)
    except InvalidFrameError:
        return
    assert np.isfinite(T).all()
    assert np.allclose(messages.pose_matrix(messages.to_pose(T)), T)


FIELD = st.builds(
    PointField,
    name=st.sampled_from(["x", "y", "z", "rgb", "intensity", ""]),
    offset=U32,
    datatype=st.integers(0, 12),
    count=st.integers(0, 3),
)


@FUZZ
@given(st.lists(FIELD, max_size=5), U32, U32, U32, U32, st.booleans(), BYTES, st.booleans())
def test_any_point_cloud(
    fields: list[Any], height: int, width: int, point_step: int, row_step: int, big: bool, data: Any, fitting: bool
) -> None:
    if fitting:
        height, width, point_step = height % 4, width % 4, point_step % 33
        row_step = width * point_step
        data = array("B", bytes(height * row_step))
    message = PointCloud2(
        fields=fields, height=height, width=width, point_step=point_step, row_step=row_step, is_bigendian=big, data=data
    )
    try:
        points = clouds.cloud_points(message)
    except InvalidFrameError:
        return
    assert points.shape[1:] == (3,)
    assert np.isfinite(points).all()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["f4", "f8"])
def test_clouds_of_any_layout_are_read(order: str, kind: str) -> None:
    """Organised, padded rows, extra fields, doubles, big endian; points with NaN are no returns."""
    dtype = np.dtype({"names": ["ring", "z", "x", "y"], "formats": ["u2", order + kind, order + kind, order + kind],
                      "offsets": [0, 4, 12, 20], "itemsize": 30})  # fmt: skip
    rows = np.zeros((2, 3), dtype)
    rows["x"], rows["y"], rows["z"] = np.arange(6).reshape(2, 3), 1.5, -2.0
    rows["y"][1, 1] = np.nan
    padded = np.concatenate([rows.view(np.uint8).reshape(2, -1), np.full((2, 5), 9, np.uint8)], axis=1)
    code = {"f4": PointField.FLOAT32, "f8": PointField.FLOAT64}[kind]
    fields = [PointField(name=n, offset=o, datatype=code, count=1) for n, o in (("z", 4), ("x", 12), ("y", 20))]
    fields.append(PointField(name="ring", offset=0, datatype=PointField.UINT16, count=1))
    message = PointCloud2(
        height=2, width=3, point_step=30, row_step=padded.shape[1], is_bigendian=order == ">", fields=fields,
        data=messages.byte_array(padded),
    )  # fmt: skip
    assert clouds.cloud_points(message).tolist() == [[float(i), 1.5, -2.0] for i in range(6) if i != 4]


def test_own_clouds_come_back() -> None:
    rng = np.random.default_rng(0)
    points, rgb = rng.normal(size=(50, 3)).astype(np.float32), rng.integers(0, 256, (50, 3), dtype=np.uint8)
    cloud = clouds.to_cloud(points, rgb, 5, "map", label=np.arange(50), confidence=0.5, instance=-1)
    rows = clouds.cloud_rows(cloud)
    assert (clouds.cloud_points(cloud) == points).all()
    packed = rows["rgb"].view(np.uint32)
    assert (np.stack([packed >> 16 & 255, packed >> 8 & 255, packed & 255], axis=1) == rgb).all()
    assert rows["label"].tolist() == list(range(50))
    assert set(rows["instance"]) == {-1}
    empty = clouds.to_cloud(np.zeros((0, 3)), np.zeros((0, 3), np.uint8), 5, "map")
    assert empty.width == 0
    assert clouds.cloud_points(empty).shape == (0, 3)


def test_markers_begin_with_a_clean_slate() -> None:
    found = DetectedObject("chair", 1.5, np.array([1.0, 2.0, 0.5]), np.array([0.5, 0.0, 1.0]), np.pi / 2, np.arange(3))
    array_ = markers.to_markers([found], [0], 7, "map").markers
    assert [m.action for m in array_] == [3, 0, 0]
    box, text = array_[1:]
    assert box.scale.y > 0, "a flat box must stay visible"
    assert np.allclose(messages.pose_matrix(box.pose)[:2, 0], [0, 1], atol=1e-12)
    assert "chair" in text.text
    assert len({(m.ns, m.id) for m in array_[1:]}) == 2


def test_palettes_differ() -> None:
    assert len({markers.palette(i) for i in range(20)}) == 20


def test_errors_are_typed() -> None:
    assert issubclass(InvalidCameraError, GeoPurifyError)
    assert messages.stamp_ns(Time(sec=1, nanosec=2)) == 1_000_000_002
    with pytest.raises(InvalidFrameError):
        messages.to_image(np.zeros((2, 2), np.float64), 1, "")
