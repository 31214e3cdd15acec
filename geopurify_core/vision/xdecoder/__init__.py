"""X-Decoder in plain torch: the vision-language network behind the papers, loading the official checkpoints.

Imported lazily, because torch takes a second: ``from geopurify_core.vision.xdecoder import XDecoder`` loads it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geopurify_core.vision.xdecoder.model import XDecoder

__all__ = ["XDecoder"]


def __getattr__(name: str) -> Any:
    if name == "XDecoder":
        from geopurify_core.vision.xdecoder.model import XDecoder

        return XDecoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
