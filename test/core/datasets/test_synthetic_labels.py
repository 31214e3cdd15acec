"""Label sets: complete, consistent, and refusing what they do not know."""

import numpy as np
import pytest

from geopurify_core.errors import InvalidConfigError
from geopurify_core.labels import available_label_sets, load_label_set


def test_scannet20_has_its_known_ids_and_colours():
    labels = load_label_set("scannet20")
    assert labels.names[0] == "wall" and labels.names[-1] == "otherfurniture" and len(labels.names) == 20
    assert labels.ids == (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 24, 28, 33, 34, 36, 39)
    assert labels.palette[0].tolist() == [174, 199, 232]


def test_ids_map_to_class_indices_and_all_others_are_ignored():
    table = load_label_set("scannet20").index_of_id(ignore=200)
    assert table[[1, 14, 39]].tolist() == [0, 12, 19]
    assert (table == 200).sum() == 256 - 20


@pytest.mark.parametrize("name", available_label_sets())
def test_every_set_is_consistent(name):
    labels = load_label_set(name)
    assert len(set(labels.names)) == len(labels.names) == len(labels.ids) == len(labels.words)
    assert labels.palette.shape == (len(labels.names), 3) and labels.palette.dtype == np.uint8
    assert all(words and len(set(words)) == len(words) for words in labels.words)


def test_unknown_names_are_refused_with_what_there_is():
    with pytest.raises(InvalidConfigError, match="scannet20"):
        load_label_set("../secrets")
    with pytest.raises(InvalidConfigError, match="sofa"):
        load_label_set("scannet20").words_of("spaceship")
