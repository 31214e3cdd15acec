"""Which topics of a bag carry the colour, the depth, the intrinsics and the pose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from geopurify_core.errors import DatasetError

_IMAGES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
_INFOS = ("sensor_msgs/msg/CameraInfo",)
_CAMERA_POSES = ("geometry_msgs/msg/PoseStamped", "geometry_msgs/msg/PoseWithCovarianceStamped")
_ODOMETRY = ("nav_msgs/msg/Odometry",)
_TRANSFORMS = ("tf2_msgs/msg/TFMessage",)
_KEYS = ("color", "depth", "camera_info", "depth_camera_info", "pose")


@dataclass(frozen=True)
class BagTopics:
    """The chosen topics; ``pose`` is None where TF gives the pose."""

    color: str
    depth: str
    camera_info: str
    depth_camera_info: str | None
    pose: str | None
    transforms: tuple[str, ...]

    def streamed(self) -> set[str | None]:
        """The topics read message by message."""
        return {self.color, self.depth, self.camera_info, self.depth_camera_info} - {None}


def choose_topics(reader: Any, bag: str, overrides: Mapping[str, str]) -> BagTopics:
    """Choose by type and name; ``overrides`` win. Raises DatasetError naming what is missing and what there is."""
    types = {connection.topic: connection.msgtype for connection in reader.connections}
    if not isinstance(overrides, Mapping):
        raise DatasetError(
            "topics", overrides, f"Give a mapping such as {{color: /rgb/image}}; keys: {', '.join(_KEYS)}."
        )
    for key, topic in overrides.items():
        if key not in _KEYS:
            raise DatasetError(f"topics.{key}", topic, f"Known keys: {', '.join(_KEYS)}.")
        if not isinstance(topic, str) or topic not in types:
            raise DatasetError(f"topics.{key}", topic, f"The bag has: {', '.join(sorted(types)) or 'nothing'}.")
    images = _of_type(types, _IMAGES)
    # a raw image is preferred to its compressed copy, a depth registered to the colour to one that is not
    color = overrides.get("color") or _best(
        [t for t in images if "depth" not in t], ("image_raw", "rgb", "color", "rect", "!infra", "!compressed")
    )
    depth = overrides.get("depth") or _best(
        [t for t in images if "depth" in t], ("aligned", "registered", "image", "!compressed")
    )
    _require("color", color, types, bag)
    _require("depth", depth, types, bag)
    infos = _of_type(types, _INFOS)
    info = overrides.get("camera_info") or _beside(color, infos) or _only([t for t in infos if "depth" not in t])
    _require("camera_info", info, types, bag)
    depth_info = overrides.get("depth_camera_info") or _beside(depth, infos)
    pose, transforms = overrides.get("pose"), tuple(_of_type(types, _TRANSFORMS))
    if pose is None:
        pose = _best(_of_type(types, _CAMERA_POSES), ("camera", "pose"))
    if pose is None and not any(topic.rsplit("/", 1)[-1] == "tf" for topic in transforms):
        pose = _best(_of_type(types, _ODOMETRY), ("odom",))
    if pose is None and not transforms:
        _require("pose", None, types, bag)
    return BagTopics(str(color), str(depth), str(info), depth_info, pose, transforms)


def _of_type(types: Mapping[str, str], wanted: tuple[str, ...]) -> list[str]:
    return sorted(topic for topic, msgtype in types.items() if msgtype in wanted)


def _best(topics: list[str], words: tuple[str, ...]) -> str | None:
    """The topic with most of the words (those behind "!" count against it); the first by name among equals."""

    def points(topic: str) -> int:
        return sum(-(word[1:] in topic) if word.startswith("!") else word in topic for word in words)

    return max(topics, key=points, default=None)


def _beside(image: str | None, infos: list[str]) -> str | None:
    """The camera info in the namespace of the image (or, for `image/compressed`, one above)."""
    parts = (image or "").split("/")
    for depth in range(len(parts) - 1, max(len(parts) - 3, 0), -1):
        namespace = "/".join(parts[:depth])
        found = next((topic for topic in infos if topic.rsplit("/", 1)[0] == namespace), None)
        if found is not None:
            return found
    return None


def _only(topics: list[str]) -> str | None:
    return topics[0] if len(topics) == 1 else None


def _require(key: str, topic: str | None, types: Mapping[str, str], bag: str) -> None:
    if topic is None:
        found = ", ".join(f"{name} ({kind})" for name, kind in sorted(types.items())) or "nothing"
        raise DatasetError(f"bag topic for {key}", bag, f"None fits; name it with topics.{key}. The bag has: {found}.")
