"""CLIP's byte-pair tokens, as X-Decoder's language encoder reads them."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopurify_core.errors import NotAvailableError

START = 49406
END = 49407
VOCABULARY = 49408


@cache
def _byte_pairs() -> Any:
    try:
        from instant_clip_tokenizer import Tokenizer
    except ImportError as error:
        raise NotAvailableError(
            "instant-clip-tokenizer",
            None,
            "X-Decoder reads texts with it: pip install instant-clip-tokenizer (wheels: x86_64, Python 3.10 to 3.12).",
        ) from error
    return Tokenizer()


class ClipTokenizer:
    """Texts to rows of token ids: start, the text's byte pairs, end, and again end up to the row's length.

    The ids are those of Hugging Face's ``openai/clip-vit-base-patch32``, which the reference implementation uses, with
    two differences that no label meets: ``<|endoftext|>`` written in a text is read as plain characters, and control
    characters are kept.

    Args:
        context_length: Tokens in a row, at least 3. Longer texts lose their tail; the end token stays.

    Raises:
        NotAvailableError: The package ``instant-clip-tokenizer`` is not installed.
    """

    def __init__(self, context_length: int = 77) -> None:
        self.context_length = context_length
        self._byte_pairs = _byte_pairs()

    def encode(self, text: str) -> list[int]:
        """Start, byte pairs and end: at most ``context_length`` ids, nothing after the end."""
        composed = unicodedata.normalize("NFC", text)
        return [START, *self._byte_pairs.encode(composed)[: self.context_length - 2], END]

    def rows(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """(n, context_length) int64 ids, padded with the end token."""
        ids = np.full((len(texts), self.context_length), END, dtype=np.int64)
        for row, text in zip(ids, texts, strict=True):
            tokens = self.encode(text)
            row[: len(tokens)] = tokens
        return ids


def lengths(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) tokens of each row up to and including its first end token."""
    return np.asarray((ids == END).argmax(axis=1) + 1, dtype=np.int64)


def attention_mask(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n, L) int64: 1 up to and including the first end token, 0 on the padding."""
    return (np.arange(ids.shape[1]) < lengths(ids)[:, None]).astype(np.int64)
