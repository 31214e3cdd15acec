"""A backbone that knows colours by fruit, a room of three coloured boards for it, and their map."""

import hashlib

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from geopurify_core.cli.app import app
from geopurify_core.errors import BackboneError
from geopurify_core.vision.base import FeatureMap

FRUIT = {"tomato": 0, "lime": 1, "plum": 2}
COLORS = np.array([[220, 30, 30], [30, 200, 30], [40, 40, 210], [128, 128, 128]], np.uint8)
DIM = 16


class FruitBackbone:
    """Pixels near a pure colour speak of its fruit, the rest of "wall"."""

    name, feature_dim, licence, fingerprint, text_fingerprint = "fruit", DIM, "CC0-1.0", "fruit:1", "fruit-text:1"

    def encode_image(self, rgb, depth_m=None):
        nearest = np.abs(rgb[..., None, :].astype(int) - COLORS).sum(-1).argmin(-1)
        rows = np.stack([self._vector(text) for text in (*FRUIT, "wall")])[nearest].astype(np.float32)
        return FeatureMap.from_rows(rows, np.ones(rgb.shape[:2], np.float32))

    def encode_text(self, texts):
        return np.stack([self._vector(text) for text in texts]).astype(np.float32)

    def _vector(self, text):
        if text in FRUIT:
            return np.eye(DIM)[FRUIT[text]]
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
        vector = np.random.default_rng(seed).normal(size=DIM)
        vector[:3] = 0
        return vector / np.linalg.norm(vector)


@pytest.fixture(autouse=True)
def fruit_backbone(monkeypatch):
    def load(name, **options):
        if name != "fruit":
            raise BackboneError("backbone", name, "Known here: fruit.")
        return FruitBackbone()

    monkeypatch.setattr("geopurify_core.pipeline.load_backbone", load)
    monkeypatch.setattr("geopurify_core.vision.load_backbone", load)
    return FruitBackbone


@pytest.fixture
def scene(tmp_path):
    """A grey wall 2 m ahead with three coloured boards 0.3 m before it, at x = -0.6, 0 and 0.6 m."""
    root = tmp_path / "room"
    for name in ("color", "depth", "pose", "intrinsic"):
        (root / name).mkdir(parents=True)
    f, width, height = 100.0, 160, 120
    K = np.array([[f, 0, 79.5, 0], [0, f, 59.5, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    for name in ("color", "depth"):
        np.savetxt(root / f"intrinsic/intrinsic_{name}.txt", K)
    rgb = np.full((height, width, 3), 128, np.uint8)
    depth = np.full((height, width), 2000, np.uint16)
    u, v = np.meshgrid(np.arange(width), np.arange(height))
    for i, x in enumerate((-0.6, 0.0, 0.6)):
        board = (np.abs((u - 79.5) / f * 1.7 - x) < 0.15) & (np.abs((v - 59.5) / f * 1.7) < 0.2)
        rgb[board], depth[board] = COLORS[i], 1700
    for i in range(4):
        Image.fromarray(rgb).save(root / f"color/{i}.png")
        Image.fromarray(depth).save(root / f"depth/{i}.png")
        np.savetxt(root / f"pose/{i}.txt", np.eye(4) if i else np.full((4, 4), np.inf))
    return root


@pytest.fixture
def map_file(scene, tmp_path):
    result = CliRunner().invoke(app, ["map", str(scene), "--out", str(tmp_path / "a.map"), "--backbone", "fruit"])
    assert result.exit_code == 0, result.output
    return tmp_path / "a.map"
