"""What the student sees of a map: ``[semantic | r g b | nx ny nz]`` a voxel, in the scales of the released code."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from geopurify_core.mapping.snapshot import MapSnapshot
from geopurify_core.purification.student.network import GEOMETRY_CHANNELS
from geopurify_core.purification.student.normals import FILL_RADIUS, fill_normals

# A row of inputs depends on the voxels this near and on no others (through the normals that are filled in).
INPUT_RADIUS = FILL_RADIUS
_CHUNK_ROWS = 1 << 14


def student_inputs(snapshot: MapSnapshot, rows: NDArray[np.integer] | None = None) -> torch.Tensor:
    """Inputs of the Student Affinity Network for the voxels of a map.

    Args:
        snapshot: V voxels with C feature channels.
        rows: (n,) which of them, in this order; by default all. Their unknown normals are still filled from the whole
            map, so rows of a part equal the same rows of the whole.

    Returns:
        (n, C + 6) float32: the features as they are in the map (not normalised; zero where none was seen), colours
        in [0, 1], unit normals in the map frame towards the cameras. Unknown normals are estimated from the voxels
        within ``INPUT_RADIUS`` (``fill_normals`` in ``normals.py``); zero where nothing can be said.
        Values are not checked: the network refuses NaN.

    Source: GeoPurify A.1 for the order; ``dataset/data_loader_ablation.py`` of the released code for the scales.
    """
    wanted = np.arange(len(snapshot)) if rows is None else np.asarray(rows, dtype=np.int64)
    channels = snapshot.feature_dim
    inputs = torch.empty(len(wanted), channels + GEOMETRY_CHANNELS)
    for start in range(0, len(wanted), _CHUNK_ROWS):  # a few rows at a time: no second copy of the features
        part = slice(start, start + _CHUNK_ROWS)
        inputs[part, :channels] = torch.from_numpy(snapshot.features[wanted[part]])  # torch widens halves faster
    inputs[:, channels : channels + 3] = torch.from_numpy(snapshot.rgb[wanted] / np.float32(255))
    inputs[:, channels + 3 :] = torch.from_numpy(fill_normals(snapshot.coords, snapshot.normals, wanted))
    return inputs
