"""The launch files run against stand-ins for launch and launch_ros (no wheels carry them); for real where they are."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest

FILES = ("mapping.launch.py", "replay.launch.py")
NAMES = {
    "launch": ("LaunchContext", "LaunchDescription"),
    "launch.actions": ("DeclareLaunchArgument", "GroupAction", "IncludeLaunchDescription", "OpaqueFunction"),
    "launch.conditions": ("IfCondition",),
    "launch.launch_description_sources": ("PythonLaunchDescriptionSource",),
    "launch.substitutions": ("LaunchConfiguration", "NotEqualsSubstitution", "PathJoinSubstitution"),
    "launch_ros": (),
    "launch_ros.actions": ("Node", "PushRosNamespace"),
    "launch_ros.substitutions": ("FindPackageShare",),
}


class Thing:
    """Remembers what it was made of."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs

    def perform(self, context: dict[str, str]) -> str:
        return context[self.args[0]]


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem.replace(".", "_"), path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, members in NAMES.items():
        module = types.ModuleType(name)
        for member in members:
            setattr(module, member, type(member, (Thing,), {}))
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("file", FILES)
def test_arguments_are_described_and_have_defaults(file: str, repository: Path, stand_ins: None) -> None:
    entities = load(repository / "launch" / file).generate_launch_description().args[0]
    declared = {e.args[0]: e.kwargs for e in entities if type(e).__name__ == "DeclareLaunchArgument"}
    assert all(kwargs["description"] and "default_value" in kwargs for kwargs in declared.values())
    if file.startswith("mapping"):
        wanted = {"params_file", "use_sim_time", "backbone", "bagfile", "rviz", "namespace", "log_level"}
        assert wanted <= declared.keys()


def test_given_arguments_win_and_others_leave_the_parameter_file_alone(repository: Path, stand_ins: None) -> None:
    module = load(repository / "launch" / "mapping.launch.py")
    context = {"use_sim_time": "true", "backbone": "composite", "backbone_options": "", "pose_source": ""}
    context |= {"purify": "false", "student": ""}
    (node,) = module.mapping_node(context)
    assert node.kwargs["executable"] == "mapping_node"
    expected = {"use_sim_time": True, "backbone.name": "composite", "purification.enabled": False}
    assert node.kwargs["parameters"][1] == expected
    assert "purification.enabled" not in module.mapping_node(context | {"purify": ""})[0].kwargs["parameters"][1]
    assert {source for source, _ in node.kwargs["remappings"]} >= {"rgb/image", "depth/image", "pose", "points"}
    replay = load(repository / "launch" / "replay.launch.py")
    given = {"dataset": "a.mcap", "rate": "2", "loop": "true", "lockstep": "", "publish_clock": "false"}
    (node,) = replay.replay_node(given)
    assert node.kwargs["parameters"][1] == {"dataset": "a.mcap", "rate": 2.0, "loop": True, "publish_clock": False}


def test_overrides_are_parameters_of_the_nodes(repository: Path, stand_ins: None) -> None:
    pytest.importorskip("rclpy")
    from geopurify_core.config import settings
    from geopurify_ros.parameters import schema
    from geopurify_ros.replay_node import ReplayConfig

    mapping, replay = (load(repository / "launch" / file) for file in FILES)
    assert set(mapping.OVERRIDES.values()) <= {item.key for item in schema()}
    assert set(replay.OVERRIDES) <= {item.key for item in settings(ReplayConfig)}


@pytest.mark.parametrize("file", FILES)
def test_with_the_real_launch(file: str, repository: Path) -> None:
    pytest.importorskip("launch_ros", reason="no launch_ros here: it comes with a ROS 2 installation")
    assert load(repository / "launch" / file).generate_launch_description().entities
