"""What a query may ask: every limit in one place, so that nothing odd gets as far as the encoder."""

from __future__ import annotations

import math
import numbers
from typing import Any

from geopurify_core.config import QueryConfig
from geopurify_core.errors import QueryError
from geopurify_core.vision.text import check_texts as check_each_text


def check_texts(texts: Any, config: QueryConfig) -> list[str]:
    """``texts`` as they came, if there are not too many and each is usable; else QueryError naming what is not."""
    check_each_text(texts, config.max_text_bytes)
    if not texts:
        raise QueryError("texts", list(texts), "Ask for something: give at least one text.")
    if len(texts) > config.max_texts:
        raise QueryError("texts", f"{len(texts)} texts", f"Ask for at most {config.max_texts} at once.")
    return list(texts)


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
