"""An immutable picture of the map at one moment: what queries, files, clouds and purification read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class MapSnapshot:
    """N voxels as a structure of arrays; every array is read-only and shares nothing with the living map.

    Attributes:
        coords: (N, 3) int32; voxel i covers [coords·s, (coords+1)·s) metres, s = ``voxel_size_m``.
        features: (N, C) float16, weighted mean of the observed feature rows (not normalised).
        weight: (N,) float32, sum of the observation weights behind ``features``; 0 where no confident feature was seen
            (such a voxel has colour and normal, and a feature row of zeros).
        rgb: (N, 3) uint8, weighted mean colour.
        normals: (N, 3) float16, unit normals in the map frame, towards the cameras; 0 where unknown.
        first_seen_ns, last_seen_ns: (N,) int64.
        voxel_size_m: Edge length, metres.
        frame_id: The map frame's name.
        stamp_ns: Stamp of the newest integrated frame; 0 for an empty map.
        version: Counts the changes of the living map; equal versions mean equal content.
        backbone: Fingerprint of the backbone behind ``features``.
        text_fingerprint: The text space that ``features`` live in.
        geometry_weight: (N,) float32, weight behind colour and normal; ≥ ``weight``, because observations without a
            confident feature still add geometry. By default ``weight`` itself.
        purified: Empty for features as fused; else the fingerprint of the student and the settings that purified them.
            Such a map can be asked, drawn, exported and measured, but neither fused into nor purified again.
    """

    coords: NDArray[np.int32]
    features: NDArray[np.float16]
    weight: NDArray[np.float32]
    rgb: NDArray[np.uint8]
    normals: NDArray[np.float16]
    first_seen_ns: NDArray[np.int64]
    last_seen_ns: NDArray[np.int64]
    voxel_size_m: float
    frame_id: str
    stamp_ns: int
    version: int
    backbone: str
    text_fingerprint: str
    geometry_weight: NDArray[np.float32] = field(default=cast(Any, None))
    purified: str = ""

    def __post_init__(self) -> None:
        if cast(Any, self.geometry_weight) is None:
            object.__setattr__(self, "geometry_weight", self.weight)
        for array in (
            self.coords, self.features, self.weight, self.rgb, self.normals, self.first_seen_ns, self.last_seen_ns,
            self.geometry_weight,
        ):  # fmt: skip
            array.setflags(write=False)

    def __len__(self) -> int:
        return len(self.coords)

    @property
    def feature_dim(self) -> int:
        """C."""
        return int(self.features.shape[1])

    @property
    def centers_m(self) -> NDArray[np.float32]:
        """(N, 3) voxel centres in the map frame, metres."""
        centers: NDArray[np.float32] = (self.coords.astype(np.float32) + np.float32(0.5)) * np.float32(
            self.voxel_size_m
        )
        return centers
