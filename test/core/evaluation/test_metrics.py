"""Segmentation scores against scikit-learn and against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as reference

from geopurify_core.errors import InvalidConfigError
from geopurify_core.evaluation.metrics import confusion_matrix, scores

NAMES = ["wall", "floor", "chair"]


@pytest.mark.parametrize("seed", range(5))
def test_equal_to_scikit_learn_on_random_labels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, predicted = rng.integers(0, 6, 2000), rng.integers(0, 6, 2000)
    truth[:50] = 255
    kept = truth != 255
    names = [str(i) for i in range(6)]
    confusion = confusion_matrix(truth, predicted, 6)
    result = scores(confusion, names)
    np.testing.assert_array_equal(confusion[:, :6], reference.confusion_matrix(truth[kept], predicted[kept]))
    iou = reference.jaccard_score(truth[kept], predicted[kept], average=None)
    np.testing.assert_allclose(list(result.iou.values()), iou, atol=1e-12)
    assert result.macc == pytest.approx(reference.balanced_accuracy_score(truth[kept], predicted[kept]), abs=1e-12)
    assert result.accuracy == pytest.approx(reference.accuracy_score(truth[kept], predicted[kept]), abs=1e-12)


def test_absent_classes_count_zero_only_in_the_protocols_mean() -> None:
    result = scores(confusion_matrix([0, 0, 1, 255], [0, 1, 1, 2], 3), NAMES)
    assert result.iou == {"wall": 0.5, "floor": 0.5}
    assert result.miou == 0.5
    assert result.miou_all == pytest.approx(1 / 3)
    assert result.macc == 0.75


def test_a_point_without_prediction_is_a_miss_of_its_class_and_nobodys_false_alarm() -> None:
    confusion = confusion_matrix([0, 0, 1], [0, -1, 1], 3)
    assert confusion[0].tolist() == [1, 0, 0, 1]
    assert scores(confusion, NAMES).iou == {"wall": 0.5, "floor": 1.0}


def test_wrong_lengths_and_unknown_labels_are_refused() -> None:
    with pytest.raises(InvalidConfigError, match="predicted"):
        confusion_matrix([0, 1], [0], 3)
    with pytest.raises(InvalidConfigError, match="truth"):
        confusion_matrix([0, 3], [0, 0], 3)
