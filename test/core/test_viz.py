"""The renderer against hand-made scenes; the pictures for size, content and odd maps."""

import numpy as np
import pytest
from PIL import Image

from geopurify_core.errors import GeoPurifyError, QueryError
from geopurify_core.mapping.snapshot import MapSnapshot
from geopurify_core.querying.results import DetectedObject, QueryResult
from geopurify_core.render import View, below_ceiling, facing_viewer, paint, rasterise, without_specks
from geopurify_core.viz import draw_map, draw_query
from geopurify_core.viz_labels import LabelMap, draw_labels

Z = np.array([0.0, 0.0, 1.0])


def snapshot(coords, rgb=None, normals=None):
    coords = np.asarray(coords, np.int32)
    n = len(coords)
    rgb = np.tile(np.uint8([200, 150, 100]), (n, 1)) if rgb is None else np.asarray(rgb, np.uint8)
    normals = np.asarray(np.tile([0, 0, 1.0], (n, 1)) if normals is None else normals, np.float16)
    times = np.zeros(n, np.int64)
    return MapSnapshot(
        coords, np.zeros((n, 2), np.float16), np.ones(n, np.float32), rgb, normals,
        times, times, 0.1, "map", 1, 1, "b", "t",
    )  # fmt: skip


def floor(size=20):
    x, y = np.meshgrid(np.arange(size), np.arange(size))
    return np.stack([x.ravel(), y.ravel(), np.zeros(size * size, int)], 1)


def at(raster, x_m, y_m):
    """The winner at a place of the view."""
    left, _, _, top = raster.extent_m
    return raster.winner[int((top - y_m) / raster.pixel_m), int((x_m - left) / raster.pixel_m)]


def test_from_above_the_highest_voxel_wins():
    points = np.array([[0.05, 0.05, 0.05], [0.05, 0.05, 1.0], [0.55, 0.05, 0.3]])
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        raster = rasterise(points[order], View.top(Z), 0.1)
        assert order[at(raster, 0.05, 0.05)] == 1 and order[at(raster, 0.55, 0.05)] == 2
        assert at(raster, 0.30, 0.05) == -1
    left, right, bottom, top = raster.extent_m
    assert left < 0 < 0.6 < right and bottom < 0 < 0.1 < top
    assert raster.winner.shape == (round((top - bottom) / raster.pixel_m), round((right - left) / raster.pixel_m))


def test_neighbouring_voxels_leave_no_gaps_however_turned():
    points = (floor() + 0.5) * 0.1
    for azimuth in (0, 17, 45, 133):
        raster = rasterise(points, View.oblique(Z, azimuth), 0.1)
        # the middle of the floor, as the view sees it
        middle = View.oblique(Z, azimuth).project(points.mean(axis=0, keepdims=True))[0]
        left, _, _, top = raster.extent_m
        row, column = int((top - middle[1]) / raster.pixel_m), int((middle[0] - left) / raster.pixel_m)
        assert raster.covered[row - 8 : row + 8, column - 8 : column + 8].all()


@pytest.mark.parametrize("voxel_size_m", [0.04, 0.05, 0.1])
@pytest.mark.parametrize("pixels_per_voxel", [1, 2, 3, 4])
def test_a_grid_aligned_with_the_pixels_has_no_lines_through_it(voxel_size_m, pixels_per_voxel):
    side = np.arange(200)
    coords = np.stack(np.meshgrid(side, side, [0], indexing="ij"), axis=-1).reshape(-1, 3)
    points = (coords.astype(np.float32) + np.float32(0.5)) * np.float32(voxel_size_m)  # rounded as in a snapshot
    covered = rasterise(points, View.top(Z), voxel_size_m, pixels_per_voxel).covered
    rows, columns = np.flatnonzero(covered.any(axis=1)), np.flatnonzero(covered.any(axis=0))
    assert covered[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()


def test_the_oblique_viewer_stands_where_it_says():
    view = View.oblique(Z, azimuth_deg=0.0, elevation_deg=30.0)
    right, up, towards = view.R_view_map
    np.testing.assert_allclose(view.R_view_map @ view.R_view_map.T, np.eye(3), atol=1e-12)
    assert np.isclose(np.linalg.det(view.R_view_map), 1)
    np.testing.assert_allclose(towards, (np.cos(np.pi / 6), 0, 0.5))
    np.testing.assert_allclose(right, (0, 1, 0), atol=1e-12)
    assert up[2] > 0


def test_painting_keeps_colours_when_flat_and_the_background_clear():
    map_ = snapshot(floor(4), rgb=np.tile([10, 200, 30], (16, 1)))
    view = View.top(Z)
    raster = rasterise(map_.centers_m, view, 0.1)
    flat = paint(raster, map_.rgb, map_.normals, view, relief=0.0)
    assert (flat[raster.covered] == (10, 200, 30, 255)).all() and (flat[~raster.covered] == 0).all()


def test_a_step_darkens_the_lower_side():
    coords = floor(20)
    coords[coords[:, 0] >= 10, 2] = 5
    map_ = snapshot(coords)
    view = View.top(Z)
    raster = rasterise(map_.centers_m, view, 0.1)
    grey = paint(raster, map_.rgb, map_.normals, view)[..., 0].astype(int)
    row = grey.shape[0] // 2
    pixels = [int((x - raster.extent_m[0]) / raster.pixel_m) for x in (0.5, 0.95, 1.5)]
    far, beside, above = grey[row, pixels]
    assert beside < far - 10 and abs(far - above) <= 1


def test_ceilings_and_backs_are_taken_away():
    points = np.array([[0, 0, 0.0]] * 50 + [[0, 0, 1.0], [0, 0, 2.05], [0, 0, 2.3], [0, 0, 1.5]])
    normals = np.array([[0, 0, 1.0]] * 52 + [[0, 0, 1], [0, 0, -1]])
    assert below_ceiling(points, normals, Z)[-4:].tolist() == [True, True, False, False]
    view = View.oblique(Z, 0.0)
    assert facing_viewer(np.array([[1.0, 0, 0], [-1, 0, 0], [0, 0, 1], [0, 0, 0]]), view).tolist() == [
        True,
        False,
        True,
        True,
    ]


def test_specks_match_a_loop():
    rng = np.random.default_rng(0)
    coords = np.unique(rng.integers(-6, 6, (700, 3)), axis=0).astype(np.int32)
    shown = rng.random(len(coords)) < 0.5
    there = {tuple(c) for c in coords[shown]}
    expected = []
    for coord, is_shown in zip(coords, shown, strict=True):
        around = sum(tuple(coord + np.array(d) - 1) in there for d in np.ndindex(3, 3, 3)) - 1
        expected.append(bool(is_shown and around >= 5))
    assert without_specks(coords, shown).tolist() == expected and any(expected)
    assert not without_specks(coords, np.zeros(len(coords), bool)).any()


def answer(map_, text="chair"):
    voxels = np.arange(0, 9, dtype=np.int32)
    scores = np.zeros(len(map_), np.float32)
    scores[voxels] = 3
    found = DetectedObject(text, 3.0, np.array([0.5, 0.5, 0.05]), np.array([0.3, 0.3, 0.1]), 0.3, voxels)
    return QueryResult(text, scores, (found,) * 8)


@pytest.mark.parametrize("text", ["chair", "$x^2$ {\\frac", "стул 🪑 椅子", "a " * 200, "line\nbreak"])
def test_pictures_of_any_text(tmp_path, text):
    map_ = snapshot(floor())
    draw_query(map_, answer(map_, text), tmp_path / "new/q.png")
    with Image.open(tmp_path / "new/q.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3).astype(int)
        assert picture.size[0] >= 1000 and picture.size[1] >= 400
    # heat is red, the map is grey, the first box is blue
    red, green, blue = pixels.T
    assert ((red > green + 60) & (red > 100)).sum() > 500 and ((blue > red + 80) & (blue > 120)).sum() > 200


def test_odd_maps_are_drawn(tmp_path):
    empty = snapshot(np.zeros((0, 3)))
    draw_map(empty, tmp_path / "a.png")
    draw_query(empty, QueryResult("x", np.zeros(0, np.float32), ()), tmp_path / "b.png")
    single = snapshot([[3, 4, 5]])
    draw_map(single, tmp_path / "c.png", up=(0, -1, 0))
    draw_query(single, QueryResult("x", np.zeros(1, np.float32), ()), tmp_path / "d.png")
    ceiling_only = snapshot(floor() + np.array([0, 0, 30]), normals=np.tile([0, 0, -1.0], (400, 1)))
    draw_map(ceiling_only, tmp_path / "e.png")
    long = snapshot([[0, 0, 0], [100_000, 0, 0]])  # ten kilometres apart must not need ten gigabytes
    draw_map(long, tmp_path / "f.png")
    assert all((tmp_path / f"{name}.png").stat().st_size > 1000 for name in "abcdef")


def test_a_foreign_answer_or_place_is_refused(tmp_path):
    with pytest.raises(QueryError, match="ask it again"):
        draw_query(snapshot(floor()), QueryResult("x", np.zeros(3, np.float32), ()), tmp_path / "x.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(GeoPurifyError, match="written"):
        draw_map(snapshot(floor()), tmp_path / "file/x.png")


NAMES, PALETTE = ("wall", "floor", "chair"), np.uint8([[0, 200, 200], [0, 0, 220], [220, 160, 0]])


def near(path, color, within=40):
    """How many pixels of a picture have about this colour (shading darkens it by less than a quarter)."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3).astype(int)
    return int((np.abs(pixels - np.array(color)).max(axis=1) < within).sum())


def test_label_maps_show_truth_answers_and_which_mistakes_are_mended_or_new(tmp_path):
    map_ = snapshot(floor())
    truth = np.arange(400) // 134  # a third of each
    raw, mended, broken = np.where(truth == 2, 1, truth), truth.copy(), np.where(truth == 0, 2, truth)
    red, green, violet = (214, 64, 54), (38, 150, 90), (112, 48, 160)
    for name, answers, expected in (
        ("right", [truth], (False, False, False)),
        ("raw", [raw], (True, False, False)),
        ("mended", [raw, mended], (True, True, False)),
        ("broken", [raw, broken], (True, True, True)),
    ):
        path = tmp_path / f"{name}.png"
        draw_labels(map_, LabelMap("truth", truth), [LabelMap("a", a) for a in answers], NAMES, PALETTE, path, Z)
        assert tuple(near(path, color) > 4000 for color in (red, green, violet)) == expected, name
    # truth and right answer have one third of each; the raw answer takes the chairs' third for floor
    assert near(tmp_path / "raw.png", PALETTE[1]) > 1.3 * near(tmp_path / "right.png", PALETTE[1])
    assert near(tmp_path / "right.png", PALETTE[2]) > 1.7 * near(tmp_path / "raw.png", PALETTE[2])


def test_what_is_not_known_is_no_mistake_and_odd_label_maps_are_drawn(tmp_path):
    map_, unknown = snapshot(floor()), np.full(400, -1)
    draw_labels(map_, LabelMap("truth", unknown), [LabelMap("a", unknown + 1)], NAMES, PALETTE, tmp_path / "a.png")
    assert near(tmp_path / "a.png", (214, 64, 54)) < 500, "nothing is known to be wrong"
    empty, none = snapshot(np.zeros((0, 3))), np.zeros(0, int)
    draw_labels(empty, LabelMap("truth", none), [LabelMap("a", none)], NAMES, PALETTE, tmp_path / "b.png")
    draw_labels(snapshot([[3, 4, 5]]), LabelMap("$", unknown[:1]), [], NAMES, PALETTE, tmp_path / "c.png")
    assert all((tmp_path / f"{name}.png").stat().st_size > 1000 for name in "abc")


@pytest.mark.parametrize("labels", [np.zeros(3, int), np.full(400, 3), np.full(400, -2)])
def test_labels_of_another_map_or_without_a_name_are_refused(tmp_path, labels):
    truth = LabelMap("truth", np.zeros(400, int))
    with pytest.raises(QueryError, match="labels"):
        draw_labels(snapshot(floor()), truth, [LabelMap("a", labels)], NAMES, PALETTE, tmp_path / "x.png")
