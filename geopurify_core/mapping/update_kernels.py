"""The compiled loops that write the map and copy it. Importable only where numba is; ``reference.py`` says the same."""
# mypy: ignore-errors

from __future__ import annotations

import numpy as np

from geopurify_core.jit import compiled
from geopurify_core.mapping.half import narrow, widen


@compiled(contract=True)
def update_features(start, stop, rows, first, cells, weights, source, features, weight, max_weight):
    """Voxels [start, stop): sum their pairs' feature rows in float32, then one weighted mean with the stored row."""
    total = np.empty(features.shape[1], dtype=np.float32)
    for voxel in range(start, stop):
        row = rows[voxel]
        low, high = first[voxel], first[voxel + 1]
        if row < 0 or low == high:
            continue
        total[:] = 0.0
        added = np.float32(0.0)
        for pair in range(low, high):
            added += weights[pair]
        for pair in range(low, high - 3, 4):  # four at a time: the sum then passes through memory a quarter as often
            _add_four(total, source, cells[pair : pair + 4], weights[pair : pair + 4])
        for pair in range(high - (high - low) % 4, high):
            _add_one(total, source[cells[pair]], weights[pair])
        old = weight[row]
        scale = np.float32(1.0) / (old + added)
        _mean(features[row], old * scale, total, scale)
        weight[row] = min(old + added, max_weight)


@compiled(contract=True)
def _add_four(total, source, cells, weights):
    a, b, c, d = source[cells[0]], source[cells[1]], source[cells[2]], source[cells[3]]
    wa, wb, wc, wd = weights[0], weights[1], weights[2], weights[3]
    for j in range(len(total)):
        total[j] += (wa * widen(a[j]) + wb * widen(b[j])) + (wc * widen(c[j]) + wd * widen(d[j]))


@compiled(contract=True)
def _add_one(total, values, w):
    for j in range(len(total)):
        total[j] += w * widen(values[j])


@compiled(contract=True)
def _mean(stored, keep, total, scale):
    for j in range(len(total)):
        stored[j] = narrow(keep * widen(stored[j]) + scale * total[j])


@compiled()
def update_geometry(rows, sums, stamp_ns, geometry_weight, colour, normal, first_seen, last_seen, max_weight):
    """The weighted means of colour and normal, and the stamps, of every touched voxel."""
    for voxel in range(len(rows)):
        row = rows[voxel]
        if row < 0:
            continue
        old, added = float(geometry_weight[row]), sums[voxel, 0]
        scale = 1.0 / (old + added)
        for k in range(3):
            colour[row, k] = (old * colour[row, k] + sums[voxel, 1 + k]) * scale
            mean = (old * float(widen(normal[row, k])) + sums[voxel, 4 + k]) * scale
            normal[row, k] = narrow(np.float32(mean))
        geometry_weight[row] = min(old + added, max_weight)
        first_seen[row] = min(first_seen[row], stamp_ns)
        last_seen[row] = max(last_seen[row], stamp_ns)


@compiled()
def copy_blocks(
    start, stop, blocks, block_rows, count,
    keys, features, weight, geometry_weight, colour, normal, first_seen, last_seen,
    out_coords, out_features, out_weight, out_geometry_weight, out_rgb, out_normals, out_first, out_last,
):  # fmt: skip
    """Bring the blocks of rows ``blocks[start:stop]`` of a snapshot up to date."""
    for block in range(start, stop):
        low = blocks[block] * block_rows
        high = min(low + block_rows, count)
        for row in range(low, high):
            key = keys[row]
            out_coords[row, 0] = (key >> 42) - (1 << 20)
            out_coords[row, 1] = ((key >> 21) & ((1 << 21) - 1)) - (1 << 20)
            out_coords[row, 2] = (key & ((1 << 21) - 1)) - (1 << 20)
            out_weight[row] = weight[row]
            out_geometry_weight[row] = geometry_weight[row]
            out_first[row] = first_seen[row]
            out_last[row] = last_seen[row]
            nx, ny, nz = widen(normal[row, 0]), widen(normal[row, 1]), widen(normal[row, 2])
            length = np.sqrt(nx * nx + ny * ny + nz * nz)
            scale = np.float32(1.0) / length if length > 0 else np.float32(0.0)
            out_normals[row, 0], out_normals[row, 1], out_normals[row, 2] = (
                narrow(nx * scale),
                narrow(ny * scale),
                narrow(nz * scale),
            )
            for k in range(3):
                out_rgb[row, k] = np.uint8(min(max(np.rint(colour[row, k]), 0.0), 255.0))
        out_features[low:high] = features[low:high]
