"""Label sets and palettes, kept as data files beside this module.

``scannet20`` holds ScanNet's 20 benchmark classes with their NYU40 ids and colours; ``household`` names what the
procedural apartment holds beyond them. Each class lists words people use for it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from geopurify_core.errors import InvalidConfigError

__all__ = ["LabelSet", "available_label_sets", "load_label_set"]


@dataclass(frozen=True)
class LabelSet:
    """Names, ids, colours and words of a closed set of classes; position in the set is the class index.

    Attributes:
        name: Of the set.
        names: Class names, in order.
        ids: Ids under which data sets store the classes (NYU40 ids for ScanNet).
        palette: (n, 3) uint8 RGB.
        words: For each class, its name first and then synonyms.
    """

    name: str
    names: tuple[str, ...]
    ids: tuple[int, ...]
    palette: NDArray[np.uint8]
    words: tuple[tuple[str, ...], ...]

    def index_of_id(self, ignore: int = 255) -> NDArray[np.uint8]:
        """(256,) uint8 table from stored id to class index; ids outside the set become ``ignore``."""
        table = np.full(256, ignore, dtype=np.uint8)
        table[list(self.ids)] = np.arange(len(self.ids), dtype=np.uint8)
        return table

    def words_of(self, name: str) -> tuple[str, ...]:
        """Words for one class. Raises InvalidConfigError if the set does not know it."""
        if name not in self.names:
            raise InvalidConfigError(f"labels.{self.name}", name, f"Known here: {', '.join(self.names)}.")
        return self.words[self.names.index(name)]


def available_label_sets() -> tuple[str, ...]:
    """Names ``load_label_set`` accepts."""
    files = resources.files(__name__).iterdir()
    return tuple(sorted(file.name[:-5] for file in files if file.name.endswith(".json")))


@cache
def load_label_set(name: str) -> LabelSet:
    """A label set by name.

    Raises:
        InvalidConfigError: There is none of this name.
    """
    if name not in available_label_sets():
        raise InvalidConfigError("labels", name, f"Choose one of {', '.join(available_label_sets())}.")
    data = json.loads(resources.files(__name__).joinpath(f"{name}.json").read_text(encoding="utf-8"))
    classes = data["classes"]
    palette = np.array([item["colour"] for item in classes], dtype=np.uint8)
    palette.flags.writeable = False
    return LabelSet(
        name=name,
        names=tuple(item["name"] for item in classes),
        ids=tuple(item["id"] for item in classes),
        palette=palette,
        words=tuple(tuple(item["words"]) for item in classes),
    )
