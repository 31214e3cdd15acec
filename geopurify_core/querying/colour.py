"""Colour and appearance words: taken out of a text, and compared with the colours the map remembers.

A network that names things rarely names their colours well, but the map has seen them. "red cabinet" is therefore split
into a noun for the semantic score and a colour for this one. Colours are compared in OKLab (B. Ottosson, 2020), where
equal distances look about equally different and hue stays put when light gets dimmer.
"""

from __future__ import annotations

import csv
import functools
import re
from dataclasses import dataclass
from importlib import resources

import numpy as np
from numpy.typing import NDArray

_LINEAR_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LMS_TO_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
_CHROMA_SOFTNESS = 0.012
_LIGHT_SOFTNESS = 0.1
_TEXTURE_SHARE = 0.25
_MAX_EXPOSURE_GAIN = 1.5
_MAX_CAST_GAIN = 2.0
_WHITE_SHARE = 0.05
_MIN_WHITE_VOXELS = 20
_PREPOSITIONS = frozenset(
    ("of", "in", "on", "at", "with", "without", "for", "to", "from", "by", "near", "under", "over", "behind", "beside")
)
_PLACES = frozenset(("in", "on", "at", "near", "under", "over", "behind", "beside", "by", "above", "below", "against"))
_ARTICLES = frozenset(("the", "a", "an"))
_EMPTY = frozenset(("what", "is", "are", "there", "something", "anything", "thing", "things", "stuff", *_ARTICLES))
_WORD = re.compile(r"[^\W\d_]+", re.UNICODE)


@dataclass(frozen=True)
class AppearanceTerm:
    """One word of the lexicon: a soft region of OKLCh, or (kind ``texture``) a demand for varied colours.

    Attributes:
        term: The word.
        kind: ``colour``, ``shade`` or ``texture``.
        hue_deg, hue_tol_deg: Centre and half width of the hues it covers; None where any hue will do.
        chroma: Least and greatest chroma; None where any will do.
        light: Least and greatest lightness (0 black, 1 white); None where any will do.
    """

    term: str
    kind: str
    hue_deg: float | None
    hue_tol_deg: float | None
    chroma: tuple[float, float] | None
    light: tuple[float, float] | None


@dataclass(frozen=True)
class ParsedText:
    """A query text, taken apart.

    Attributes:
        text: As asked.
        noun: What goes to the semantic score: the text without its colour words (never empty).
        head: The word of it that names the thing: the last before a preposition.
        terms: The appearance words found, in order.
    """

    text: str
    noun: str
    head: str
    terms: tuple[AppearanceTerm, ...]


@functools.cache
def lexicon() -> dict[str, AppearanceTerm]:
    """The appearance words this package knows, from ``data/appearance.csv``."""
    source = resources.files("geopurify_core.querying").joinpath("data/appearance.csv")
    rows = csv.DictReader(source.read_text(encoding="utf-8").splitlines())
    return {row["term"]: _term_from_row(row) for row in rows}


@functools.cache
def compounds() -> frozenset[str]:
    """Pairs of words that belong together although one looks like a colour or a place ("light switch", "built in")."""
    source = resources.files("geopurify_core.querying").joinpath("data/compounds.txt")
    return frozenset(source.read_text(encoding="utf-8").split("\n")) - {""}


def _term_from_row(row: dict[str, str]) -> AppearanceTerm:
    def pair(low: str, high: str) -> tuple[float, float] | None:
        return (float(row[low]), float(row[high])) if row[low] else None

    return AppearanceTerm(
        term=row["term"],
        kind=row["kind"],
        hue_deg=float(row["hue_deg"]) if row["hue_deg"] else None,
        hue_tol_deg=float(row["hue_tol_deg"]) if row["hue_tol_deg"] else None,
        chroma=pair("chroma_lo", "chroma_hi"),
        light=pair("light_lo", "light_hi"),
    )


def parse_text(text: str) -> ParsedText:
    """Split a text into its noun and its appearance words.

    A word counts as appearance only in front of another word it can describe: "orange chair" is a colour and a chair,
    "orange" or "bowl of orange" is the fruit. Colours leave the noun; textures stay in it as well, since a
    "tiled wall" means something beyond its looks. Materials are part of the noun: wood has too many colours to be
    told by them. Where the thing is ("… on the red table") is not what it is, and left out.
    """
    spoken = _WORD.findall(text.lower())
    words = _thing(spoken)
    terms: list[AppearanceTerm] = []
    kept: list[str] = []
    for index, word in enumerate(words):
        following = words[index + 1 :]
        if word == "and" and terms and following[:1] and following[0] in lexicon():
            continue
        term = lexicon().get(word)
        if term is None or " ".join([word, *following[:1]]) in compounds() or not _describes_something(following):
            kept.append(word)
            continue
        terms.append(term)
        if term.kind == "texture":
            kept.append(word)
    noun = " ".join(kept) if terms or words != spoken else text.strip()
    return ParsedText(text, noun, _head(kept) or noun, tuple(terms))


def _thing(words: list[str]) -> list[str]:
    """The words without leading articles and without the place: "the cup on the table" asks for a cup.

    "of" stays ("chest of drawers"), and so do an ending ("something to sit on"), a compound ("built in wardrobe") and a
    place that is all there is ("what is on the table").
    """
    start = next((index for index, word in enumerate(words) if word not in _ARTICLES), 0)
    for index in range(start + 1, len(words) - 1):
        pair = f"{words[index - 1]} {words[index]}"
        somewhere = words[index] in _PLACES and any(word not in lexicon() for word in words[index + 1 :])
        if somewhere and pair not in compounds() and not _EMPTY.issuperset(words[start:index]):
            return words[start:index]
    return words[start:]


def _head(words: list[str]) -> str:
    """The last word before a preposition ("book" of "book on a table"), or nothing."""
    ends = (
        index
        for index, word in enumerate(words)
        if index > 0 and word in _PREPOSITIONS and f"{words[index - 1]} {word}" not in compounds()
    )
    return words[next(ends, len(words)) - 1] if words else ""


def _describes_something(following: list[str]) -> bool:
    """Whether a noun follows: further appearance words and their "and" are skipped; "orange or …" has none."""
    for word in following:
        if word in lexicon() or word in ("and", "coloured", "colored"):
            continue
        return word not in _PREPOSITIONS and word not in ("or", "the", "a", "an")
    return False


def oklab(rgb: NDArray[np.uint8], white: NDArray[np.floating] | None = None) -> NDArray[np.float32]:
    """OKLab (N, 3) float32 of sRGB colours (N, 3) uint8, optionally relative to a linear white point (3,)."""
    value = np.arange(256) / 255.0
    table: NDArray[np.float64] = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    linear = table[rgb]
    if white is not None:
        linear = linear / white
    return np.asarray(np.cbrt(linear @ _LINEAR_TO_LMS.T) @ _LMS_TO_OKLAB.T, dtype=np.float32)


def white_point(rgb: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Linear gains (3,) of the light, judged from the brightest nearly grey voxels; ones where there are too few.

    A cast is removed; of the exposure at most a quarter, since a dark room should not turn into a bright one.
    """
    lab = oklab(rgb)
    grey = np.flatnonzero(np.hypot(lab[:, 1], lab[:, 2]) < 0.06)
    if len(grey) < _MIN_WHITE_VOXELS:
        return np.ones(3)
    brightest = grey[lab[grey, 0] >= np.quantile(lab[grey, 0], 1.0 - _WHITE_SHARE)]
    value = rgb[brightest].astype(np.float64).mean(axis=0) / 255.0
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    exposure = float(linear.max())
    cast = np.maximum(linear / max(exposure, 1e-6), 1.0 / _MAX_CAST_GAIN)
    return np.asarray(cast * max(exposure, 1.0 / _MAX_EXPOSURE_GAIN), dtype=np.float64)


def membership(term: AppearanceTerm, lab: NDArray[np.floating]) -> NDArray[np.float32]:
    """How well each OKLab colour (N, 3) fits a colour or shade word: (N,) float32 in [0, 1]."""
    result = np.ones(len(lab), dtype=np.float64)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    if term.hue_deg is not None and term.hue_tol_deg is not None:
        hue = np.degrees(np.arctan2(lab[:, 2], lab[:, 1]))
        off = np.abs((hue - term.hue_deg + 180.0) % 360.0 - 180.0) / term.hue_tol_deg
        result *= np.exp(-0.5 * np.maximum(off - 0.5, 0.0) ** 2 * 4.0)
    if term.chroma is not None:
        result *= _soft_range(chroma, term.chroma, _CHROMA_SOFTNESS)
    if term.light is not None:
        result *= _soft_range(lab[:, 0], term.light, _LIGHT_SOFTNESS)
    return result.astype(np.float32)


def _soft_range(value: NDArray[np.floating], limits: tuple[float, float], softness: float) -> NDArray[np.float64]:
    """1 inside the limits, falling like a logistic outside; a lower limit of 0 and an upper one of 1 are open."""
    low, high = limits
    result = np.ones(len(value), dtype=np.float64)
    if low > 0.0:
        result /= 1.0 + np.exp((low - value) / softness)
    if high < 1.0:
        result /= 1.0 + np.exp((value - high) / softness)
    return result


def local_contrast(lab: NDArray[np.floating], coords: NDArray[np.int32]) -> NDArray[np.float32]:
    """How varied the colours are around each voxel: (N,) standard deviation of OKLab within its block of 4³ voxels.

    Averaged over two staggered block grids so that no block edge shows.
    """
    total = np.zeros(len(coords), dtype=np.float64)
    for shift in (0, 2):
        blocks = (coords.astype(np.int64) + shift) >> 2
        key = (blocks[:, 0] << 42) ^ ((blocks[:, 1] & 0x1FFFFF) << 21) ^ (blocks[:, 2] & 0x1FFFFF)
        _, inverse = np.unique(key, return_inverse=True)
        count = np.bincount(inverse)
        variance = np.zeros(len(count))
        for channel in range(3):
            mean = np.bincount(inverse, lab[:, channel]) / count
            variance += np.bincount(inverse, lab[:, channel].astype(np.float64) ** 2) / count - mean**2
        total += np.sqrt(np.maximum(variance, 0.0))[inverse]
    return (total / 2.0).astype(np.float32)


class MapColours:
    """The colours of one snapshot, made comparable once: OKLab relative to the map's white, and local contrast."""

    def __init__(self, rgb: NDArray[np.uint8], coords: NDArray[np.int32]) -> None:
        self._rgb = rgb
        self._coords = coords

    @functools.cached_property
    def lab(self) -> NDArray[np.float32]:
        """(N, 3) OKLab."""
        return oklab(self._rgb, white_point(self._rgb))

    @functools.cached_property
    def _texture_rank(self) -> NDArray[np.float32]:
        contrast = local_contrast(self.lab, self._coords)
        order = np.argsort(contrast, kind="stable")
        rank = np.empty(len(order), dtype=np.float32)
        rank[order] = np.linspace(0.0, 1.0, len(order), dtype=np.float32)
        return rank

    def agreement(self, terms: tuple[AppearanceTerm, ...]) -> NDArray[np.float32]:
        """(N,) in [0, 1]: a "dark red" thing is both (geometric mean), a "red and white" one has either (the most)."""
        parts = []
        colours = [membership(term, self.lab) for term in terms if term.kind == "colour"]
        if colours:
            parts.append(np.maximum.reduce(colours))
        for term in terms:
            if term.kind == "texture":
                parts.append(1.0 - _TEXTURE_SHARE + _TEXTURE_SHARE * self._texture_rank)
            elif term.kind != "colour":
                parts.append(membership(term, self.lab))
        if not parts:
            return np.ones(len(self._rgb), dtype=np.float32)
        return np.asarray(np.prod(parts, axis=0) ** (1.0 / len(parts)), dtype=np.float32)
