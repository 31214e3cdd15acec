"""Boxes on shapes whose size and turn are known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from geopurify_core.geometry import level_rotation
from geopurify_core.querying.boxes import axis_aligned_box, distance_to_box, split_until_tight, upright_box

UP = np.array([0.0, 0.0, 1.0])


def cuboid(size: tuple[float, float, float], yaw: float, up: NDArray[np.floating], step: float = 0.04) -> NDArray:
    axes = [np.arange(-s / 2 + step / 2, s / 2, step) for s in size]
    local = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    c, s = np.cos(yaw), np.sin(yaw)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    return local @ (level_rotation(up).T @ turn).T + [1.0, -2.0, 0.5]


@pytest.mark.parametrize("degrees", [0, 20, 44, 70, -30])
@pytest.mark.parametrize("up", [UP, np.array([0.0, -0.9, -0.43]), np.array([0.1, 0.2, 1.0])])
def test_turned_cuboids(degrees: float, up: NDArray[np.floating]) -> None:
    points = cuboid((1.6, 0.8, 0.4), np.radians(degrees), up)
    box = upright_box(points, up, 0.04)
    np.testing.assert_allclose(box.center_m, [1.0, -2.0, 0.5], atol=0.02)
    # 1 % of the points is trimmed at each end, so a turned or thin shape loses up to a voxel
    np.testing.assert_allclose(np.sort(box.size_m[:2]), [0.8, 1.6], atol=0.06)
    assert box.size_m[2] == pytest.approx(0.4, abs=0.05)
    off = (box.yaw_rad - np.radians(degrees) + np.pi / 4) % (np.pi / 2) - np.pi / 4
    assert abs(off) < np.radians(2)
    assert -np.pi / 4 <= box.yaw_rad <= np.pi / 4
    np.testing.assert_allclose(box.R_map_box.T @ box.R_map_box, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(box.R_map_box[:, 2], up / np.linalg.norm(up), atol=1e-9)
    assert (distance_to_box(points, box.center_m, box.size_m, box.R_map_box) < 0.06).all()


def test_stray_voxels_do_not_stretch_it() -> None:
    points = np.concatenate([cuboid((1.0, 1.0, 1.0), 0.0, UP), [[30.0, 0.0, 0.0], [0.0, 0.0, 40.0]]])
    for box in (axis_aligned_box(points, 0.04), upright_box(points, UP, 0.04)):
        assert (box.size_m < 1.1).all()


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_degenerate_sets(count: int) -> None:
    points = np.zeros((count, 3))
    points[:, 0] = np.arange(count) * 0.05
    box = upright_box(points, UP, 0.05)
    assert np.isfinite(box.size_m).all()
    assert (box.size_m >= 0.05 - 1e-9).all()
    assert box.size_m[:2].max() == pytest.approx(0.05 * count, abs=0.02)


def _l_shape() -> tuple[np.ndarray, np.ndarray]:
    """Two plates of 4 m x 2 m that meet along an upright edge, and normals that point into the angle between them."""
    wall = cuboid((4.0, 0.08, 2.0), 0.0, UP)
    other = wall @ np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1.0]]).T
    points = np.concatenate([wall - wall.min(axis=0), other - other.min(axis=0)])
    normals = np.repeat([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], [len(wall), len(other)], axis=0)
    return points, normals


def test_a_corner_of_two_walls_is_cut_and_a_single_wall_is_not() -> None:
    corner, inwards = _l_shape()
    for normals in (inwards, np.zeros_like(inwards)):
        parts = split_until_tight(corner, normals, UP, 0.04, 0.25, 0.6)
        assert len(parts) in (2, 3)  # cuts lie on a coarse grid, so the corner post may stay on its own
        assert sorted(np.concatenate(parts)) == list(range(len(corner)))
        whole = upright_box(corner, UP, 0.04).volume_m3
        assert sum(upright_box(corner[part], UP, 0.04).volume_m3 for part in parts) < 0.2 * whole
    for single, size_m in ((cuboid((4.0, 0.08, 2.0), 0.0, UP), 0.04), (cuboid((2.0, 1.5, 1.0), 0.3, UP, 0.1), 0.1)):
        assert len(split_until_tight(single, np.zeros_like(single), UP, size_m, 0.25, 0.6)) == 1


def test_two_sides_of_one_thing_stay_together() -> None:
    """The same plates seen from the other side are the outside of a wardrobe, not the inside of a room."""
    plates, inwards = _l_shape()
    assert len(split_until_tight(plates, -inwards, UP, 0.04, 0.25, 0.6)) == 1


def test_distance_to_a_turned_box() -> None:
    c, s = np.cos(np.pi / 4), np.sin(np.pi / 4)
    R = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    points = np.array([[0, 0, 0], [2.0, 0, 0], [0, 0, 1.5], [c * 1.5, s * 1.5, 0]])
    expected = [0, np.hypot(2 * c - 1, 2 * c - 1), 1.0, 0.5]
    np.testing.assert_allclose(distance_to_box(points, np.zeros(3), np.array([2.0, 2.0, 1.0]), R), expected, atol=1e-12)
