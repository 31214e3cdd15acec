"""Choosing among scans on disk: the histograms are those of the labels that the readers of ``scans`` give."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from geopurify_core.scans.matterport import read_matterport
from geopurify_core.scans.scannet import read_scannet
from training.selection.sources import find_named, find_scenes, read_scenes

_NAME = "scans_on_disk"


@pytest.fixture(scope="module")
def disk(repository: Path) -> ModuleType:
    """The writers of tiny scans that the tests of ``geopurify_core.scans`` use."""
    if _NAME not in sys.modules:
        spec = importlib.util.spec_from_file_location(_NAME, repository / "test/core/scans/_on_disk.py")
        sys.modules[_NAME] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[_NAME])
    return sys.modules[_NAME]


def counted(labels: np.ndarray, classes: int) -> list[int]:
    return [int((labels == index).sum()) for index in range(classes)]


@pytest.mark.parametrize(("label_set", "classes"), [(None, 20), ("scannet200", 200)])
def test_a_scannet_scene_counts_as_it_is_read(disk, tmp_path, label_set, classes):
    disk.write_scannet(tmp_path / "scene0001_00")
    good, skipped = read_scenes(find_scenes([tmp_path], label_set))
    assert not skipped and good[0].name == "scene0001_00"
    labels = read_scannet(tmp_path / "scene0001_00").labels[label_set or "scannet20"]
    assert good[0].histogram.tolist() == counted(labels, classes)
    assert good[0].richness > 1


@pytest.mark.parametrize(("label_set", "classes"), [(None, 21), ("matterport40", 40)])
def test_a_matterport_region_counts_as_it_is_read_and_is_named_after_its_house(disk, tmp_path, label_set, classes):
    region = disk.write_matterport(tmp_path / "HOUSE123456")
    for source in (tmp_path, tmp_path / "HOUSE123456", region):
        good, skipped = read_scenes(find_scenes([source], label_set))
        assert not skipped
        assert [(one.name, one.source) for one in good] == [(f"HOUSE123456_{region.stem}", region)]
        labels = read_matterport(region).labels[label_set or "matterport21"]
        assert good[0].histogram.tolist() == counted(labels, classes)
    assert [one.name for one in find_named([tmp_path])] == [f"HOUSE123456_{region.stem}"] * 2


def test_a_label_set_that_a_scan_lacks_is_said(disk, tmp_path):
    disk.write_scannet(tmp_path / "scene0001_00")
    good, skipped = read_scenes(find_scenes([tmp_path], "matterport40"))
    assert not good and "scannet20" in skipped[0].reason
