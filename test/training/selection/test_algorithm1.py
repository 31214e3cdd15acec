"""Algorithm 1: against an example worked out by hand, a plain loop, and what must hold for any scenes."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from geopurify_core.errors import DatasetError, InvalidConfigError
from training.selection.algorithm import PRESETS, SelectionSettings, min_max, pick, select_scenes
from training.selection.statistics import SceneStatistics, count_labels, entropy_bits, richness
from training.selection.table6 import TABLE6


def scene(name: str, *counts: int) -> SceneStatistics:
    return SceneStatistics(name, np.array(counts, dtype=np.int64))


# N_c and H_c by hand: h 1, 0 bits; a, b, c and d, e, f four equal classes or nearly so.
BY_HAND = [
    scene("corridor", 100, 0, 0, 0, 0),  # 1, 0
    scene("hall", 50, 50, 0, 0, 0),  # 2, 1
    scene("kitchen_a", 80, 80, 80, 80, 0),  # 4, 2
    scene("kitchen_b", 80, 80, 80, 40, 40),  # 5, 2.25 = 3·¼·2 + 2·⅛·3
    scene("office_a", 0, 4, 4, 4, 4),  # 4, 2
    scene("office_b", 0, 8, 4, 4, 0),  # 3, 1.5
    scene("lobby", 0, 8, 8, 0, 0),  # 2, 1
]


def test_an_example_worked_out_by_hand():
    # Medians: N_c of 1 2 2 3 4 4 5 is 3, H_c of 0 1 1 1.5 2 2 2.25 is 1.5. Left: both kitchens, both offices. Their raw
    # counts form two clusters, far from each other. Scores: N_c 4 5 4 3 → ½ 1 ½ 0, H_c 2 2.25 2 1.5 → ⅔ 1 ⅔ 0.
    done = select_scenes(BY_HAND, SelectionSettings(count=2, clusters=2, gamma=0.5))
    assert (done.median_richness, done.median_complexity_bits) == (3, 1.5)
    passed = {one.scene.name: one for one in done.scenes if one.passed}
    assert sorted(passed) == ["kitchen_a", "kitchen_b", "office_a", "office_b"]
    scores = {name: one.score for name, one in passed.items()}
    expected = {"kitchen_a": 2 / 3 + 0.25, "kitchen_b": 1.5, "office_a": 2 / 3 + 0.25, "office_b": 0.0}
    assert scores == pytest.approx(expected, abs=1e-12)
    assert passed["kitchen_a"].cluster == passed["kitchen_b"].cluster != passed["office_a"].cluster
    assert [one.scene.name for one in done.chosen] == ["kitchen_b", "office_a"]
    assert done.filled == 0


def test_scenes_below_a_median_have_neither_cluster_nor_score():
    done = select_scenes(BY_HAND, SelectionSettings(count=2, clusters=2))
    for one in done.scenes:
        assert math.isnan(one.score) != one.passed and (one.cluster == -1) != one.passed
        assert one.passed or not one.chosen


def test_proportions_bring_scenes_of_different_size_together():
    small, large = scene("a_small", 1, 1, 1, 0, 1), scene("b_large", 900, 900, 900, 0, 900)
    others = [scene("c_other", 0, 1, 1, 1, 1), scene("d_other", 0, 1, 1, 1, 1)]
    cluster = {
        shares: {one.scene.name: one.cluster for one in select_scenes([small, large, *others], chosen).scenes}
        for shares in (True, False)
        for chosen in [SelectionSettings(count=2, clusters=2, proportions=shares)]
    }
    assert cluster[True]["a_small"] == cluster[True]["b_large"] != cluster[True]["c_other"]
    assert cluster[False]["a_small"] == cluster[False]["c_other"] != cluster[False]["b_large"]


def naive_pick(cluster: list[int], score: list[float], count: int, clusters: int) -> list[int]:
    """Phase 5 as the paper writes it, and then the fill-up, in plain loops."""
    chosen: list[int] = []
    for j in range(clusters):
        members = sorted((i for i in range(len(score)) if cluster[i] == j), key=lambda i: (-score[i], i))
        share = count // clusters + (1 if j < count % clusters else 0)
        chosen += members[:share]
    rest = sorted((i for i in range(len(score)) if i not in chosen), key=lambda i: (-score[i], i))
    return sorted(chosen + rest[: count - len(chosen)])


@given(st.data())
def test_picking_equals_a_plain_loop(data):
    clusters = data.draw(st.integers(1, 6))
    size = data.draw(st.integers(1, 25))
    cluster = data.draw(st.lists(st.integers(0, clusters - 1), min_size=size, max_size=size))
    score = data.draw(st.lists(st.sampled_from([0.0, 0.5, 0.75, 1.5]), min_size=size, max_size=size))
    count = data.draw(st.integers(1, size))
    chosen, filled = pick(np.array(cluster), np.array(score), SelectionSettings(count=count, clusters=clusters))
    assert sorted(chosen) == naive_pick(cluster, score, count, clusters)
    assert filled <= chosen and len(chosen) == count


def test_more_clusters_than_scenes_wanted_leave_the_last_clusters_out():
    # The released code's defaults, 20 of 21 clusters, in small: 2 of 3.
    chosen, filled = pick(np.array([2, 1, 0]), np.array([9.0, 1.0, 1.0]), SelectionSettings(count=2, clusters=3))
    assert chosen == {1, 2} and not filled


def test_a_cluster_smaller_than_its_share_is_filled_up_by_score_and_that_is_said():
    chosen, filled = pick(
        np.array([0, 1, 1, 1]), np.array([0.1, 0.2, 0.4, 0.3]), SelectionSettings(count=4, clusters=2)
    )
    assert chosen == {0, 1, 2, 3} and filled == {1}


@settings(max_examples=30)
@given(
    hnp.arrays(np.int64, st.tuples(st.integers(12, 30), st.just(6)), elements=st.integers(0, 50)),
    st.integers(1, 5), st.integers(1, 5), st.booleans(), st.randoms(),
)  # fmt: skip
def test_what_holds_for_any_scenes(histograms, count, clusters, proportions, random):
    histograms[:, 0] += 1
    scenes = [scene(f"scene{i:04d}", *row) for i, row in enumerate(histograms)]
    wanted = SelectionSettings(count=count, clusters=clusters, proportions=proportions)
    try:
        done = select_scenes(scenes, wanted)
    except DatasetError as error:
        assert error.value < max(count, clusters)
        return
    names = [one.scene.name for one in done.chosen]
    assert len(names) == len(set(names)) == count
    medians = np.median([richness(row) for row in histograms]), np.median([entropy_bits(row) for row in histograms])
    for one in done.chosen:
        assert one.scene.richness >= medians[0] and one.scene.complexity_bits >= medians[1]
    for label in range(clusters):
        members = [one for one in done.scenes if one.cluster == label]
        share = count // clusters + (label < count % clusters)
        own = [one for one in members if one.chosen and not one.filled]
        assert len(own) == min(share, len(members))
        assert all(taken.score >= left.score for taken in own for left in members if not left.chosen)
    random.shuffle(scenes)
    assert [one.scene.name for one in select_scenes(scenes, wanted).chosen] == names


def test_equal_scenes_are_taken_by_name_and_need_no_clusters():
    scenes = [scene(name, 3, 3, 3) for name in "dbca"]
    done = select_scenes(scenes, SelectionSettings(count=2, clusters=2))
    assert [one.scene.name for one in done.chosen] == ["a", "b"]
    assert all(one.score == 0 for one in done.scenes)


def test_a_constant_column_is_scaled_to_zeros():
    np.testing.assert_array_equal(min_max(np.full(4, 7.0)), np.zeros(4))
    np.testing.assert_allclose(min_max(np.array([1.0, 3.0, 2.0])), [0, 1, 0.5])


@pytest.mark.parametrize(
    ("count", "clusters", "value", "remedy"),
    [(7, 2, 7, "use all of them"), (5, 2, 4, "--count"), (2, 5, 4, "--clusters"), (2, 5, 4, "--keep-all")],
)
def test_too_few_scenes_are_refused_with_a_way_out(count, clusters, value, remedy):
    with pytest.raises(DatasetError, match=remedy) as caught:
        select_scenes(BY_HAND, SelectionSettings(count=count, clusters=clusters))
    assert caught.value.value == value


def test_without_the_filter_all_scenes_count():
    done = select_scenes(BY_HAND, SelectionSettings(count=7, clusters=2, keep_all=True))
    assert len(done.chosen) == 7


def test_nothing_and_two_of_one_name_are_refused():
    with pytest.raises(DatasetError, match="nothing to choose"):
        select_scenes([])
    with pytest.raises(DatasetError, match="Two scenes"):
        select_scenes([scene("a", 1), scene("a", 2)], SelectionSettings(count=1, clusters=1))


@pytest.mark.parametrize("change", [{"count": 0}, {"clusters": 0}, {"gamma": -1.0}, {"gamma": math.nan}])
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(InvalidConfigError):
        SelectionSettings(**change)


def test_presets_are_those_of_paper_and_released_code():
    paper, matterport, code = (PRESETS[name] for name in ("paper", "paper-matterport", "official_code"))
    assert (paper.count, paper.clusters, paper.gamma) == (20, 20, 0.5)
    assert (matterport.count, matterport.clusters, matterport.gamma) == (20, 12, 0.5)
    assert (code.count, code.clusters, code.gamma, code.seed, code.proportions) == (20, 21, 1.0, 42, False)
    with pytest.raises(InvalidConfigError, match="paper-matterport"):
        SelectionSettings.preset("papre")


# -- what a scene is made of -----------------------------------------------------------------------------------------


@given(hnp.arrays(np.int64, st.integers(1, 12), elements=st.integers(0, 1000)))
def test_entropy_against_a_plain_loop(histogram):
    total, expected = int(histogram.sum()), 0.0
    for count in histogram.tolist():
        if count:
            expected -= count / total * math.log2(count / total)
    assert entropy_bits(histogram) == pytest.approx(expected, abs=1e-9)
    assert 0 <= entropy_bits(histogram) <= math.log2(max(richness(histogram), 1)) + 1e-9


def test_unlabelled_points_count_in_no_class():
    counts = count_labels(np.array([0, 0, 2, 255, -100]), 4, "room")
    np.testing.assert_array_equal(counts, [2, 0, 1, 0])


@pytest.mark.parametrize(
    ("labels", "remedy"), [([], "empty"), ([255, -1], "--without-labels"), ([4], "--label-set"), ([3, 254], "of 4")]
)
def test_unusable_labels_are_refused(labels, remedy):
    with pytest.raises(DatasetError, match=remedy):
        count_labels(np.array(labels, dtype=np.int64), 4, "room")


# -- Table 6 ---------------------------------------------------------------------------------------------------------


def test_table_6_lists_twenty_scenes_and_twenty_regions(shared_dir):
    printed = (shared_dir / "papers" / "geopurify.txt").read_text(encoding="utf-8")
    rows = printed[printed.index("Table 6: Final scene") : printed.index("A.3 COMPREHENSIVE")].splitlines()
    cells = [[cell.strip() for cell in row.strip("| ").split("|")] for row in rows if "_region" in row]
    assert list(TABLE6["table6-scannet"]) == [row[0] for row in cells]
    assert list(TABLE6["table6-matterport"]) == [row[1] for row in cells]


@pytest.mark.parametrize(
    ("preset", "form"), [("table6-scannet", r"scene0\d{3}_0[0-3]"), ("table6-matterport", r"\w{11}_region\d{1,2}")]
)
def test_table_6_holds_twenty_different_names_of_the_data_sets_form(preset, form):
    names = TABLE6[preset]
    assert len(names) == len(set(names)) == 20
    assert all(re.fullmatch(form, name) for name in names)
