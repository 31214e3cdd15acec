"""The comparison of choosing with and without labels runs, and says what it should of scenes made for it."""

from __future__ import annotations

import numpy as np
import pytest

from training.scenes.prepared import PreparedScene, save_scene
from training.selection import compare


@pytest.fixture
def scenes(tmp_path):
    """Nine scenes; the more storeys of boxes one has, the more classes, and the more sorts of surfaces."""
    grid = np.stack(np.meshgrid(np.arange(40), np.arange(40)), -1).reshape(-1, 2) * 0.04
    for i in range(9):
        floor = np.column_stack([grid, np.zeros(len(grid))])
        walls = [np.column_stack([grid[:, 0], np.full(len(grid), j * 0.3), grid[:, 1]]) for j in range(i + 1)]
        points = np.concatenate([floor, *walls]).astype(np.float32)
        labels = np.repeat(np.arange(i + 2, dtype=np.uint8), len(grid))
        blank = np.zeros((len(points), 3), np.float16)
        arrays = points, blank.astype(np.uint8), blank, blank, np.ones(len(points), "f4"), labels
        save_scene(tmp_path, PreparedScene(f"scene{i}", *arrays, about={"label_set": "scannet20"}))
    return tmp_path


def test_scenes_whose_geometry_follows_their_labels_are_chosen_alike(scenes, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["compare", str(scenes), "--count", "2", "--seeds", "3"])
    compare.main()
    said = capsys.readouterr().out
    assert "9 scenes, 2 chosen" in said and "N_c, by labels and without" in said
    assert "all scenes: mean N_c 6.00" in said
    assert "labels, raw counts: two seeds share" in said
