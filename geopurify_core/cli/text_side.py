"""The text half of the backbone behind a saved map, without loading its vision network where that can be avoided."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from geopurify_core.config import Config, QueryConfig
from geopurify_core.errors import GeoPurifyError, MapMismatchError
from geopurify_core.mapping.snapshot import MapSnapshot
from geopurify_core.querying.engine import QueryEngine


class _Encoder(Protocol):
    text_fingerprint: str

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class TextSide:
    """What a query engine needs of a backbone.

    Attributes:
        encoder: Encodes texts into the map's space.
        feature_dim: Width of that space.
        text_fingerprint: Its identity.
    """

    encoder: _Encoder
    feature_dim: int
    text_fingerprint: str

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, C) unit-norm embeddings."""
        return self.encoder.encode_text(texts)


def text_side(snapshot: MapSnapshot, extra: Mapping[str, Any]) -> TextSide:
    """An encoder for the text space of ``snapshot``: a sentence encoder, or else the backbone that ``extra`` names.

    Raises:
        MapMismatchError: Nothing installed here speaks the map's text space.
    """
    from geopurify_core.vision.prompts import TEMPLATE_SETS
    from geopurify_core.vision.text import SentenceEncoder

    wanted = snapshot.text_fingerprint
    for templates in TEMPLATE_SETS:
        encoder = SentenceEncoder(templates, cache_dir=cache_folder())
        if encoder.text_fingerprint == wanted:
            return TextSide(encoder, encoder.dim, wanted)
    return _from_backbone(wanted, extra)


def cache_folder() -> Path:
    """Where embeddings wait for the next command, which would need a second for the contrast words alone."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "geopurify" / "text"


def _from_backbone(wanted: str, extra: Mapping[str, Any]) -> TextSide:
    from geopurify_core.vision import load_backbone

    made_with = extra.get("backbone")
    if not isinstance(made_with, dict) or not isinstance(made_with.get("name"), str):
        raise MapMismatchError("map.text_fingerprint", wanted, "The map does not say which backbone it was made with.")
    options = made_with.get("options")
    try:
        backbone = load_backbone(made_with["name"], **(options if isinstance(options, dict) else {}))
    except GeoPurifyError as error:
        raise MapMismatchError(
            "map.backbone", made_with["name"], f"Its text encoder is needed but does not load here: {error}"
        ) from error
    if backbone.text_fingerprint != wanted:
        raise MapMismatchError(
            "map.text_fingerprint", wanted, f"{made_with['name']} now speaks {backbone.text_fingerprint}; map again."
        )
    return TextSide(backbone, backbone.feature_dim, wanted)


def open_engine(path: Path, config: QueryConfig, purify_with: Config | None = None) -> QueryEngine:
    """A query engine over the map file at ``path``.

    Args:
        path: A raw or a purified map.
        config: Query settings.
        purify_with: Given: purify a raw map first, in score space, which is quickest for the few texts of one
            command. A purified map is asked as it is.
    """
    from geopurify_core.cli.purify import purify_visibly
    from geopurify_core.mapping.store import load_map, read_extra

    snapshot = load_map(path)
    encoder: Any = text_side(snapshot, read_extra(path))
    if purify_with is None or snapshot.purified:
        return QueryEngine(snapshot, encoder, config)
    return QueryEngine.of_purification(purify_visibly(snapshot, purify_with, pool="scores"), encoder, config)
