"""Cutting objects out of boxes, on geometry whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from geopurify_core.vision.boxmask import box_mask, ring_planes

GRID = (60, 80)


def rendered_table(with_cup: bool = True, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Depth (metres) of a table seen from above at an angle before a wall, a cup on it; and the cup's cells."""
    v = np.mgrid[: GRID[0], : GRID[1]][0].astype(np.float64)
    ray_y, focal = (v - 30) / 70, 70.0
    # The table lies 0.5 m below a camera pitched down by 30 degrees.
    pitch = np.deg2rad(30)
    down = ray_y * np.cos(pitch) + np.sin(pitch)
    depth = np.minimum(np.where(down > 0, 0.5 / np.maximum(down, 1e-6), np.inf), 2.5)
    cup = np.zeros(GRID, bool)
    if with_cup:
        cup[28:36, 38:44] = True
        depth[cup] = 0.5 / (np.cos(pitch) * (36 - 30) / focal + np.sin(pitch)) - 0.02
    rng = np.random.default_rng(0)
    return (depth * (1 + noise * rng.standard_normal(GRID))).astype(np.float32), cup


def painted(box: np.ndarray, depth: np.ndarray | None) -> np.ndarray:
    rows, columns, weight = box_mask(box, depth, GRID)
    mask = np.zeros(GRID, np.float32)
    mask[rows, columns] = weight
    return mask


@pytest.mark.parametrize("noise", [0.0, 0.002])
def test_a_cup_on_a_table_is_cut_out(noise: float) -> None:
    depth, cup = rendered_table(noise=noise)
    mask = painted(np.array([36, 26, 46, 38], np.float32), depth)  # two cells of table around the cup
    # The cup's foot touches the table, so its lowest rows cannot be told from it.
    body = cup.copy()
    body[32:] = False
    assert mask[body].min() == 1.0
    assert (mask > 0)[~cup].sum() <= 0.05 * cup.sum()


def test_a_thing_before_a_wall_leaves_the_wall_out() -> None:
    depth = np.full(GRID, 3.0, np.float32)
    depth[20:40, 30:40] = 1.5
    mask = painted(np.array([26, 16, 44, 44], np.float32), depth)
    np.testing.assert_array_equal(mask > 0, depth == 1.5)


def test_a_flat_thing_counts_in_the_middle() -> None:
    depth, _ = rendered_table(with_cup=False)
    box = np.array([30, 36, 50, 48], np.float32)
    mask = painted(box, depth)
    assert mask[41, 39] > 0.9
    assert mask[36, 30] == 0.0 and mask[47, 49] == 0.0  # corners of the box
    assert mask.max() <= 1.0 and (mask > 0).sum() < 20 * 12


def test_without_depth_the_inscribed_ellipse_counts() -> None:
    box = np.array([10, 10, 30, 20], np.float32)
    for depth in (None, np.zeros(GRID, np.float32)):
        mask = painted(box, depth)
        v, u = np.mgrid[: GRID[0], : GRID[1]]
        radius = ((u + 0.5 - 20) / 10) ** 2 + ((v + 0.5 - 15) / 5) ** 2
        np.testing.assert_allclose(mask, np.where(radius <= 1, np.exp(-radius), 0), atol=1e-5)


@pytest.mark.parametrize(
    "box", [[-5, -5, 3, 3], [75, 55, 90, 70], [10.2, 10.2, 10.4, 10.4], [0, 0, 80, 60], [90, 70, 95, 75]]
)
def test_boxes_at_the_border_and_smaller_than_a_cell(box: list[float]) -> None:
    depth, _ = rendered_table()
    rows, columns, weight = box_mask(np.array(box, np.float32), depth, GRID)
    assert weight.shape == (rows.stop - rows.start, columns.stop - columns.start)
    assert np.isfinite(weight).all() and (weight >= 0).all() and (weight <= 1).all()
    assert weight.size > 0 or box[0] >= 80


def test_ring_planes_are_found_without_a_camera() -> None:
    v, u = np.mgrid[: GRID[0], : GRID[1]].astype(np.float64)
    first, second = 0.004 * u + 0.002 * v + 0.3, 0.02 * v - 0.1
    depth = (1.0 / np.maximum(first, second)).astype(np.float32)
    planes = ring_planes(np.array([30, 20, 50, 40], np.float32), depth)
    assert len(planes) == 2
    for expected in ([0.004, 0.002, 0.3], [0, 0.02, -0.1]):
        assert np.abs(planes - expected).max(axis=1).min() < 5e-3


def test_the_same_depth_gives_the_same_mask() -> None:
    depth, _ = rendered_table(noise=0.003)
    box = np.array([36, 26, 46, 38], np.float32)
    np.testing.assert_array_equal(painted(box, depth), painted(box, depth))
