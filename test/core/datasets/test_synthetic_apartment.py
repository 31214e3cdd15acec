"""The procedural apartment: repeatable, complete, free of collisions, and exact about what it shows."""

from functools import lru_cache

import numpy as np
import pytest

from geopurify_core.camera import check_pose
from geopurify_core.datasets import open_dataset
from geopurify_core.datasets.synthetic import CLASS_NAMES, UNLABELLED, Apartment, SyntheticDataset
from geopurify_core.datasets.synthetic.kinds import SCANNET20, class_id, kinds
from geopurify_core.errors import DatasetError

SEEDS = (0, 1, 15)
apartment_of = lru_cache(Apartment.generate)


@pytest.fixture(scope="module")
def walk():
    return SyntheticDataset(seed=0, num_frames=48, width=160, height=120)


@pytest.fixture(scope="module")
def exact():
    return SyntheticDataset(seed=0, num_frames=48, width=160, height=120, noise=False)


def _map_points(frame, depth_m):
    points = frame.depth_camera.back_project(depth_m)[depth_m > 0]
    return points @ frame.T_map_camera[:3, :3].T + frame.T_map_camera[:3, 3]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seed_always_gives_the_same_apartment(seed):
    first, second = apartment_of(seed), Apartment.generate(seed)
    assert first.objects == second.objects
    for name in ("center_m", "half_m", "rotation", "materials", "lights"):
        np.testing.assert_array_equal(getattr(first.primitives, name), getattr(second.primitives, name))


def test_another_seed_gives_another_apartment():
    assert apartment_of(0).objects != apartment_of(1).objects


@pytest.mark.parametrize("seed", SEEDS)
def test_every_apartment_has_its_rooms_and_at_least_18_scannet_classes(seed):
    apartment = apartment_of(seed)
    assert {room.name for room in apartment.rooms} == {"living room", "kitchen", "bedroom", "bathroom", "study"}
    assert len(apartment.doors) == len(apartment.rooms) - 1
    assert len({item.class_name for item in apartment.objects} & set(SCANNET20)) >= 18


LARGE = (
    "bed", "wardrobe", "sofa", "armchair", "bookshelf", "refrigerator", "kitchen cabinet", "bathtub", "toilet",
    "desk", "sideboard", "dresser", "washing machine", "table", "nightstand",
)  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
def test_furniture_stays_in_its_room_and_apart(seed):
    apartment = apartment_of(seed)
    rooms = {room.name: room for room in apartment.rooms}
    large = [item for item in apartment.objects if item.kind in LARGE]
    low = np.array([np.array(item.center_m) - np.array(item.size_m) / 2 for item in large])
    high = np.array([np.array(item.center_m) + np.array(item.size_m) / 2 for item in large])
    for item, a, b in zip(large, low, high, strict=True):
        assert (a[:2] > rooms[item.room].low - 0.05).all() and (b[:2] < rooms[item.room].high + 0.05).all()
    overlap = (np.minimum(high[:, None], high[None]) - np.maximum(low[:, None], low[None])).min(axis=2)
    np.fill_diagonal(overlap, -1)
    assert overlap.max() <= 0


def test_kinds_and_classes_agree():
    assert set(SCANNET20) <= set(CLASS_NAMES)
    assert {class_id(kind) for kind in kinds()} == set(range(len(CLASS_NAMES)))


def test_frames_have_the_size_asked_for_and_rising_stamps(walk):
    frames = [walk[i] for i in (0, 1, 2)]
    assert len(walk) == 48
    for frame in frames:
        assert frame.rgb.shape == (120, 160, 3) and frame.depth_m.shape == (120, 160)
        assert frame.camera.width == 160
    stamps = np.diff([frame.stamp_ns for frame in frames])
    assert (stamps == 100_000_000).all()


def test_frames_are_repeatable_and_labels_too(walk):
    again = SyntheticDataset(seed=0, num_frames=48, width=160, height=120)
    for i in (5, 30):
        np.testing.assert_array_equal(walk[i].rgb, again[i].rgb)
        np.testing.assert_array_equal(walk[i].depth_m, again[i].depth_m)
        np.testing.assert_array_equal(walk.labels(i)[1], again.labels(i)[1])


def test_poses_are_rigid_at_walking_height_and_move_smoothly(walk):
    for pose in walk.poses:
        check_pose(pose)
        assert 1.2 <= pose[2, 3] <= 1.5
    rooms = walk.apartment.rooms
    low, high = np.min([r.low for r in rooms], axis=0), np.max([r.high for r in rooms], axis=0)
    eyes = SyntheticDataset(seed=0, num_frames=400, width=16, height=16).poses[:, :3, 3]
    assert (eyes[:, :2] > low).all() and (eyes[:, :2] < high).all()
    assert np.linalg.norm(np.diff(eyes, axis=0), axis=1).max() < 0.3


def test_the_walk_visits_every_room_and_shows_at_least_18_classes(walk):
    seen = set()
    for i in range(len(walk)):
        seen |= set(np.unique(walk.labels(i)[0]))
    assert len(seen & set(range(len(SCANNET20)))) >= 18
    for room in walk.apartment.rooms:
        inside = (walk.poses[:, :2, 3] > room.low) & (walk.poses[:, :2, 3] < room.high)
        assert inside.all(axis=1).any()


def test_the_camera_never_stands_inside_something():
    walk = SyntheticDataset(seed=3, num_frames=300, width=16, height=16)
    scene = walk.apartment.primitives
    for eye in walk.poses[:, :3, 3]:
        local = np.einsum("pij,pj->pi", scene.to_unit(), eye - scene.center_m)
        assert not (np.abs(local) < 1.0).all(axis=1).any()


def test_exact_depth_lies_on_the_surfaces_it_is_labelled_with(exact):
    for i in (3, 20, 40):
        frame, (classes, instance) = exact[i], exact.labels(i)
        points = _map_points(frame, frame.depth_m)
        seen = frame.depth_m > 0
        _check_in_boxes(exact, points, instance[seen])
        truth = exact.ground_truth(points)
        # Samples of two surfaces that touch are 3 cm apart, so labels near contacts may differ.
        assert (truth == classes[seen]).mean() > 0.93
        assert (truth == UNLABELLED).mean() < 0.01


def _check_in_boxes(dataset, points, instance) -> None:
    boxes = {item.instance: (np.array(item.center_m), np.array(item.size_m)) for item in dataset.objects}
    for k in np.unique(instance):
        center, size = boxes[int(k)]
        beyond = np.abs(points[instance == k] - center) - size / 2
        assert beyond.max() < 1e-3


def test_noisy_depth_has_holes_and_errors_that_grow_with_range(walk, exact):
    errors, ranges, holes = [], [], []
    for i in range(0, 48, 6):
        noisy, true = walk[i].depth_m, exact[i].depth_m
        valid = noisy > 0
        errors.append(np.abs(noisy - true)[valid])
        ranges.append(true[valid])
        holes.append(1 - valid.mean())
        assert noisy[valid].min() > 0.35 and noisy[valid].max() < 6.1
    error, z = np.concatenate(errors), np.concatenate(ranges)
    near, far = error[z < 1.5], error[z > 3.0]
    assert np.median(near) < 0.005 < np.median(far) < 0.05
    assert 0.005 < np.mean(holes) < 0.4


def test_points_far_from_everything_have_no_label(walk):
    assert walk.ground_truth(np.array([[50.0, 50.0, 50.0]])).tolist() == [UNLABELLED]
    assert walk.ground_truth_instances(np.array([[50.0, 50.0, 50.0]])).tolist() == [0]


def test_ground_truth_names_the_floor_and_the_ceiling(walk):
    x, y = walk.apartment.rooms[0].middle
    truth = walk.ground_truth(np.array([[x, y, 0.0], [x + 0.6, y, 2.5]]))
    assert CLASS_NAMES[truth[0]] in ("floor", "rug")
    assert CLASS_NAMES[truth[1]] in ("ceiling", "lamp")


def test_the_dataset_opens_by_name_and_iterates():
    dataset = open_dataset("synthetic:4", num_frames=3, width=32, height=24)
    direct = SyntheticDataset(4, num_frames=3, width=32, height=24)
    frames = list(dataset)
    assert len(dataset) == len(frames) == 3
    for frame, same in zip(frames, direct, strict=True):
        np.testing.assert_array_equal(frame.rgb, same.rgb)
    assert len(list(direct.frames(stride=2))) == 2


@pytest.mark.parametrize(
    ("options", "field"), [({"num_frames": 0}, "num_frames"), ({"width": 4}, "width"), ({"seed": -1}, "seed")]
)
def test_bad_options_are_named(options, field):
    with pytest.raises(DatasetError, match=field):
        SyntheticDataset(**options)
