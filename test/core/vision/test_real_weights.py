"""The shipped YAMLs with real third-party weights on a real recording; skipped where these are absent."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geopurify_core.vision import load_backbone
from geopurify_core.vision.base import SemanticBackbone

# The words a closed set of labels can be expected to tell apart; which one is right at which pixel is hand-labelled.
WORDS = ["wall", "floor", "table", "chair", "cabinet", "cup", "book", "television", "window", "door"]
SURFACES = {"wooden table": "table", "wooden chair": "chair", "red cabinet": "cabinet", "carpet floor": "floor"}
THINGS = {"white mug": "cup", "patterned cup": "cup", "purple magazine": "book", "television": "television"}


@pytest.fixture(scope="module")
def recording(shared_dir: Path) -> Path:
    folder = shared_dir / "data" / "seq_redkitchen"
    if not folder.is_dir():
        pytest.skip("no data/seq_redkitchen in the shared folder")
    return folder


def load(name: str, config: str, repository: Path, shared_dir: Path) -> SemanticBackbone:
    weights = shared_dir / "weights"
    for model in ("mosaic_ade20k31", "yolox_nano_coco80"):
        if not (weights / model).is_dir():
            pytest.skip(f"no weights/{model} in the shared folder")
    path = repository / "config" / "backbones" / config
    return load_backbone(name, config=path, weights_dir=weights, num_threads=2)


def answers(backbone: SemanticBackbone, recording: Path, wanted: dict[str, str]) -> dict[str, str]:
    """For each hand-labelled pixel, the word whose vector is nearest to the feature there."""
    vectors = backbone.encode_text(WORDS)
    found = {}
    for item in json.loads((recording / "objects.json").read_text())["objects"]:
        if item["query"] not in wanted:
            continue
        frame, (u, v) = item["source_frame"], item["source_pixel"]
        rgb = np.asarray(Image.open(recording / "color" / f"{frame}.jpg"))
        depth_m = np.asarray(Image.open(recording / "depth" / f"{frame}.png")).astype(np.float32) / 1000
        seen = backbone.encode_image(rgb, depth_m)
        height, width = seen.confidence.shape
        row, column = v * height // rgb.shape[0], u * width // rgb.shape[1]
        sure = seen.confidence[row, column] > 0
        found[item["query"]] = WORDS[int(np.argmax(vectors @ seen.features[:, row, column]))] if sure else "nothing"
    return found


def right(found: dict[str, str], wanted: dict[str, str]) -> int:
    return sum(found[query] == word for query, word in wanted.items())


def test_segmenter_knows_surfaces(repository: Path, shared_dir: Path, recording: Path) -> None:
    backbone = load("segmenter", "mosaic.yaml", repository, shared_dir)
    found = answers(backbone, recording, SURFACES)
    assert right(found, SURFACES) == len(SURFACES), found


def test_detector_knows_things(repository: Path, shared_dir: Path, recording: Path) -> None:
    backbone = load("detector", "yolox_nano.yaml", repository, shared_dir)
    found = answers(backbone, recording, THINGS)
    assert right(found, THINGS) >= len(THINGS) - 1, found


def test_composite_knows_both(repository: Path, shared_dir: Path, recording: Path) -> None:
    backbone = load("composite", "composite.yaml", repository, shared_dir)
    assert backbone.licence == "Apache-2.0"
    wanted = SURFACES | THINGS
    found = answers(backbone, recording, wanted)
    assert right(found, wanted) >= len(wanted) - 2, found


def test_quantised_logits_and_argmax_files_agree(
    repository: Path, shared_dir: Path, recording: Path, tmp_path: Path
) -> None:
    """The soft file is the same network as the upstream argmax file, cut before its last resize."""
    soft = load("segmenter", "mosaic.yaml", repository, shared_dir)
    text = (repository / "config" / "backbones" / "mosaic.yaml").read_text()
    text = text.replace("mosaic_r4_logits.tflite", "mobile_segmenter_r4_quant_argmax_uint8.tflite")
    (tmp_path / "hard.yaml").write_text(text.replace("kind: logits", "kind: argmax"))
    hard = load_backbone("segmenter", config=tmp_path / "hard.yaml", weights_dir=shared_dir / "weights")
    rgb = np.asarray(Image.open(recording / "color" / "40.jpg"))
    one, two = soft.probabilities(rgb), hard.probabilities(rgb)  # type: ignore[attr-defined]
    assert one.shape == two.shape == (128, 128, 32)
    known = two.sum(axis=2) > 0.5
    assert (one.argmax(axis=2) == two.argmax(axis=2))[known].mean() > 0.9


def test_depth_changes_masks_and_its_absence_does_not(repository: Path, shared_dir: Path, recording: Path) -> None:
    """Depth cuts the boxes; a depth image without any measurement is the same as none."""
    backbone = load("detector", "yolox_nano.yaml", repository, shared_dir)
    rgb = np.asarray(Image.open(recording / "color" / "30.jpg"))
    depth_m = np.asarray(Image.open(recording / "depth" / "30.png")).astype(np.float32) / 1000
    with_depth, without = backbone.encode_image(rgb, depth_m), backbone.encode_image(rgb)
    nothing = backbone.encode_image(rgb, np.zeros_like(depth_m))
    np.testing.assert_allclose(nothing.confidence, without.confidence, atol=1e-6)
    assert np.abs(with_depth.confidence - without.confidence).mean() > 0.05
