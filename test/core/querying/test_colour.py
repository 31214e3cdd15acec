"""Colour words: taken out of texts, and found in the map."""

from __future__ import annotations

import numpy as np
import pytest

from geopurify_core.querying.colour import (
    MapColours,
    lexicon,
    local_contrast,
    membership,
    oklab,
    parse_text,
    white_point,
)


@pytest.mark.parametrize(
    ("text", "noun", "head", "terms"),
    [
        ("red cabinet", "cabinet", "cabinet", ["red"]),
        ("White Mug", "mug", "mug", ["white"]),
        ("dark red armchair", "armchair", "armchair", ["dark", "red"]),
        ("red and white towel", "towel", "towel", ["red", "white"]),
        ("wooden chair", "wooden chair", "chair", []),
        ("tiled wall", "tiled wall", "wall", ["tiled"]),
        ("chair", "chair", "chair", []),
        ("somewhere to sit", "somewhere to sit", "somewhere", []),
        ("bowl of fruit", "bowl of fruit", "bowl", []),
        ("orange", "orange", "orange", []),
        ("orange chair", "chair", "chair", ["orange"]),
        ("bowl with an orange", "bowl with an orange", "bowl", []),
        ("orange juice", "orange juice", "juice", []),
        ("light switch", "light switch", "switch", []),
        ("light blue pillow", "pillow", "pillow", ["light", "blue"]),
        ("white board", "white board", "board", []),
        ("book in red", "book in red", "book", []),
        ("blue-green vase", "vase", "vase", ["blue", "green"]),
        ("the cup on the table", "cup", "cup", []),
        ("a white mug near the red book", "mug", "mug", ["white"]),
        ("the TV", "tv", "tv", []),
        ("built-in wardrobe", "built-in wardrobe", "wardrobe", []),
        ("something to sit on", "something to sit on", "something", []),
        ("what is on the table", "what is on the table", "is", []),
        ("on the table", "on the table", "table", []),
        ("the", "the", "the", []),
        ("стул", "стул", "стул", []),
        ("!!!", "!!!", "!!!", []),
    ],
)
def test_texts_are_taken_apart(text: str, noun: str, head: str, terms: list[str]) -> None:
    parsed = parse_text(text)
    assert [term.term for term in parsed.terms] == terms
    assert (parsed.noun, parsed.head) == (noun, head)
    assert parsed.text == text


def test_oklab_of_known_colours() -> None:
    lab = oklab(np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0]], dtype=np.uint8))
    np.testing.assert_allclose(lab, [[1, 0, 0], [0, 0, 0], [0.62796, 0.22486, 0.12585]], atol=2e-4)


@pytest.mark.parametrize(
    ("term", "rgb", "other"),
    [
        ("red", (190, 30, 40), (60, 120, 60)),
        ("red", (110, 25, 35), (120, 120, 120)),
        ("green", (50, 140, 70), (190, 30, 40)),
        ("blue", (40, 70, 170), (190, 170, 60)),
        ("yellow", (235, 210, 60), (40, 70, 170)),
        ("orange", (235, 140, 40), (235, 210, 60)),
        ("purple", (120, 60, 140), (50, 140, 70)),
        ("pink", (240, 160, 185), (190, 30, 40)),
        ("brown", (105, 70, 45), (235, 235, 235)),
        ("white", (235, 235, 232), (60, 60, 60)),
        ("black", (25, 25, 28), (200, 200, 200)),
        ("grey", (125, 125, 128), (190, 30, 40)),
        ("dark", (40, 30, 60), (220, 220, 120)),
    ],
)
def test_words_fit_their_colours(term: str, rgb: tuple[int, ...], other: tuple[int, ...]) -> None:
    fit, misfit = membership(lexicon()[term], oklab(np.array([rgb, other], dtype=np.uint8)))
    assert fit > 0.6
    assert misfit < 0.15


def test_hue_survives_dim_light() -> None:
    bright = np.array([[200, 60, 60]], dtype=np.float64)
    dim = oklab((bright * 0.6).astype(np.uint8))
    assert membership(lexicon()["red"], dim)[0] > 0.6


def test_a_cast_is_taken_out() -> None:
    """A grey room under warm light: its white paper counts as white again."""
    rng = np.random.default_rng(0)
    room = rng.integers(40, 180, (500, 1)).repeat(3, axis=1)
    room[:40] = 235
    warm = np.clip(room * [1.0, 0.93, 0.82], 0, 255).astype(np.uint8)
    term = lexicon()["white"]
    raw, corrected = membership(term, oklab(warm)), membership(term, oklab(warm, white_point(warm)))
    assert corrected[:40].mean() > 0.8
    assert corrected[:40].mean() > raw[:40].mean() + 0.1


def test_texture_is_where_colours_vary() -> None:
    coords = np.stack(np.meshgrid(np.arange(40), np.arange(20), [0], indexing="ij"), axis=-1).reshape(-1, 3)
    rgb = np.full((len(coords), 3), 128, dtype=np.uint8)
    striped = coords[:, 0] >= 20
    rgb[striped & (coords[:, 0] % 2 == 0)] = 230
    contrast = local_contrast(oklab(rgb), coords.astype(np.int32))
    assert contrast[striped].min() > 5 * contrast[coords[:, 0] < 16].max() + 0.01
    agreement = MapColours(rgb, coords.astype(np.int32)).agreement((lexicon()["striped"],))
    assert agreement[striped].mean() > agreement[~striped].mean()


def test_either_of_two_colours_but_both_of_shade_and_colour() -> None:
    rgb = np.array([[200, 30, 40], [235, 235, 235], [60, 10, 15], [60, 140, 60]], dtype=np.uint8)
    colours = MapColours(rgb, np.arange(12).reshape(4, 3).astype(np.int32))
    known = lexicon()
    either = colours.agreement((known["red"], known["white"]))
    assert min(either[:2]) > 0.5 > either[3]
    both = colours.agreement((known["dark"], known["red"]))
    assert both[2] > both[0] > both[3]
