"""What the builders' pieces are called, and which ScanNet-20 class each belongs to."""

from __future__ import annotations

from geopurify_core.labels import load_label_set

SCANNET20: tuple[str, ...] = load_label_set("scannet20").names
EXTRA: tuple[str, ...] = (
    "ceiling", "lamp", "television", "plant", "rug", "mirror", "pillow", "towel",
    "box", "stove", "microwave", "cup", "bottle", "bowl", "book", "keyboard",
)  # fmt: skip
CLASS_NAMES: tuple[str, ...] = SCANNET20 + EXTRA
UNLABELLED = 255

_CLASS_OF_KIND = {
    "kitchen cabinet": "cabinet", "wall cabinet": "cabinet", "wardrobe": "cabinet", "dresser": "cabinet",
    "sideboard": "cabinet", "bathroom cabinet": "cabinet", "office chair": "chair", "armchair": "chair",
    "coffee table": "table", "nightstand": "otherfurniture", "ottoman": "otherfurniture",
    "trash bin": "otherfurniture", "washing machine": "otherfurniture", "monitor": "television",
}  # fmt: skip


def class_id(kind: str) -> int:
    """Index into ``CLASS_NAMES`` of a piece's kind."""
    return CLASS_NAMES.index(_CLASS_OF_KIND.get(kind, kind))


def kinds() -> tuple[str, ...]:
    """Every kind of piece there can be."""
    plain = tuple(name for name in CLASS_NAMES if name != "otherfurniture")
    return plain + tuple(_CLASS_OF_KIND)
