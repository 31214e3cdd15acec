"""What the student is shown: order, scales, and the same rows for a part of a map as for the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from geopurify_core.errors import PurificationError
from geopurify_core.mapping.snapshot import MapSnapshot
from geopurify_core.purification.student.inputs import INPUT_RADIUS, student_inputs
from geopurify_core.purification.student.voxelise import mean_attributes, random_frame, voxelise_points


def snapshot(count: int = 300, channels: int = 5, seed: int = 0, side: int = 14) -> MapSnapshot:
    """Random voxels; every third normal is unknown, every tenth voxel has no feature."""
    rng = np.random.default_rng(seed)
    picked = rng.choice(side**3, size=count, replace=False)
    normals = rng.standard_normal((count, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    normals[::3] = 0
    features = 3 * rng.standard_normal((count, channels)).astype(np.float16)
    features[::10] = 0
    weight = np.where(np.arange(count) % 10 == 0, 0, 2).astype(np.float32)
    return MapSnapshot(
        coords=np.stack(np.unravel_index(picked, (side, side, side)), axis=1).astype(np.int32), features=features,
        weight=weight, rgb=rng.integers(0, 256, (count, 3)).astype(np.uint8), normals=normals.astype(np.float16),
        first_seen_ns=np.zeros(count, np.int64), last_seen_ns=np.zeros(count, np.int64), voxel_size_m=0.04,
        frame_id="map", stamp_ns=0, version=1, backbone="words:1", text_fingerprint="words:1",
    )  # fmt: skip


def rows_of(whole: MapSnapshot, rows: NDArray[np.int64]) -> MapSnapshot:
    arrays = {
        name: getattr(whole, name)[rows].copy()
        for name in ("coords", "features", "weight", "rgb", "normals", "first_seen_ns", "last_seen_ns")
    }
    return MapSnapshot(
        **arrays, voxel_size_m=0.04, frame_id="map", stamp_ns=0, version=1, backbone="words:1", text_fingerprint=""
    )


def test_order_and_scales() -> None:
    given_map = snapshot()
    found = student_inputs(given_map)
    assert found.dtype == torch.float32 and found.shape == (300, 11)
    semantic, rgb, normal = found[:, :5].numpy(), found[:, 5:8].numpy(), found[:, 8:].numpy()
    np.testing.assert_array_equal(semantic, given_map.features.astype(np.float32))  # not normalised
    np.testing.assert_array_equal(semantic[::10], 0)
    np.testing.assert_allclose(rgb, given_map.rgb / 255, atol=1e-7)
    assert rgb.min() >= 0 and rgb.max() <= 1
    known = np.arange(300) % 3 != 0
    np.testing.assert_allclose(normal[known], given_map.normals[known].astype(np.float64), atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(normal[known], axis=1), 1, atol=1e-6)
    assert (np.linalg.norm(normal[~known], axis=1) > 0.99).mean() > 0.9  # estimated


def test_inputs_share_nothing_with_the_map() -> None:
    given_map = snapshot()
    found = student_inputs(given_map)
    before = found.clone()
    found += 1
    assert torch.equal(student_inputs(given_map), before)


def test_maps_of_every_size_pass() -> None:
    none = rows_of(snapshot(), np.empty(0, dtype=np.int64))
    assert student_inputs(none).shape == (0, 11)
    one = rows_of(snapshot(), np.array([0]))
    np.testing.assert_array_equal(student_inputs(one)[0, 8:], 0)


@settings(max_examples=25)
@given(st.integers(0, 10_000))
def test_a_part_of_the_map_gives_the_rows_of_the_whole(seed: int) -> None:
    rng = np.random.default_rng(seed)
    whole = snapshot(seed=seed)
    expected = student_inputs(whole).numpy()
    rows = rng.permutation(300)[:100]
    np.testing.assert_array_equal(student_inputs(whole, rows), expected[rows])
    order = rng.permutation(300)
    np.testing.assert_array_equal(student_inputs(rows_of(whole, order)), expected[order])


@settings(max_examples=25)
@given(st.integers(0, 10_000))
def test_voxels_beyond_the_radius_do_not_matter(seed: int) -> None:
    whole = snapshot(seed=seed)
    expected = student_inputs(whole).numpy()
    centre = whole.coords[seed % 300]
    near = np.flatnonzero((np.abs(whole.coords - centre) <= 2 * INPUT_RADIUS).all(axis=1))
    inside = (np.abs(whole.coords[near] - centre) <= INPUT_RADIUS).all(axis=1)
    np.testing.assert_array_equal(student_inputs(rows_of(whole, near))[inside], expected[near][inside])


# -- points ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["off", "aug"])
def test_voxels_equal_the_released_ones(shared_dir: Path, kind: str) -> None:
    """Same voxels, same points in each, same first point; only their order is another (key, not hash)."""
    with np.load(shared_dir / "golden" / "geopurify" / "voxelize.npz") as file:
        golden = dict(file)
    points = golden["points"]
    if kind == "aug":
        points = points @ random_frame(np.random.RandomState(int(golden["aug_seed"]))).T
    voxels = voxelise_points(points)
    shifted = voxels.coords - voxels.coords.min(axis=0)
    theirs = golden[f"{kind}_inverse"]
    assert len(shifted) == len(golden[f"{kind}_coords"])
    np.testing.assert_array_equal(shifted[voxels.inverse], golden[f"{kind}_coords"][theirs])
    np.testing.assert_array_equal(np.sort(voxels.first), np.sort(golden[f"{kind}_index"]))
    means = mean_attributes(voxels, golden["feats"], golden["points"])
    for row in range(0, len(means), 97):
        inside = voxels.inverse == row
        np.testing.assert_allclose(means[row, :6], golden["feats"][inside].mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(means[row, 6:], golden["points"][inside].mean(axis=0), atol=1e-6)
        assert voxels.count[row] == inside.sum() and inside[: voxels.first[row]].sum() == 0


def test_any_generator_turns_and_scales() -> None:
    for seed in range(20):
        frame = random_frame(np.random.default_rng(seed))
        scale = np.cbrt(np.linalg.det(frame))
        assert 0.9 <= scale <= 1.1
        np.testing.assert_allclose(frame @ frame.T, scale**2 * np.eye(3), atol=1e-12)
        assert (frame @ [0, 0, 1])[2] > 0.99 * scale


@pytest.mark.parametrize(
    ("points", "size", "says"),
    [
        (np.zeros((4, 2)), 0.02, "coordinates in metres"),
        (np.zeros((4, 3)), 0.0, "positive"),
        (np.zeros((4, 3)), np.nan, "positive"),
        (np.array([[0, 0, np.nan], [0, 0, 1]]), 0.02, "1 of 2"),
        (np.array([[0, 0, 1e30], [0, np.inf, 1], [0, 0, 0]]), 0.02, "2 of 3"),
    ],
)
def test_points_that_cannot_be(points: NDArray[np.float64], size: float, says: str) -> None:
    with pytest.raises(PurificationError, match=says):
        voxelise_points(points, size)


def test_values_must_belong_to_the_points() -> None:
    voxels = voxelise_points(np.zeros((4, 3)))
    assert len(voxels.coords) == 1
    with pytest.raises(PurificationError, match="each of 4 points"):
        voxels.mean(np.zeros((3, 2)))
