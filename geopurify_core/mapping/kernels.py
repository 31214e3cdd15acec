"""The compiled inner loops of fusion. Importable only where numba is; ``reference.py`` says the same in torch.

float16 lives in uint16 arrays here, because numba has no such type: ``widen`` and ``narrow`` convert in registers. Where the
processor has the instructions, LLVM vectorises both; elsewhere integer arithmetic does the same, with the same rounding.
"""
# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator"

from __future__ import annotations

import platform

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from geopurify_core.mapping.hash import slot_of
from geopurify_core.mapping.jit import compiled

_KNOWN_HARDWARE = platform.machine() in ("aarch64", "arm64") or bool(llvmlite.binding.get_host_cpu_features().get("f16c"))


@intrinsic
def _hardware_widen(typing_context, bits):
    def codegen(context, builder, signature, args):
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), codegen


@intrinsic
def _hardware_narrow(typing_context, value):
    def codegen(context, builder, signature, args):
        return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), codegen


@intrinsic
def _float_of_bits(typing_context, bits):
    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.uint32), codegen


@intrinsic
def _bits_of_float(typing_context, value):
    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(types.float32), codegen


@compiled()
def _portable_widen(bits):
    """float32 of finite float16 bits: shift the fields into place, then scale the exponent (exact, subnormals too)."""
    magnitude = _float_of_bits(np.uint32(bits & np.uint16(0x7FFF)) << np.uint32(13)) * np.float32(2.0**112)
    return -magnitude if bits & np.uint16(0x8000) else magnitude


@compiled()
def _portable_narrow(value):
    """float16 bits of a float32 within ±65504, rounded to nearest even."""
    bits = _bits_of_float(np.float32(value))
    sign = (bits >> np.uint32(16)) & np.uint32(0x8000)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    if magnitude < np.uint32(0x38800000):  # below 2^-14: let an addition to 0.5 do the rounding
        half = _bits_of_float(_float_of_bits(magnitude) + np.float32(0.5)) - np.uint32(0x3F000000)
    else:
        half = ((magnitude + np.uint32(0xFFF) + ((magnitude >> np.uint32(13)) & np.uint32(1))) >> np.uint32(13)) - np.uint32(112 << 10)
    return np.uint16(sign | half)


def widen(value):
    """float32 of a feature value: uint16 holds float16 bits, float32 is itself."""


@overload(widen, inline="always")
def _widen_overload(value):
    if isinstance(value, types.Float):
        return lambda value: value
    if _KNOWN_HARDWARE:
        return lambda value: _hardware_widen(value)
    return lambda value: _portable_widen(value)


def narrow(value):
    """float16 bits (uint16) of a float32 within ±65504."""


@overload(narrow, inline="always")
def _narrow_overload(value):
    if _KNOWN_HARDWARE:
        return lambda value: _hardware_narrow(value)
    return lambda value: _portable_narrow(value)


@compiled()
def all_usable(start, stop, values):
    """Whether all of ``values[start:stop]`` are finite and fit float16. Counts rather than stops early: that vectorises."""
    bad = 0
    for i in range(start, stop):
        bad += not (abs(widen(values[i])) <= np.float32(65504.0))
    return bad == 0


@compiled()
def observe(
    start, stop, bands, columns, depth, rgb, ray_x, ray_y, rgb_column, rgb_row, grid_width, rotation, origin,
    inverse_size, range_weight, use_incidence, step, jump, unknown_cosine, least_cosine,
    out_key, out_cell, out_weight, out_rgb, out_normal,
):  # fmt: skip
    """Bands [start, stop) of cell rows: every pixel's voxel key, cell, weight, colour and normal, cell after cell.

    Returns (pixels with depth, observations made, pixels beyond the map's reach).
    """
    height, width = depth.shape
    valid = used = outside = 0
    normal = np.empty(3)
    limit = float(1 << 20)
    for band in range(start, stop):
        at = bands[band, 1] * width
        cell_row = bands[band, 0]
        for block in range(len(columns)):
            cell = cell_row * grid_width + columns[block, 0]
            known = cell_row >= 0 and columns[block, 0] >= 0
            for v in range(bands[band, 1], bands[band, 2]):
                for u in range(columns[block, 1], columns[block, 2]):
                    d = float(depth[v, u])
                    out_key[at] = -1
                    if d > 0:
                        valid += 1
                        if known:
                            x, y = ray_x[u] * d, ray_y[v] * d
                            px = np.floor((rotation[0, 0] * x + rotation[0, 1] * y + rotation[0, 2] * d + origin[0]) * inverse_size)
                            py = np.floor((rotation[1, 0] * x + rotation[1, 1] * y + rotation[1, 2] * d + origin[1]) * inverse_size)
                            pz = np.floor((rotation[2, 0] * x + rotation[2, 1] * y + rotation[2, 2] * d + origin[2]) * inverse_size)
                            if -limit <= px < limit and -limit <= py < limit and -limit <= pz < limit:
                                used += 1
                                out_key[at] = (
                                    ((np.int64(px) + (1 << 20)) << 42) | ((np.int64(py) + (1 << 20)) << 21) | (np.int64(pz) + (1 << 20))
                                )
                                out_cell[at] = cell
                                cosine = _normal(depth, ray_x, ray_y, u, v, step, jump, width, height, normal)
                                weight = 1.0
                                if range_weight > 0:
                                    weight = 1.0 / (1.0 + (d / range_weight) * (d / range_weight))
                                if use_incidence:
                                    weight *= max(cosine, least_cosine) if cosine >= 0 else unknown_cosine
                                out_weight[at] = weight
                                for k in range(3):
                                    out_rgb[at, k] = rgb[rgb_row[v], rgb_column[u], k]
                                    out_normal[at, k] = (
                                        rotation[k, 0] * normal[0] + rotation[k, 1] * normal[1] + rotation[k, 2] * normal[2]
                                    )
                            else:
                                outside += 1
                    at += 1
    return valid, used, outside


@compiled()
def _normal(depth, ray_x, ray_y, u, v, step, jump, width, height, normal):
    """Writes the camera-frame unit normal towards the camera; returns its cosine to the viewing ray, -1 where unknown."""
    d = float(depth[v, u])
    left, right = _neighbour(depth, v, u - step, v, width, height, d, jump), _neighbour(depth, v, u + step, v, width, height, d, jump)
    up, down = _neighbour(depth, v - step, u, v, width, height, d, jump), _neighbour(depth, v + step, u, v, width, height, d, jump)
    normal[0] = normal[1] = normal[2] = 0.0
    if (left <= 0 and right <= 0) or (up <= 0 and down <= 0):
        return -1.0
    x, y = ray_x[u], ray_y[v]
    d1, x1 = (right, ray_x[u + step]) if right > 0 else (d, x)
    d0, x0 = (left, ray_x[u - step]) if left > 0 else (d, x)
    ax, ay, az = x1 * d1 - x0 * d0, y * (d1 - d0), d1 - d0
    d1, y1 = (down, ray_y[v + step]) if down > 0 else (d, y)
    d0, y0 = (up, ray_y[v - step]) if up > 0 else (d, y)
    bx, by, bz = x * (d1 - d0), y1 * d1 - y0 * d0, d1 - d0
    # up x right points back at the camera: the optical frame has x right, y down, z forward
    nx, ny, nz = by * az - bz * ay, bz * ax - bx * az, bx * ay - by * ax
    length = np.sqrt(nx * nx + ny * ny + nz * nz)
    if length <= 0:
        return -1.0
    nx, ny, nz = nx / length, ny / length, nz / length
    cosine = -(nx * x + ny * y + nz) / np.sqrt(x * x + y * y + 1.0)
    if cosine < 0:
        nx, ny, nz, cosine = -nx, -ny, -nz, -cosine
    normal[0], normal[1], normal[2] = nx, ny, nz
    return cosine


@compiled()
def _neighbour(depth, v, u, _row, width, height, d, jump):
    """Depth of a neighbour on the same surface, or 0."""
    if u < 0 or v < 0 or u >= width or v >= height:
        return 0.0
    other = float(depth[v, u])
    return other if other > 0 and abs(other - d) <= jump * d else 0.0


@compiled()
def merge(keys, cells, weights, confidence, least_confidence, rgb, normals):
    """Observations → distinct voxels and distinct (voxel, cell) pairs, in order of first appearance.

    Observations of one cell must lie together. Returns (voxel keys (U,), sums (U, 7) float64 of weight, colour and normal,
    first pair of each voxel (U+1,), cells of pairs (P,), feature weights of pairs (P,)), pairs grouped by voxel.
    """
    total = len(keys)
    voxel_key = np.empty(total, dtype=np.int64)
    sums = np.empty((total, 8), dtype=np.float64)  # one cache line each
    newest_pair = np.empty(total, dtype=np.int32)
    pair_voxel = np.empty(total, dtype=np.int32)
    pair_cell = np.empty(total, dtype=np.int32)
    pair_weight = np.empty(total, dtype=np.float32)
    slots = np.zeros(1 << 15, dtype=np.int32)
    voxels = pairs = 0
    last_key, voxel = np.int64(-1), 0
    for i in range(total):
        key = keys[i]
        if key < 0:
            continue
        if key != last_key:
            last_key = key
            at = slot_of(key, len(slots))
            while slots[at] != 0 and voxel_key[slots[at] - 1] != key:
                at = at + 1 if at + 1 < len(slots) else 0
            if slots[at] == 0:
                voxel_key[voxels] = key
                newest_pair[voxels] = -1
                for k in range(7):
                    sums[voxels, k] = 0.0
                voxels += 1
                slots[at] = voxels
                voxel = voxels - 1
                if 2 * voxels > len(slots):
                    slots = _bigger(slots, voxel_key, voxels)
            else:
                voxel = slots[at] - 1
        weight = weights[i]
        sums[voxel, 0] += weight
        for k in range(3):
            sums[voxel, 1 + k] += weight * rgb[i, k]
            sums[voxel, 4 + k] += weight * normals[i, k]
        cell = cells[i]
        pair = newest_pair[voxel]
        if pair < 0 or pair_cell[pair] != cell:
            if confidence[cell] <= 0 or confidence[cell] < least_confidence:
                continue
            pair = pairs
            pairs += 1
            newest_pair[voxel] = pair
            pair_voxel[pair] = voxel
            pair_cell[pair] = cell
            pair_weight[pair] = 0.0
        pair_weight[pair] += weight * confidence[cell]
    first, cells_out, weights_out = _group(pair_voxel[:pairs], pair_cell, pair_weight, voxels)
    return voxel_key[:voxels].copy(), sums[:voxels, :7].copy(), first, cells_out, weights_out


@compiled()
def _bigger(slots, keys, count):
    grown = np.zeros(2 * len(slots), dtype=np.int32)
    for i in range(count):
        at = slot_of(keys[i], len(grown))
        while grown[at] != 0:
            at = at + 1 if at + 1 < len(grown) else 0
        grown[at] = i + 1
    return grown


@compiled()
def _group(pair_voxel, pair_cell, pair_weight, voxels):
    """Counting sort of the pairs by voxel; stable, so sums always run in the same order."""
    first = np.zeros(voxels + 1, dtype=np.int32)
    for pair in range(len(pair_voxel)):
        first[pair_voxel[pair] + 1] += 1
    for voxel in range(voxels):
        first[voxel + 1] += first[voxel]
    cells = np.empty(len(pair_voxel), dtype=np.int32)
    weights = np.empty(len(pair_voxel), dtype=np.float32)
    cursor = first[:-1].copy()
    for pair in range(len(pair_voxel)):
        at = cursor[pair_voxel[pair]]
        cursor[pair_voxel[pair]] += 1
        cells[at] = pair_cell[pair]
        weights[at] = pair_weight[pair]
    return first, cells, weights


@compiled(contract=True)
def update_features(start, stop, rows, first, cells, weights, source, features, weight, max_weight):
    """Voxels [start, stop): sum their pairs' feature rows in float32, then one weighted mean with the stored row."""
    channels = features.shape[1]
    total = np.empty(channels, dtype=np.float32)
    for voxel in range(start, stop):
        row = rows[voxel]
        low, high = first[voxel], first[voxel + 1]
        if row < 0 or low == high:
            continue
        total[:] = 0.0
        added = np.float32(0.0)
        for pair in range(low, high):
            w = weights[pair]
            cell = source[cells[pair]]
            added += w
            for j in range(channels):
                total[j] += w * widen(cell[j])
        old = weight[row]
        stored = features[row]
        scale = np.float32(1.0) / (old + added)
        keep = old * scale
        for j in range(channels):
            stored[j] = narrow(keep * widen(stored[j]) + scale * total[j])
        weight[row] = min(old + added, max_weight)


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
    start, stop, blocks, block_rows, count, keys, features, weight, geometry_weight, colour, normal, first_seen, last_seen,
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
            out_normals[row, 0], out_normals[row, 1], out_normals[row, 2] = narrow(nx * scale), narrow(ny * scale), narrow(nz * scale)
            for k in range(3):
                out_rgb[row, k] = np.uint8(min(max(np.rint(colour[row, k]), 0.0), 255.0))
        out_features[low:high] = features[low:high]
