"""The label sets of the benchmarks: sizes, ids, groups, spellings and prompts."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from geopurify_core.errors import InvalidConfigError
from geopurify_core.labels import load_label_set
from geopurify_core.labels.prompts import label_prompts

SIZES = {"scannet20": 20, "scannet200": 200, "matterport21": 21} | {f"matterport{k}": k for k in (40, 80, 160)}


@pytest.fixture(scope="module")
def facts(shared_dir):
    return json.loads((shared_dir / "reference" / "labelsets.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", SIZES)
def test_names_are_those_of_the_published_lists(facts, name):
    labels = load_label_set(name)
    assert len(labels) == SIZES[name]
    assert list(labels.names) == facts[name]


def test_ids_colours_and_groups_of_scannet200_are_the_benchmarks(facts):
    labels = load_label_set("scannet200")
    assert list(labels.ids) == facts["scannet200_ids"]
    assert labels.palette.tolist() == [facts["scannet200_palette_by_id"][str(i)] for i in labels.ids]
    for group, size in (("head", 66), ("common", 68), ("tail", 66)):
        assert len(labels.groups[group]) == size
        assert {labels.names[i] for i in labels.groups[group]} == set(facts[f"{group}_cats_scannet_200"])
    table = labels.index_of_id()
    assert table[1191] == len(labels) - 1 or 1191 not in labels.ids
    assert [int(table[i]) for i in labels.ids] == list(range(200))
    assert (table != 255).sum() == 200


def test_foreground_is_everything_but_wall_floor_and_ceiling():
    labels = load_label_set("scannet200")
    left_out = {labels.names[i] for i in set(range(200)) - set(labels.groups["foreground"])}
    assert left_out == {"wall", "floor", "ceiling"}
    assert len(load_label_set("matterport160").groups["foreground"]) == 157
    assert len(load_label_set("scannet20").groups["foreground"]) == 18  # its 20 hold no ceiling


def test_matterport21_is_scannet20_and_a_ceiling_with_nyu40_ids():
    labels, scannet = load_label_set("matterport21"), load_label_set("scannet20")
    assert labels.names[:19] == scannet.names[:19]
    assert labels.names[19:] == ("other", "ceiling")
    assert labels.ids == (*scannet.ids, 22)
    assert labels.catch_all == "other" and scannet.catch_all == "otherfurniture"


def test_smaller_matterport_sets_are_the_beginning_of_the_largest():
    largest = load_label_set("matterport160")
    for size in (40, 80):
        labels = load_label_set(f"matterport{size}")
        assert labels.names == largest.names[:size]
        np.testing.assert_array_equal(labels.palette, largest.palette[:size])


def test_geopurify_and_openscene_spell_two_classes_differently(facts):
    labels = load_label_set("matterport21")
    assert list(labels.spelled("geopurify")) == facts["geopurify_configs"]["matterport"]["all_label"]
    assert labels.spelled("openscene") == labels.names
    assert load_label_set("scannet20").spelled("openscene")[-1] == "other"
    assert load_label_set("scannet20").spelled("geopurify")[:19] == tuple(
        facts["geopurify_configs"]["scannet"]["all_label"]
    )


def test_prompts_put_names_into_a_scene_but_leave_other_bare():
    prompts = label_prompts(load_label_set("matterport21"), "scene", "openscene")
    assert prompts[0] == "a wall in a scene" and prompts[19:] == ("other", "a ceiling in a scene")
    assert label_prompts(load_label_set("scannet20"), "scene", "openscene")[-1] == "other"
    assert label_prompts(load_label_set("scannet20"))[-1] == "otherfurniture"
    with pytest.raises(InvalidConfigError, match="names"):
        label_prompts(load_label_set("scannet20"), "sonnet")


def test_the_code_of_openscene_takes_the_last_class_but_one_for_the_other_one():
    labels = load_label_set("matterport40")
    assert labels.names[38] == "air vent"
    assert label_prompts(labels, "openscene_code")[38] == "other"
    assert label_prompts(labels, "scene")[38] == "a air vent in a scene"


def test_label_sets_travel_between_processes():
    labels = load_label_set("scannet200")
    assert pickle.loads(pickle.dumps(labels)).names == labels.names
