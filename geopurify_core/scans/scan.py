"""A scan: the points of a reconstructed room, what is known about them, and the images it was made from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from geopurify_core.frame import RGBDFrame

NO_LABEL = 255


@dataclass(frozen=True)
class Scan:
    """N points of one scene (ScanNet) or region (Matterport3D).

    Attributes:
        name: Such as ``scene0000_00`` or ``2n8kARJN3HM_region13``.
        points_m: (N, 3) float32, metres, z up.
        rgb: (N, 3) uint8.
        normals: (N, 3) float32, unit; area-weighted vertex normals where there is a mesh.
        labels: Label set's name → (N,) uint8 class index, 255 where the set has none for the point.
        instances: (N,) int32, 0 unknown; or None.
        frames: Opens the posed RGB-D frames whose number is a multiple of a stride, in order; None: no images.
    """

    name: str
    points_m: NDArray[np.float32]
    rgb: NDArray[np.uint8]
    normals: NDArray[np.float32]
    labels: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    instances: NDArray[np.int32] | None = None
    frames: Callable[[int], Iterator[RGBDFrame]] | None = None

    def __len__(self) -> int:
        return len(self.points_m)


@dataclass(frozen=True)
class LiftedScan:
    """A scan with 2D features at its points.

    Attributes:
        scan: The scan.
        features: (N, C) float16 fused features.
        views: (N,) int32, in how many views each point was seen; 0: ``features`` is zero or copied, as the recipe says.
        backbone, text_fingerprint: Where the features come from.
        frames: How many frames were used of how many there are at that stride, as ``34/36``.
        left_out: Reason → number of those that could not be read; the others not used show too little of the scan.
    """

    scan: Scan
    features: NDArray[np.float16]
    views: NDArray[np.int32]
    backbone: str
    text_fingerprint: str
    frames: str = ""
    left_out: Mapping[str, int] = field(default_factory=dict)
