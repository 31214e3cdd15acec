"""The YAMLs that come with this package, used where a backbone is asked for by its name alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SHIPPED = {"segmenter": "mosaic.yaml", "detector": "yolox_nano.yaml", "composite": "composite.yaml"}
_SAYS_WHAT = {"config", "model", "members"}


def with_shipped_config(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """``options``, with this package's YAML where they name neither a YAML nor a model.

    Looked for in the source tree, then where installations put it. Where it is nowhere the options stay as they are,
    and the backbone says what is missing.
    """
    if name not in SHIPPED or _SAYS_WHAT & options.keys():
        return options
    found = next((path for path in _places(SHIPPED[name]) if path.is_file()), None)
    return options if found is None else {"config": str(found), **options}


def _places(file: str) -> Iterator[Path]:
    yield Path(__file__).resolve().parents[2] / "config" / "backbones" / file
    for prefix in (sys.prefix, *filter(None, os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep))):
        yield Path(prefix) / "share" / "geopurify_ros" / "config" / "backbones" / file
