"""From the ids under which data sets store their labels to class indices of a label set."""

from __future__ import annotations

import csv
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geopurify_core.errors import DatasetError
from geopurify_core.scans.scan import NO_LABEL

log = logging.getLogger(__name__)


def class_index(
    ids: NDArray[np.integer],
    class_ids: Sequence[int],
    known: Collection[int],
    what: str,
    strict: bool = False,
) -> NDArray[np.uint8]:
    """(N,) uint8 position of each id in ``class_ids``, 255 for every other id.

    Args:
        ids: (N,) stored ids.
        class_ids: Ids of the set's classes, in the set's order; at most 255.
        known: Every id the data set itself has, ``class_ids`` or not. Others are a sign of a wrong or damaged file.
        what: The file or scene, for messages.
        strict: Refuse ids beyond ``known``; otherwise they are counted in a warning.

    Raises:
        DatasetError: ``strict``, and there are such ids.
    """
    check_known(ids, known, what, strict)
    values, inverse = np.unique(np.asarray(ids), return_inverse=True)
    position = {int(class_id): index for index, class_id in enumerate(class_ids[:NO_LABEL])}
    table = np.array([position.get(int(value), NO_LABEL) for value in values], dtype=np.uint8)
    return table[inverse.reshape(-1)]


def check_known(ids: NDArray[np.integer], known: Collection[int], what: str, strict: bool = False) -> None:
    """Warn of ids that the data set does not have, with their number; ``strict``: raise DatasetError instead."""
    values, counts = np.unique(np.asarray(ids), return_counts=True)
    foreign = np.array([int(value) not in known for value in values], dtype=bool)
    if not foreign.any():
        return
    shown, points = [int(value) for value in values[foreign][:8]], int(counts[foreign].sum())
    if strict:
        raise DatasetError(f"labels of {what}", shown, f"{points} bear ids that the data set does not have.")
    log.warning("%s: %d labels have ids unknown to the data set (%s); they become none.", what, points, shown)


def read_table(path: Path, *columns: str) -> list[Mapping[str, str]]:
    """Rows of a tab-separated table with at least ``columns``.

    Raises:
        DatasetError: It cannot be read or lacks a column.
    """
    try:
        with path.open(newline="", encoding="utf-8") as handle:
            rows: list[Mapping[str, str]] = list(csv.DictReader(handle, delimiter="\t"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(path.name, str(path), f"It cannot be read: {error}") from error
    missing = [name for name in columns if not rows or rows[0].get(name) is None]
    if missing:
        raise DatasetError(path.name, str(path), f"It lacks the columns {', '.join(missing)}.")
    return rows


def whole_number(text: str) -> int:
    """A table's number; 0 for an empty or unreadable cell, as such tables mean it."""
    try:
        return int(float(text))
    except (TypeError, ValueError):
        return 0


def find_beside(folder: Path, name: str, levels: int = 3) -> Path | None:
    """A file of the data set as a whole: in the scene's folder or one of the ``levels`` above it."""
    folder = folder.resolve()
    for place in (folder, *list(folder.parents)[:levels]):
        if (place / name).is_file():
            return place / name
    return None
