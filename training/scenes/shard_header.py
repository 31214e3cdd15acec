"""What a shard says of itself, read without its arrays; nothing for one that is missing, damaged or half written."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.scenes.prepared import FORMAT


@dataclass(frozen=True)
class ShardHeader:
    """Of a scene's or a teacher's shard.

    Attributes:
        about: Its own description.
        points: Rows of its points, or of the teacher's index.
        channels: Width of its features, or of the teacher's descriptors.
        arrays: Names of its arrays.
        nbytes: Size of the file.
        digest: Changes with the description, and so with everything the scene was made from.
    """

    about: dict[str, Any]
    points: int
    channels: int
    arrays: tuple[str, ...]
    nbytes: int
    digest: str


def read_header(path: Path) -> ShardHeader | None:
    """The header of a whole shard of this format, else None; the file's length is checked against it."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            text = (file.metadata() or {})["scene"]
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (no mapping)
        about: dict[str, Any] = json.loads(text)
        if about["format"] != FORMAT:
            return None
        points = shapes["points_m" if "points_m" in shapes else "index"][0]
        channels = shapes["features" if "features" in shapes else "rows"][1]
        nbytes = path.stat().st_size
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, IndexError):
        return None
    digest = hashlib.sha256(f"{text} {points}".encode()).hexdigest()[:16]
    return ShardHeader(about, int(points), int(channels), tuple(shapes), nbytes, digest)
