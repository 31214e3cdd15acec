"""Annotated objects of a scan: groups of segments, as ScanNet and Matterport3D both store them in two JSON files."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopurify_core.errors import DatasetError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScanObjects:
    """Objects of a scan's n vertices or faces.

    Attributes:
        of_row: (n,) int64 object of each, counted from 1; 0 none.
        categories: Raw category of each object, in order.
    """

    of_row: NDArray[np.int64]
    categories: tuple[str, ...]


def read_objects(segments_path: Path, groups_path: Path, count: int) -> ScanObjects | None:
    """The objects; None where a file is missing, with a warning where only one of them is.

    Args:
        segments_path: ``segIndices``: segment of each vertex or face.
        groups_path: ``segGroups``: ``segments`` and ``label`` of each object.
        count: Vertices or faces of the mesh.

    Raises:
        DatasetError: A file is damaged, or there are not ``count`` segments.
    """
    there = [path for path in (segments_path, groups_path) if path.is_file()]
    if len(there) < 2:
        if there:
            log.warning("%s has no counterpart, so no objects are known.", there[0].name)
        return None
    try:
        segments = np.asarray(_entry(segments_path, "segIndices"), dtype=np.int64).reshape(-1)
    except (TypeError, ValueError) as error:
        raise DatasetError(segments_path.name, str(segments_path), f"A segment is no number: {error}") from error
    if len(segments) != count:
        raise DatasetError(segments_path.name, f"{len(segments)} segments", f"The mesh has {count} for them.")
    groups = _entry(groups_path, "segGroups")
    try:
        categories = tuple(str(group["label"]) for group in groups)
        owner = {int(segment): i for i, group in enumerate(groups, start=1) for segment in group["segments"]}
    except (TypeError, KeyError, ValueError) as error:
        raise DatasetError(groups_path.name, str(groups_path), f"A segment group is damaged: {error!r}") from error
    values, inverse = np.unique(segments, return_inverse=True)
    table = np.array([owner.get(int(value), 0) for value in values], dtype=np.int64)
    return ScanObjects(table[inverse.reshape(-1)], categories)


def _entry(path: Path, key: str) -> Any:
    try:
        content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(path.name, str(path), f"It cannot be read: {error!r}") from error
