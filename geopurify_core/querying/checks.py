"""What a query may ask: every limit in one place, so that nothing odd gets as far as the encoder."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

from geopurify_core.config import QueryConfig
from geopurify_core.errors import QueryError


def check_texts(texts: Any, config: QueryConfig) -> list[str]:
    """``texts`` as a list of usable strings, or QueryError naming the first that is not."""
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise QueryError("texts", texts, "Give a list of texts.")
    if not texts:
        raise QueryError("texts", list(texts), "Ask for something: give at least one text.")
    if len(texts) > config.max_texts:
        raise QueryError("texts", f"{len(texts)} texts", f"Ask for at most {config.max_texts} at once.")
    for index, text in enumerate(texts):
        _check_text(f"texts[{index}]", text, config.max_text_bytes)
    return list(texts)


def _check_text(field: str, text: Any, max_bytes: int) -> None:
    if not isinstance(text, str) or not text.strip():
        raise QueryError(field, text, "Name what to look for, for example 'red chair'.")
    if "\x00" in text:
        raise QueryError(field, text, "Remove the NUL character.")
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise QueryError(field, text, "The text is not valid Unicode (a lone surrogate).") from error
    if size > max_bytes:
        raise QueryError(field, text, f"It has {size} bytes; keep it to {max_bytes} (query.max_text_bytes).")


def check_max_objects(value: Any, config: QueryConfig) -> int:
    """The limit asked for, or the configuration's; QueryError unless a whole number of at least 1."""
    if value is None:
        return config.max_objects
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise QueryError("max_objects", value, "Give a whole number of at least 1, or leave it out.")
    return int(value)


def check_min_score(value: Any, config: QueryConfig) -> float:
    """The threshold asked for, or the configuration's; QueryError unless a number."""
    if value is None:
        return config.min_score
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or math.isnan(float(value)):
        raise QueryError("min_score", value, "Give a number, or leave it out.")
    return float(value)
