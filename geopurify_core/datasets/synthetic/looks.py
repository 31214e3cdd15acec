"""Colours and materials, drawn at random within what a room could plausibly show."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np

from geopurify_core.datasets.synthetic import shapes
from geopurify_core.datasets.synthetic.shapes import Material, Rgb

_WOODS: tuple[Rgb, ...] = (
    (0.55, 0.36, 0.2),
    (0.72, 0.53, 0.33),
    (0.36, 0.22, 0.13),
    (0.82, 0.68, 0.48),
    (0.45, 0.2, 0.12),
)
_METALS: tuple[Rgb, ...] = ((0.75, 0.76, 0.78), (0.5, 0.5, 0.52), (0.15, 0.15, 0.16), (0.78, 0.66, 0.4))


def jitter(rng: np.random.Generator, colour: Rgb, amount: float = 0.05) -> Rgb:
    """The colour, a little off, channel by channel."""
    r, g, b = np.clip(np.asarray(colour) + rng.normal(0, amount, 3) + rng.normal(0, amount), 0.02, 0.98)
    return float(r), float(g), float(b)


def hue(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> Rgb:
    """A random hue within the given ranges of saturation and value."""
    return colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(*saturation), rng.uniform(*value))


def darker(colour: Rgb, factor: float) -> Rgb:
    """The colour times ``factor``, clipped to [0, 1]."""
    r, g, b = (min(1.0, c * factor) for c in colour)
    return r, g, b


@dataclass
class Looks:
    """Draws materials for one home; ``wild`` is the chance that a surface gets any colour and pattern at all."""

    rng: np.random.Generator
    wild: float = 0.0

    def _seed(self) -> int:
        return int(self.rng.integers(1, 60_000))

    def _make(self, colour: Rgb, second: Rgb, pattern: int, scale: float = 1.0, gloss: float = 0.0) -> Material:
        if self.wild and self.rng.uniform() < self.wild:
            colour = hue(self.rng, (0.0, 0.8), (0.15, 0.95))
            second = darker(colour, self.rng.uniform(0.5, 1.4))
            if self.rng.uniform() < 0.4:
                pattern = int(
                    self.rng.choice([shapes.PLAIN, shapes.WOOD, shapes.FABRIC, shapes.MARBLE, shapes.STRIPES])
                )
                scale = self.rng.uniform(0.5, 4.0)
        return Material(colour, second, pattern, scale, gloss, 0.0, self._seed())

    def wood(self, colour: Rgb | None = None) -> Material:
        """Grained wood."""
        base = colour or jitter(self.rng, _WOODS[self.rng.integers(len(_WOODS))], 0.04)
        return self._make(base, darker(base, 0.62), shapes.WOOD, self.rng.uniform(0.8, 1.6), 0.08)

    def paint(self, colour: Rgb) -> Material:
        """A painted surface near the given colour."""
        base = jitter(self.rng, colour, 0.03)
        return self._make(base, darker(base, 0.88), shapes.PLAIN, 1.0, 0.05)

    def front(self) -> Material:
        """A cabinet front: wood, white, grey, or a strong colour."""
        pick = self.rng.uniform()
        if pick < 0.4:
            return self.wood()
        if pick < 0.75:
            grey = self.rng.uniform(0.55, 0.95)
            return self.paint((grey, grey, grey * self.rng.uniform(0.9, 1.0)))
        return self.paint(hue(self.rng, (0.35, 0.85), (0.3, 0.8)))

    def fabric(
        self, saturation: tuple[float, float] = (0.1, 0.7), value: tuple[float, float] = (0.2, 0.85)
    ) -> Material:
        """Woven cloth, sometimes striped or checked."""
        base = hue(self.rng, saturation, value)
        pick = self.rng.uniform()
        if pick < 0.1:
            return self._make(base, darker(base, 1.4), shapes.STRIPES, self.rng.uniform(5, 14))
        if pick < 0.15:
            return self._make(base, darker(base, 0.7), shapes.CHECKER, self.rng.uniform(6, 14))
        return self._make(base, darker(base, 0.72), shapes.FABRIC, self.rng.uniform(0.6, 1.2))

    def metal(self) -> Material:
        """Bare or painted metal with a highlight."""
        base = jitter(self.rng, _METALS[self.rng.integers(len(_METALS))], 0.03)
        return self._make(base, darker(base, 0.85), shapes.PLAIN, 1.0, 0.5)

    def ceramic(self) -> Material:
        """Sanitary white."""
        base = jitter(self.rng, (0.93, 0.93, 0.91), 0.02)
        return self._make(base, darker(base, 0.95), shapes.PLAIN, 1.0, 0.4)

    def stone(self) -> Material:
        """A worktop: marble, granite, or plain."""
        base = jitter(self.rng, (0.75, 0.73, 0.7) if self.rng.uniform() < 0.5 else (0.25, 0.24, 0.24), 0.05)
        pattern = shapes.MARBLE if self.rng.uniform() < 0.6 else shapes.CARPET
        return self._make(base, darker(base, 0.75), pattern, self.rng.uniform(0.7, 1.6), 0.25)

    def floor(self, wet: bool) -> Material:
        """Tiles for wet rooms, boards, carpet or stone elsewhere."""
        pick = self.rng.uniform()
        if wet or pick < 0.15:
            base = jitter(self.rng, (0.7, 0.68, 0.64), 0.06)
            return self._make(base, darker(base, 0.6), shapes.TILES, self.rng.uniform(2.2, 5.0), 0.12)
        if pick < 0.75:
            base = jitter(self.rng, _WOODS[self.rng.integers(len(_WOODS))], 0.04)
            return self._make(base, darker(base, 0.6), shapes.PLANKS, self.rng.uniform(5, 10), 0.1)
        base = hue(self.rng, (0.05, 0.35), (0.3, 0.75))
        return self._make(base, darker(base, 0.75), shapes.CARPET, 0.5)

    def wall(self, wet: bool) -> Material:
        """Paint, wallpaper, or bathroom tiles."""
        base = jitter(
            self.rng,
            colorsys.hsv_to_rgb(self.rng.uniform(), self.rng.uniform(0, 0.3), self.rng.uniform(0.65, 0.97)),
            0.02,
        )
        pick = self.rng.uniform()
        if wet and pick < 0.7:
            return self._make(base, darker(base, 0.75), shapes.TILES, self.rng.uniform(4, 8), 0.15)
        if not wet and pick < 0.2:
            return self._make(base, darker(base, 0.88), shapes.WALLPAPER, self.rng.uniform(2, 6))
        return self._make(base, darker(base, 0.93), shapes.PLAIN)

    def picture(self) -> Material:
        """A painting nobody has painted."""
        return Material(
            hue(self.rng, (0.2, 0.8), (0.3, 0.9)),
            hue(self.rng, (0.1, 0.7), (0.2, 0.9)),
            shapes.PICTURE,
            1.0,
            0.0,
            0.0,
            self._seed(),
        )

    def books(self) -> Material:
        """A row of book spines."""
        return Material((0.5, 0.4, 0.3), None, shapes.BOOKS, 1.0, 0.0, 0.0, self._seed())

    def daylight(self) -> Material:
        """What is seen through a window pane."""
        return Material((0.8, 0.9, 1.0), None, shapes.SKY, 1.0, 0.1, self.rng.uniform(0.3, 0.7), self._seed())

    def screen(self) -> Material:
        """A dark, glossy display."""
        return Material(jitter(self.rng, (0.05, 0.05, 0.06), 0.01), (0.1, 0.1, 0.12), shapes.SCREEN, 1.0, 0.6)

    def plastic(self) -> Material:
        """Any colour, a little gloss."""
        return self.paint(hue(self.rng, (0.0, 0.8), (0.15, 0.95)))
