"""OpenScene's scores against naive loops, torchmetrics, and cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassConfusionMatrix

from geopurify_core.errors import InvalidConfigError
from geopurify_core.evaluation.metrics import IGNORE, confusion_matrix
from geopurify_core.evaluation.openscene import (
    NO_FEATURE,
    Reading,
    class_scores,
    predict,
    readings_of,
    summary,
    tally,
)
from geopurify_core.labels import LabelSet, load_label_set

TINY = LabelSet(
    "tiny", ("wall", "floor", "chair", "other"), (1, 2, 3, 4), np.zeros((4, 3), np.uint8), (("a",),) * 4,
    groups={"foreground": (2, 3)}, catch_all="other",
)  # fmt: skip
ALL = readings_of(TINY)[0]


@st.composite
def labelled(draw):
    """Classes, truth with ignored points, and predictions some of which say that there is no feature."""
    classes = draw(st.integers(1, 7))
    count = draw(st.integers(0, 60))
    truth = draw(st.lists(st.sampled_from([*range(classes), IGNORE]), min_size=count, max_size=count))
    predicted = draw(st.lists(st.sampled_from([*range(classes), NO_FEATURE]), min_size=count, max_size=count))
    return classes, np.array(truth, dtype=np.int64), np.array(predicted, dtype=np.int64)


def naive_openscene(truth, predicted, classes):
    """IoU and accuracy of each class, point by point."""
    iou, acc = [], []
    for i in range(classes):
        tp = fp = fn = total = 0
        for t, p in zip(truth, predicted, strict=True):
            if t == IGNORE:
                continue
            total += t == i
            tp += t == i and p == i
            fp += t != i and p == i
            fn += t == i and p not in (i, NO_FEATURE)
        iou.append(tp / (tp + fp + fn) if total and tp + fp + fn else 0.0)
        acc.append(tp / total if total else 0.0)
    return iou, acc


@settings(max_examples=60)
@given(labelled())
def test_own_confusion_matrix_is_that_of_torchmetrics(case):
    classes, truth, predicted = case
    ours = confusion_matrix(truth, predicted, classes)
    if not len(truth):
        assert not ours.any()
        return
    # torchmetrics knows no extra column: points without a feature are one class more, which is never true
    theirs = MulticlassConfusionMatrix(num_classes=classes + 1, ignore_index=IGNORE)
    column = torch.from_numpy(np.where(predicted == NO_FEATURE, classes, predicted))
    counted = theirs(column, torch.from_numpy(truth)).numpy()
    assert not counted[classes].any()
    np.testing.assert_array_equal(ours, counted[:classes])


@settings(max_examples=60)
@given(labelled())
def test_scores_are_those_of_a_naive_loop(case):
    classes, truth, predicted = case
    names = [str(i) for i in range(classes)]
    got = class_scores(confusion_matrix(truth, predicted, classes), names)
    iou, acc = naive_openscene(truth, predicted, classes)
    np.testing.assert_allclose(got.iou, iou, atol=1e-12)
    np.testing.assert_allclose(got.acc, acc, atol=1e-12)
    there = [i for i in range(classes) if (truth == i).any()]
    means = got.means()
    assert means["miou"] == pytest.approx(sum(iou) / classes, abs=1e-12)
    assert means["macc"] == pytest.approx(sum(acc) / classes, abs=1e-12)
    assert means["miou_present"] == pytest.approx(sum(iou[i] for i in there) / max(len(there), 1), abs=1e-12)
    assert means["macc_present"] == pytest.approx(sum(acc[i] for i in there) / max(len(there), 1), abs=1e-12)
    kept = truth != IGNORE
    assert got.accuracy == pytest.approx((truth == predicted)[kept].sum() / max(kept.sum(), 1), abs=1e-12)


@settings(max_examples=60)
@given(labelled())
def test_without_featureless_points_they_are_geopurifys_as_well(case):
    """Its code: predictions at ignored points overwritten, histograms, intersection / (union + 1e-10)."""
    classes, truth, predicted = case
    predicted = np.where(predicted == NO_FEATURE, 0, predicted)
    got = class_scores(confusion_matrix(truth, predicted, classes), [str(i) for i in range(classes)])
    shown = np.where(truth == IGNORE, IGNORE, predicted)

    def histogram(values):
        return np.histogram(values, bins=np.arange(classes + 1))[0]

    inter, output, target = histogram(shown[shown == truth]), histogram(shown), histogram(truth)
    # np.histogram's last bin is closed, but no label equals the number of classes
    np.testing.assert_allclose(got.iou, inter / (output + target - inter + 1e-10), atol=1e-9)
    np.testing.assert_allclose(got.acc, inter / (target + 1e-10), atol=1e-9)


def test_points_without_a_feature_leave_the_iou_but_not_the_accuracy():
    truth = np.array([0, 0, 0, 0, 1, 1], dtype=np.uint8)
    predicted = np.array([0, 0, NO_FEATURE, NO_FEATURE, 1, 0])
    got = class_scores(tally(truth, predicted, ALL), TINY.names)
    assert got.iou[0] == pytest.approx(2 / 3)  # two hits, one false alarm; the two without a feature are no misses
    assert got.acc[0] == pytest.approx(0.5)
    assert got.featureless.tolist() == [2, 0, 0, 0]
    assert got.accuracy == pytest.approx(0.5)


def test_a_class_of_which_no_point_has_a_feature_scores_zero():
    got = class_scores(tally(np.array([2, 2]), np.array([NO_FEATURE, NO_FEATURE]), ALL), TINY.names)
    assert got.iou[2] == 0 and got.acc[2] == 0 and got.points[2] == 2


def test_absent_classes_stay_in_the_mean_over_all_and_leave_the_other_one():
    result = summary(tally(np.array([0, 0, 1]), np.array([0, 0, 2]), ALL), TINY, ALL)
    assert result["absent"] == ["chair", "other"]
    assert result["miou"] == pytest.approx(1 / 4) and result["miou_present"] == pytest.approx(1 / 2)
    assert result["classes"]["chair"]["iou"] == 0  # taken for a chair once: no penalty but the floor's miss


def test_the_second_reading_neither_names_nor_counts_the_catch_all_class():
    everything, without = readings_of(TINY)
    assert (everything.name, without.name) == ("4", "3")
    scores = np.array([[0.1, 0.2, 0.3, 0.9], [0.1, 0.9, 0.3, 0.2], [0.9, 0.1, 0.1, 0.1]])
    has = np.zeros(3, dtype=bool)
    assert predict(scores, everything, has).tolist() == [3, 1, 0]
    assert predict(scores, without, has).tolist() == [2, 1, 0]
    truth = np.array([2, 1, 3], dtype=np.uint8)
    assert tally(truth, predict(scores, without, has), without).sum() == 2  # the third point is not judged
    assert summary(tally(truth, predict(scores, without, has), without), TINY, without)["miou"] == pytest.approx(2 / 3)


def test_readings_of_the_benchmarks():
    sizes = {name: [r.name for r in readings_of(load_label_set(name))] for name in ("scannet20", "matterport21")}
    assert sizes == {"scannet20": ["20", "19"], "matterport21": ["21", "20"]}
    assert [r.name for r in readings_of(load_label_set("scannet200"))] == ["200"]
    ceiling = readings_of(load_label_set("matterport21"))[1].names(load_label_set("matterport21"))
    assert ceiling[-1] == "ceiling" and "other" not in ceiling and len(ceiling) == 20


def test_group_means_of_scannet200_are_those_of_a_loop():
    labels = load_label_set("scannet200")
    rng = np.random.default_rng(0)
    truth = rng.choice(np.delete(np.arange(200), [5, 77]), 5000).astype(np.uint8)  # two classes are absent
    predicted = np.where(rng.random(5000) < 0.5, truth, rng.integers(0, 200, 5000)).astype(np.int64)
    predicted[:300] = NO_FEATURE
    (reading,) = readings_of(labels)
    got = summary(tally(truth, predicted, reading), labels, reading)
    iou, acc = naive_fast(truth, predicted, 200)
    wanted = {"foreground": [i for i, n in enumerate(labels.names) if n not in ("wall", "floor", "ceiling")]}
    wanted |= {group: list(labels.groups[group]) for group in ("head", "common", "tail")}
    for group, members in wanted.items():
        assert got["groups"][group]["miou"] == pytest.approx(sum(iou[i] for i in members) / len(members))
        assert got["groups"][group]["macc"] == pytest.approx(sum(acc[i] for i in members) / len(members))
    assert got["groups"]["foreground"]["classes"] == 197
    assert len(got["absent"]) == 2


def naive_fast(truth, predicted, classes):
    """The naive loop, with the loop over points left to numpy."""
    seen = predicted != NO_FEATURE
    iou, acc = np.zeros(classes), np.zeros(classes)
    for i in range(classes):
        if not (truth == i).any():
            continue
        tp = ((truth == i) & (predicted == i)).sum()
        union = (((truth == i) & seen) | (predicted == i)).sum()
        iou[i], acc[i] = tp / max(union, 1), tp / (truth == i).sum()
    return iou, acc


def test_the_named_but_not_counted_mean_leaves_the_catch_all_class_out():
    truth, predicted = np.array([0, 1, 2, 3]), np.array([0, 1, 3, 3])
    groups = summary(tally(truth, predicted, ALL), TINY, ALL)["groups"]
    assert groups["without other"]["miou"] == pytest.approx(2 / 3)
    assert groups["without other"]["classes"] == 3
    assert groups["foreground"]["miou"] == pytest.approx((0 + 0.5) / 2)


def test_a_matrix_of_another_size_is_refused():
    with pytest.raises(InvalidConfigError, match="confusion"):
        class_scores(np.zeros((3, 3), np.int64), TINY.names)
    with pytest.raises(InvalidConfigError, match="predicted"):
        tally(np.array([0, 1]), np.array([0]), Reading("4", (0, 1, 2, 3)))
