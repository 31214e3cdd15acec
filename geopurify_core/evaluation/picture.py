"""A picture of a confusion matrix: row-normalised, names on both axes, readable from 20 classes to 200."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geopurify_core.evaluation.counts import Confusion

_MOST_WITH_NUMBERS = 24
_MOST_CLASSES = 60


def draw_confusion(confusion: Confusion, names: Sequence[str], path: Path, title: str = "") -> None:
    """Draw shares of each true class (rows) by predicted class; the last column holds points without a feature.

    Absent classes are left out as rows. Beyond 60 rows only the 60 classes with the most points are drawn, with all
    else in one column "(others)".

    Args:
        confusion: (n, n + 1) counts.
        names: n class names.
        path: A .png or .pdf file.
        title: Above the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shares, rows, columns = _shares(confusion, names)
    side = 2.5 + 0.36 * max(len(columns), 6)
    figure = Figure(figsize=(side + 0.8, 2.2 + 0.36 * max(len(rows), 4)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=60, ha="right", rotation_mode="anchor", fontsize=9)
    axes.set_yticks(range(len(rows)), rows, fontsize=9)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true (points)")
    axes.set_title(title, fontsize=11)
    if len(columns) <= _MOST_WITH_NUMBERS:
        for i, j in np.argwhere(shares >= 0.005):
            colour = "white" if shares[i, j] > 0.55 else "black"
            axes.text(j, i, f"{100 * shares[i, j]:.0f}", ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(image, ax=axes, shrink=0.7, label="share of the true class")
    figure.savefig(path, dpi=130)


def _shares(confusion: Confusion, names: Sequence[str]) -> tuple[NDArray[np.float64], list[str], list[str]]:
    points = confusion.sum(axis=1)
    shown = np.flatnonzero(points)
    if len(names) > _MOST_CLASSES:
        shown = np.sort(shown[np.argsort(-points[shown], kind="stable")][:_MOST_CLASSES])
        others = confusion[:, :-1].sum(axis=1) - confusion[:, shown].sum(axis=1)
        table = np.concatenate([confusion[:, shown], others[:, None], confusion[:, -1:]], axis=1)
        columns = [*(names[int(i)] for i in shown), "(others)", "(no feature)"]
    else:
        table, columns = confusion, [*names, "(no feature)"]
    if not confusion[:, -1].any():
        table, columns = table[:, :-1], columns[:-1]
    rows = [f"{names[int(i)]} ({points[i]:,})" for i in shown]
    return table[shown] / np.maximum(points[shown, None], 1), rows, columns
