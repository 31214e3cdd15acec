"""Every supported encoding against plain loops, and nothing but BadMessageError for anything else."""

import array
import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from geopurify_core.datasets.image_codec import (
    COLOR_ENCODINGS,
    DEPTH_ENCODINGS,
    decode_compressed,
    decode_image,
    encode_png16,
)
from geopurify_core.errors import BadMessageError

HEIGHT, WIDTH, PADDING = 3, 5, 7
# encoding -> (bytes for a pixel, offsets of red, green, blue)
COLOR = {
    "rgb8": (3, (0, 1, 2)),
    "bgr8": (3, (2, 1, 0)),
    "rgba8": (4, (0, 1, 2)),
    "bgra8": (4, (2, 1, 0)),
    "8UC3": (3, (2, 1, 0)),
    "8UC4": (4, (2, 1, 0)),
    "mono8": (1, (0, 0, 0)),
    "8UC1": (1, (0, 0, 0)),
}


@pytest.mark.parametrize("padding", [0, PADDING])
@pytest.mark.parametrize("encoding", COLOR_ENCODINGS)
def test_colour_encodings_match_a_loop_over_bytes(encoding, padding):
    pixel_bytes, offsets = COLOR[encoding]
    step = WIDTH * pixel_bytes + padding
    data = np.random.default_rng(1).integers(0, 256, HEIGHT * step, dtype=np.uint8).tobytes()
    image = decode_image(encoding, HEIGHT, WIDTH, step, data, 0)
    assert image.shape == (HEIGHT, WIDTH, 3) and image.dtype == np.uint8 and image.flags.c_contiguous
    for row in range(HEIGHT):
        for column in range(WIDTH):
            start = row * step + column * pixel_bytes
            assert tuple(image[row, column]) == tuple(data[start + offset] for offset in offsets)


@pytest.mark.parametrize("padding", [0, 1, 6])
@pytest.mark.parametrize("big", [0, 1])
@pytest.mark.parametrize("encoding", DEPTH_ENCODINGS)
def test_depth_encodings_match_struct(encoding, big, padding):
    letter, values = (
        ("f", [0.0, 1.25, -2.5, float("inf"), 7.5]) if encoding == "32FC1" else ("H", [0, 1, 258, 65535, 4])
    )
    row = struct.pack(f"{'>' if big else '<'}5{letter}", *values) + bytes(padding)
    image = decode_image(encoding, 2, 5, len(row), row * 2, big)
    assert image.dtype == (np.float32 if letter == "f" else np.uint16) and image.dtype.isnative
    assert image.tolist() == [values, values]


@pytest.mark.parametrize(
    "wrap", [bytes, bytearray, memoryview, lambda b: array.array("B", b), lambda b: np.frombuffer(b, np.uint8)]
)
def test_any_block_of_bytes_will_do(wrap):
    assert decode_image("rgb8", 1, 2, 6, wrap(bytes(range(6)))).tolist() == [[[0, 1, 2], [3, 4, 5]]]


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("image.encoding", {"encoding": "yuv422"}),
        ("image.encoding", {"encoding": None}),
        ("image.height", {"height": 0}),
        ("image.width", {"width": 2**40}),
        ("image.step", {"step": 5}),
        ("image.step", {"step": 7}),
        ("image.data", {"step": 9}),
        ("image.data", {"data": b""}),
        ("image.data", {"data": bytes(13)}),
        ("image.data", {"data": "text"}),
        ("image.is_bigendian", {"is_bigendian": 2}),
    ],
)
def test_a_broken_message_is_named(field, change):
    message = {"encoding": "16UC1", "height": 1, "width": 4, "step": 8, "data": bytes(8), "is_bigendian": 0} | change
    with pytest.raises(BadMessageError) as caught:
        decode_image(**message)
    assert caught.value.field == field and caught.value.remedy


@settings(max_examples=1000, deadline=None)
@given(
    encoding=st.one_of(st.sampled_from([*COLOR_ENCODINGS, *DEPTH_ENCODINGS]), st.text(max_size=8)),
    height=st.integers(-3, 40_000),
    width=st.one_of(st.integers(-3, 6), st.integers()),
    step=st.one_of(st.integers(-3, 40), st.integers()),
    data=st.binary(max_size=256),
    big=st.integers(-1, 3),
    fit=st.booleans(),
)
def test_fuzzed_images_decode_or_say_why(encoding, height, width, step, data, big, fit):
    if fit and 0 < step <= len(data):  # let a good share of examples get as far as the pixels
        height = len(data) // step
        data = data[: height * step]
    try:
        image = decode_image(encoding, height, width, step, data, big)
    except BadMessageError:
        return
    assert image.shape[:2] == (height, width)


def _picture(mode: str, kind: str) -> bytes:
    out = io.BytesIO()
    if mode == "I;16":
        Image.fromarray(np.arange(48, dtype=np.uint16).reshape(6, 8) * 1000).save(out, format=kind)
    else:
        Image.new(mode, (8, 6), 77).save(out, format=kind)
    return out.getvalue()


@settings(max_examples=1000, deadline=None)
@given(
    format_=st.sampled_from(
        ["jpeg", "bgr8; png compressed", "16UC1; compressedDepth png", "32FC1; compressedDepth", "x rvl"]
    ),
    picture=st.sampled_from(
        [_picture("RGB", "JPEG"), _picture("L", "PNG"), _picture("I;16", "PNG"), b"\0" * 12 + _picture("I;16", "PNG")]
    ),
    cut=st.integers(0, 400),
    flips=st.lists(st.tuples(st.integers(0, 399), st.integers(0, 255)), max_size=4),
)
def test_fuzzed_pictures_decode_or_say_why(format_, picture, cut, flips):
    data = bytearray(picture[: len(picture) - cut] if cut < 200 else picture)
    for place, value in flips:
        if place < len(data):
            data[place] = value
    try:
        image = decode_compressed(format_, bytes(data))
    except BadMessageError:
        return
    assert image.ndim in (2, 3)


def test_pictures_round_trip():
    depth = np.random.default_rng(0).integers(0, 65536, (12, 16), dtype=np.uint16)
    png = encode_png16(depth)
    header = struct.pack("<iff", 0, 0.0, 0.0)
    for data in (png, header + png):
        np.testing.assert_array_equal(decode_compressed("16UC1; compressedDepth png", data), depth)
    rgb = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, format="PNG")
    np.testing.assert_array_equal(decode_compressed("rgb8; png compressed bgr8", out.getvalue()), rgb)


def test_quantised_inverse_depth_comes_back_in_metres():
    a, b = 100.0 * 101.0, 0.5  # compressedDepth's defaults are of this size
    metres = np.array([[1.0, 2.0, 0.0]], np.float32)
    stored = np.where(metres > 0, np.rint(a / np.maximum(metres, 1e-3) + b), 0).astype(np.uint16)
    decoded = decode_compressed("32FC1; compressedDepth png", struct.pack("<iff", 0, a, b) + encode_png16(stored))
    np.testing.assert_allclose(decoded, metres, rtol=1e-3)
    assert decoded[0, 2] == 0


def test_rvl_and_missing_header_are_refused_with_a_remedy():
    with pytest.raises(BadMessageError, match="png"):
        decode_compressed("16UC1; compressedDepth rvl", b"\1" * 40)
    with pytest.raises(BadMessageError, match="header"):
        decode_compressed("32FC1; compressedDepth", encode_png16(np.ones((2, 2), np.uint16)))
