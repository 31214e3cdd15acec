"""A toy apartment: a floor with two boxes, features as noisy as a backbone's, in the text space of nano."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from geopurify_core.datasets.synthetic.kinds import CLASS_NAMES, SCANNET20
from geopurify_core.purification.student.network import StudentAffinityNetwork
from geopurify_core.purification.student.trained import Student, StudentInfo
from geopurify_core.vision.nano import NanoBackbone
from training.experiments.scorespace import Texts
from training.scenes.prepared import PreparedScene

THINGS = ("floor", "chair", "bed")


def toy_scene(encoder, seed=0, name="apartment_0010"):
    """1200 voxels in shuffled order; instances 1 floor, 2 chair, 3 bed; some unknown; rows are noisy text vectors."""
    rng = np.random.default_rng(seed)
    floor = [(x, y, 0) for x in range(30) for y in range(28)]
    boxes = [[(x + o, y + o, z) for x in range(6) for y in range(6) for z in range(1, 6)] for o in (4, 16)]
    coords = np.array([*floor, *boxes[0], *boxes[1]])
    instance = np.repeat([1, 2, 3], [len(floor), len(boxes[0]), len(boxes[1])]).astype(np.int32)
    shuffle = rng.permutation(len(coords))
    coords, instance = coords[shuffle], instance[shuffle]
    instance[::97] = 0
    labels = np.array([255, *(CLASS_NAMES.index(thing) for thing in THINGS)], dtype=np.uint8)[instance]
    meant = encoder.encode_text(list(THINGS))[np.maximum(instance, 1) - 1]
    mistaken = encoder.encode_text(list(SCANNET20))[rng.integers(0, 20, len(coords))]
    share = rng.uniform(0.2, 1.0, (len(coords), 1))
    features = share * meant + (1 - share) * mistaken + 0.02 * rng.standard_normal(meant.shape)
    features *= rng.uniform(0.8, 1.0, (len(coords), 1))
    weight = rng.uniform(0.5, 3, len(coords)).astype(np.float32)
    features[5], weight[5] = 0, 0
    normals = np.tile(np.array([0, 0, 1], dtype=np.float16), (len(coords), 1))
    about = {"backbone": encoder.fingerprint, "text_fingerprint": encoder.text_fingerprint, "voxel_size_m": 0.04}
    return PreparedScene(
        name, ((coords + 0.5) * 0.04).astype(np.float32),
        (60 * instance[:, None] + rng.integers(0, 20, (len(coords), 3))).astype(np.uint8), normals,
        features.astype(np.float16), weight, labels, instance, about,
    )  # fmt: skip


@pytest.fixture(scope="session")
def encoder():
    return NanoBackbone()


@pytest.fixture(scope="session")
def texts(encoder):
    return Texts.of(SCANNET20, encoder)


@pytest.fixture
def scene(encoder):
    return toy_scene(encoder)


@pytest.fixture(scope="session")
def student(encoder):
    """Untrained, small."""
    torch.manual_seed(0)
    network = StudentAffinityNetwork(encoder.feature_dim + 6, 8, 6, 1).eval().requires_grad_(False)
    return Student(network, StudentInfo(encoder.fingerprint, encoder.feature_dim, 8, 6, 1), "student:toy")
