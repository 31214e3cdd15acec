"""Sparse tensors and submanifold convolution in plain torch, compatible with MinkowskiEngine's weights."""

from __future__ import annotations

from geopurify_core.sparse.collate import SceneLayout, collate
from geopurify_core.sparse.coordinates import CoordinateMap
from geopurify_core.sparse.engine import Engine, load_engine
from geopurify_core.sparse.kernel_map import voxel_keys
from geopurify_core.sparse.layers import (
    SparseBatchNorm,
    SparseConv3d,
    SparseConvTranspose3d,
    SparseReLU,
    SubmanifoldConv3d,
)
from geopurify_core.sparse.tensor import SparseTensor

__all__ = [
    "CoordinateMap",
    "Engine",
    "SceneLayout",
    "SparseBatchNorm",
    "SparseConv3d",
    "SparseConvTranspose3d",
    "SparseReLU",
    "SparseTensor",
    "SubmanifoldConv3d",
    "collate",
    "load_engine",
    "voxel_keys",
]
