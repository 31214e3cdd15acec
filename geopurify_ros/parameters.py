"""One schema for all parameters: the core's config tree and the ROS side's own, declared, checked and changed together.

``tools/write_parameters.py`` writes the parameter file and the tables of the docs from it.
"""

from __future__ import annotations

import array
import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, ParameterType, SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter

from geopurify_core.config import Config, Setting, build, setting, settings
from geopurify_core.errors import GeoPurifyError, InvalidConfigError


@dataclass(frozen=True)
class RosConfig:
    """What only the ROS side needs to know."""

    input: str = setting("rgbd", "Geometry from depth images, or from a point cloud.", choices=("rgbd", "points"))
    rgb_transport: str = setting("raw", "Type of rgb/image.", choices=("raw", "compressed"))
    depth_transport: str = setting("raw", "Type of depth/image.", choices=("raw", "compressed"))
    pose_source: str = setting("pose", "Where poses come from.", choices=("pose", "odom", "tf"))
    pose_tolerance_s: float = setting(
        0.1, "Poses are interpolated between neighbours no farther than this from the image.", unit="s", ge=0.0, le=10.0
    )
    pose_wait_s: float = setting(
        0.5, "A frame waits this long for its pose and camera info, then it is dropped.", unit="s", ge=0.0, le=10.0
    )
    T_base_camera: list[float] = setting(
        [], "Mount of the camera's optical frame on the body that pose or odom describes: x y z qx qy qz qw. "
        "Empty: pose is the camera's own, odom asks TF.",
    )  # fmt: skip
    T_camera_points: list[float] = setting(
        [],
        "Mount of the points' frame on the camera's optical frame: x y z qx qy qz qw. Empty: asks TF if they differ.",
    )
    sync_slop_s: float = setting(
        0.015, "Largest stamp difference of images that belong together; keep below half the frame period.",
        unit="s", ge=0.0, le=1.0,
    )  # fmt: skip
    sync_queue_size: int = setting(30, "Messages for each topic that wait for partners.", ge=2, le=1000)
    max_future_s: float = setting(2.0, "Messages ahead of the clock by more are dropped.", unit="s", ge=0.0, le=1e9)
    queue_size: int = setting(4, "Frames that wait for the worker; the oldest is dropped when full.", ge=1, le=1000)
    qos_reliability: str = setting(
        "auto", "Of sensor subscriptions. auto: reliable, best_effort once a publisher offers no more.",
        choices=("auto", "reliable", "best_effort"),
    )  # fmt: skip
    qos_depth: int = setting(10, "History of sensor subscriptions, messages.", ge=1, le=1000)
    publish_period_s: float = setting(
        2.0, "Time between semantic clouds; 0 publishes none.", unit="s", ge=0.0, le=3600.0
    )
    labels: list[str] = setting([], "Names for the field label of semantic_cloud; empty: none. Also set by ~/segment.")
    cloud_features: str = setting(
        "raw", "Features behind the labels of semantic_cloud: as observed, or those of the newest purified map (raw "
        "until there is one). Also set by ~/segment.", choices=("raw", "purified"),
    )  # fmt: skip
    stale_warn_s: float = setting(
        4.0, "An input that is silent for this long is a warning.", unit="s", ge=0.1, le=3600.0
    )
    stale_error_s: float = setting(
        9.0, "An input that is silent for this long is an error.", unit="s", ge=0.1, le=3600.0
    )
    load_path: str = setting("", "Map file to start with; empty: an empty map.")
    autosave_path: str = setting("", "Map file written on SIGINT and SIGTERM; empty: none.")

    def __post_init__(self) -> None:
        if not all(isinstance(label, str) for label in self.labels):
            raise InvalidConfigError("labels", self.labels, "Give names: a list of strings.")


# Everything else shapes threads, subscriptions or the map itself, and is fixed once the node runs.
RUNTIME = (
    "depth.", "fusion.", "query.", "publish_period_s", "labels", "cloud_features", "stale_", "purification.enabled",
    "purification.preset", "purification.neighbors", "purification.steps", "purification.sharpening",
    "purification.pool", "purification.period_s", "purification.dirty_fraction", "purification.budget_mb",
)  # fmt: skip
_TYPES = {
    bool: ParameterType.PARAMETER_BOOL,
    int: ParameterType.PARAMETER_INTEGER,
    float: ParameterType.PARAMETER_DOUBLE,
    str: ParameterType.PARAMETER_STRING,
    dict: ParameterType.PARAMETER_STRING,
}


def schema() -> Iterator[Setting]:
    """Every parameter: the core's, then the ROS side's."""
    yield from settings(Config)
    yield from settings(RosConfig)


def descriptor(item: Setting) -> ParameterDescriptor:
    """Description, unit, range, choices, and whether it may change while the node runs."""
    unit = f" [{item.unit}]" if item.unit else ""
    out = ParameterDescriptor(
        name=item.key,
        description=item.description + unit,
        type=_TYPES.get(item.type, ParameterType.PARAMETER_NOT_SET),
        read_only=not item.key.startswith(RUNTIME),
        additional_constraints=f"one of: {', '.join(item.choices)}" if item.choices else "",
        dynamic_typing=item.type in (float, list),  # "1" is a fine number of metres, [] a fine list of anything
    )
    if item.ge is not None and item.le is not None and item.type is float:
        out.floating_point_range = [FloatingPointRange(from_value=float(item.ge), to_value=float(item.le), step=0.0)]
    if item.ge is not None and item.le is not None and item.type is int:
        out.integer_range = [IntegerRange(from_value=int(item.ge), to_value=int(item.le), step=1)]
    return out


def plain(item: Setting, value: Any) -> Any:
    """A ROS parameter's value as the schema wants it. Raises InvalidConfigError for options that are no mapping."""
    if item.type is list:
        return list(value) if isinstance(value, (list, tuple, array.array)) else [] if value is None else value
    if item.type is not dict:
        return value
    try:
        options = yaml.safe_load(value) or {}
    except yaml.YAMLError as error:
        raise InvalidConfigError(item.key, value, f"Give a mapping in YAML or JSON: {error}") from error
    if not isinstance(options, dict):
        raise InvalidConfigError(item.key, value, "Give a mapping in YAML or JSON, for example '{config: model.yaml}'.")
    return options


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """``{"a.b": 1}`` as ``{"a": {"b": 1}}``."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        *path, leaf = key.split(".")
        branch = out
        for step in path:
            branch = branch.setdefault(step, {})
        branch[leaf] = value
    return out


def declare(node: Node, items: Iterable[Setting]) -> dict[str, Any]:
    """Declare these parameters; their values as given at start. Raises InvalidConfigError for what ROS refuses."""
    values = {}
    for item in items:
        default = "" if item.type is dict else item.default
        try:
            values[item.key] = node.declare_parameter(item.key, default, descriptor(item)).value
        except Exception as error:  # rclpy has one exception for each way to be wrong
            raise InvalidConfigError(item.key, "the value given at start", f"{error} ({item.description})") from error
    return values


class Parameters:
    """Declares all parameters on a node and keeps the effective configuration.

    Args:
        node: The node.
        on_change: Called after an accepted change at run time.

    Raises:
        InvalidConfigError: A value given at start is not usable.
    """

    def __init__(self, node: Node, on_change: Callable[[], None] = lambda: None) -> None:
        self._on_change = on_change
        self._items = {item.key: item for item in schema()}
        self._given = declare(node, self._items.values())
        self.core, self.ros = self._build(self._given)
        node.add_on_set_parameters_callback(self._check)
        node.add_post_set_parameters_callback(self._accept)

    def _build(self, given: Mapping[str, Any]) -> tuple[Config, RosConfig]:
        values = {key: plain(self._items[key], value) for key, value in given.items()}
        own = {item.key for item in settings(RosConfig)}
        ros = build(RosConfig, {key: value for key, value in values.items() if key in own})
        return Config.from_dict(nested({key: v for key, v in values.items() if key not in own})), ros

    def _changed(self, parameters: list[Parameter]) -> dict[str, Any]:
        return self._given | {p.name: p.value for p in parameters if p.name in self._items}

    def _check(self, parameters: list[Parameter]) -> SetParametersResult:
        """All or nothing: the whole tree must hold with the new values."""
        try:
            self._build(self._changed(parameters))
        except GeoPurifyError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _accept(self, parameters: list[Parameter]) -> None:
        self._given = self._changed(parameters)
        self.core, self.ros = self._build(self._given)
        self._on_change()

    def unknown(self, overrides: Iterable[str]) -> list[str]:
        """A sentence for each given name that is no parameter here (ROS itself passes over it in silence)."""
        words = []
        for name in sorted(set(overrides) - self._items.keys() - {"use_sim_time"}):
            if not name.startswith(("qos_overrides.", "start_type_description_service")):
                near = difflib.get_close_matches(name, self._items, n=1)
                words.append(f"There is no parameter '{name}'" + (f": is '{near[0]}' meant?" if near else "."))
        return words

    def effective(self) -> str:
        """The whole configuration as YAML that can be used as a parameter file."""
        return yaml.safe_dump({"/**": {"ros__parameters": {k: _yaml_value(v) for k, v in self._given.items()}}})


def _yaml_value(value: Any) -> Any:
    return list(value) if isinstance(value, (array.array, tuple)) else value
