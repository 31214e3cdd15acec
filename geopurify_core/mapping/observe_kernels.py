"""The compiled loops that turn pixels into observations; ``reference.observe_frame`` says the same in torch."""
# mypy: ignore-errors

from __future__ import annotations

import numpy as np

from geopurify_core.jit import compiled

# How much a measurement counts whose surface normal is unknown, and the least a grazing one counts.
UNKNOWN_COSINE = 0.5
LEAST_COSINE = 0.1
# Neighbours whose depth differs by more than this share lie on another surface and give no normal.
NORMAL_JUMP = 0.05


@compiled()
def observe_rows(
    start, stop, depth, step, ray_x, ray_y, cell_column, cell_row, grid_width, pose, inverse_size,
    range_weight, use_incidence, out_key, out_cell, out_weight, out_normal,
):  # fmt: skip
    """Image rows [start, stop): voxel key, cell, weight and normal of every pixel.

    ``depth``, ``ray_x`` and ``ray_y`` are padded by ``step`` on each side, so that every pixel has its neighbours.
    Returns (pixels with depth, observations made, pixels beyond the map's reach).
    """
    width = len(cell_column)
    middle = slice(step, step + width)
    valid = used = outside = 0
    for v in range(start, stop):
        row = depth[v + step]
        counts = _keys_of_row(
            row[middle], ray_x[middle], ray_y[v + step], cell_column, cell_row[v], grid_width, pose, inverse_size,
            out_key[v], out_cell[v],
        )  # fmt: skip
        valid, used, outside = valid + counts[0], used + counts[1], outside + counts[2]
        _normals_of_row(
            row[middle], row[: width], row[2 * step :], depth[v, middle], depth[v + 2 * step, middle],
            ray_x[middle], ray_x[: width], ray_x[2 * step :], ray_y[v + step], ray_y[v], ray_y[v + 2 * step],
            pose, range_weight, use_incidence, out_weight[v], out_normal[0, v], out_normal[1, v], out_normal[2, v],
        )  # fmt: skip
    return valid, used, outside


@compiled()
def _keys_of_row(depth, ray_x, ray_y, cell_column, cell_row, grid_width, pose, inverse_size, out_key, out_cell):
    low, high = float(-(1 << 20)), float((1 << 20) - 1)
    valid = used = outside = 0
    for u in range(len(out_key)):
        d = float(depth[u])
        x, y = ray_x[u] * d, ray_y * d
        px = np.floor((pose[0, 0] * x + pose[0, 1] * y + pose[0, 2] * d + pose[0, 3]) * inverse_size)
        py = np.floor((pose[1, 0] * x + pose[1, 1] * y + pose[1, 2] * d + pose[1, 3]) * inverse_size)
        pz = np.floor((pose[2, 0] * x + pose[2, 1] * y + pose[2, 2] * d + pose[2, 3]) * inverse_size)
        cx, cy, cz = min(max(px, low), high), min(max(py, low), high), min(max(pz, low), high)
        reachable = (cx == px) & (cy == py) & (cz == pz)
        known = (d > 0) & (cell_row >= 0) & (cell_column[u] >= 0)
        key = ((np.int64(cx) + (1 << 20)) << 42) | ((np.int64(cy) + (1 << 20)) << 21) | (np.int64(cz) + (1 << 20))
        out_key[u] = key if known & reachable else -1
        out_cell[u] = cell_row * grid_width + cell_column[u]
        valid += d > 0
        used += known & reachable
        outside += known & (not reachable)
    return valid, used, outside


@compiled()
def _normals_of_row(
    depth, depth_left, depth_right, depth_up, depth_down, ray_x, x_left, x_right, ray_y, y_up, y_down,
    pose, range_weight, use_incidence, out_weight, out_x, out_y, out_z,
):  # fmt: skip
    """Normals by central differences, one-sided where a neighbour lies on another surface; branch-free to vectorise."""
    inverse_range = 1.0 / range_weight if range_weight > 0 else 0.0
    for u in range(len(out_weight)):
        d, x, y = float(depth[u]), ray_x[u], ray_y
        left, right, up, down = float(depth_left[u]), float(depth_right[u]), float(depth_up[u]), float(depth_down[u])
        limit = NORMAL_JUMP * d
        has_left, has_right = (left > 0) & (abs(left - d) <= limit), (right > 0) & (abs(right - d) <= limit)
        has_up, has_down = (up > 0) & (abs(up - d) <= limit), (down > 0) & (abs(down - d) <= limit)
        d0, x0 = left if has_left else d, x_left[u] if has_left else x
        d1, x1 = right if has_right else d, x_right[u] if has_right else x
        ax, ay, az = x1 * d1 - x0 * d0, y * (d1 - d0), d1 - d0
        d0, y0 = up if has_up else d, y_up if has_up else y
        d1, y1 = down if has_down else d, y_down if has_down else y
        bx, by, bz = x * (d1 - d0), y1 * d1 - y0 * d0, d1 - d0
        nx, ny, nz = by * az - bz * ay, bz * ax - bx * az, bx * ay - by * ax  # down x right looks back at the camera
        length = np.sqrt(nx * nx + ny * ny + nz * nz)
        known = (has_left | has_right) & (has_up | has_down) & (length > 0)
        cosine = -(nx * x + ny * y + nz) / (np.sqrt(x * x + y * y + 1.0) * (length if known else 1.0))
        scale = (1.0 if cosine >= 0 else -1.0) / (length if known else 1.0)
        scale = scale if known else 0.0
        out_x[u] = (pose[0, 0] * nx + pose[0, 1] * ny + pose[0, 2] * nz) * scale
        out_y[u] = (pose[1, 0] * nx + pose[1, 1] * ny + pose[1, 2] * nz) * scale
        out_z[u] = (pose[2, 0] * nx + pose[2, 1] * ny + pose[2, 2] * nz) * scale
        incidence = max(abs(cosine), LEAST_COSINE) if known else UNKNOWN_COSINE
        nearness = 1.0 / (1.0 + (d * inverse_range) * (d * inverse_range))
        out_weight[u] = nearness * (incidence if use_incidence else 1.0)


@compiled()
def gather_colours(start, stop, rgb, rows, columns, out):
    """Nearest colour pixel for rows [start, stop) of another resolution."""
    for v in range(start, stop):
        source = rgb[rows[v]]
        for u in range(len(columns)):
            for k in range(3):
                out[v, u, k] = source[columns[u], k]
