"""CLIP's token ids, against the reference's."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from geopurify_core.errors import NotAvailableError
from geopurify_core.vision.xdecoder import tokenizer
from geopurify_core.vision.xdecoder.tokenizer import END, START, ClipTokenizer, attention_mask, lengths

pytest.importorskip("instant_clip_tokenizer")

PROMPTS = [*(f"a {x} in a scene." for x in ("wall", "floor", "chair", "table", "shower curtain")), "background."]


def test_ids_are_the_references(reference: Callable[[str], Any]) -> None:
    stages = reference("focall").stages
    ids = ClipTokenizer().rows(PROMPTS)
    assert ids.dtype == np.int64 and np.array_equal(ids, stages["tok_ids_template0"])
    assert np.array_equal(attention_mask(ids), stages["tok_attn_template0"])
    assert lengths(ids).tolist() == stages["tok_attn_template0"].sum(axis=1).tolist()


def test_a_row_is_start_text_end_and_ends() -> None:
    (row,) = ClipTokenizer(context_length=12).rows(["a wall in a scene."])
    assert row.tolist() == [START, 320, 2569, 530, 320, 3562, 269, *[END] * 5]


def test_a_long_text_loses_its_tail_but_not_its_end() -> None:
    (row,) = ClipTokenizer(context_length=5).rows(["a wall in a scene."])
    assert row.tolist() == [START, 320, 2569, 530, END]


def test_case_spaces_and_composition_do_not_matter() -> None:
    encode = ClipTokenizer().encode
    assert encode("Café  Table") == encode("cafe\u0301 table") == encode("CAFÉ TABLE")


def test_special_tokens_cannot_be_written_into_a_text() -> None:
    ids = ClipTokenizer().encode("chair <|endoftext|> table")
    assert ids.count(END) == 1 and ids.count(START) == 1


def test_any_script_has_tokens() -> None:
    for text in ("椅子", "كرسي", "🪑"):
        assert len(ClipTokenizer().encode(text)) > 2


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "instant_clip_tokenizer", None)
    tokenizer._byte_pairs.cache_clear()
    try:
        with pytest.raises(NotAvailableError, match="pip install instant-clip-tokenizer"):
            ClipTokenizer()
    finally:
        tokenizer._byte_pairs.cache_clear()
