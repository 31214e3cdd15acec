"""What a query gives back."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from geopurify_core.mapping.snapshot import MapSnapshot


@dataclass(frozen=True)
class DetectedObject:
    """One connected piece of the map that answers a text.

    Attributes:
        text: The query text.
        score: Standardised score that its best tenth of voxels reaches, less a penalty for an implausible size;
            comparable between objects of one text.
        center_m: (3,) box centre in the map frame, metres.
        size_m: (3,) box edge lengths along its own axes, metres.
        yaw_rad: Rotation of the box about the map's vertical axis; 0 for axis-aligned boxes.
        voxels: (n,) int32, sorted rows of the snapshot.
        R_map_box: (3, 3) rotation whose columns are the box's axes in the map frame; identity for axis-aligned boxes.
    """

    text: str
    score: float
    center_m: NDArray[np.float64]
    size_m: NDArray[np.float64]
    yaw_rad: float
    voxels: NDArray[np.int32]
    R_map_box: NDArray[np.float64] = field(default_factory=lambda: np.eye(3))

    @property
    def num_voxels(self) -> int:
        return len(self.voxels)


@dataclass(frozen=True)
class QueryResult:
    """The answer to one text: a score for every voxel, and the objects, best first.

    Attributes:
        text: The query text.
        scores: (N,) float32, one for each voxel of the snapshot that was asked.
        objects: Best first.
        snapshot: The map that was asked, whose rows ``scores`` and ``voxels`` number; ``snapshot.purified`` tells
            whether by its purified features. (Its memory is not used again while an answer holds it.)
    """

    text: str
    scores: NDArray[np.float32]
    objects: tuple[DetectedObject, ...]
    snapshot: MapSnapshot | None = field(default=None, repr=False, compare=False)
