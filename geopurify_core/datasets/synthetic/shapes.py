"""Boxes, cylinders and ellipsoids with materials: the bricks every piece of furniture is made of.

Local frames: x to the right, y to the back, z up; a piece of furniture stands on z = 0 with its back towards +y.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

BOX, CYLINDER, ELLIPSOID = 0, 1, 2

PLAIN, WOOD, TILES, FABRIC, STRIPES, CHECKER, PLANKS = 0, 1, 2, 3, 4, 5, 6
PICTURE, BOOKS, SKY, MARBLE, WALLPAPER, CARPET, SCREEN = 7, 8, 9, 10, 11, 12, 13

Rgb = tuple[float, float, float]


@dataclass(frozen=True)
class Material:
    """How a surface looks.

    Attributes:
        colour, second: sRGB in [0, 1]; the pattern blends between the two.
        pattern: One of the pattern constants of this module.
        scale: Repetitions per metre (tiles, stripes, planks) or a frequency factor.
        gloss: Strength of the highlight.
        glow: Light given off by the surface itself.
        seed: Varies hashed patterns (pictures, books).
    """

    colour: Rgb
    second: Rgb | None = None
    pattern: int = PLAIN
    scale: float = 1.0
    gloss: float = 0.0
    glow: float = 0.0
    seed: int = 0

    def row(self) -> NDArray[np.float32]:
        """(12,) float32: pattern, colour and second colour in linear light, scale, gloss, glow, seed, 0."""
        first = np.clip(self.colour, 0, 1) ** 2.2
        second = np.clip(self.second or self.colour, 0, 1) ** 2.2
        tail = (self.scale, self.gloss, self.glow, self.seed % 65_521, 0.0)
        return np.array([self.pattern, *first, *second, *tail], dtype=np.float32)


@dataclass(frozen=True)
class Part:
    """One primitive in the frame of its piece of furniture.

    Attributes:
        shape: BOX, CYLINDER (axis along z) or ELLIPSOID.
        center_m, half_m: (3,) centre and half extents, metres.
        rotation: (3, 3) rotation of the primitive's axes.
    """

    shape: int
    center_m: NDArray[np.float64]
    half_m: NDArray[np.float64]
    material: Material
    rotation: NDArray[np.float64] = field(default_factory=lambda: np.eye(3))


def box(low: ArrayLike, high: ArrayLike, material: Material) -> Part:
    """An axis-aligned box between two corners."""
    a, b = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
    return Part(BOX, (a + b) / 2, np.maximum(np.abs(b - a) / 2, 1e-3), material)


def slab(center: ArrayLike, size: ArrayLike, material: Material, rotation: NDArray[np.float64] | None = None) -> Part:
    """A box by centre and full size, optionally turned."""
    turn = np.eye(3) if rotation is None else rotation
    return Part(BOX, np.asarray(center, float), np.maximum(np.asarray(size, float) / 2, 1e-3), material, turn)


def rod(base: ArrayLike, radius: float, height: float, material: Material, radius_y: float | None = None) -> Part:
    """An upright (elliptic) cylinder standing on ``base``."""
    x, y, z = np.asarray(base, dtype=np.float64)
    half = np.array([radius, radius_y or radius, height / 2])
    return Part(CYLINDER, np.array([x, y, z + height / 2]), half, material)


def bar(center: ArrayLike, radius: float, length: float, axis: int, material: Material) -> Part:
    """A lying cylinder along x (axis 0) or y (axis 1)."""
    turn = rotation_y(np.pi / 2) if axis == 0 else rotation_x(np.pi / 2)
    return Part(CYLINDER, np.asarray(center, float), np.array([radius, radius, length / 2]), material, turn)


def blob(center: ArrayLike, size: ArrayLike, material: Material) -> Part:
    """An ellipsoid by centre and full size."""
    return Part(ELLIPSOID, np.asarray(center, float), np.asarray(size, float) / 2, material)


def rotation_x(angle: float) -> NDArray[np.float64]:
    """Rotation about x, radians."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def rotation_y(angle: float) -> NDArray[np.float64]:
    """Rotation about y, radians."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def rotation_z(angle: float) -> NDArray[np.float64]:
    """Rotation about z, radians."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def moved(part: Part, offset_m: ArrayLike, yaw: float = 0.0) -> Part:
    """The part turned about z by ``yaw`` and then shifted."""
    turn = rotation_z(yaw)
    center = turn @ part.center_m + np.asarray(offset_m, dtype=np.float64)
    return Part(part.shape, center, part.half_m, part.material, turn @ part.rotation)


def bounds(parts: list[Part]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lowest and highest corner (3,), (3,) of the parts' axis-aligned box (exact for boxes, safe for the others)."""
    reach = np.array([np.abs(p.rotation) @ p.half_m for p in parts])
    centers = np.array([p.center_m for p in parts])
    return (centers - reach).min(axis=0), (centers + reach).max(axis=0)
