"""A small ray caster: one primary ray and one shadow ray per pixel, on the CPU, without any graphics library.

Every primitive is the unit box, cylinder or sphere under ``unit = A (p - c)`` with ``A = diag(1 / half) Rᵀ``; a ray
keeps its parameter under that map, so with directions of unit z the parameter of the nearest hit is the depth. Two
things make it fast: primitives are binned into image tiles by their projected corners and sorted by distance, and the
light of a room only meets the furniture of that room.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geopurify_core.datasets.synthetic.textures import surface_colour
from geopurify_core.jit import compiled

_TILE = 16
_NEAR_M = 0.03
_FAR_M = 1e9


@dataclass(frozen=True)
class Primitives:
    """A scene as arrays, one row per primitive.

    Attributes:
        shape: (P,) int64, see ``shapes``.
        center_m: (P, 3); half_m: (P, 3); rotation: (P, 3, 3), columns are the primitive's axes in the map.
        instance: (P,) int64 instance id; room: (P,) int64 room whose light it blocks, -1 for none.
        materials: (P, 12) float32 rows of ``Material.row``.
        rooms_m: (K, 6) low and high corner of each room.
        lights: (K, 7) position, colour and ambient share of each room's lamp.
    """

    shape: NDArray[np.int64]
    center_m: NDArray[np.float64]
    half_m: NDArray[np.float64]
    rotation: NDArray[np.float64]
    instance: NDArray[np.int64]
    room: NDArray[np.int64]
    materials: NDArray[np.float32]
    rooms_m: NDArray[np.float64]
    lights: NDArray[np.float64]

    def to_unit(self) -> NDArray[np.float64]:
        """(P, 3, 3) the linear part A of the map into each primitive's unit shape."""
        return np.ascontiguousarray(self.rotation.transpose(0, 2, 1) / self.half_m[:, :, None])


@compiled(contract=True, inline=True)
def _hit_box(ox: float, oy: float, oz: float, dx: float, dy: float, dz: float) -> float:
    ix, iy, iz = 1.0 / (dx + 1e-12), 1.0 / (dy + 1e-12), 1.0 / (dz + 1e-12)
    ax, bx = (-1.0 - ox) * ix, (1.0 - ox) * ix
    ay, by = (-1.0 - oy) * iy, (1.0 - oy) * iy
    az, bz = (-1.0 - oz) * iz, (1.0 - oz) * iz
    near = max(min(ax, bx), min(ay, by), min(az, bz))
    far = min(max(ax, bx), max(ay, by), max(az, bz))
    return near if near <= far else _FAR_M


@compiled(contract=True, inline=True)
def _hit_sphere(ox: float, oy: float, oz: float, dx: float, dy: float, dz: float) -> float:
    a = dx * dx + dy * dy + dz * dz
    b = ox * dx + oy * dy + oz * dz
    c = ox * ox + oy * oy + oz * oz - 1.0
    root = b * b - a * c
    return (-b - np.sqrt(root)) / a if root > 0 else _FAR_M


@compiled(contract=True, inline=True)
def _hit_cylinder(ox: float, oy: float, oz: float, dx: float, dy: float, dz: float) -> float:
    a = dx * dx + dy * dy + 1e-14
    b = ox * dx + oy * dy
    c = ox * ox + oy * oy - 1.0
    root = b * b - a * c
    if root <= 0:
        return _FAR_M
    root = np.sqrt(root)
    iz = 1.0 / (dz + 1e-12)
    az, bz = (-1.0 - oz) * iz, (1.0 - oz) * iz
    near = max((-b - root) / a, min(az, bz))
    far = min((-b + root) / a, max(az, bz))
    return near if near <= far else _FAR_M


@compiled(contract=True, inline=True)
def _hit(shape: int, o: np.ndarray, dx: float, dy: float, dz: float) -> float:
    if shape == 0:
        return float(_hit_box(o[0], o[1], o[2], dx, dy, dz))
    if shape == 1:
        return float(_hit_cylinder(o[0], o[1], o[2], dx, dy, dz))
    return float(_hit_sphere(o[0], o[1], o[2], dx, dy, dz))


@compiled(contract=True)
def _pixel_rectangle(corners: np.ndarray, k: np.ndarray, width: int, height: int, out: np.ndarray) -> None:
    """Tile rectangle (4,) that covers the projection of 8 camera-frame corners; an empty one when behind the camera."""
    u0, v0, u1, v1 = 1e9, 1e9, -1e9, -1e9
    behind = 0
    for i in range(8):
        z = corners[i, 2]
        if z < _NEAR_M:
            behind += 1
            continue
        u, v = k[0] * corners[i, 0] / z + k[2], k[1] * corners[i, 1] / z + k[3]
        u0, u1, v0, v1 = min(u0, u), max(u1, u), min(v0, v), max(v1, v)
    if behind == 8:
        out[:] = 0
        return
    if behind:  # the projection is unbounded on some side: keep the whole image
        u0, v0, u1, v1 = 0.0, 0.0, width - 1.0, height - 1.0
    out[0] = int(max(u0, 0.0)) // _TILE
    out[1] = int(max(v0, 0.0)) // _TILE
    out[2] = int(min(max(u1 + 1, 0.0), width - 1.0)) // _TILE + 1 if u1 >= 0 and u0 < width else 0
    out[3] = int(min(max(v1 + 1, 0.0), height - 1.0)) // _TILE + 1 if v1 >= 0 and v0 < height else 0


@compiled(contract=True)
def _bin(
    corners: np.ndarray, order: np.ndarray, k: np.ndarray, width: int, height: int
) -> tuple[np.ndarray, np.ndarray, int]:
    columns, rows = (width + _TILE - 1) // _TILE, (height + _TILE - 1) // _TILE
    lists = np.empty((rows * columns, order.size), np.int32)
    counts = np.zeros(rows * columns, np.int32)
    rectangle = np.zeros(4, np.int64)
    for p in order:
        _pixel_rectangle(corners[p], k, width, height, rectangle)
        for row in range(rectangle[1], rectangle[3]):
            for column in range(rectangle[0], rectangle[2]):
                tile = row * columns + column
                lists[tile, counts[tile]] = p
                counts[tile] += 1
    return lists, counts, columns


@compiled(contract=True)
def _trace_depth(
    shape: np.ndarray, to_unit: np.ndarray, origin_unit: np.ndarray, near: np.ndarray,
    lists: np.ndarray, counts: np.ndarray, columns: int, R: np.ndarray, k: np.ndarray,
    depth: np.ndarray, index: np.ndarray,
) -> None:  # fmt: skip
    height, width = depth.shape
    for v in range(height):
        y = (v - k[3]) / k[1]
        for u in range(width):
            x = (u - k[2]) / k[0]
            dx, dy, dz = (
                R[0, 0] * x + R[0, 1] * y + R[0, 2],
                R[1, 0] * x + R[1, 1] * y + R[1, 2],
                R[2, 0] * x + R[2, 1] * y + R[2, 2],
            )
            length = np.sqrt(x * x + y * y + 1.0)
            tile = (v // _TILE) * columns + u // _TILE
            best, which = _FAR_M, -1
            for n in range(counts[tile]):
                p = lists[tile, n]
                if near[p] > best * length:
                    break
                a = to_unit[p]
                t = _hit(
                    shape[p], origin_unit[p],
                    a[0, 0] * dx + a[0, 1] * dy + a[0, 2] * dz,
                    a[1, 0] * dx + a[1, 1] * dy + a[1, 2] * dz,
                    a[2, 0] * dx + a[2, 1] * dy + a[2, 2] * dz,
                )  # fmt: skip
                if _NEAR_M < t < best:
                    best, which = t, p
            depth[v, u] = best if which >= 0 else 0.0
            index[v, u] = which


@compiled(contract=True)
def _local_surface(shape: int, q: np.ndarray, half: np.ndarray, normal: np.ndarray, uv: np.ndarray) -> None:
    """Local normal (3,) and surface coordinates (2,), metres, of the unit-shape point ``q``."""
    normal[:] = 0.0
    axis = 0
    if shape == 0:
        for i in range(1, 3):
            if abs(q[i]) > abs(q[axis]):
                axis = i
        normal[axis] = 1.0 if q[axis] > 0 else -1.0
    elif shape == 1 and abs(q[2]) > np.sqrt(q[0] * q[0] + q[1] * q[1]):
        axis = 2
        normal[2] = 1.0 if q[2] > 0 else -1.0
    else:
        for i in range(2 if shape == 1 else 3):
            normal[i] = q[i] / half[i]
        size = np.sqrt(normal[0] ** 2 + normal[1] ** 2 + normal[2] ** 2) + 1e-12
        normal /= size
        uv[0] = np.arctan2(q[1], q[0]) * half[0]
        uv[1] = q[2] * half[2]
        return
    uv[0] = q[0] * half[0] if axis else q[1] * half[1]
    uv[1] = q[1] * half[1] if axis == 2 else q[2] * half[2]


@compiled(contract=True)
def _in_shadow(
    light: np.ndarray, px: float, py: float, pz: float, own: int, members: np.ndarray,
    shape: np.ndarray, to_unit: np.ndarray, light_unit: np.ndarray, center: np.ndarray, radius: np.ndarray,
) -> bool:  # fmt: skip
    dx, dy, dz = px - light[0], py - light[1], pz - light[2]
    inverse = 1.0 / (dx * dx + dy * dy + dz * dz)
    for p in members:
        if p == own:
            continue
        ex, ey, ez = center[p, 0] - light[0], center[p, 1] - light[1], center[p, 2] - light[2]
        s = min(max((ex * dx + ey * dy + ez * dz) * inverse, 0.0), 1.0)
        gx, gy, gz = ex - s * dx, ey - s * dy, ez - s * dz
        if gx * gx + gy * gy + gz * gz > radius[p] * radius[p]:
            continue
        a = to_unit[p]
        t = _hit(
            shape[p], light_unit[p],
            a[0, 0] * dx + a[0, 1] * dy + a[0, 2] * dz,
            a[1, 0] * dx + a[1, 1] * dy + a[1, 2] * dz,
            a[2, 0] * dx + a[2, 1] * dy + a[2, 2] * dz,
        )  # fmt: skip
        if 1e-3 < t < 0.985:
            return True
    return False


@compiled(contract=True, inline=True)
def _corner_shade(room: np.ndarray, px: float, py: float, pz: float, n: np.ndarray) -> float:
    """Ambient light left near the room's edges: each wall close by that the surface does not lie on takes some away."""
    shade = 1.0
    point = (px, py, pz)
    for axis in range(3):
        side = min(abs(point[axis] - room[axis]), abs(room[axis + 3] - point[axis]))
        facing = 1.0 - abs(n[axis])
        shade *= 1.0 - 0.35 * facing * max(0.0, 1.0 - side / 0.35)
    return shade


@compiled(contract=True, inline=True)
def _find_room(rooms: np.ndarray, px: float, py: float, dx: float, dy: float) -> int:
    best, distance = 0, 1e9
    x, y = px - 0.02 * dx, py - 0.02 * dy
    for r in range(rooms.shape[0]):
        gap = max(max(rooms[r, 0] - x, x - rooms[r, 3]), max(rooms[r, 1] - y, y - rooms[r, 4]))
        if gap < distance:
            best, distance = r, gap
    return best


@compiled(contract=True)
def _light_on(
    light: np.ndarray, light_unit: np.ndarray, members: np.ndarray, own: int, point: np.ndarray, n: np.ndarray,
    d: np.ndarray, shape: np.ndarray, to_unit: np.ndarray, center: np.ndarray, radius: np.ndarray,
) -> tuple[float, float]:  # fmt: skip
    """Diffuse and mirrored share of the lamp's light at ``point`` with normal ``n`` seen along the ray ``d``."""
    lx, ly, lz = light[0] - point[0], light[1] - point[1], light[2] - point[2]
    distance = np.sqrt(lx * lx + ly * ly + lz * lz) + 1e-6
    facing = (n[0] * lx + n[1] * ly + n[2] * lz) / distance
    if facing <= 0:
        return 0.0, 0.0
    if _in_shadow(light, point[0], point[1], point[2], own, members, shape, to_unit, light_unit, center, radius):
        return 0.0, 0.0
    mirror = 2 * facing * (n[0] * d[0] + n[1] * d[1] + n[2] * d[2])
    along = (lx * d[0] + ly * d[1] + lz * d[2]) / distance - mirror
    return facing * 3.2 / (0.8 + 0.4 * distance * distance), max(0.0, along) ** 24


@compiled(contract=True)
def _surface_at(
    p: int, point: np.ndarray, shape: np.ndarray, center: np.ndarray, half: np.ndarray, rotation: np.ndarray,
    to_unit: np.ndarray, n: np.ndarray, uv: np.ndarray,
) -> None:  # fmt: skip
    """Normal (3,) in the map and surface coordinates (2,) of a map-frame point on primitive ``p``."""
    q, local = np.empty(3), np.empty(3)
    for i in range(3):
        q[i] = 0.0
        for j in range(3):
            q[i] += to_unit[p, i, j] * (point[j] - center[p, j])
    _local_surface(shape[p], q, half[p], local, uv)
    for i in range(3):
        n[i] = rotation[p, i, 0] * local[0] + rotation[p, i, 1] * local[1] + rotation[p, i, 2] * local[2]


@compiled(contract=True)
def _shade(
    shape: np.ndarray, center: np.ndarray, half: np.ndarray, rotation: np.ndarray, to_unit: np.ndarray,
    materials: np.ndarray, rooms: np.ndarray, lights: np.ndarray, light_unit: np.ndarray, members: np.ndarray,
    starts: np.ndarray, radius: np.ndarray, origin: np.ndarray, R: np.ndarray, k: np.ndarray,
    depth: np.ndarray, index: np.ndarray, rgb: np.ndarray, cosine: np.ndarray,
) -> None:  # fmt: skip
    height, width = depth.shape
    n, uv, colour, d, point = np.empty(3), np.empty(2), np.empty(3), np.empty(3), np.empty(3)
    for v in range(height):
        for u in range(width):
            p = index[v, u]
            if p < 0:
                continue
            x, y = (u - k[2]) / k[0], (v - k[3]) / k[1]
            size = np.sqrt(x * x + y * y + 1.0)
            for i in range(3):
                d[i] = (R[i, 0] * x + R[i, 1] * y + R[i, 2]) / size
                point[i] = origin[i] + depth[v, u] * size * d[i]
            _surface_at(p, point, shape, center, half, rotation, to_unit, n, uv)
            cosine[v, u] = abs(n[0] * d[0] + n[1] * d[1] + n[2] * d[2])
            material = materials[p]
            surface_colour(material, uv[0], uv[1], colour)
            room = _find_room(rooms, point[0], point[1], d[0], d[1])
            light, casters = lights[room], members[starts[room] : starts[room + 1]]
            direct, shine = _light_on(
                light, light_unit[room], casters, p, point, n, d, shape, to_unit, center, radius
            )  # fmt: skip
            ambient = light[6] * (0.75 + 0.25 * n[2]) * _corner_shade(rooms[room], point[0], point[1], point[2], n)
            for c in range(3):
                rgb[v, u, c] = colour[c] * (light[3 + c] * direct + ambient + material[9]) + material[8] * shine


def _box_corners(scene: Primitives) -> NDArray[np.float64]:
    signs = np.array([[(-1) ** (i >> b & 1) for b in range(3)] for i in range(8)], dtype=np.float64)
    local = scene.half_m[:, None, :] * signs[None]
    corners: NDArray[np.float64] = scene.center_m[:, None, :] + np.einsum("pij,pkj->pki", scene.rotation, local)
    return corners


class RayCaster:
    """Renders one scene from any pose; arrays that do not depend on the camera are prepared once.

    Args:
        scene: The primitives, rooms and lights.
    """

    def __init__(self, scene: Primitives) -> None:
        self._scene = scene
        self._to_unit = scene.to_unit()
        self._corners = _box_corners(scene)
        self._radius = np.linalg.norm(scene.half_m, axis=1)
        casters = [np.flatnonzero(scene.room == r) for r in range(len(scene.rooms_m))]
        self._members = np.concatenate([*casters, np.empty(0, np.int64)]).astype(np.int64)
        self._starts = np.cumsum([0, *(len(c) for c in casters)]).astype(np.int64)
        offsets = scene.lights[:, None, :3] - scene.center_m[None]
        self._light_unit = np.ascontiguousarray(np.einsum("pij,rpj->rpi", self._to_unit, offsets))

    def render(
        self, T_map_camera: NDArray[np.float64], K: tuple[float, float, float, float], width: int, height: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
        """Linear-light colour, depth, instance id and |cos| of the viewing angle, one value per pixel.

        Args:
            T_map_camera: (4, 4) pose of the optical frame.
            K: fx, fy, cx, cy, pixels.
            width, height: Image size, pixels.

        Returns:
            (H, W, 3) float32 colour, (H, W) float32 depth in metres (0 = nothing hit), (H, W) int64 instance id
            (-1 = nothing hit), (H, W) float32 cosine between surface normal and viewing ray.
        """
        scene, k = self._scene, np.asarray(K, dtype=np.float64)
        R, origin = np.ascontiguousarray(T_map_camera[:3, :3]), np.ascontiguousarray(T_map_camera[:3, 3])
        near = np.maximum(np.linalg.norm(scene.center_m - origin, axis=1) - self._radius, 0.0)
        corners = (self._corners - origin) @ R
        lists, counts, columns = _bin(corners, np.argsort(near, kind="stable"), k, width, height)
        origin_unit = np.einsum("pij,pj->pi", self._to_unit, origin - scene.center_m)
        depth, index = np.zeros((height, width), np.float32), np.full((height, width), -1, np.int64)
        rgb, cosine = np.zeros((height, width, 3), np.float32), np.zeros((height, width), np.float32)
        _trace_depth(scene.shape, self._to_unit, origin_unit, near, lists, counts, columns, R, k, depth, index)
        _shade(
            scene.shape, scene.center_m, scene.half_m, scene.rotation, self._to_unit, scene.materials, scene.rooms_m,
            scene.lights, self._light_unit, self._members, self._starts, self._radius,
            origin, R, k, depth, index, rgb, cosine,
        )  # fmt: skip
        instance = np.where(index >= 0, scene.instance[np.maximum(index, 0)], -1)
        return rgb, depth, instance, cosine
