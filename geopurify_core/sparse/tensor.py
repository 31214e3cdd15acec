"""A sparse tensor: one row of features for each voxel of a coordinate map."""

from __future__ import annotations

from torch import Tensor

from geopurify_core.errors import SparseError
from geopurify_core.sparse.coordinates import CoordinateMap


class SparseTensor:
    """Features on voxels.

    Args:
        features: (V, C) floating point, row i belonging to row i of the coordinates.
        coordinates: Where the rows are; shared by every tensor on the same voxels, with its kernel maps.

    Raises:
        SparseError: Features that are not (V, C), not floating point, or on another device than the coordinates.
    """

    __slots__ = ("coordinates", "features")

    def __init__(self, features: Tensor, coordinates: CoordinateMap) -> None:
        if features.dim() != 2 or features.shape[0] != len(coordinates):
            raise SparseError(
                "features.shape", tuple(features.shape), f"Give one row for each of the {len(coordinates)} voxels."
            )
        if not features.is_floating_point():
            raise SparseError("features.dtype", str(features.dtype), "Give floating point features.")
        if features.device != coordinates.device:
            raise SparseError(
                "features.device",
                str(features.device),
                f"The coordinates are on {coordinates.device}.",
            )
        self.features = features
        self.coordinates = coordinates

    @property
    def coords(self) -> Tensor:
        """(V, 3) int32 voxel coordinates of the rows."""
        return self.coordinates.coords

    @property
    def stride(self) -> int:
        """Edge of the voxels in voxels of the finest map."""
        return self.coordinates.stride

    def replace(self, features: Tensor) -> SparseTensor:
        """Other features on the same voxels."""
        return SparseTensor(features, self.coordinates)

    def __repr__(self) -> str:
        return f"SparseTensor({tuple(self.features.shape)} {self.features.dtype} on {self.coordinates!r})"
