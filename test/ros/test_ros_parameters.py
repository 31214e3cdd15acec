"""One schema: descriptors, checks, the parameter file and the docs table are all the same list."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("rclpy")

import rclpy
from rclpy.parameter import Parameter

from geopurify_core.config import Config
from geopurify_core.errors import InvalidConfigError
from geopurify_ros import parameters as p

pytestmark = pytest.mark.ros


@pytest.fixture(scope="module")
def context(ros_env: dict[str, str]) -> Iterator[Any]:
    context = rclpy.Context()
    rclpy.init(context=context)
    yield context
    context.try_shutdown()


@pytest.fixture
def make(context: Any) -> Iterator[Any]:
    nodes = []

    def make_node(**given: Any) -> Any:
        overrides = [Parameter(key.replace("__", "."), value=value) for key, value in given.items()]
        nodes.append(rclpy.create_node("p", context=context, use_global_arguments=False, parameter_overrides=overrides))
        return nodes[-1]

    yield make_node
    for node in nodes:
        node.destroy_node()


def test_defaults_are_those_of_the_core(make: Any) -> None:
    parameters = p.Parameters(make())
    assert parameters.core == Config()
    assert parameters.ros == p.RosConfig()


def test_every_parameter_is_described(make: Any) -> None:
    node = make()
    p.Parameters(node)
    for item in p.schema():
        told = node.describe_parameter(item.key)
        assert told.description.startswith(item.description)
        assert told.read_only == (not item.key.startswith(p.RUNTIME))
        if item.choices:
            assert ", ".join(item.choices) in told.additional_constraints
        if item.type is float:
            assert told.floating_point_range[0].to_value == item.le
        if item.type is int:
            assert told.integer_range[0].from_value == item.ge


def test_values_given_at_start_arrive(make: Any) -> None:
    node = make(map__voxel_size_m=0.1, backbone__options="{config: a.yaml, n: 2}", labels=["chair"], query__min_score=1)
    parameters = p.Parameters(node)
    assert parameters.core.map.voxel_size_m == 0.1
    assert parameters.core.backbone.options == {"config": "a.yaml", "n": 2}
    assert parameters.ros.labels == ["chair"]
    assert parameters.core.query.min_score == 1.0
    again = yaml.safe_load(parameters.effective())["/**"]["ros__parameters"]
    assert again["map.voxel_size_m"] == 0.1


@pytest.mark.parametrize(
    "given",
    [
        {"map__voxel_size_m": 9.0},
        {"map__budget_mb": "much"},
        {"input": "sonar"},
        {"backbone__options": "[1, 2]"},
        {"backbone__options": "{a: "},
        {"labels": 5},
        {"depth__min_range_m": 6.0},
        {"query__max_objects": 0},
    ],
)
def test_an_unusable_value_at_start_names_the_parameter(make: Any, given: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfigError, match=next(iter(given)).replace("__", ".")):
        p.Parameters(make(**given))


def test_changes_at_run_time_are_all_or_nothing(make: Any) -> None:
    node, changes = make(), []
    parameters = p.Parameters(node, lambda: changes.append(parameters.core.depth.max_range_m))
    result = node.set_parameters_atomically(
        [Parameter("depth.max_range_m", value=2.0), Parameter("depth.min_range_m", value=3.0)]
    )
    assert not result.successful
    assert "depth.min_range_m" in result.reason
    assert parameters.core == Config()
    assert node.get_parameter("depth.max_range_m").value == 5.0
    assert not changes
    assert node.set_parameters_atomically([Parameter("depth.max_range_m", value=2.0)]).successful
    assert changes == [2.0]
    assert node.set_parameters([Parameter("labels", value=["chair", "table"])])[0].successful
    assert parameters.ros.labels == ["chair", "table"]
    for name, value in (("map.voxel_size_m", 0.1), ("input", "points"), ("depth.max_range_m", 1e9)):
        assert not node.set_parameters([Parameter(name, value=value)])[0].successful


def test_parameter_file_and_docs_are_written_from_the_schema(repository: Path) -> None:
    """After a change of parameters run tools/write_parameters.py."""
    spec = importlib.util.spec_from_file_location("write_parameters", repository / "tools" / "write_parameters.py")
    assert spec and spec.loader
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert (repository / "config" / "mapping.yaml").read_text(encoding="utf-8") == tool.parameter_file()
    page = (repository / "docs" / "ros.md").read_text(encoding="utf-8")
    assert tool.docs(page) == page
    values = yaml.safe_load(tool.parameter_file())["/**"]["ros__parameters"]
    listed = {item.key for item in p.schema() if item.type is not list}
    assert set(values) == listed
