"""Procedural textures, evaluated per pixel: colour from a point on the surface, without any image file."""

from __future__ import annotations

import numpy as np

from geopurify_core.datasets.synthetic import shapes
from geopurify_core.jit import compiled

_PLAIN, _WOOD, _TILES, _FABRIC = shapes.PLAIN, shapes.WOOD, shapes.TILES, shapes.FABRIC
_STRIPES, _CHECKER, _PLANKS, _PICTURE = shapes.STRIPES, shapes.CHECKER, shapes.PLANKS, shapes.PICTURE
_BOOKS, _SKY, _MARBLE, _WALLPAPER = shapes.BOOKS, shapes.SKY, shapes.MARBLE, shapes.WALLPAPER
_CARPET = shapes.CARPET


@compiled(contract=True, inline=True)
def hash01(i: int, j: int, k: int) -> float:
    """A repeatable pseudo-random number in [0, 1) from three integers."""
    h = (i * 73856093) ^ (j * 19349663) ^ (k * 83492791)
    h = (h ^ (h >> 13)) & 0x7FFFFFFF
    h = (h * 1274126177) & 0x7FFFFFFF
    h = (h ^ (h >> 15)) & 0x7FFFFFFF
    h = (h * 1911520717) & 0x7FFFFFFF
    return ((h >> 7) & 0xFFFF) / 65536.0


@compiled(contract=True)
def noise(x: float, y: float, seed: int) -> float:
    """Smooth value noise in [0, 1] with unit lattice."""
    xi, yi = int(np.floor(x)), int(np.floor(y))
    fx, fy = x - xi, y - yi
    fx, fy = fx * fx * (3 - 2 * fx), fy * fy * (3 - 2 * fy)
    a = hash01(xi, yi, seed) * (1 - fx) + hash01(xi + 1, yi, seed) * fx
    b = hash01(xi, yi + 1, seed) * (1 - fx) + hash01(xi + 1, yi + 1, seed) * fx
    return float(a * (1 - fy) + b * fy)


@compiled(contract=True)
def _tiles(u: float, v: float, scale: float, seed: int) -> float:
    a, b = u * scale, v * scale
    i, j = int(np.floor(a)), int(np.floor(b))
    if a - i < 0.035 or b - j < 0.035:
        return 1.0
    return float(0.25 * hash01(i, j, seed) + 0.1 * noise(u * 8, v * 8, seed))


@compiled(contract=True)
def _planks(u: float, v: float, scale: float, seed: int) -> float:
    row = int(np.floor(v * scale))
    along = u + 1.7 * hash01(row, 3, seed)
    board = int(np.floor(along * scale * 0.15))
    gap = v * scale - row < 0.05 or along * scale * 0.15 - board < 0.01
    grain = noise(along * 3, v * 60, seed + row)
    return 1.0 if gap else float(0.45 * hash01(row, board, seed) + 0.35 * grain)


@compiled(contract=True)
def blend(pattern: int, u: float, v: float, scale: float, seed: int) -> float:
    """Share of the second colour at (u, v), metres on the surface; in [0, 1]."""
    if pattern == _WOOD:
        ring = noise(u * 2.0 * scale, v * 22.0 * scale, seed)
        return float(0.6 * ring + 0.3 * noise(u * 9.0 * scale, v * 90.0 * scale, seed + 1))
    if pattern == _TILES:
        return float(_tiles(u, v, scale, seed))
    if pattern in (_FABRIC, _CARPET):
        return float(0.6 * noise(u * 160 * scale, v * 160 * scale, seed) + 0.4 * noise(u * 12, v * 12, seed + 5))
    if pattern == _STRIPES:
        return 1.0 if u * scale - np.floor(u * scale) < 0.5 else 0.0
    if pattern == _CHECKER:
        return float((int(np.floor(u * scale)) + int(np.floor(v * scale))) & 1)
    if pattern == _PLANKS:
        return float(_planks(u, v, scale, seed))
    if pattern == _MARBLE:
        bend = noise(u * 4 * scale, v * 4 * scale, seed) + 0.5 * noise(u * 17 * scale, v * 17 * scale, seed + 2)
        return float(0.5 + 0.5 * np.sin(12 * bend + 5 * u))
    if pattern == _WALLPAPER:
        wave = np.sin(u * 6.2832 * scale) * np.sin(v * 6.2832 * scale)
        return 1.0 if wave > 0.55 else 0.0
    return float(0.5 * noise(u * 2.5, v * 2.5, seed) + 0.15 * noise(u * 40, v * 40, seed + 1))


@compiled(contract=True)
def _painting(u: float, v: float, seed: int, out: np.ndarray) -> None:
    share = noise(u * 5, v * 5, seed)
    for c in range(3):
        out[c] = out[c] * (0.35 + 0.65 * share) + 0.2 * hash01(c, 1, seed) * (1 - share)
    for k in range(5):
        x, y = (hash01(k, 2, seed) - 0.5) * 0.7, (hash01(k, 3, seed) - 0.5) * 0.5
        r = 0.05 + 0.14 * hash01(k, 4, seed)
        wide = 1.0 + 2.0 * hash01(k, 5, seed)
        round_shape = (u - x) * (u - x) + (v - y) * (v - y) * wide < r * r
        square_shape = abs(u - x) < r and abs(v - y) < r / wide
        if (k & 1 and round_shape) or (not k & 1 and square_shape):
            for c in range(3):
                out[c] = hash01(k, 6 + c, seed) ** 2


@compiled(contract=True)
def _book_row(u: float, v: float, seed: int, out: np.ndarray) -> None:
    k = int(np.floor(u / 0.036))
    inside = u / 0.036 - k
    shade = 0.25 if inside < 0.08 else 0.75 + 0.25 * hash01(k, 9, seed)
    label = hash01(k, 8, seed) > 0.5 and abs(v - 0.03) < 0.025
    for c in range(3):
        value = 0.04 + 0.75 * hash01(k, c, seed) ** 2
        out[c] = (0.7 if label else value) * shade


@compiled(contract=True)
def _view_outside(u: float, v: float, seed: int, out: np.ndarray) -> None:
    hill = -0.25 + 0.25 * noise(u * 2, 0.5, seed) + 0.06 * noise(u * 11, 0.5, seed)
    if v < hill:
        green = 0.15 + 0.25 * noise(u * 9, v * 9, seed)
        out[0], out[1], out[2] = green * 0.7, green, green * 0.4
    else:
        cloud = noise(u * 3, v * 6, seed + 3)
        out[0], out[1], out[2] = 0.45 + 0.5 * cloud, 0.65 + 0.33 * cloud, 0.98


@compiled(contract=True)
def surface_colour(material: np.ndarray, u: float, v: float, out: np.ndarray) -> None:
    """Linear-light colour into ``out`` (3,) at (u, v) metres of a surface with the (12,) material row."""
    pattern, seed = int(material[0]), int(material[10])
    if pattern == _SKY:
        _view_outside(u, v, seed, out)
        return
    share = blend(pattern, u, v, material[7], seed)
    for c in range(3):
        out[c] = material[1 + c] * (1 - share) + material[4 + c] * share
    if pattern == _PICTURE:
        _painting(u, v, seed, out)
    elif pattern == _BOOKS:
        _book_row(u, v, seed, out)
