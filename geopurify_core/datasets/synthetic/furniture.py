"""Furniture of living rooms, bedrooms and studies, built from boxes, cylinders and ellipsoids.

Each builder returns the pieces it consists of, main piece first, standing on z = 0 around x = y = 0, the back at +y.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from geopurify_core.datasets.synthetic.looks import Looks, darker, jitter
from geopurify_core.datasets.synthetic.shapes import Material, Part, bar, blob, box, rod, rotation_x, rotation_z, slab


@dataclass(frozen=True)
class Piece:
    """One object instance: what it is called and the primitives it is made of."""

    kind: str
    parts: list[Part]


def _legs(w: float, d: float, h: float, inset: float, r: float, m: Material, round_leg: bool) -> list[Part]:
    parts = []
    for sx in (-1, 1):
        for sy in (-1, 1):
            x, y = sx * (w / 2 - inset), sy * (d / 2 - inset)
            parts.append(rod((x, y, 0), r, h, m) if round_leg else box((x - r, y - r, 0), (x + r, y + r, h), m))
    return parts


def _doors(w: float, y: float, z0: float, z1: float, count: int, m: Material, handle: Material) -> list[Part]:
    """Fronts side by side with a gap between them, each with a handle, on the plane ``y`` facing -y."""
    parts, step = [], w / count
    for i in range(count):
        x = -w / 2 + i * step
        parts.append(box((x + 0.008, y - 0.02, z0 + 0.01), (x + step - 0.008, y, z1 - 0.01), m))
        hx = x + (step - 0.05 if i % 2 == 0 else 0.05)
        middle, half = (z0 + z1) / 2, min(0.08, (z1 - z0) / 4)
        parts.append(box((hx - 0.008, y - 0.045, middle - half), (hx + 0.008, y - 0.02, middle + half), handle))
    return parts


def _drawers(w: float, y: float, z0: float, z1: float, count: int, m: Material, handle: Material) -> list[Part]:
    parts, step = [], (z1 - z0) / count
    for i in range(count):
        z = z0 + i * step
        parts.append(box((-w / 2 + 0.01, y - 0.02, z + 0.008), (w / 2 - 0.01, y, z + step - 0.008), m))
        parts.append(box((-0.07, y - 0.045, z + step * 0.55), (0.07, y - 0.02, z + step * 0.55 + 0.016), handle))
    return parts


def chair(rng: np.random.Generator, looks: Looks) -> list[Piece]:
    """A dining chair: four legs, a seat, a slatted or solid back."""
    frame = looks.wood() if rng.uniform() < 0.7 else looks.metal()
    seat = frame if rng.uniform() < 0.5 else looks.fabric()
    w, d, h = rng.uniform(0.4, 0.48), rng.uniform(0.4, 0.48), rng.uniform(0.43, 0.48)
    top, r = h + rng.uniform(0.38, 0.55), rng.uniform(0.015, 0.024)
    parts = _legs(w, d, h, 0.03, r, frame, rng.uniform() < 0.5)
    parts.append(box((-w / 2, -d / 2, h), (w / 2, d / 2, h + 0.045), seat))
    for sx in (-1, 1):
        x = sx * (w / 2 - 0.03)
        parts.append(box((x - r, d / 2 - 0.04, h), (x + r, d / 2, top), frame))
    if rng.uniform() < 0.5:
        parts.append(box((-w / 2 + 0.04, d / 2 - 0.035, h + 0.15), (w / 2 - 0.04, d / 2 - 0.01, top), seat))
    else:
        for z in np.linspace(h + 0.16, top - 0.05, 3):
            parts.append(box((-w / 2 + 0.03, d / 2 - 0.03, z), (w / 2 - 0.03, d / 2 - 0.01, z + 0.06), frame))
    return [Piece("chair", parts)]


def office_chair(rng: np.random.Generator, looks: Looks) -> list[Piece]:
    """A swivel chair: star base, stem, padded seat and back, arm rests."""
    metal, cloth = looks.paint((0.15, 0.15, 0.16)), looks.fabric((0.0, 0.6), (0.1, 0.5))
    parts = [rod((0, 0, 0.08), 0.03, 0.36, metal)]
    for a in np.arange(5) * 2 * np.pi / 5:
        parts.append(slab((0.15 * np.cos(a), 0.15 * np.sin(a), 0.07), (0.3, 0.045, 0.04), metal, rotation_z(a)))
        parts.append(blob((0.29 * np.cos(a), 0.29 * np.sin(a), 0.03), (0.06, 0.06, 0.06), metal))
    parts.append(box((-0.25, -0.25, 0.44), (0.25, 0.23, 0.52), cloth))
    parts.append(slab((0, 0.24, 0.82), (0.46, 0.07, rng.uniform(0.5, 0.65)), cloth, rotation_x(-0.12)))
    parts.append(box((-0.03, 0.2, 0.4), (0.03, 0.25, 0.7), metal))
    for sx in (-1, 1):
        parts.append(box((sx * 0.28 - 0.03, -0.15, 0.68), (sx * 0.28 + 0.03, 0.15, 0.71), metal))
        parts.append(box((sx * 0.28 - 0.015, -0.02, 0.46), (sx * 0.28 + 0.015, 0.02, 0.68), metal))
    return [Piece("office chair", parts)]


def _upholstery(w: float, d: float, seats: int, rng: np.random.Generator, looks: Looks) -> list[Part]:
    cloth = looks.fabric((0.05, 0.6), (0.2, 0.8))
    cushion = cloth if rng.uniform() < 0.7 else looks.fabric()
    arm, h = rng.uniform(0.14, 0.2), rng.uniform(0.24, 0.3)
    parts = [box((-w / 2, -d / 2, 0.07), (w / 2, d / 2, h), cloth)]
    parts.append(box((-w / 2, d / 2 - 0.2, h), (w / 2, d / 2, rng.uniform(0.75, 0.92)), cloth))
    for sx in (-1, 1):
        x0, x1 = sorted((sx * w / 2, sx * (w / 2 - arm)))
        parts.append(box((x0, -d / 2, 0.07), (x1, d / 2, 0.58), cloth))
        parts.append(bar((sx * (w / 2 - arm / 2), -0.02, 0.58), arm / 2, d - 0.04, 1, cloth))
    step = (w - 2 * arm) / seats
    for i in range(seats):
        x = -w / 2 + arm + (i + 0.5) * step
        parts.append(
            box((x - step / 2 + 0.01, -d / 2 - 0.02, h), (x + step / 2 - 0.01, d / 2 - 0.2, h + 0.16), cushion)
        )
        parts.append(slab((x, d / 2 - 0.26, h + 0.36), (step - 0.04, 0.16, 0.4), cushion, rotation_x(-0.15)))
    foot = looks.wood()
    return parts + _legs(w, d, 0.07, 0.08, 0.025, foot, True)


def sofa(rng: np.random.Generator, looks: Looks) -> list[Piece]:
    """A two- or three-seat sofa with cushions."""
    seats = int(rng.integers(2, 4))
    w, d = 0.62 * seats + 0.4, rng.uniform(0.82, 0.95)
    pieces = [Piece("sofa", _upholstery(w, d, seats, rng, looks))]
    for sx in (-1, 1):
        if rng.uniform() < 0.6:
            at = (sx * (w / 2 - 0.38), 0.05, 0.6)
            pillow = slab(at, (0.4, 0.14, 0.38), looks.fabric((0.3, 0.9), (0.3, 0.95)), rotation_x(-0.35))
            pieces.append(Piece("pillow", [pillow]))
    return pieces


def armchair(rng: np.random.Generator, looks: Looks) -> list[Piece]:
    """A one-seat upholstered chair."""
    return [Piece("armchair", _upholstery(rng.uniform(0.82, 0.95), 0.85, 1, rng, looks))]


def _on_top(rng: np.random.Generator, looks: Looks, w: float, d: float, z: float, count: int) -> list[Piece]:
    """Small things standing on a top of the given size."""
    pieces, makers = [], (cup, bottle, bowl, box_small, book_pile)
    for _ in range(count):
        x, y = rng.uniform(-w / 2 + 0.12, w / 2 - 0.12), rng.uniform(-d / 2 + 0.1, d / 2 - 0.1)
        pieces.append(makers[rng.integers(len(makers))](rng, looks, (x, y, z)))
    return pieces


def cup(rng: np.random.Generator, looks: Looks, at: tuple[float, float, float]) -> Piece:
    """A mug with its handle."""
    m, (x, y, z) = looks.plastic(), at
    return Piece(
        "cup", [rod(at, 0.042, 0.1, m), box((x + 0.04, y - 0.008, z + 0.025), (x + 0.07, y + 0.008, z + 0.075), m)]
    )


def bottle(rng: np.random.Generator, looks: Looks, at: tuple[float, float, float]) -> Piece:
    """A bottle with its neck."""
    m, (x, y, z), h = looks.plastic(), at, rng.uniform(0.14, 0.22)
    return Piece("bottle", [rod(at, 0.038, h, m), rod((x, y, z + h), 0.014, 0.08, m)])


def bowl(rng: np.random.Generator, looks: Looks, at: tuple[float, float, float]) -> Piece:
    """A bowl, sometimes with fruit."""
    m, (x, y, z) = looks.ceramic(), at
    parts = [blob((x, y, z + 0.045), (0.24, 0.24, 0.09), m)]
    for a in np.arange(3) * 2.1:
        parts.append(blob((x + 0.05 * np.cos(a), y + 0.05 * np.sin(a), z + 0.09), (0.08, 0.08, 0.08), looks.plastic()))
    return Piece("bowl", parts)


def box_small(rng: np.random.Generator, looks: Looks, at: tuple[float, float, float]) -> Piece:
    """A cardboard box."""
    w, d, h = rng.uniform(0.12, 0.25, 3)
    m = looks.paint(jitter(rng, (0.66, 0.5, 0.34), 0.05))
    return Piece("box", [slab((at[0], at[1], at[2] + h / 2), (w, d, h), m, rotation_z(rng.uniform(0, 3)))])


def book_pile(rng: np.random.Generator, looks: Looks, at: tuple[float, float, float]) -> Piece:
    """A few books lying on each other."""
    parts, z = [], at[2]
    for _ in range(int(rng.integers(1, 4))):
        h = rng.uniform(0.02, 0.04)
        parts.append(
            slab((at[0], at[1], z + h / 2), (0.16, 0.22, h), looks.plastic(), rotation_z(rng.uniform(-0.5, 0.5)))
        )
        z += h
    return Piece("book", parts)


def table(rng: np.random.Generator, looks: Looks) -> list[Piece]:
    """A dining table, rectangular or round, with things on it."""
    wood, h = looks.wood(), rng.uniform(0.71, 0.77)
    if rng.uniform() < 0.3:
        r = rng.uniform(0.45, 0.6)
        parts = [
            rod((0, 0, h - 0.035), r, 0.035, wood),
            rod((0, 0, 0.03), 0.05, h - 0.06, wood),
            rod((0, 0, 0), 0.28, 0.03, wood),
        ]
        return [Piece("table", parts), *_on_top(rng, looks, r, r, h, 2)]
    w, d = rng.uniform(1.1, 1.5), rng.uniform(0.7, 0.9)
    parts = [box((-w / 2, -d / 2, h - 0.035), (w / 2, d / 2, h), wood)]
    parts.append(box((-w / 2 + 0.08, -d / 2 + 0.06, h - 0.11), (w / 2 - 0.08, d / 2 - 0.06, h - 0.035), wood))
    parts += _legs(w, d, h - 0.035, 0.06, 0.03, wood, rng.uniform() < 0.3)
    return [Piece("table", parts), *_on_top(rng, looks, w, d, h, int(rng.integers(1, 4)))]


def coffee_table(rng: np.random.Generator, looks: Looks) -> list[Piece]:
    """A low table with a shelf under its top."""
    wood, w, d, h = looks.wood(), rng.uniform(0.7, 1.0), rng.uniform(0.45, 0.6), rng.uniform(0.38, 0.46)
    parts = [box((-w / 2, -d / 2, h - 0.04), (w / 2, d / 2, h), wood)]
    parts.append(box((-w / 2 + 0.06, -d / 2 + 0.06, 0.12), (w / 2 - 0.06, d / 2 - 0.06, 0.14), wood))
    parts += _legs(w, d, h - 0.04, 0.05, 0.025, wood, rng.uniform() < 0.5)
    return [Piece("coffee table", parts), *_on_top(rng, looks, w, d, h, int(rng.integers(0, 3)))]


def desk(rng: np.random.Generator, looks: Looks) -> list[Piece]:
    """A desk with a drawer pedestal, a monitor, a keyboard and a lamp."""
    wood, h, w, d = looks.wood(), 0.74, rng.uniform(1.2, 1.5), rng.uniform(0.6, 0.75)
    parts = [box((-w / 2, -d / 2, h - 0.03), (w / 2, d / 2, h), wood)]
    parts.append(box((w / 2 - 0.42, -d / 2 + 0.03, 0.05), (w / 2 - 0.02, d / 2 - 0.03, h - 0.03), wood))
    for i in range(3):
        z = 0.07 + i * 0.21
        parts.append(box((w / 2 - 0.41, -d / 2 + 0.01, z), (w / 2 - 0.03, -d / 2 + 0.03, z + 0.2), wood))
        parts.append(
            box((w / 2 - 0.27, -d / 2 - 0.01, z + 0.1), (w / 2 - 0.17, -d / 2 + 0.01, z + 0.115), looks.metal())
        )
    parts.append(box((-w / 2, -d / 2 + 0.04, 0), (-w / 2 + 0.03, d / 2 - 0.02, h - 0.03), wood))
    parts.append(box((-w / 2, d / 2 - 0.03, 0.3), (w / 2, d / 2 - 0.01, h - 0.03), wood))
    dark = looks.paint((0.08, 0.08, 0.09))
    screen = [box((-0.3, d / 2 - 0.2, h + 0.12), (0.28, d / 2 - 0.17, h + 0.47), dark)]
    screen.append(box((-0.285, d / 2 - 0.205, h + 0.135), (0.265, d / 2 - 0.19, h + 0.455), looks.screen()))
    screen += [
        box((-0.03, d / 2 - 0.17, h), (0.01, d / 2 - 0.15, h + 0.2), dark),
        rod((-0.01, d / 2 - 0.17, h), 0.1, 0.012, dark),
    ]
    keys = [box((-0.25, -d / 2 + 0.12, h), (0.19, -d / 2 + 0.26, h + 0.02), dark)]
    return [
        Piece("desk", parts),
        Piece("monitor", screen),
        Piece("keyboard", keys),
        desk_lamp(rng, looks, (w / 2 - 0.2, d / 2 - 0.2, h)),
    ]


def desk_lamp(rng: np.random.Generator, looks: Looks, at: tuple[float, float, float]) -> Piece:
    """A small lamp with a shade."""
    x, y, z = at
    shade = looks.fabric((0.0, 0.4), (0.7, 0.95))
    foot = looks.metal()
    return Piece(
        "lamp", [rod(at, 0.07, 0.02, foot), rod(at, 0.012, 0.3, foot), rod((x, y, z + 0.24), 0.1, 0.17, shade)]
    )


def floor_lamp(rng: np.random.Generator, looks: Looks) -> list[Piece]:
    """A standing lamp."""
    metal, shade = looks.metal(), looks.fabric((0.0, 0.35), (0.75, 0.97))
    parts = [rod((0, 0, 0), 0.14, 0.03, metal), rod((0, 0, 0.03), 0.014, 1.35, metal)]
    parts += [rod((0, 0, 1.3), 0.2, 0.16, shade), rod((0, 0, 1.46), 0.16, 0.1, shade)]
    return [Piece("lamp", parts)]


def bed(rng: np.random.Generator, looks: Looks) -> list[Piece]:
    """A bed with headboard, mattress, blanket and pillows; the head is at +y."""
    w, length, h = rng.uniform(1.0, 1.65), 2.0, rng.uniform(0.28, 0.34)
    frame = looks.wood() if rng.uniform() < 0.7 else looks.fabric((0.0, 0.4), (0.3, 0.8))
    sheet, cover = looks.paint((0.9, 0.9, 0.88)), looks.fabric((0.05, 0.7), (0.3, 0.95))
    y0, y1 = -length / 2, length / 2
    parts = [box((-w / 2, y0, 0.08), (w / 2, y1, h), frame)]
    parts += [box((-w / 2, y1 - 0.06, 0), (w / 2, y1, rng.uniform(0.85, 1.15)), frame)]
    parts += [box((-w / 2 + 0.03, y0 + 0.03, h), (w / 2 - 0.03, y1 - 0.07, h + 0.18), sheet)]
    parts += [box((-w / 2 - 0.02, y0 + 0.0, h + 0.0), (w / 2 + 0.02, y1 - rng.uniform(0.55, 0.8), h + 0.22), cover)]
    parts += _legs(w, length, 0.08, 0.08, 0.035, frame, False)
    pieces = [Piece("bed", parts)]
    for x in (-w / 4, w / 4) if w > 1.3 else (0.0,):
        pieces.append(
            Piece("pillow", [blob((x, y1 - 0.32, h + 0.24), (0.6, 0.4, 0.17), looks.paint((0.92, 0.92, 0.9)))])
        )
    return pieces


def nightstand(rng: np.random.Generator, looks: Looks) -> list[Piece]:
    """A bedside table with drawers and a lamp."""
    body, w, h = looks.front(), 0.42, rng.uniform(0.45, 0.55)
    parts = [
        box((-w / 2, -0.19, 0.06), (w / 2, 0.2, h), body),
        *_drawers(w, -0.19, 0.08, h - 0.02, 2, body, looks.metal()),
    ]
    return [
        Piece("nightstand", parts + _legs(w, 0.38, 0.06, 0.04, 0.02, body, False)),
        desk_lamp(rng, looks, (0, 0.03, h)),
    ]


def wardrobe(rng: np.random.Generator, looks: Looks) -> list[Piece]:
    """A tall cupboard with doors."""
    w, h, m = rng.uniform(1.0, 1.7), rng.uniform(1.9, 2.1), looks.front()
    parts = [box((-w / 2, -0.28, 0), (w / 2, 0.3, h), m)]
    return [Piece("wardrobe", parts + _doors(w, -0.28, 0.06, h, 3 if w > 1.35 else 2, m, looks.metal()))]


def dresser(rng: np.random.Generator, looks: Looks) -> list[Piece]:
    """A chest of drawers."""
    w, h, m = rng.uniform(0.8, 1.1), rng.uniform(0.75, 0.95), looks.front()
    parts = [box((-w / 2, -0.22, 0.05), (w / 2, 0.23, h), m), *_drawers(w, -0.22, 0.07, h - 0.03, 4, m, looks.metal())]
    parts.append(box((-w / 2 - 0.01, -0.24, h), (w / 2 + 0.01, 0.24, h + 0.025), m))
    return [Piece("dresser", parts), *_on_top(rng, looks, w, 0.4, h + 0.025, int(rng.integers(0, 3)))]


def sideboard(rng: np.random.Generator, looks: Looks) -> list[Piece]:
    """A low cabinet, usually with a television on it."""
    w, h, m = rng.uniform(1.2, 1.7), rng.uniform(0.45, 0.6), looks.front()
    parts = [box((-w / 2, -0.2, 0.06), (w / 2, 0.22, h), m), *_doors(w, -0.2, 0.08, h - 0.02, 3, m, looks.metal())]
    pieces = [Piece("sideboard", parts + _legs(w, 0.4, 0.06, 0.05, 0.02, m, False))]
    dark, s = looks.paint((0.06, 0.06, 0.07)), rng.uniform(0.9, 1.15)
    tv = [
        box((-s / 2, 0.0, h + 0.09), (s / 2, 0.05, h + 0.09 + s * 0.58), dark),
        rod((0, 0.02, h), 0.14, 0.02, dark, 0.1),
    ]
    tv.append(box((-s / 2 + 0.02, -0.006, h + 0.11), (s / 2 - 0.02, 0.0, h + 0.07 + s * 0.58), looks.screen()))
    tv.append(box((-0.04, 0.0, h), (0.04, 0.04, h + 0.1), dark))
    return [*pieces, Piece("television", tv)]


def bookshelf(rng: np.random.Generator, looks: Looks) -> list[Piece]:
    """Open shelves filled with books."""
    w, h, d, m = rng.uniform(0.8, 1.2), rng.uniform(1.6, 2.0), 0.3, looks.wood()
    parts = [box((-w / 2, d / 2 - 0.02, 0), (w / 2, d / 2, h), m)]
    for sx in (-1, 1):
        x0, x1 = sorted((sx * w / 2, sx * (w / 2 - 0.03)))
        parts.append(box((x0, -d / 2, 0), (x1, d / 2, h), m))
    levels = np.linspace(0.06, h, int(rng.integers(5, 7)))
    for z in levels:
        parts.append(box((-w / 2, -d / 2, z - 0.03), (w / 2, d / 2, z), m))
    for z0, z1 in pairwise(levels):
        top = z0 + min(rng.uniform(0.2, 0.27), z1 - z0 - 0.06)
        left, right = (
            sorted(rng.uniform(-w / 2 + 0.04, w / 2 - 0.04, 2))
            if rng.uniform() < 0.5
            else (-w / 2 + 0.04, w / 2 - 0.04)
        )
        parts.append(box((left, -d / 2 + rng.uniform(0.02, 0.08), z0), (right, d / 2 - 0.03, top), looks.books()))
    return [Piece("bookshelf", parts)]


def plant(rng: np.random.Generator, looks: Looks) -> list[Piece]:
    """A pot with a leafy plant."""
    pot, h = looks.plastic(), rng.uniform(0.25, 0.35)
    parts = [rod((0, 0, 0), 0.14, h, pot), rod((0, 0, h), 0.12, 0.01, looks.paint((0.2, 0.13, 0.08)))]
    for _ in range(14):
        a, tilt, z = rng.uniform(0, 6.28), rng.uniform(0.2, 1.0), rng.uniform(0.2, 0.75)
        leaf = looks.paint(darker((0.2, 0.5, 0.15), rng.uniform(0.6, 1.3)))
        turn = rotation_z(a) @ rotation_x(tilt)
        at = (0.16 * z * np.cos(a + 1.57), 0.16 * z * np.sin(a + 1.57), h + z)
        parts.append(Part(2, np.array(at), np.array([0.06, 0.02, 0.2]), leaf, turn))
    parts.append(rod((0, 0, h), 0.015, 0.6, looks.paint((0.35, 0.25, 0.12))))
    return [Piece("plant", parts)]


def trash_bin(rng: np.random.Generator, looks: Looks) -> list[Piece]:
    """A round or square bin."""
    m, h, r = looks.plastic(), rng.uniform(0.3, 0.55), rng.uniform(0.13, 0.18)
    if rng.uniform() < 0.6:
        return [Piece("trash bin", [rod((0, 0, 0), r, h, m), rod((0, 0, h), r + 0.01, 0.02, looks.plastic())])]
    return [Piece("trash bin", [box((-r, -r, 0), (r, r, h), m), box((-r, -r, h), (r, r, h + 0.04), looks.plastic())])]


def stool(rng: np.random.Generator, looks: Looks) -> list[Piece]:
    """An upholstered footstool."""
    w, h = rng.uniform(0.4, 0.55), rng.uniform(0.36, 0.44)
    parts = [box((-w / 2, -w / 2, 0.1), (w / 2, w / 2, h), looks.fabric())]
    return [Piece("ottoman", parts + _legs(w, w, 0.1, 0.05, 0.02, looks.wood(), True))]


def boxes(rng: np.random.Generator, looks: Looks) -> list[Piece]:
    """A stack of moving boxes."""
    m, s = looks.paint((0.68, 0.52, 0.36)), rng.uniform(0.35, 0.45)
    parts = [
        box((-s / 2, -s / 2, 0), (s / 2, s / 2, s * 0.8), m),
        box((-0.025, -s / 2 - 0.002, 0), (0.025, s / 2 + 0.002, s * 0.805), looks.paint((0.8, 0.7, 0.5))),
    ]
    parts.append(slab((0.02, 0, s * 1.1), (s * 0.7, s * 0.7, s * 0.6), m, rotation_z(0.3)))
    return [Piece("box", parts)]


def rug(rng: np.random.Generator, looks: Looks) -> list[Piece]:
    """A carpet with a border."""
    w, d = rng.uniform(1.2, 1.8), rng.uniform(0.9, 1.3)
    inner = looks.fabric((0.2, 0.8), (0.25, 0.8))
    return [
        Piece(
            "rug",
            [
                box((-w / 2, -d / 2, 0), (w / 2, d / 2, 0.012), looks.fabric()),
                box((-w / 2 + 0.1, -d / 2 + 0.1, 0.0), (w / 2 - 0.1, d / 2 - 0.1, 0.015), inner),
            ],
        )
    ]
