"""Label sets and palettes, kept as data files beside this module.

========================  ==============================================================================================
``scannet20``             ScanNet's 20 benchmark classes; ids are NYU40 ids
``scannet200``            ScanNet200's long tail; ids are ScanNet's raw ids; groups ``head``, ``common``, ``tail``
``matterport21``          the same 20 and the ceiling, as OpenScene scores Matterport3D; ids are NYU40 ids
``matterport40/80/160``   Matterport3D's most frequent NYU classes; ids count from 1
``household``             what the procedural apartment holds beyond ScanNet's 20 classes
========================  ==============================================================================================

Names, ids, colours and groups are those of the sources named in each file. Each class lists words people use for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopurify_core.errors import InvalidConfigError

__all__ = ["LabelSet", "available_label_sets", "load_label_set"]

# What ScanNet200's foreground means leave out (GeoPurify, section 4.1).
_STRUCTURE = ("wall", "floor", "ceiling")


@dataclass(frozen=True)
class LabelSet:
    """Names, ids, colours and words of a closed set of classes; position in the set is the class index.

    Attributes:
        name: Of the set.
        names: Class names, in order.
        ids: Ids under which data sets store the classes (see the table above).
        palette: (n, 3) uint8 RGB.
        words: For each class, its name first and then synonyms.
        groups: Name of a group → indices of its classes: ``foreground`` (all but wall, floor and ceiling) everywhere,
            ``head``, ``common`` and ``tail`` in ScanNet200.
        catch_all: The class for everything else, such as ``otherfurniture``; empty where there is none.
        spellings: Whose spelling → {name here: name there}, where published code names a class differently.
    """

    name: str
    names: tuple[str, ...]
    ids: tuple[int, ...]
    palette: NDArray[np.uint8]
    words: tuple[tuple[str, ...], ...]
    groups: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    catch_all: str = ""
    spellings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    def index_of_id(self, ignore: int = 255) -> NDArray[np.uint8]:
        """uint8 table from stored id to class index; ids outside the set become ``ignore``.

        It has 256 entries, or as many as the largest id needs (1192 for ScanNet200, whose ids are not bytes).
        """
        table = np.full(max(256, max(self.ids) + 1), ignore, dtype=np.uint8)
        table[list(self.ids)] = np.arange(len(self.ids), dtype=np.uint8)
        return table

    def words_of(self, name: str) -> tuple[str, ...]:
        """Words for one class. Raises InvalidConfigError if the set does not know it."""
        if name not in self.names:
            raise InvalidConfigError(f"labels.{self.name}", name, f"Known here: {', '.join(self.names)}.")
        return self.words[self.names.index(name)]

    def spelled(self, spelling: str = "") -> tuple[str, ...]:
        """Class names in ``openscene``'s or ``geopurify``'s spelling; the set's own where that does not differ."""
        changed = self.spellings.get(spelling, {})
        return tuple(changed.get(name, name) for name in self.names)


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
    data = _read(name)
    classes = data["classes"]
    palette = np.array([item["colour"] for item in classes], dtype=np.uint8)
    palette.flags.writeable = False
    return LabelSet(
        name=name,
        names=tuple(item["name"] for item in classes),
        ids=tuple(item["id"] for item in classes),
        palette=palette,
        words=tuple(tuple(item["words"]) for item in classes),
        groups=_groups(classes),
        catch_all=data.get("catch_all", ""),
        spellings=data.get("spellings", {}),
    )


def _read(name: str) -> dict[str, Any]:
    """A file's content; of a set that is the beginning of another one, the other one's first classes."""
    data: dict[str, Any] = json.loads(resources.files(__name__).joinpath(f"{name}.json").read_text(encoding="utf-8"))
    if "of" in data:
        data["classes"] = _read(data["of"])["classes"][: data["first"]]
    return data


def _groups(classes: list[dict[str, Any]]) -> dict[str, tuple[int, ...]]:
    groups = {"foreground": tuple(i for i, item in enumerate(classes) if item["name"] not in _STRUCTURE)}
    for group in sorted({item["group"] for item in classes if "group" in item}):
        groups[group] = tuple(i for i, item in enumerate(classes) if item.get("group") == group)
    return groups
