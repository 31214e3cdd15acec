"""What the student is shown: crops, augmentation, sampled voxels, random frames, a basis; and the batch made of it."""

import numpy as np
import pytest
import torch

from training.distillation.basis import expanded, semantic_basis
from training.distillation.objective import make_batch, sample_piece
from training.distillation.pieces import augmented, column, draw_piece, only_sampled, whole_scene
from training.distillation.recipe import Recipe
from training.distillation.shards import Shards
from training.scenes.prepared import load_scene, save_scene


@pytest.fixture(scope="module")
def map_scene(maps):
    return Shards(maps, "known", Recipe.preset("robot", rank=0)).scene("room_a")


@pytest.fixture(scope="module")
def scan_scene(scans):
    return Shards(scans, "known", Recipe.preset("robot", rank=0)).scene("scan_a")


def test_map_voxels_are_shown_as_they_are(maps, map_scene):
    piece, scene = whole_scene(map_scene, Recipe.preset("paper")), load_scene(maps, "room_a")
    np.testing.assert_allclose((piece.coords.numpy() + 0.5) * 0.04, scene.points_m, atol=1e-6)
    np.testing.assert_array_equal(piece.inputs[:, :12].numpy(), scene.features.astype(np.float32))
    np.testing.assert_allclose(piece.inputs[:, 12:15].numpy(), scene.rgb / 255, atol=5e-4)
    np.testing.assert_array_equal(piece.inputs[:, 15:].numpy(), scene.normals.astype(np.float32))


def test_scan_points_are_averaged_in_voxels(scans, scan_scene):
    piece, scene = whole_scene(scan_scene, Recipe.preset("paper")), load_scene(scans, "scan_a")
    assert len(piece.coords) * 4 == len(piece) == len(scene)
    some = int(piece.voxel_of[17])
    inside = np.flatnonzero(np.all(np.floor(scene.points_m / 0.02) == piece.coords[some].numpy(), axis=1))
    assert len(inside) == 4 and 17 in inside
    expected = scene.features[inside].astype(np.float32).mean(0)
    np.testing.assert_allclose(piece.inputs[some, :12].numpy(), expected, atol=1e-3)


@pytest.mark.parametrize("kind", ["map_scene", "scan_scene"])
def test_a_column_is_a_square_from_floor_to_ceiling_with_all_its_points(kind, request):
    whole = whole_scene(request.getfixturevalue(kind), Recipe.preset("paper"))
    piece = column(whole, 150, np.random.default_rng(0))
    assert (
        piece.coords.shape == (150, 3) and int((piece.coords[:, :2].amax(0) - piece.coords[:, :2].amin(0)).max()) < 20
    )
    expected = whole.rows[whole.index[torch.from_numpy(piece.points)]]
    assert torch.equal(piece.rows[piece.index], expected)
    centres = torch.from_numpy(piece.scene.points_m[piece.points])
    edge = 0.04 if kind == "map_scene" else 0.02
    voxels = piece.voxels(torch.arange(len(piece)))
    assert torch.equal(torch.floor(centres / edge + 1e-3 * (kind == "map_scene")).int(), piece.coords[voxels])
    if piece.first is not None:
        assert torch.equal(piece.voxel_of[piece.first], torch.arange(150)) and len(piece) == 600
    assert column(whole, 10**6, np.random.default_rng(0)) is whole


@pytest.mark.parametrize("kind", ["map_scene", "scan_scene"])
def test_neighbours_are_the_nearest_other_points(kind, request):
    piece = whole_scene(request.getfixturevalue(kind), Recipe.preset("paper"))
    positions = torch.from_numpy(piece.scene.points_m[piece.points]).double()
    rows = torch.tensor([0, 5, 200])
    near = piece.near_points(rows, 12)
    distance = torch.cdist(positions[rows], positions)
    distance[torch.arange(3), rows] = torch.inf
    expected = distance.sort(dim=1).values[:, :12]
    torch.testing.assert_close(distance.gather(1, near), expected, atol=1e-6, rtol=0)


def test_neighbours_of_points_on_one_spot_are_never_the_point_itself(scan_scene):
    from dataclasses import replace

    points = scan_scene.points_m.copy()
    points[:40] = points[0]
    piece = whole_scene(replace(scan_scene, points_m=points), Recipe.preset("paper"))
    near = piece.near_points(torch.arange(40), 10)
    assert near.shape == (40, 10) and not bool((near == torch.arange(40)[:, None]).any())


def test_augmentation_turns_coordinates_and_normals_alike(map_scene):
    """Normals that point outward from the middle still do after any turn or mirror."""
    from dataclasses import replace

    recipe = Recipe.preset("robot", semantic_drop=0.0, semantic_noise=0.0)
    piece = whole_scene(map_scene, recipe)
    offset = piece.coords[:, :2].float() - piece.coords[:, :2].float().mean(0)
    inputs = piece.inputs.clone()
    inputs[:, -3:-1], inputs[:, -1] = offset / offset.norm(dim=1, keepdim=True), 0
    piece = replace(piece, inputs=inputs)
    seen = set()
    for seed in range(16):
        got = augmented(piece, recipe, np.random.default_rng(seed))
        moved = got.coords[:, :2].float() - got.coords[:, :2].float().mean(0)
        torch.testing.assert_close(got.inputs[:, -3:-1] * moved.norm(dim=1, keepdim=True), moved, atol=1e-4, rtol=1e-4)
        assert torch.equal(got.inputs[:, :12], piece.inputs[:, :12])
        assert bool((got.inputs[:, 12:15] >= 0).all()) and bool((got.inputs[:, 12:15] <= 1).all())
        seen.add(tuple(got.coords[45].tolist()))
    assert len(seen) > 4
    assert torch.equal(piece.inputs, inputs)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_map_that_lies_on_its_side_is_cut_and_turned_about_its_own_vertical(map_scene, axis, sign):
    """The room's z becomes another axis of the map, upwards or downwards: the pieces are the upright room's."""
    from dataclasses import replace

    recipe = Recipe.preset("robot", semantic_drop=0.0, semantic_noise=0.0)
    order = np.roll([0, 1, 2], axis + 1)  # where the room's x, y, z come from, so that its z is the map's ``axis``
    flip = np.where(order == 2, sign, 1).astype(np.float32)
    up = tuple(flip * (order == 2))
    inputs = map_scene.inputs.copy()
    inputs[:, -3:] = inputs[:, -3:][:, order] * flip
    coords = map_scene.coords[:, order] * flip.astype(np.int32)
    lying = replace(map_scene, coords=coords, points_m=map_scene.points_m[:, order] * flip, inputs=inputs, up=up)
    piece = column(whole_scene(lying, recipe), 150, np.random.default_rng(0))
    upright = column(whole_scene(map_scene, recipe), 150, np.random.default_rng(0))
    level = np.delete(piece.coords.numpy(), axis, axis=1)
    assert np.ptp(level, axis=0).max() < 20
    middle = map_scene.coords[np.random.default_rng(0).integers(len(coords)), :2]
    off = [np.abs(map_scene.coords[p.points, :2] - middle).max(1) for p in (piece, upright)]
    np.testing.assert_array_equal(np.sort(off[0]), np.sort(off[1]))
    seen = set()
    for seed in range(12):
        got = augmented(piece, recipe, np.random.default_rng(seed))
        np.testing.assert_array_equal(got.coords[:, axis], piece.coords[:, axis])
        torch.testing.assert_close(got.inputs[:, -3 + axis], piece.inputs[:, -3 + axis])
        seen.add(tuple(got.coords[7].tolist()))
    assert len(seen) > 3


def test_the_way_up_comes_from_the_shard(maps, tmp_path):
    scene = load_scene(maps, "room_a")
    save_scene(tmp_path, type(scene)(**{**vars(scene), "about": {**scene.about, "up": [0, -2.0, 0]}}))
    assert Shards(tmp_path, "known", Recipe.preset("robot", rank=0)).scene("room_a").up == (0, -1, 0)
    assert Shards(maps, "known", Recipe.preset("robot", rank=0)).scene("room_a").up == (0, 0, 1)


def test_weakened_semantics_leave_geometry_alone(map_scene):
    recipe = Recipe.preset("robot", semantic_drop=0.3, semantic_noise=0.0)
    shares = []
    for seed in range(20):
        got = augmented(whole_scene(map_scene, recipe), recipe, np.random.default_rng(seed))
        shares.append(float((got.inputs[:, :12] == 0).all(1).float().mean()))
        assert float(got.inputs[:, -3:].norm(dim=1).min()) > 0.9
    assert shares.count(1.0) >= 2 and 0.2 < np.median([s for s in shares if s < 1]) < 0.4


def test_sampled_voxels_hold_means_of_the_sampled_points_alone(scans, scan_scene):
    recipe = Recipe.preset("official_code", random_frame=False, macro=12, micro=4, neighbors=24, anchors=30)
    rng = np.random.default_rng(0)
    piece = draw_piece(scan_scene, recipe, rng)
    samples = sample_piece(piece, recipe, rng, torch.device("cpu"))
    part, place = only_sampled(piece, samples.rows(), recipe, rng)
    assert len(part) == len(samples.rows()) < len(piece) and int((place >= 0).sum()) == len(part)
    assert set(part.points.tolist()) == set(samples.rows().tolist())
    features, points = load_scene(scans, "scan_a").features.astype(np.float32), scan_scene.points_m[part.points]
    voxel = part.coords[part.voxel_of[3]].numpy()
    inside = part.points[np.all(np.floor(points / 0.02) == voxel, axis=1)]
    np.testing.assert_allclose(part.inputs[part.voxel_of[3], :12].numpy(), features[inside].mean(0), atol=1e-3)
    batch = make_batch([scan_scene], recipe, np.random.default_rng(0))
    assert len(batch.coords) == len(part.coords)
    everything = torch.cat([batch.anchors, batch.positives, batch.negatives.reshape(-1)])
    assert torch.equal(torch.unique(everything), torch.arange(len(batch.coords)))


def test_random_frames_turn_and_scale_scan_points_anew_each_time(scan_scene):
    recipe = Recipe.preset("paper", random_frame=True)
    rng = np.random.default_rng(0)
    extents = [np.ptp(draw_piece(scan_scene, recipe, rng).coords.numpy(), axis=0) for _ in range(6)]
    assert len({tuple(extent.tolist()) for extent in extents}) > 3
    still = Recipe.preset("paper")
    assert torch.equal(draw_piece(scan_scene, still, rng).coords, draw_piece(scan_scene, still, rng).coords)


def test_pieces_of_a_batch_do_not_touch_and_share_no_samples(maps, tiny_robot):
    recipe = Recipe.preset("robot", **tiny_robot)
    shards = Shards(maps, "known", recipe)
    batch = make_batch([shards.scene(name) for name in shards.names], recipe, np.random.default_rng(0))
    assert len(batch.coords) == 800 and len(batch.anchors) == 100
    half = batch.anchors < 400
    assert int(half.sum()) == 50
    for part in (batch.positives, batch.negatives):
        part = part.reshape(100, -1)
        assert bool((part[half] < 400).all()) and bool((part[~half] >= 400).all())
    assert int(batch.coords[400:, 0].min() - batch.coords[:400, 0].max()) > 1000
    again = make_batch([shards.scene(name) for name in shards.names], recipe, np.random.default_rng(0))
    assert all(torch.equal(a, b) for a, b in zip(list(vars(batch).values())[:-1], vars(again).values(), strict=False))


def test_as_many_pieces_as_a_step_may_have_fit_beside_each_other(map_scene, tiny_robot):
    """Coordinates end at 2^20."""
    recipe = Recipe.preset("robot", **{**tiny_robot, "rank": 0, "crops": 64})
    batch = make_batch([map_scene] * 64, recipe, np.random.default_rng(0))
    assert len(batch.coords) == 64 * 400 and int(batch.coords.max()) < 2**20 - 1000


def test_negatives_that_the_teacher_takes_for_the_same_are_not_pushed_away(maps, tiny_robot):
    """The known teacher: usable negatives are of other objects, same neighbours of the own one."""
    recipe = Recipe.preset("robot", **{**tiny_robot, "crop": 10**6, "crops": 1})
    shards = Shards(maps, "known", recipe)
    batch = make_batch([shards.scene("room_a")], recipe, np.random.default_rng(0))
    instances = torch.from_numpy(load_scene(maps, "room_a").instances)
    assert bool((instances[batch.positives] == instances[batch.anchors]).all())
    own = instances[batch.negatives] == instances[batch.anchors][:, None]
    assert bool(own[~batch.usable].any()) and not bool(own[batch.usable].any())
    same = instances[batch.neighbors] == instances[batch.rows][:, None]
    assert torch.equal(batch.same, same) and bool(batch.known.all())


def test_scan_points_are_scored_in_voxels(scans, tiny_robot):
    recipe = Recipe.preset("robot", **{**tiny_robot, "crop": 10**6, "crops": 1, "voxel_size_m": 0.02, "augment": False})
    batch = make_batch([Shards(scans, "known", recipe).scene("scan_a")], recipe, np.random.default_rng(0))
    assert len(batch.coords) * 4 == batch.points
    instances = load_scene(scans, "scan_a").instances
    piece = whole_scene(Shards(scans, "known", recipe).scene("scan_a"), recipe)
    of_voxel = torch.from_numpy(instances)[piece.first]
    assert torch.equal(batch.same, of_voxel[batch.neighbors] == of_voxel[batch.rows][:, None])
    assert len(torch.unique(batch.rows)) == len(batch.rows)


def test_the_basis_keeps_what_features_span_and_goes_back_in_the_first_layer():
    rng = np.random.default_rng(0)
    features = (rng.standard_normal((500, 5)) @ rng.standard_normal((5, 12))).astype(np.float32)
    basis = semantic_basis([features], 9).astype(np.float64)
    assert basis.shape == (12, 5)
    back = features @ basis @ np.linalg.pinv(basis)
    np.testing.assert_allclose(back, features, atol=1e-3)
    kernel = torch.randn(27, 5 + 6, 4)
    full = expanded(kernel, torch.from_numpy(basis).float())
    x, geometry = torch.from_numpy(features[:7]), torch.randn(7, 6)
    compact = torch.cat([x @ torch.from_numpy(basis).float(), geometry], 1)
    torch.testing.assert_close(torch.cat([x, geometry], 1) @ full[3], compact @ kernel[3], atol=1e-3, rtol=1e-3)
