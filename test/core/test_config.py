"""One strict schema for YAML, ROS parameters and documentation."""

from __future__ import annotations

import dataclasses

import pytest
import yaml

from geopurify_core.config import Config, DepthConfig, settings
from geopurify_core.errors import InvalidConfigError


def test_defaults_round_trip_through_plain_values(tmp_path):
    config = Config()
    assert Config.from_dict(config.to_dict()) == config
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.to_dict()), encoding="utf-8")
    assert Config.from_yaml(path) == config
    path.write_text("", encoding="utf-8")
    assert Config.from_yaml(path) == config


def test_every_setting_describes_itself_and_accepts_its_own_default():
    leaves = list(settings())
    assert len({leaf.key for leaf in leaves}) == len(leaves) > 10
    for leaf in leaves:
        assert leaf.description.strip().endswith((".", "….", ")."))
        values = leaf.default
        for part in reversed(leaf.key.split(".")):
            values = {part: values}
        assert Config.from_dict(values) == Config()


def test_whole_numbers_serve_as_floats_and_nothing_else_bends():
    assert Config.from_dict({"depth": {"max_range_m": 4}}).depth.max_range_m == 4.0
    assert isinstance(Config.from_dict({"depth": {"max_range_m": 4}}).depth.max_range_m, float)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"depht": {}}, "depht"),
        ({"depth": {"max": 3.0}}, "depth.max"),
        ({"depth": 3}, "depth"),
        ({"depth": {"max_range_m": "3"}}, "depth.max_range_m"),
        ({"depth": {"max_range_m": -1.0}}, "depth.max_range_m"),
        ({"depth": {"max_range_m": float("nan")}}, "depth.max_range_m"),
        ({"depth": {"max_range_m": True}}, "depth.max_range_m"),
        ({"depth": {"min_range_m": 6.0}}, "depth.min_range_m"),
        ({"map": {"budget_mb": 1.5}}, "map.budget_mb"),
        ({"map": {"budget_mb": 0}}, "map.budget_mb"),
        ({"map": {"evict": "random"}}, "map.evict"),
        ({"fusion": {"incidence_weight": 1}}, "fusion.incidence_weight"),
        ({"backbone": {"options": [1]}}, "backbone.options"),
        (["depth"], "config"),
    ],
)
def test_whatever_the_schema_does_not_know_is_named(values, field):
    with pytest.raises(InvalidConfigError) as caught:
        Config.from_dict(values)
    assert caught.value.field == field and caught.value.remedy


@pytest.mark.parametrize("content", [b"depth: [", b"\xff\xfe\x00", b"- 1\n- 2\n"])
def test_files_that_are_no_config_are_refused(tmp_path, content):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(InvalidConfigError):
        Config.from_yaml(path)
    with pytest.raises(InvalidConfigError, match="cannot be read"):
        Config.from_yaml(tmp_path / "nowhere.yaml")


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        DepthConfig().max_range_m = 3.0
