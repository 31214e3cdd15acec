"""The teacher that knows the objects, what every teacher's answer must be like, and teachers by name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from geopurify_core.errors import DatasetError, InvalidConfigError
from training.teachers.base import TEACHERS, PointCloud, TeacherFeatures, load_teacher
from training.teachers.known import KnownTeacher


def cloud(instances: list[int] | None) -> PointCloud:
    count = 6 if instances is None else len(instances)
    points = np.arange(3 * count, dtype=np.float32).reshape(count, 3)
    known = None if instances is None else np.array(instances, dtype=np.int32)
    return PointCloud(points, np.zeros((count, 3), np.uint8), np.zeros((count, 3), np.float32), known)


def cosines(features: TeacherFeatures) -> np.ndarray:
    dense = features.dense()
    dense /= np.linalg.norm(dense, axis=1, keepdims=True)
    return np.asarray(dense @ dense.T)


def test_points_of_one_instance_are_alike_and_others_are_not() -> None:
    features = KnownTeacher().describe(cloud([7, 7, 3, 3, 7, 12]))
    expected = np.equal.outer([7, 7, 3, 3, 7, 12], [7, 7, 3, 3, 7, 12])
    cosine = cosines(features)
    np.testing.assert_allclose(cosine[expected], 1, atol=1e-3)
    assert cosine[~expected].max() < 0.6
    assert len(features.rows) == 3


def test_points_of_no_instance_are_like_nothing() -> None:
    features = KnownTeacher().describe(cloud([0, 0, 5, 0, 5]))
    assert len(set(features.index)) == 4
    cosine = cosines(features)
    np.fill_diagonal(cosine, 0)
    assert cosine[2, 4] > 0.99
    cosine[[2, 4], [4, 2]] = 0
    assert cosine.max() < 0.6


def test_known_is_the_same_every_time_and_another_with_another_seed() -> None:
    scene = cloud([1, 2, 0, 2])
    assert np.array_equal(KnownTeacher(3).describe(scene).dense(), KnownTeacher(3).describe(scene).dense())
    assert not np.array_equal(KnownTeacher(3).describe(scene).dense(), KnownTeacher(4).describe(scene).dense())
    assert KnownTeacher(3).fingerprint != KnownTeacher(4).fingerprint


def test_known_needs_instances() -> None:
    with pytest.raises(DatasetError, match="instances"):
        KnownTeacher().describe(cloud(None))
    with pytest.raises(DatasetError, match="one for each of 3 points"):
        KnownTeacher().describe(replace(cloud([1, 2, 3]), instances=np.array([1, 2], dtype=np.int32)))


def test_negative_instances_are_none_too() -> None:
    features = KnownTeacher().describe(cloud([0, -1, -1, 4, 4, -3]))
    assert features.index[3] == features.index[4] and len(set(features.index)) == 5


def test_known_of_nothing_is_nothing() -> None:
    features = KnownTeacher().describe(cloud([]))
    assert len(features) == 0
    assert features.dense().shape[0] == 0


def test_dense_rows_follow_the_index() -> None:
    rows = np.array([[1, 2], [3, 4]], dtype=np.float16)
    features = TeacherFeatures(rows, np.array([1, 0, 1], dtype=np.int32))
    assert np.array_equal(features.dense(), np.float32([[3, 4], [1, 2], [3, 4]]))
    assert features.dense().dtype == np.float32


@pytest.mark.parametrize(
    "rows, index",
    [
        (np.zeros(3), np.zeros(3, np.int32)),
        (np.zeros((3, 2)), np.zeros((3, 1), np.int32)),
        (np.zeros((3, 2)), np.array([0, 3], np.int32)),
        (np.zeros((3, 2)), np.array([-1, 0], np.int32)),
        (np.array([[0.0, np.nan]]), np.array([0], np.int32)),
        (np.array([[0.0, np.inf]]), np.array([0], np.int32)),
    ],
)
def test_features_that_are_none_are_refused(rows: np.ndarray, index: np.ndarray) -> None:
    with pytest.raises(DatasetError, match="teacher features"):
        TeacherFeatures(rows, index)


def test_teachers_by_name() -> None:
    for name in ("geometric", "known"):
        assert name in TEACHERS
        teacher = load_teacher(name)
        assert teacher.name == name
        assert teacher.fingerprint
        assert teacher.licence
    assert load_teacher("known", seed=5).fingerprint == KnownTeacher(5).fingerprint


def test_unknown_teachers_and_options_are_refused() -> None:
    with pytest.raises(InvalidConfigError, match="geometric, sonata, known"):
        load_teacher("geometry")
    for name in ("geometric", "known"):
        with pytest.raises(InvalidConfigError, match="does not take"):
            load_teacher(name, radius=3)
