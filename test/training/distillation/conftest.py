"""Small scenes to distil from: a floor, a wall and two boxes on it, with features that leak over borders."""

import numpy as np
import pytest

from training.scenes.prepared import PreparedScene, save_scene

CHANNELS = 12
_NORMALS = {1: (0, 0, 1), 2: (0, 1, 0), 3: (1, 0, 0), 4: (-1, 0, 0)}


def surfaces(size):
    """{instance: (n, 3) voxels} of floor, wall and two boxes."""
    grid = np.stack(np.meshgrid(*[np.arange(size)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
    floor = np.c_[grid, np.zeros(len(grid), int)]
    wall = np.c_[grid[:, 0], np.zeros(len(grid), int), grid[:, 1] + 1]
    parts = {1: floor, 2: wall[wall[:, 2] < size // 2]}
    for instance, corner in ((3, (3, 4)), (4, (size - 8, size - 8))):
        box = np.stack(np.meshgrid(*[np.arange(5)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
        shell = box[(box[:, :2] == 0).any(1) | (box[:, :2] == 4).any(1) | (box[:, 2] == 4)]
        parts[instance] = shell + np.array([*corner, 1])
    return parts


def toy_scene(name="room_a", seed=0, size=20, voxel_size_m=0.04, channels=CHANNELS, backbone="toy:1"):
    """Map voxels in key order; ``voxel_size_m`` 0 gives a scan of four points a voxel of 2 cm instead."""
    rng = np.random.default_rng(seed)
    parts = surfaces(size)
    coords = np.concatenate(list(parts.values())).astype(np.int32)
    instances = np.concatenate([np.full(len(part), i) for i, part in parts.items()]).astype(np.int32)
    order = np.lexsort(coords.T[::-1])
    coords, instances = coords[order], instances[order]
    edge = voxel_size_m or 0.02
    points = (coords + 0.5) * edge
    if not voxel_size_m:
        points = np.repeat(points, 4, axis=0) + rng.uniform(-0.4, 0.4, (4 * len(points), 3)) * edge
        instances = np.repeat(instances, 4)
    said = np.random.default_rng(7).standard_normal((5, channels))
    features = 0.5 * said[instances] + 1.5 * rng.standard_normal((len(points), channels))
    colour = np.random.default_rng(8).integers(90, 160, (5, 3))[instances] + rng.integers(-60, 60, (len(points), 3))
    normals = np.array([(0, 0, 0), *_NORMALS.values()])[instances]
    return PreparedScene(
        name,
        points.astype(np.float32),
        colour.astype(np.uint8),
        normals.astype(np.float16),
        features.astype(np.float16),
        np.ones(len(points), np.float32),
        (instances - 1).astype(np.uint8),
        instances,
        {"backbone": backbone, "text_fingerprint": "toy", "voxel_size_m": voxel_size_m, "source": "toy"},
    )


@pytest.fixture(scope="session")
def toy():
    """``toy_scene``."""
    return toy_scene


@pytest.fixture(scope="session")
def maps(tmp_path_factory):
    """A folder of two mapped rooms. The ``known`` teacher needs no shards of its own."""
    folder = tmp_path_factory.mktemp("maps")
    for seed, name in enumerate(("room_a", "room_b")):
        save_scene(folder, toy_scene(name, seed))
    return folder


@pytest.fixture(scope="session")
def scans(tmp_path_factory):
    """A folder of two scanned rooms."""
    folder = tmp_path_factory.mktemp("scans")
    for seed, name in enumerate(("scan_a", "scan_b")):
        save_scene(folder, toy_scene(name, seed, voxel_size_m=0.0))
    return folder


@pytest.fixture(scope="session")
def tiny():
    """Changes that make any preset small."""
    return {"hidden": 8, "out": 8, "blocks": 1, "macro": 12, "micro": 4, "neighbors": 24, "anchors": 100}


@pytest.fixture(scope="session")
def tiny_robot(tiny):
    """Changes for a small ``robot``."""
    return {**tiny, "rank": 6, "crop": 400, "crops": 2, "steps": 6, "warmup_epochs": 1}
