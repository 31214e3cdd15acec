"""Score ``nano``: ``python -m training.nano.eval [--weights FILE] [--real DATA_FOLDER]``.

Per pixel, 20 ScanNet classes by argmax of the cosine to the class names, on procedural apartments never trained on and,
where a folder of labelled real pictures is given, on those.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from geopurify_core.datasets.synthetic.kinds import SCANNET20, class_id, kinds
from geopurify_core.labels import load_label_set
from geopurify_core.vision.base import SemanticBackbone
from geopurify_core.vision.nano import NanoBackbone
from training.nano.text import class_prompts
from training.nano.views import NOTHING, VALIDATION_SEEDS, Views, apartment_views, render_views

VIEWS_PER_APARTMENT = 12
Labelled = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def predict(backbone: SemanticBackbone, rgb: NDArray[np.uint8], texts: NDArray[np.float32]) -> NDArray[np.int64]:
    """(H, W) index of the best text for each pixel, from the nearest feature cell."""
    features = backbone.encode_image(rgb).features
    best = np.einsum("chw,kc->khw", features, texts).argmax(axis=0)
    rows = np.arange(rgb.shape[0]) * best.shape[0] // rgb.shape[0]
    columns = np.arange(rgb.shape[1]) * best.shape[1] // rgb.shape[1]
    return best[rows][:, columns]


def confusion(backbone: SemanticBackbone, images: Iterable[Labelled]) -> NDArray[np.int64]:
    """(20, 20) pixel counts, truth by prediction; labels of 255 are left out."""
    texts, n = backbone.encode_text(class_prompts()), len(SCANNET20)
    total = np.zeros((n, n), dtype=np.int64)
    for rgb, truth in images:
        valid = truth < n
        pairs = truth[valid].astype(np.int64) * n + predict(backbone, rgb, texts)[valid]
        total += np.bincount(pairs, minlength=n * n).reshape(n, n)
    return total


def summary(matrix: NDArray[np.int64]) -> dict[str, Any]:
    """Mean IoU and accuracy over the classes that occur, pixel accuracy, and each class's IoU, in percent."""
    hit, truth, said = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    occurs = truth > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        iou, recall = 100 * hit / (truth + said - hit), 100 * hit / truth
    return {
        "mIoU": round(float(iou[occurs].mean()), 1),
        "mAcc": round(float(recall[occurs].mean()), 1),
        "pixel_acc": round(float(100 * hit.sum() / truth.sum()), 1),
        "classes": int(occurs.sum()),
        "iou": {name: round(float(v), 1) for name, v, there in zip(SCANNET20, iou, occurs, strict=True) if there},
    }


def _to_scannet20(kind: NDArray[np.uint8]) -> NDArray[np.uint8]:
    table = np.full(256, NOTHING, dtype=np.uint8)
    ids = np.array([class_id(name) for name in kinds()], dtype=np.uint8)
    table[: len(ids)] = np.where(ids < len(SCANNET20), ids, NOTHING)
    return table[kind]


def procedural(views: Views) -> Iterator[Labelled]:
    """Rendered views with ScanNet-20 labels; what is outside the 20 classes is left out."""
    for rgb, kind in zip(views.rgb, views.kind, strict=True):
        yield np.asarray(rgb), _to_scannet20(np.asarray(kind))


def validation_views(folder: Path) -> Views:
    """The held-out apartments, rendered into ``folder`` where they are not there yet."""
    return render_views(folder, VALIDATION_SEEDS.start, len(VALIDATION_SEEDS), VIEWS_PER_APARTMENT, 0.0)


def held_out_room(seed: int, count: int) -> Iterator[Labelled]:
    """A few views of one validation apartment, without touching the disk."""
    return procedural(Views(*apartment_views(seed, count, 0.0)))


def _pairs_in(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Pictures and label images of the same stem, in ``color/`` + ``label*/`` or side by side."""
    for labels in sorted(folder.rglob("*.png")):
        if "label" not in labels.parent.name and "label" not in labels.stem:
            continue
        stem = labels.stem.replace("_labels", "").replace("_label", "")
        for candidate in (labels.parent.parent / "color", labels.parent.parent, labels.parent):
            found = [p for p in sorted(candidate.glob(f"{stem}*")) if p.suffix in (".jpg", ".png") and p != labels]
            if found:
                yield found[0], labels
                break


def real(folder: Path) -> Iterator[Labelled]:
    """Pictures with NYU40 label images, mapped to the 20 classes."""
    table = load_label_set("scannet20").index_of_id(NOTHING)
    for picture, labels in _pairs_in(folder):
        rgb = np.asarray(Image.open(picture).convert("RGB"))
        truth = table[np.asarray(Image.open(labels)).astype(np.uint8)]
        if truth.shape == rgb.shape[:2]:
            yield rgb, truth


def scores(backbone: SemanticBackbone, views: Views, data: Path | None) -> dict[str, Any]:
    """``summary`` on the held-out apartments and on each folder of real pictures below ``data``."""
    result = {"procedural_heldout": summary(confusion(backbone, procedural(views)))}
    for name in ("nyu_labelled_images", "posed_images_scene0000_00", "rend_scene0000_00"):
        if data is not None and (data / name).is_dir():
            matrix = confusion(backbone, real(data / name))
            if matrix.sum():
                result[name] = summary(matrix)
    return result


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=None)
    parser.add_argument("--views", type=Path, default=Path("out/nano/validation"))
    parser.add_argument("--real", type=Path, default=None, help="folder with labelled real pictures")
    arguments = parser.parse_args()
    views = validation_views(arguments.views)
    print(json.dumps(scores(NanoBackbone(arguments.weights), views, arguments.real), indent=1))


if __name__ == "__main__":
    main()
