"""Tiny scans on disk, and a backbone whose features are colours."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from geopurify_core.vision.base import FeatureMap

_NAME = "scans_on_disk"


def load_writers() -> ModuleType:
    """The writers, as a module of their own name whichever folder asks."""
    if _NAME not in sys.modules:
        spec = importlib.util.spec_from_file_location(_NAME, Path(__file__).with_name("_on_disk.py"))
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[_NAME] = module
        spec.loader.exec_module(module)
    return sys.modules[_NAME]


@pytest.fixture(scope="session")
def disk() -> ModuleType:
    return load_writers()


class ColourBackbone:
    """Features are the mean colour of cells of 2x2 pixels; cells of pure black have no confidence."""

    name, feature_dim, licence = "colour", 3, "Apache-2.0"
    fingerprint, text_fingerprint = "colour:1", "colour-text:1"

    def __init__(self) -> None:
        self.images: list[np.ndarray] = []

    def encode_image(self, rgb: np.ndarray, depth_m: np.ndarray | None = None) -> FeatureMap:
        self.images.append(rgb)
        height, width = rgb.shape[0] // 2, rgb.shape[1] // 2
        cells = rgb[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3).mean(axis=(1, 3)).astype(np.float32)
        confidence = (cells.sum(axis=-1) > 0) * (0.25 + 0.5 * cells[..., 0] / 255)
        return FeatureMap.from_rows(cells / 255, confidence.astype(np.float32))

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        known = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}
        return np.array([known[text] for text in texts], dtype=np.float32)


@pytest.fixture
def colours() -> ColourBackbone:
    return ColourBackbone()
