"""Kitchen, bathroom and wall fixtures. Same convention as ``furniture``; wall pieces have their back plane at y = 0."""

from __future__ import annotations

import numpy as np

from geopurify_core.datasets.synthetic.furniture import Piece, _doors, _on_top
from geopurify_core.datasets.synthetic.looks import Looks
from geopurify_core.datasets.synthetic.shapes import Material, Part, bar, blob, box, rod, rotation_x, slab

_DEPTH = 0.6  # kitchen units


def _tap(x: float, y: float, z: float, looks: Looks) -> list[Part]:
    metal = looks.metal()
    return [
        rod((x, y, z), 0.015, 0.2, metal),
        bar((x, y - 0.07, z + 0.2), 0.012, 0.16, 1, metal),
        rod((x, y - 0.14, z + 0.16), 0.012, 0.04, metal),
    ]


def _basin(x: float, y: float, z: float, w: float, d: float, looks: Looks, steel: bool) -> list[Part]:
    """A raised rim around a sunken bottom."""
    m = looks.metal() if steel else looks.ceramic()
    t, rim = 0.03, 0.03
    parts = [
        box((x - w / 2, y - d / 2, z), (x + w / 2, y - d / 2 + t, z + rim), m),
        box((x - w / 2, y + d / 2 - t, z), (x + w / 2, y + d / 2, z + rim), m),
    ]
    parts += [
        box((x - w / 2, y - d / 2, z), (x - w / 2 + t, y + d / 2, z + rim), m),
        box((x + w / 2 - t, y - d / 2, z), (x + w / 2, y + d / 2, z + rim), m),
    ]
    parts.append(box((x - w / 2, y - d / 2, z - 0.005), (x + w / 2, y + d / 2, z + 0.004), m))
    parts.append(rod((x, y, z), 0.025, 0.006, looks.paint((0.2, 0.2, 0.2))))
    return parts + _tap(x, y + d / 2 - 0.015, z + rim, looks)


def kitchen_row(rng: np.random.Generator, looks: Looks) -> list[Piece]:
    """Base cabinets under a worktop with sink and stove, wall cabinets above."""
    w, front, metal = rng.uniform(1.9, 2.5), looks.front(), looks.metal()
    y0, y1, h = -_DEPTH / 2, _DEPTH / 2, 0.86
    base = [
        box((-w / 2, y0 + 0.02, 0.1), (w / 2, y1, h), front),
        box((-w / 2, y0 + 0.08, 0), (w / 2, y1, 0.1), looks.paint((0.15, 0.15, 0.15))),
    ]
    base += _doors(w, y0 + 0.02, 0.12, 0.68, max(3, round(w / 0.6)), front, metal)
    base += [
        box((-w / 2 + i * w / 4 + 0.01, y0, 0.7), (-w / 2 + (i + 1) * w / 4 - 0.01, y0 + 0.02, h - 0.01), front)
        for i in range(4)
    ]
    top = [box((-w / 2 - 0.01, y0 - 0.02, h), (w / 2 + 0.01, y1, h + 0.045), looks.stone())]
    z, side = h + 0.045, float(rng.choice([-1, 1]))
    sink = _basin(side * w / 4, 0.02, z, 0.56, 0.42, looks, rng.uniform() < 0.7)
    pieces = [
        Piece("kitchen cabinet", base),
        Piece("counter", top),
        Piece("sink", sink),
        _stove(-side * w / 4, y0, z, looks),
    ]
    pieces.append(_wall_cabinet(w, y1, looks, front))
    if rng.uniform() < 0.7:
        pieces.append(_microwave((0.0, 0.1, z), looks))
    return pieces + _on_top(rng, looks, 0.5, 0.3, z, 2)


def _stove(x: float, y0: float, z: float, looks: Looks) -> Piece:
    dark, metal = looks.paint((0.07, 0.07, 0.08)), looks.metal()
    parts = [box((x - 0.29, y0 + 0.06, z), (x + 0.29, y0 + 0.55, z + 0.012), dark)]
    for dx, dy, r in ((-0.14, 0.18, 0.09), (0.14, 0.18, 0.075), (-0.14, 0.42, 0.075), (0.14, 0.42, 0.09)):
        parts.append(rod((x + dx, y0 + dy, z + 0.012), r, 0.006, looks.paint((0.3, 0.3, 0.31))))
    parts += [
        box((x - 0.28, y0 - 0.012, 0.16), (x + 0.28, y0 + 0.01, 0.7), dark),
        box((x - 0.28, y0 - 0.012, 0.7), (x + 0.28, y0 + 0.0, 0.85), metal),
    ]
    parts.append(bar((x, y0 - 0.035, 0.64), 0.012, 0.46, 0, metal))
    parts += [blob((x - 0.2 + 0.1 * i, y0 - 0.015, 0.78), (0.04, 0.05, 0.04), dark) for i in range(5)]
    return Piece("stove", parts)


def _microwave(at: tuple[float, float, float], looks: Looks) -> Piece:
    x, y, z = at
    body, dark = looks.metal(), looks.paint((0.05, 0.05, 0.05))
    parts = [
        box((x - 0.24, y - 0.16, z), (x + 0.24, y + 0.16, z + 0.28), body),
        box((x - 0.22, y - 0.17, z + 0.03), (x + 0.1, y - 0.16, z + 0.25), dark),
    ]
    return Piece("microwave", [*parts, box((x + 0.11, y - 0.19, z + 0.04), (x + 0.125, y - 0.16, z + 0.24), body)])


def _wall_cabinet(w: float, y1: float, looks: Looks, m: Material) -> Piece:
    parts = [
        box((-w / 2, y1 - 0.33, 1.45), (w / 2, y1, 2.1), m),
        *_doors(w, y1 - 0.33, 1.45, 2.1, max(3, round(w / 0.55)), m, looks.metal()),
    ]
    return Piece("wall cabinet", parts)


def refrigerator(rng: np.random.Generator, looks: Looks) -> list[Piece]:
    """A fridge-freezer with two doors and long handles."""
    m = looks.ceramic() if rng.uniform() < 0.5 else looks.metal()
    h, split, metal, dark = (
        rng.uniform(1.65, 1.95),
        rng.uniform(0.5, 0.75),
        looks.metal(),
        looks.paint((0.12, 0.12, 0.12)),
    )
    parts = [box((-0.31, -0.27, 0.03), (0.31, 0.33, h), m), box((-0.3, -0.3, 0), (0.3, 0.3, 0.05), dark)]
    parts += [
        box((-0.31, -0.34, 0.06), (0.31, -0.28, split - 0.01), m),
        box((-0.31, -0.34, split + 0.01), (0.31, -0.28, h), m),
    ]
    parts.append(box((-0.305, -0.29, 0.06), (0.305, -0.27, h - 0.01), dark))
    parts += [
        box((0.24, -0.38, split + 0.06), (0.265, -0.34, split + 0.6), metal),
        box((0.24, -0.38, split - 0.35), (0.265, -0.34, split - 0.06), metal),
    ]
    return [Piece("refrigerator", parts)]


def toilet(rng: np.random.Generator, looks: Looks) -> list[Piece]:
    """Bowl, seat, raised or lowered lid, cistern."""
    m = looks.ceramic()
    parts = [blob((0, -0.08, 0.27), (0.36, 0.5, 0.3), m), rod((0, 0.0, 0), 0.12, 0.3, m, 0.2)]
    parts += [
        rod((0, -0.1, 0.37), 0.19, 0.04, m, 0.25),
        rod((0, -0.1, 0.408), 0.12, 0.004, looks.paint((0.45, 0.5, 0.52)), 0.17),
    ]
    parts.append(box((-0.21, 0.14, 0.36), (0.21, 0.33, 0.78), m))
    parts.append(box((-0.22, 0.13, 0.78), (0.22, 0.34, 0.81), m))
    parts.append(box((-0.025, 0.1, 0.7), (0.025, 0.14, 0.72), looks.metal()))
    if rng.uniform() < 0.5:
        lid = Part(1, np.array([0, 0.1, 0.62]), np.array([0.18, 0.22, 0.012]), m, rotation_x(np.pi / 2 - 0.15))
    else:
        lid = rod((0, -0.1, 0.412), 0.19, 0.02, m, 0.25)
    return [Piece("toilet", [*parts, lid])]


def washbasin(rng: np.random.Generator, looks: Looks) -> list[Piece]:
    """A bathroom sink on a vanity or a pedestal, with a mirror above and a towel beside."""
    w, d, h = rng.uniform(0.5, 0.7), 0.45, 0.8
    pieces = [Piece("sink", _basin(0, 0.0, h + 0.08, w, d, looks, False))]
    under = looks.ceramic()
    if rng.uniform() < 0.5:
        m = looks.front()
        vanity = [
            box((-w / 2, -d / 2 + 0.02, 0.15), (w / 2, d / 2, h), m),
            *_doors(w, -d / 2 + 0.02, 0.16, h, 2, m, looks.metal()),
        ]
        pieces[0].parts.append(box((-w / 2, -d / 2, h), (w / 2, d / 2, h + 0.08), under))
        pieces.append(Piece("bathroom cabinet", vanity))
    else:
        pieces[0].parts.extend(
            [blob((0, 0, h + 0.05), (w * 0.98, d * 0.98, 0.24), under), rod((0, 0.05, 0), 0.09, h, under)]
        )
    rim = looks.metal()
    glass = [
        box((-w / 2, d / 2 - 0.025, 1.2), (w / 2, d / 2, 1.9), rim),
        box((-w / 2 + 0.02, d / 2 - 0.03, 1.22), (w / 2 - 0.02, d / 2 - 0.024, 1.88), looks.paint((0.72, 0.79, 0.82))),
    ]
    return [*pieces, Piece("mirror", glass)]


def bathtub(rng: np.random.Generator, looks: Looks) -> list[Piece]:
    """A tub along the wall with a rod and a half-drawn shower curtain."""
    w, d, h, m = rng.uniform(1.5, 1.7), 0.72, rng.uniform(0.52, 0.6), looks.ceramic()
    x, y, t = w / 2, d / 2, 0.07
    parts = [
        box((-x, -y, 0), (x, -y + t, h), m),
        box((-x, y - t, 0), (x, y, h), m),
        box((-x, -y, 0), (-x + t, y, h), m),
        box((x - t, -y, 0), (x, y, h), m),
    ]
    parts += [box((-x, -y, 0), (x, y, 0.16), m), box((-x - 0.01, -y - 0.015, h), (x + 0.01, -y + t, h + 0.025), m)]
    parts += _tap(x - 0.15, y - 0.03, h, looks)
    share = rng.uniform(0.35, 0.6)
    cloth = _folds(-x, -x + share * w, -y - 0.0, 0.25, 1.98, looks.fabric((0.0, 0.5), (0.65, 0.97)), rng)
    rail = bar((0, -y, 2.0), 0.012, w, 0, looks.metal())
    shower = [
        rod((x - 0.1, y - 0.04, 1.0), 0.01, 1.0, looks.metal()),
        rod((x - 0.1, y - 0.12, 1.96), 0.07, 0.02, looks.metal()),
    ]
    return [Piece("bathtub", parts + shower), Piece("shower curtain", [*cloth, rail])]


def _folds(x0: float, x1: float, y: float, z0: float, z1: float, m: Material, rng: np.random.Generator) -> list[Part]:
    """Hanging cloth: overlapping upright cylinders of alternating depth."""
    count = max(4, int((x1 - x0) / 0.075))
    step, parts = (x1 - x0) / count, []
    for i in range(count):
        offset = 0.018 if i % 2 else -0.018
        parts.append(rod((x0 + (i + 0.5) * step, y + offset, z0), step * 0.62, z1 - z0, m, 0.03 + rng.uniform(0, 0.01)))
    return parts


def washing_machine(rng: np.random.Generator, looks: Looks) -> list[Piece]:
    """A front loader."""
    m, dark = looks.ceramic(), looks.paint((0.15, 0.17, 0.2))
    parts = [
        box((-0.3, -0.28, 0.02), (0.3, 0.3, 0.85), m),
        box((-0.3, -0.29, 0.7), (0.3, -0.28, 0.85), looks.paint((0.7, 0.7, 0.72))),
    ]
    parts += [
        bar((0, -0.29, 0.4), 0.2, 0.05, 1, looks.metal()),
        bar((0, -0.3, 0.4), 0.15, 0.06, 1, dark),
        bar((0.18, -0.3, 0.78), 0.03, 0.04, 1, dark),
    ]
    return [Piece("washing machine", parts)]


def towel(rng: np.random.Generator, looks: Looks) -> list[Piece]:
    """A towel on a rail, back plane at y = 0, hanging from z = 0 downwards."""
    cloth = looks.fabric((0.2, 0.9), (0.4, 0.95))
    w = rng.uniform(0.35, 0.5)
    return [
        Piece(
            "towel",
            [
                bar((0, -0.05, 0), 0.012, w + 0.15, 0, looks.metal()),
                box((-w / 2, -0.075, -0.6), (w / 2, -0.045, 0.015), cloth),
            ],
        )
    ]


def picture(rng: np.random.Generator, looks: Looks) -> list[Piece]:
    """A framed painting; centre at z = 0, back plane at y = 0."""
    w, h = rng.uniform(0.35, 0.9), rng.uniform(0.3, 0.65)
    frame = looks.wood() if rng.uniform() < 0.6 else looks.metal()
    parts = [
        box((-w / 2, -0.03, -h / 2), (w / 2, 0, h / 2), frame),
        box(
            (-w / 2 + 0.04, -0.034, -h / 2 + 0.04),
            (w / 2 - 0.04, -0.029, h / 2 - 0.04),
            looks.paint((0.93, 0.92, 0.88)),
        ),
    ]
    parts.append(box((-w / 2 + 0.075, -0.037, -h / 2 + 0.075), (w / 2 - 0.075, -0.033, h / 2 - 0.075), looks.picture()))
    return [Piece("picture", parts)]


def window(rng: np.random.Generator, looks: Looks, w: float, h: float, curtains: bool) -> list[Piece]:
    """A casement with glazing bars and sill; bottom at z = 0, back plane at y = 0; curtains hang at both sides."""
    frame = looks.paint((0.93, 0.93, 0.92)) if rng.uniform() < 0.7 else looks.wood()
    parts = [box((-w / 2, -0.012, 0), (w / 2, 0.0, h), looks.daylight())]
    for x in (-w / 2, -0.03, w / 2 - 0.06):
        parts.append(box((x, -0.045, 0), (x + 0.06, 0, h), frame))
    for z in (0.0, h - 0.06):
        parts.append(box((-w / 2, -0.045, z), (w / 2, 0, z + 0.06), frame))
    parts.append(box((-w / 2 - 0.06, -0.13, -0.035), (w / 2 + 0.06, 0, 0), frame))
    pieces = [Piece("window", parts)]
    if curtains:
        cloth, low, high = looks.fabric((0.05, 0.75), (0.35, 0.95)), -rng.uniform(0.5, 0.8), h + 0.12
        width = rng.uniform(0.25, 0.4)
        folds = _folds(-w / 2 - 0.25, -w / 2 - 0.25 + width, -0.14, low, high, cloth, rng)
        folds += _folds(w / 2 + 0.25 - width, w / 2 + 0.25, -0.14, low, high, cloth, rng)
        pieces.append(Piece("curtain", [*folds, bar((0, -0.14, high + 0.02), 0.014, w + 0.6, 0, looks.metal())]))
    return pieces


def door(rng: np.random.Generator, looks: Looks, w: float, h: float, thickness: float) -> list[Piece]:
    """A door frame around a doorway (through-wall axis y, centred on 0) and its leaf, wide open towards -y."""
    frame, leaf = (
        looks.paint((0.9, 0.9, 0.88)),
        looks.wood() if rng.uniform() < 0.6 else looks.paint((0.88, 0.87, 0.84)),
    )
    t = thickness / 2 + 0.015
    parts = [
        box((-w / 2 - 0.06, -t, 0), (-w / 2 + 0.02, t, h + 0.04), frame),
        box((w / 2 - 0.02, -t, 0), (w / 2 + 0.06, t, h + 0.04), frame),
    ]
    parts.append(box((-w / 2 - 0.06, -t, h - 0.02), (w / 2 + 0.06, t, h + 0.06), frame))
    length, x = w - 0.06, -w / 2 - 0.045
    y0, y1 = -t - length, -t
    parts.append(box((x, y0, 0.01), (x + 0.04, y1, h - 0.03), leaf))
    for z0, z1 in ((0.2, 0.9), (1.1, h - 0.2)):
        parts.append(box((x - 0.008, y0 + 0.14, z0), (x + 0.048, y1 - 0.14, z1), leaf))
    metal = looks.metal()
    parts += [
        bar((x + 0.02, y0 + 0.07, 1.02), 0.012, 0.16, 0, metal),
        slab((x + 0.1, y0 + 0.11, 1.02), (0.018, 0.1, 0.018), metal),
        slab((x - 0.06, y0 + 0.11, 1.02), (0.018, 0.1, 0.018), metal),
    ]
    return [Piece("door", parts)]


def entrance(rng: np.random.Generator, looks: Looks) -> list[Piece]:
    """A closed front door with panels; bottom at z = 0, back plane at y = 0."""
    leaf = looks.wood() if rng.uniform() < 0.6 else looks.paint((0.85, 0.84, 0.8))
    frame = looks.paint((0.9, 0.9, 0.88))
    parts = [
        box((-0.52, -0.04, 0), (-0.44, 0, 2.08), frame),
        box((0.44, -0.04, 0), (0.52, 0, 2.08), frame),
        box((-0.52, -0.04, 2.0), (0.52, 0, 2.08), frame),
    ]
    parts.append(box((-0.44, -0.025, 0), (0.44, 0, 2.0), leaf))
    for z0, z1 in ((0.2, 0.9), (1.1, 1.85)):
        parts.append(box((-0.3, -0.035, z0), (0.3, -0.02, z1), leaf))
    metal = looks.metal()
    parts += [bar((0.36, -0.05, 1.02), 0.012, 0.05, 1, metal), slab((0.31, -0.075, 1.02), (0.12, 0.018, 0.018), metal)]
    return [Piece("door", parts)]
