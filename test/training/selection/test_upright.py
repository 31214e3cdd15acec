"""Recordings whose world is not upright: what teachers and the choice of scenes get is."""

from __future__ import annotations

import numpy as np

from geopurify_core.mapping.snapshot import MapSnapshot
from training.scenes.mapped import scene_of_map, tilted_up
from training.scenes.prepared import load_scene, save_scene
from training.selection.sources import find_scenes, read_scenes


def room_map(axes: list[int], signs: tuple[int, int, int]) -> MapSnapshot:
    """A floor of 4 m × 4 m, one wall, and a table top at 0.8 m; axes swapped and mirrored."""
    grid = np.stack(np.meshgrid(np.arange(100), np.arange(100)), -1).reshape(-1, 2)
    floor = np.column_stack([grid, np.zeros(len(grid), int)])
    wall = np.column_stack([grid[:, 0], np.zeros(len(grid), int), grid[:, 1] * 6 // 10])
    top = np.column_stack([grid[grid.max(axis=1) < 40] + 20, np.full(1600, 20)])
    coords, first = np.unique(np.concatenate([floor, wall, top]).astype(np.int32), axis=0, return_index=True)
    normals = np.where((first < len(floor)) | (first >= len(floor) + len(wall)), 0, 1)[:, None] * [[0, 1, 0]]
    normals = np.where(normals.any(axis=1, keepdims=True), normals, [[0, 0, 1]])
    n = len(coords)
    return MapSnapshot(
        coords[:, axes] * np.array(signs, np.int32), np.ones((n, 4), np.float16), np.ones(n, "f4"),
        np.zeros((n, 3), np.uint8), (normals[:, axes] * signs).astype(np.float16), np.zeros(n, np.int64),
        np.zeros(n, np.int64), 0.04, "map", 0, 1, "none", "none",
    )  # fmt: skip


UPRIGHT, LYING = ([0, 1, 2], (1, 1, 1)), ([0, 2, 1], (1, -1, 1))  # z up, and -y up


def test_only_a_map_that_lies_is_told_which_way_is_up():
    assert tilted_up(room_map(*UPRIGHT)) == []
    np.testing.assert_allclose(tilted_up(room_map(*LYING)), (0, -1, 0), atol=0.05)


def test_a_teacher_sees_both_upright(tmp_path):
    snapshot = room_map(*LYING)
    save_scene(tmp_path, scene_of_map("lying", snapshot, about={"up": tilted_up(snapshot)}))
    scene = load_scene(tmp_path, "lying")
    cloud = scene.cloud()
    assert np.ptp(scene.points_m[:, 1]) < 2.5 < np.ptp(scene.points_m[:, 2])  # as mapped: y is the vertical
    assert np.ptp(cloud.points_m[:, 2]) < 2.5 < np.ptp(cloud.points_m[:, 1])
    low = cloud.points_m[:, 2] < cloud.points_m[:, 2].min() + 0.02
    assert low.sum() > 8000 and cloud.normals[low, 2].mean() > 0.9


def test_choosing_without_labels_does_not_depend_on_how_the_map_lies(tmp_path):
    for folder, lying in (("a", False), ("b", True)):
        snapshot = room_map(*(LYING if lying else UPRIGHT))
        save_scene(
            tmp_path / folder, scene_of_map("room", snapshot, about={"up": tilted_up(snapshot)} if lying else {})
        )
    counts = [
        read_scenes(find_scenes([tmp_path / folder], without_labels=True))[0][0].histogram.astype(float)
        for folder in "ab"
    ]
    shares = [one / one.sum() for one in counts]
    assert np.minimum(*shares).sum() > 0.85
