"""Normals that are filled in: against a plain loop, and against what is known of the shapes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from geopurify_core.errors import PurificationError
from geopurify_core.jit import HAVE_NUMBA
from geopurify_core.purification.student import normals as module
from geopurify_core.purification.student.normals import FILL_RADIUS, fill_normals, known_normals, mesh_vertex_normals

Cloud = tuple[NDArray[np.int32], NDArray[np.float16]]


def shell(radius: int = 12, seed: int = 0) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Voxels of a sphere's surface, shuffled, and the true outward normals."""
    axis = np.arange(-radius - 2, radius + 3)
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    coords = grid[np.abs(np.linalg.norm(grid, axis=1) - radius) < 0.6].astype(np.int32)
    coords = np.random.default_rng(seed).permutation(coords)
    return coords, coords / np.linalg.norm(coords, axis=1, keepdims=True)


def random_cloud(seed: int, count: int = 150, side: int = 9) -> Cloud:
    """Random voxels; half of the normals unknown."""
    rng = np.random.default_rng(seed)
    picked = rng.choice(side**3, size=count, replace=False)
    coords = np.stack(np.unravel_index(picked, (side, side, side)), axis=1).astype(np.int32)
    normals = rng.standard_normal((count, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    normals[rng.random(count) < 0.5] = 0
    return coords, normals.astype(np.float16)


def naive(coords: NDArray[np.int32], normals: NDArray[np.float16]) -> NDArray[np.float64]:
    """The definition, one voxel at a time in float64."""
    result = np.zeros((len(coords), 3))
    known = np.linalg.norm(normals.astype(np.float64), axis=1) > 0.5
    for i in range(len(coords)):
        if known[i]:
            result[i] = normals[i] / np.linalg.norm(normals[i].astype(np.float64))
            continue
        offset = coords - coords[i]
        near = (offset**2).sum(axis=1) <= FILL_RADIUS**2
        others = near & known & (offset != 0).any(axis=1)
        weights = {j: 1.0 / float((offset[j] ** 2).sum()) ** 2 for j in np.flatnonzero(others)}
        side = sum((weight * normals[j].astype(np.float64) for j, weight in weights.items()), np.zeros(3))
        agreed = bool(weights) and np.linalg.norm(side) >= 0.5 * sum(weights.values())
        centred = coords[near] - coords[near].mean(axis=0)
        variance, axes = np.linalg.eigh(centred.T @ centred / near.sum())
        vector = side
        if not agreed and variance[1] - variance[0] > 0.1 * variance[2] and near.sum() > 2:
            vector = axes[:, 0]
            dots = [vector @ side, vector[2], vector[1], vector[0]]
            vector = vector * np.sign(next(dot for dot in dots if abs(dot) > 1e-3))
        if np.linalg.norm(vector) > 1e-3:
            result[i] = vector / np.linalg.norm(vector)
    return result


@pytest.mark.parametrize("seed", range(4))
def test_equals_the_naive_loop(seed: int) -> None:
    coords, normals = random_cloud(seed)
    np.testing.assert_allclose(fill_normals(coords, normals), naive(coords, normals), atol=1e-5)
    coords, truth = shell(7, seed)
    half = np.where(coords[:, :1] > 0, truth, 0).astype(np.float16)
    np.testing.assert_allclose(fill_normals(coords, half), naive(coords, half), atol=1e-5)


@pytest.mark.skipif(not HAVE_NUMBA, reason="compares the compiled loop with numpy")
@pytest.mark.parametrize("corner", [0, -(2**20), 2**20 - 9])
def test_compiled_and_numpy_agree_to_the_bit(corner: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(5):
        coords, normals = random_cloud(seed, 300)
        coords = coords + np.int32(corner)
        compiled = fill_normals(coords, normals)
        monkeypatch.setattr(module, "HAVE_NUMBA", False)
        np.testing.assert_array_equal(fill_normals(coords, normals), compiled)
        monkeypatch.undo()
        np.testing.assert_array_equal(fill_normals(coords - np.int32(corner), normals), compiled)


def test_the_rim_of_the_range_is_no_neighbour_of_the_next_row() -> None:
    """Keys of (x, y, max) and (x, y + 1, min) follow each other; the voxels are far apart."""
    top, bottom = 2**20 - 1, -(2**20)
    coords = np.array([[0, 0, top], [0, 1, bottom]], dtype=np.int32)
    normals = np.array([[0, 0, 0], [1, 0, 0]], dtype=np.float16)
    np.testing.assert_array_equal(fill_normals(coords, normals)[0], 0)


def test_a_sphere_is_filled_and_faces_the_known_side() -> None:
    for outwards in (1, -1):
        coords, truth = shell()
        truth = truth * outwards
        given_normals = truth.astype(np.float16)
        hidden = np.random.default_rng(0).random(len(coords)) < 0.4
        given_normals[hidden] = 0
        filled = fill_normals(coords, given_normals)
        np.testing.assert_allclose(np.linalg.norm(filled, axis=1), 1, atol=1e-6)
        cosine = (filled * truth).sum(axis=1)[hidden]
        assert cosine.min() > np.cos(np.radians(25))
        assert np.median(cosine) > np.cos(np.radians(8))


def test_a_plane_is_exact_and_without_a_known_side_faces_up() -> None:
    floor = np.stack(np.meshgrid(np.arange(9), np.arange(9), [4], indexing="ij"), -1).reshape(-1, 3).astype(np.int32)
    unknown = np.zeros((len(floor), 3), dtype=np.float16)
    np.testing.assert_allclose(fill_normals(floor, unknown), np.tile([0, 0, 1], (len(floor), 1)), atol=1e-7)
    np.testing.assert_allclose(
        fill_normals(floor[:, [2, 0, 1]], unknown), np.tile([1, 0, 0], (len(floor), 1)), atol=1e-7
    )
    unknown[40] = (0, 0, -1)
    filled = fill_normals(floor, unknown)
    near = ((floor - floor[40]) ** 2).sum(axis=1) <= FILL_RADIUS**2
    np.testing.assert_allclose(filled[near], np.tile([0, 0, -1], (near.sum(), 1)), atol=1e-7)


def test_what_has_no_plane_takes_its_neighbours_mean_or_stays_unknown() -> None:
    line = np.stack([np.arange(5), np.zeros(5), np.zeros(5)], axis=1).astype(np.int32)
    normals = np.zeros((5, 3), dtype=np.float16)
    np.testing.assert_array_equal(fill_normals(line, normals), 0)
    normals[0] = (0, 1, 0)
    np.testing.assert_allclose(fill_normals(line, normals)[1:4], np.tile([0, 1, 0], (3, 1)))
    np.testing.assert_array_equal(fill_normals(line, normals)[4], 0)
    block = np.stack(np.meshgrid(*[np.arange(7)] * 3, indexing="ij"), -1).reshape(-1, 3).astype(np.int32)
    middle = int(np.flatnonzero((block == 3).all(axis=1))[0])
    np.testing.assert_array_equal(fill_normals(block, np.zeros((len(block), 3), np.float16))[middle], 0)


def test_known_normals_are_kept_made_unit_and_nan_counts_as_unknown() -> None:
    coords, truth = shell(5)
    given_normals = (0.98 * truth).astype(np.float16)
    filled = fill_normals(coords, given_normals)
    np.testing.assert_allclose(filled, truth, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(filled, axis=1), 1, atol=1e-6)
    given_normals[3] = np.nan
    given_normals[4] = 1e-3
    assert not known_normals(given_normals)[3:5].any() and known_normals(given_normals)[5:].all()
    filled = fill_normals(coords, given_normals)
    assert np.isfinite(filled).all()
    assert (filled[3:5] * truth[3:5]).sum(axis=1).min() > 0.9


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_rows_depend_on_nothing_but_their_surroundings(seed: int) -> None:
    """Another order, a part of the rows, or changes beyond the radius: the same bits."""
    rng = np.random.default_rng(seed)
    coords, normals = random_cloud(seed, 250, side=14)
    filled = fill_normals(coords, normals)
    order = rng.permutation(len(coords))
    np.testing.assert_array_equal(fill_normals(coords[order], normals[order]), filled[order])
    np.testing.assert_array_equal(fill_normals(coords, normals, order[:40]), filled[order[:40]])
    centre = coords[rng.integers(len(coords))]
    far = ((coords - centre) ** 2).sum(axis=1) > FILL_RADIUS**2
    row = int(np.flatnonzero((coords == centre).all(axis=1))[0])
    turned = np.where(far[:, None], -normals, normals)
    kept = ~far | (rng.random(len(coords)) < 0.5)
    where = int(kept[:row].sum())
    np.testing.assert_array_equal(fill_normals(coords[kept], turned[kept])[where], filled[row])


def test_no_voxels_and_no_rows() -> None:
    none = np.empty((0, 3), dtype=np.int32)
    assert fill_normals(none, none.astype(np.float16)).shape == (0, 3)
    coords, normals = random_cloud(0)
    assert fill_normals(coords, normals, np.empty(0, dtype=np.int64)).shape == (0, 3)


# -- meshes ----------------------------------------------------------------------------------------------------------


def tetra_sphere(rings: int = 24) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """A latitude-longitude sphere, faces counter-clockwise seen from outside."""
    theta, phi = np.linspace(0, np.pi, rings + 1)[1:-1], np.linspace(0, 2 * np.pi, 2 * rings, endpoint=False)
    t, p = np.meshgrid(theta, phi, indexing="ij")
    ring = np.stack([np.sin(t) * np.cos(p), np.sin(t) * np.sin(p), np.cos(t)], -1).reshape(-1, 3)
    n, index = 2 * rings, np.arange((rings - 1) * 2 * rings).reshape(rings - 1, -1)
    right = np.roll(index, -1, axis=1)
    faces = [
        np.stack([index[:-1], index[1:], right[1:]], -1).reshape(-1, 3),
        np.stack([index[:-1], right[1:], right[:-1]], -1).reshape(-1, 3),
        np.stack([np.full(n, index.size), index[0], right[0]], -1),
        np.stack([index[-1], np.full(n, index.size + 1), right[-1]], -1),
    ]
    return np.concatenate([ring, [[0, 0, 1], [0, 0, -1]]]), np.concatenate(faces)


def test_mesh_normals_equal_a_loop_and_the_sphere() -> None:
    vertices, faces = tetra_sphere()
    found = mesh_vertex_normals(3 * vertices + 7, faces)
    sums = np.zeros_like(vertices)
    for a, b, c in faces:
        for corner in (a, b, c):
            sums[corner] += np.cross(vertices[b] - vertices[a], vertices[c] - vertices[a])
    np.testing.assert_allclose(found, sums / np.linalg.norm(sums, axis=1, keepdims=True), atol=1e-6)
    assert ((found * vertices).sum(axis=1) > 0.99).all()


def test_mesh_normals_equal_open3d() -> None:
    o3d = pytest.importorskip("open3d")
    rng = np.random.default_rng(0)
    vertices, faces = rng.standard_normal((200, 3)), rng.integers(0, 200, (400, 3))
    mesh = o3d.geometry.TriangleMesh(o3d.utility.Vector3dVector(vertices), o3d.utility.Vector3iVector(faces))
    mesh.compute_vertex_normals()
    used = np.zeros(200, dtype=bool)
    used[faces[(faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 0] != faces[:, 2])]] = True
    np.testing.assert_allclose(
        mesh_vertex_normals(vertices, faces)[used], np.asarray(mesh.vertex_normals)[used], atol=1e-6
    )


def test_larger_faces_count_more() -> None:
    vertices = np.array([[0, 0, 0], [2, 0, 0], [0, 2, 0], [0, 0, 1.0]])
    found = mesh_vertex_normals(vertices, np.array([[0, 1, 2], [0, 2, 3]]))  # areas 2 (up) and 1 (+x)
    np.testing.assert_allclose(found[0], np.array([1, 0, 2]) / np.sqrt(5), atol=1e-7)


def test_degenerate_faces_and_lonely_vertices() -> None:
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [2, 0, 0], [9, 9, 9], [np.nan, 0, 0]])
    faces = np.array([[0, 1, 2], [0, 1, 3], [1, 1, 2], [3, 3, 3], [0, 1, 5]])
    found = mesh_vertex_normals(vertices, faces)
    np.testing.assert_array_equal(found[:3], np.tile([0, 0, 1], (3, 1)))
    np.testing.assert_array_equal(found[3:], 0)
    np.testing.assert_array_equal(mesh_vertex_normals(vertices, np.empty((0, 3), dtype=int)), np.zeros((6, 3)))


@pytest.mark.parametrize(
    ("vertices", "faces", "says"),
    [
        (np.zeros((3, 2)), np.zeros((1, 3), int), "positions"),
        (np.zeros((3, 3)), np.zeros((1, 4), int), "indices"),
        (np.zeros((3, 3)), np.zeros((1, 3)), "integer"),
        (np.zeros((3, 3)), np.array([[0, 1, 3]]), "must lie in"),
        (np.zeros((3, 3)), np.array([[0, 1, -1]]), "must lie in"),
    ],
)
def test_meshes_that_cannot_be(vertices: NDArray[np.float64], faces: NDArray[np.int64], says: str) -> None:
    with pytest.raises(PurificationError, match=says):
        mesh_vertex_normals(vertices, faces)
