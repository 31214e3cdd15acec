"""Connected pieces against scipy on dense grids, and the score tree on fields whose peaks are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from geopurify_core.querying.components import connected_components, score_tree, voxel_graph


@pytest.mark.parametrize(("seed", "share"), [(0, 0.02), (1, 0.05), (2, 0.08), (3, 0.3), (4, 0.9)])
def test_equal_to_scipy_on_random_grids(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    grid = rng.random((24, 20, 28)) < share
    coords = np.argwhere(grid).astype(np.int32)
    rng.shuffle(coords)
    expected = ndimage.label(grid, structure=np.ones((3, 3, 3)))[0][tuple(coords.T)]
    labels = connected_components(coords - [12, 300, -7])
    assert labels.max() + 1 == len(np.unique(expected))
    pairs = np.unique(np.stack([labels, expected]), axis=1)
    assert pairs.shape[1] == labels.max() + 1  # one to one
    firsts = np.unique(labels, return_index=True)[1]
    assert (np.diff(firsts) > 0).all()  # numbered by their first row


def test_no_voxel_and_one() -> None:
    assert connected_components(np.zeros((0, 3), dtype=np.int32)).shape == (0,)
    assert connected_components(np.array([[-5, 0, 9]], dtype=np.int32)).tolist() == [0]


def line(values: list[float]) -> tuple[np.ndarray, np.ndarray]:
    coords = np.zeros((len(values), 3), dtype=np.int32)
    coords[:, 0] = np.arange(len(values))
    return coords, np.array(values, dtype=np.float32)


def test_two_peaks_and_their_saddle() -> None:
    coords, scores = line([2, 4, 5, 4, 2, 3, 6, 7, 6, 3])
    tree = score_tree(coords, scores, floor=1.0, min_voxels=2, min_rise=1.0)
    assert len(tree.parent) == 3
    left, right, both = tree.node[2], tree.node[7], tree.node[4]
    assert tree.parent[left] == tree.parent[right] == both
    assert tree.parent[both] == -1
    np.testing.assert_allclose(tree.level[[left, right, both]], [2, 2, 1])
    assert tree.count[both] == 10
    assert tree.extent[both] == 10
    # left: (4−2)+(5−2)+(4−2), and (2−2) for the end that ties with the saddle; both: ten voxels from 2 down to 1
    np.testing.assert_allclose(tree.mass[left], 7)
    np.testing.assert_allclose(tree.mass[right], (3 + 6 + 7 + 6 + 3) - 5 * 2)
    np.testing.assert_allclose(tree.mass[both], 10 * (2 - 1))


@pytest.mark.parametrize(("min_voxels", "min_rise"), [(4, 1.0), (2, 3.5)])
def test_small_or_flat_peaks_are_part_of_their_neighbour(min_voxels: int, min_rise: float) -> None:
    coords, scores = line([4, 5, 4, 2, 3, 6, 7, 6, 3])
    tree = score_tree(coords, scores, floor=1.0, min_voxels=min_voxels, min_rise=min_rise)
    assert len(tree.parent) == 1
    assert (tree.node == 0).all()
    assert tree.count[0] == 9


def test_pieces_below_the_least_size_belong_to_no_node() -> None:
    coords = np.array([[0, 0, 0], [1, 0, 0], [2, 1, 1], [9, 9, 9]], dtype=np.int32)
    tree = score_tree(coords, np.array([3, 2, 2, 9], dtype=np.float32), 1.0, min_voxels=2, min_rise=0.5)
    assert tree.node.tolist() == [0, 0, 0, -1]


@pytest.mark.parametrize("seed", range(4))
def test_random_fields_agree_with_thresholding(seed: int) -> None:
    """Nodes are connected pieces of {score ≥ their lowest voxel}; parents hold their children; order is irrelevant."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.standard_normal((14, 14, 14)), 1.5).astype(np.float32)
    coords = np.argwhere(field > 0).astype(np.int32)
    scores = field[tuple(coords.T)]
    tree = score_tree(coords, scores, 0.0, min_voxels=4, min_rise=0.05)
    assert len(tree.parent) > 5
    assert all(parent == -1 or parent > child for child, parent in enumerate(tree.parent))
    for k in range(len(tree.parent)):
        inside = np.zeros(len(tree.parent), dtype=bool)
        inside[k] = True
        for child in range(k - 1, -1, -1):
            inside[child] = tree.parent[child] >= 0 and inside[tree.parent[child]]
        members = inside[tree.node] & (tree.node >= 0)
        assert members.sum() == tree.count[k]
        labels, _ = ndimage.label(field >= scores[members].min(), structure=np.ones((3, 3, 3)))
        assert len(np.unique(labels[tuple(coords[members].T)])) == 1
    shuffled = rng.permutation(len(coords))
    again = score_tree(coords[shuffled], scores[shuffled], 0.0, 4, 0.05)
    np.testing.assert_allclose(np.sort(again.mass), np.sort(tree.mass), rtol=1e-5, atol=1e-5)


def test_neighbours_are_those_a_loop_finds() -> None:
    rng = np.random.default_rng(5)
    coords = np.unique(rng.integers(-4, 4, (150, 3)), axis=0) + np.array([-9, 2000, 7])
    rng.shuffle(coords)
    graph = voxel_graph(coords.astype(np.int32))
    for row, voxel in enumerate(coords):
        near = [i for i, other in enumerate(coords) if i != row and np.abs(other - voxel).max() <= 1]
        near.sort(key=lambda i: tuple(coords[i]))
        assert graph.rows[graph.start[row] : graph.stop[row]].tolist() == near
