"""What a bag holds, for people."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from geopurify_core.datasets.bag_topics import choose_topics
from geopurify_core.datasets.rosbag import open_bag
from geopurify_core.errors import DatasetError


@dataclass(frozen=True)
class Topic:
    """One topic; ``role`` is what the reader would use it for, or empty."""

    name: str
    msgtype: str
    count: int
    role: str


@dataclass(frozen=True)
class BagContent:
    """A bag's topics by name; ``problem`` says why it cannot be mapped, or is empty."""

    duration_s: float
    messages: int
    topics: tuple[Topic, ...]
    problem: str


def describe_bag(path: str | Path) -> BagContent:
    """Raises DatasetError if the bag cannot be read at all."""
    with open_bag(Path(path)) as reader:
        roles: dict[str, str] = {}
        problem = ""
        try:
            chosen = asdict(choose_topics(reader, str(path), {}))
            transforms = chosen.pop("transforms")
            roles = {topic: role for role, topic in chosen.items() if topic} | dict.fromkeys(transforms, "transforms")
        except DatasetError as error:
            problem = str(error)
        topics = tuple(
            Topic(name, str(found.msgtype), int(found.msgcount), roles.get(name, ""))
            for name, found in sorted(reader.topics.items())
        )
        duration_s = max(reader.duration, 0) / 1e9 if reader.message_count else 0.0
        return BagContent(duration_s, int(reader.message_count), topics, problem)
