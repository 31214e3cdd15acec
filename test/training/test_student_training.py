"""Training a student: rooms, crops, samples, a step, resuming, export; and that the shipped one helps."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from geopurify_core.config import PurificationConfig
from geopurify_core.datasets.synthetic.kinds import CLASS_NAMES
from geopurify_core.errors import DatasetError
from geopurify_core.mapping.snapshot import MapSnapshot
from geopurify_core.purification.affinity.build import Affinity
from geopurify_core.purification.student.checkpoint import load_student, shipped_student
from geopurify_core.purification.student.inputs import student_inputs
from geopurify_core.purification.update.compute import purify_snapshot
from geopurify_core.vision.nano import NanoBackbone
from training import student_eval
from training.nano.train import Recipe as NanoRecipe
from training.nano.views import FIRST_TRAINING_SEED, VALIDATION_SEEDS
from training.student import Recipe, Scenes, Trainer, crop_at, learning_rate, loss_at, settle, train
from training.student_data import (
    Crop,
    augment,
    draw_crop,
    draw_rows,
    group_samples,
    groups_of,
    joined,
    nearest,
    prepare,
    semantic_basis,
)
from training.student_export import export
from training.student_scenes import (
    CHOICE_SEEDS,
    EVALUATION_SEEDS,
    TRAINING_SEEDS,
    Scene,
    check_seeds,
    load_scene,
    map_apartment,
    save_scene,
    walk_of,
)

TINY = Recipe(apartments=1, rank=4, hidden=8, embedding=6, blocks=1, steps=4, crop=300, rows=64, neighbors=24, seed=2)
FLOOR, CHAIR = CLASS_NAMES.index("floor"), CLASS_NAMES.index("chair")


def toy_scene(seed=0, channels=12, seen=4):
    """A floor with two boxes on it; features lie in ``seen`` dimensions and are noisy."""
    rng = np.random.default_rng(seed)
    floor = [(x, y, 0) for x in range(30) for y in range(30)]
    boxes = [[(x + o, y + o, z) for x in range(6) for y in range(6) for z in range(1, 6)] for o in (4, 16)]
    coords = np.array([*floor, *boxes[0], *boxes[1]], dtype=np.int32)
    instance = np.repeat([1, 2, 3], [len(floor), len(boxes[0]), len(boxes[1])]).astype(np.int32)
    instance[::97] = 0
    category = np.where(instance == 0, 255, np.where(instance == 1, FLOOR, CHAIR)).astype(np.uint8)
    shuffle = rng.permutation(len(coords))
    coords, instance, category = coords[shuffle], instance[shuffle], category[shuffle]
    means, spread = rng.standard_normal((4, seen)), np.random.default_rng(99).standard_normal((seen, channels))
    features = (means[instance] + 0.5 * rng.standard_normal((len(coords), seen))) @ spread
    normals = np.zeros((len(coords), 3), np.float16)
    normals[:, 2] = 1
    stamps = np.zeros(len(coords), np.int64)
    snapshot = MapSnapshot(
        coords, features.astype(np.float16), np.ones(len(coords), np.float32),
        (60 * instance[:, None] + rng.integers(0, 20, (len(coords), 3))).astype(np.uint8), normals, stamps, stamps,
        0.04, "map", 1, 1, "toy", "toy",
    )  # fmt: skip
    return Scene(snapshot, instance, category, seed, "1/1")


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    paths = []
    for seed in (0, 1):
        paths.append(tmp_path_factory.mktemp("toys") / f"{seed}.safetensors")
        save_scene(toy_scene(seed), paths[-1])
    basis = semantic_basis(paths, 4)
    return Scenes(tuple(prepare(load_scene(path), basis) for path in paths), basis)


# -- scenes ----------------------------------------------------------------------------------------------------------


def test_rooms_for_training_choice_and_scores_are_apart_from_each_other_and_from_nanos():
    nano = set(range(FIRST_TRAINING_SEED, FIRST_TRAINING_SEED + NanoRecipe().apartments)) | set(VALIDATION_SEEDS)
    groups = [nano, set(range(10)), set(TRAINING_SEEDS), set(CHOICE_SEEDS), set(EVALUATION_SEEDS)]
    assert len(set.union(*groups)) == sum(map(len, groups))
    check_seeds([*TRAINING_SEEDS, *CHOICE_SEEDS])
    for taken in (3, 10, 29, 110, 1000, 5000):
        with pytest.raises(DatasetError, match="seeds"):
            check_seeds([300, taken])


def test_walks_differ_and_end_early():
    walks = [walk_of(seed, 0) for seed in TRAINING_SEEDS]
    assert walks == [walk_of(seed, 0) for seed in TRAINING_SEEDS]
    assert len({length for length, _ in walks}) > 30
    assert all(20 <= used <= length for length, used in walks) and min(u / n for n, u in walks) < 0.5


def test_a_shard_holds_everything_and_a_damaged_one_is_named(tmp_path):
    scene, path = toy_scene(), tmp_path / "00300_0.safetensors"
    save_scene(scene, path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    again = load_scene(path)
    for name in ("coords", "features", "weight", "rgb", "normals", "geometry_weight"):
        np.testing.assert_array_equal(getattr(again.snapshot, name), getattr(scene.snapshot, name))
    np.testing.assert_array_equal(again.instance, scene.instance)
    np.testing.assert_array_equal(again.category, scene.category)
    assert (again.seed, again.frames, again.snapshot.backbone) == (0, "1/1", "toy")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DatasetError, match="collect it again"):
        load_scene(path)


def test_objects_are_groups_of_their_own_and_walls_are_one():
    scene = toy_scene()
    wall = CLASS_NAMES.index("wall")
    scene = replace(scene, category=np.where(scene.instance == 2, wall, scene.category).astype(np.uint8))
    scene.category[scene.instance == 3] = wall
    groups = groups_of(scene)
    assert len(np.unique(groups[np.isin(scene.instance, (2, 3))])) == 1
    assert (groups[scene.instance == 0] == 0).all() and len(np.unique(groups)) == 3
    assert len(np.unique(groups_of(toy_scene()))) == 4


# -- crops and samples -----------------------------------------------------------------------------------------------


def test_the_basis_loses_nothing_that_the_backbone_can_say(toys):
    features = toy_scene(0).snapshot.features.astype(np.float64)
    basis = toys.basis.astype(np.float64)
    back = features @ basis @ np.linalg.pinv(basis)
    assert np.abs(back - features).max() < 0.01 * np.abs(features).max()


def test_a_crop_is_a_column_of_neighbours(toys):
    scene = toys.scenes[0]
    crop = draw_crop(scene, 200, np.random.default_rng(0))
    assert crop.inputs.shape == (200, 10) and len(crop.coords) == len(crop.groups) == 200
    width = (crop.coords[:, :2].max(0).values - crop.coords[:, :2].min(0).values).max()
    assert int(width) < 20
    assert len(draw_crop(scene, 10**6, np.random.default_rng(0)).coords) == len(scene)


def test_augmentation_turns_coordinates_and_normals_alike(toys):
    """An object's normals keep pointing the same way relative to the object: the sign of x·ny - y·nx may only flip
    together with the mirror, and distances between voxels stay."""
    scene = toys.scenes[0]
    crop = draw_crop(scene, 400, np.random.default_rng(1))
    offset = crop.coords[:, :2].float() - crop.coords[:, :2].float().mean(0)
    outward = offset / offset.norm(dim=1, keepdim=True)
    inputs = crop.inputs.clone()
    inputs[:, -3:-1], inputs[:, -1] = outward, 0
    for seed in range(12):
        got = augment(Crop(crop.coords, inputs, crop.groups), np.random.default_rng(seed), 0.0, 0.0)
        moved = got.coords[:, :2].float() - got.coords[:, :2].float().mean(0)
        torch.testing.assert_close(got.inputs[:, -3:-1] * moved.norm(dim=1, keepdim=True), moved, atol=1e-4, rtol=1e-4)
        assert torch.equal(got.groups, crop.groups) and bool((got.inputs[:, -6:-3] >= 0).all())
    assert torch.equal(inputs[:, :4], crop.inputs[:, :4])


def test_weakened_semantics_leave_geometry_alone(toys):
    crop = draw_crop(toys.scenes[0], 400, np.random.default_rng(1))
    got = augment(crop, np.random.default_rng(3), 0.3, 0.0)
    gone = (got.inputs[:, :4] == 0).all(1)
    assert 0.15 < float(gone.float().mean()) < 0.45 or bool(gone.all())
    assert bool((augment(crop, np.random.default_rng(3), 1.0, 0.0).inputs[:, :4] == 0).all())


def test_crops_of_one_step_do_not_touch_and_share_no_object(toys):
    crops = [draw_crop(scene, 300, np.random.default_rng(4)) for scene in toys.scenes]
    both = joined(crops)
    assert len(both.coords) == 600
    near = nearest(both.coords, torch.arange(300), 20)
    assert int(near.max()) < 300
    things = [set(part[(part > 0) & (part < 1_000_000)].tolist()) for part in (both.groups[:300], both.groups[300:])]
    assert not things[0] & things[1]
    assert set(both.groups[both.groups >= 1_000_000].tolist()) == {1_000_000 + FLOOR}


def test_rows_are_distinct_known_and_favour_the_small():
    groups = torch.tensor([0] * 50 + [1] * 900 + [2] * 100)
    rows = draw_rows(groups, 200, np.random.default_rng(0))
    assert len(set(rows.tolist())) == 200 and not bool((groups[rows] == 0).any())
    assert int((groups[rows] == 2).sum()) > 200 * 100 / 1000 * 1.5
    assert len(draw_rows(groups, 5000, np.random.default_rng(0))) == 1000
    assert len(draw_rows(torch.zeros(9, dtype=torch.int64), 5, np.random.default_rng(0))) == 0


def test_known_groups_give_positives_of_the_own_and_negatives_of_other_groups(toys):
    crop = draw_crop(toys.scenes[0], 500, np.random.default_rng(2))
    rng = np.random.default_rng(0)
    rows = draw_rows(crop.groups, 80, rng)
    near = nearest(crop.coords, rows, 24)
    got = group_samples(crop.groups, rows, near, 10, 4, rng)
    own = crop.groups[got.anchors]
    assert len(got.anchors) > 60 and got.negatives.shape[1] == 14
    assert torch.equal(crop.groups[got.positives], own) and not bool((got.positives == got.anchors).any())
    assert not bool((crop.groups[got.negatives] == own[:, None]).any())
    assert not bool((crop.groups[got.negatives] == 0).any())
    for anchor, negatives in zip(got.anchors.tolist(), got.negatives, strict=True):
        around = near[rows.tolist().index(anchor)]
        strangers = [j for j in around.tolist() if crop.groups[j] not in (0, crop.groups[anchor])]
        close = [j for j in negatives[10:].tolist() if j in strangers]
        assert len(close) >= min(4, len(strangers))


def test_a_crop_of_one_object_gives_no_samples():
    groups, rows = torch.ones(30, dtype=torch.int64), torch.arange(5)
    near = torch.arange(20).expand(5, 20)
    assert len(group_samples(groups, rows, near, 6, 4, np.random.default_rng(0)).anchors) == 0


# -- training --------------------------------------------------------------------------------------------------------


def test_a_step_is_a_function_of_seed_and_step(toys):
    first, second = (crop_at(toys, 3, TINY, np.random.default_rng([TINY.seed, 3])) for _ in range(2))
    assert torch.equal(first.inputs, second.inputs) and torch.equal(first.coords, second.coords)
    other = crop_at(toys, 4, TINY, np.random.default_rng([TINY.seed, 4]))
    assert first.inputs.shape != other.inputs.shape or not torch.equal(first.inputs, other.inputs)


@pytest.mark.parametrize("parts", [{"affinity": 1.0}, {"pull": 1.0}, {"contrast": 1.0}])
def test_each_part_of_the_loss_can_be_learned(toys, parts):
    recipe = replace(TINY, **{"affinity": 0.0, "pull": 0.0, "contrast": 0.0, **parts}, steps=30, lr=5e-3)
    trainer = Trainer(recipe, toys)
    before = loss_at(trainer.net, toys, 1000, recipe)[0].item()
    for _ in range(30):
        trainer.advance()
    assert loss_at(trainer.net, toys, 1000, recipe)[0].item() < 0.8 * before


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(toys, tmp_path):
    whole = train(TINY, toys, tmp_path / "whole")
    half = Trainer(TINY, toys)
    for _ in range(2):
        half.advance()
    (tmp_path / "half").mkdir()
    half.save(tmp_path / "half")
    resumed = train(TINY, toys, tmp_path / "half")
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert json.loads((tmp_path / "whole" / "log.jsonl").read_text().splitlines()[-1])["step"] == 4
    assert not Trainer(replace(TINY, lr=1.0), toys).resume(tmp_path / "half")


def test_settling_takes_statistics_of_the_crops_as_they_are(toys):
    trainer = Trainer(TINY, toys)
    settle(trainer.net, toys.scenes, replace(TINY, crop=10**6), crops=2)
    norm = trainer.net.input_layer[1].bn
    assert int(norm.num_batches_tracked) == 2 and norm.momentum == 0.1 and not trainer.net.training
    means = []
    for scene in toys.scenes:
        with torch.no_grad():
            x = trainer.net._prepared(torch.from_numpy(scene.coords), torch.from_numpy(scene.inputs).float())[0]
            means.append(trainer.net.input_layer[0](x).features.mean(0))
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0), atol=1e-4, rtol=1e-3)


def test_the_exported_student_is_the_trained_one_on_full_features(tmp_path, monkeypatch):
    """What the basis spans is all that matters, and the file says for which backbone it is."""
    scene = toy_scene(0, channels=384, seen=6)
    folder = tmp_path / "train"
    folder.mkdir()
    save_scene(scene, folder / f"{TRAINING_SEEDS[0]:05d}_0.safetensors")
    basis = semantic_basis(sorted(folder.iterdir()), 6)
    scenes = Scenes((prepare(scene, basis),), basis)
    recipe = replace(TINY, rank=6, steps=2)
    train(recipe, scenes, tmp_path / "run")
    student = load_student(export(tmp_path / "run", tmp_path / "student.safetensors"))
    assert student.backbone == NanoBackbone().fingerprint and student.feature_dim == 384
    assert student.voxel_size_m == 0.04 and "seeds 300" in student.info.trained_on
    prepared = scenes.scenes[0]
    trainer = Trainer(recipe, scenes)
    assert trainer.resume(tmp_path / "run")
    settle(trainer.average, scenes.scenes, recipe)
    compact = trainer.average.embed(torch.from_numpy(prepared.coords), torch.from_numpy(prepared.inputs).float())
    ordered = student_eval.in_key_order(scene).snapshot
    full = student.network.embed(ordered.coords, student_inputs(ordered))
    torch.testing.assert_close(full, compact, atol=0.02 * float(compact.abs().max()), rtol=0.02)


def test_learning_rate_rises_and_falls():
    rates = [learning_rate(step, Recipe(steps=100, lr=1.0)) for step in range(100)]
    assert rates[0] < rates[4] == max(rates) and rates[-1] < 0.02


# -- evaluation ------------------------------------------------------------------------------------------------------


def test_pooling_in_a_basis_equals_pooling_all_channels():
    from geopurify_core.purification.affinity.build import build_affinity
    from geopurify_core.purification.pooling.pool import pool

    scene = student_eval.in_key_order(toy_scene(0))
    embeddings = np.random.default_rng(0).standard_normal((len(scene), 5)).astype(np.float32)
    affinity = build_affinity(scene.snapshot.coords, embeddings, k=24)
    for steps, pooled in student_eval.pooled_maps(scene.snapshot, affinity, (1, 5)):
        expected = pool(scene.snapshot.features.astype(np.float32), affinity, steps)
        np.testing.assert_allclose(pooled.features.astype(np.float32), expected, atol=2e-2, rtol=2e-3)


def test_summary_tells_the_gain_beyond_raw():
    rooms = [
        {"raw": {"mIoU": 40.0, "mAcc": 50.0, "accuracy": 70.0}, "student": {"mIoU": a, "mAcc": 60.0, "accuracy": 75.0}}
        for a in (44.0, 48.0)
    ]
    table = student_eval.summary(rooms)
    assert table["student"]["mIoU"] == "46.0 ± 2.8"
    assert table["student"]["gain"] == "+6.0 ± 2.8, worst +4.0"
    assert student_eval.seeds_in("10-12,15") == [10, 11, 12, 15]


@pytest.mark.slow
def test_the_shipped_student_helps_in_a_room_that_nobody_trained_on():
    backbone = NanoBackbone()
    path = shipped_student(backbone.fingerprint)
    assert path is not None, "no student is shipped for nano's present weights: train one (docs/student.md)"
    student = load_student(path)
    scene = student_eval.in_key_order(map_apartment(EVALUATION_SEEDS[0], 120, 24))
    purification = purify_snapshot(scene.snapshot, student, PurificationConfig())
    neighbors = purification.affinity.neighbors
    even = Affinity(neighbors, np.full(neighbors.shape, 1 / neighbors.shape[1], dtype=np.float32))
    ((_, blurred),) = student_eval.pooled_maps(scene.snapshot, even, (purification.steps,))
    maps = {"raw": scene.snapshot, "purified": purification.as_snapshot(), "blurred": blurred}
    miou = {name: student_eval.score(made, scene.category, backbone).miou for name, made in maps.items()}
    assert miou["purified"] > miou["raw"] + 0.03 and miou["purified"] > miou["blurred"] + 0.05, miou
