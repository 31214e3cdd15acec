"""Label maps side by side: the truth, each answer, and where each answer is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geopurify_core.errors import QueryError
from geopurify_core.geometry import estimate_up, unit_up
from geopurify_core.mapping.snapshot import MapSnapshot
from geopurify_core.render import View, below_ceiling, paint, rasterise
from geopurify_core.sheet import FOOT_IN, GAP_IN, HEAD_IN, INK, LEFT_IN, QUIET, Panel, empty_figure, grey_of, sheet
from geopurify_core.sheet import save as save_figure

_UNKNOWN_RGB = (205, 208, 214)
# wrong; then, against the answer before it: mended, newly wrong
_WRONG, _MENDED, _BROKEN = (214, 64, 54), (38, 150, 90), (112, 48, 160)
_WIDTH_IN, _MAX_PANEL_IN, _ROW_GAP_IN = 13.5, 4.6, 0.62
_LEGEND_COLUMNS = 2
_WORDS_AT = (0.0, 0.34, 0.63)  # of a panel's width


@dataclass(frozen=True)
class LabelMap:
    """A label for every voxel, and what to write above it.

    Attributes:
        title: Such as "raw: mIoU 0.46".
        labels: (N,) int, index into the names; -1 where it has none.
    """

    title: str
    labels: NDArray[np.integer[Any]]


def draw_labels(
    snapshot: MapSnapshot,
    truth: LabelMap,
    answers: Sequence[LabelMap],
    names: Sequence[str],
    palette: NDArray[np.uint8],
    path: str | Path,
    up: ArrayLike | None = None,
    title: str = "Labels",
) -> None:
    """Write a picture of the map from above: truth and answers in label colours, below each answer its mistakes.

    Mistakes are red. From the second answer on those that it mends are green, and those that it makes anew violet,
    against the answer to its left. Voxels whose truth is not known count as neither.

    Args:
        snapshot: The map that was labelled; an empty one gives a picture that says so.
        truth: What is there.
        answers: One or more label maps of the same voxels.
        names: What the labels mean; only those that occur are listed.
        palette: (len(names), 3) uint8.
        path: A `.png` (or what else matplotlib writes); its folder is made.
        up: The map's up direction; by default estimated.
        title: Heading of the sheet.

    Raises:
        QueryError: A label map is of another map, or holds a label without a name.
    """
    for item in (truth, *answers):
        _check(item, len(snapshot), len(names))
    facts = f"{len(snapshot):,} voxels of {snapshot.voxel_size_m * 100:g} cm · from above, without ceilings"
    if not len(snapshot):
        save_figure(empty_figure(title, facts), path)
        return
    panel = _from_above(snapshot, estimate_up(snapshot) if up is None else unit_up(up))
    figure, axes = _grid(panel, 1 + len(answers), title, facts)
    table = np.vstack([palette, _UNKNOWN_RGB]).astype(np.uint8)  # -1 takes the last row
    for axis, item in zip(axes[0], (truth, *answers), strict=True):
        _show(axis, panel, table[item.labels], snapshot, item.title)
    before: NDArray[np.bool_] | None = None
    for axis, item in zip(axes[1][1:], answers, strict=True):
        before = _show_mistakes(axis, panel, snapshot, truth, item, before)
    _legend(axes[1][0], [truth, *answers], panel.shown, names, palette)
    save_figure(figure, path)


def _check(item: LabelMap, count: int, names: int) -> None:
    if item.labels.shape != (count,):
        raise QueryError("labels", item.labels.shape, f"This map has {count} voxels; label it again.")
    if count and not -1 <= int(item.labels.min()) <= int(item.labels.max()) < names:
        raise QueryError("labels", int(item.labels.max()), f"Give -1 or an index below {names}.")


def _from_above(snapshot: MapSnapshot, up: NDArray[np.float64]) -> Panel:
    view, centers = View.top(up), snapshot.centers_m
    shown = np.flatnonzero(below_ceiling(centers, snapshot.normals, up))
    return Panel(view, shown, rasterise(centers[shown], view, snapshot.voxel_size_m))


def _grid(panel: Panel, columns: int, title: str, facts: str) -> tuple[Any, list[list[Any]]]:
    """A sheet with two rows of equal panels."""
    left, right, bottom, top = panel.raster.extent_m
    margin_in = LEFT_IN / 2
    inches = min(
        (_WIDTH_IN - 2 * margin_in - GAP_IN * (columns - 1)) / columns / (right - left), _MAX_PANEL_IN / (top - bottom)
    )
    width, height = inches * (right - left), inches * (top - bottom)
    size = (2 * margin_in + columns * width + (columns - 1) * GAP_IN, HEAD_IN + 2 * height + _ROW_GAP_IN + FOOT_IN / 2)
    size = (max(size[0], 6.5), size[1])
    figure = sheet(title, facts, size)
    axes = []
    for row in range(2):
        y = size[1] - HEAD_IN - height - row * (height + _ROW_GAP_IN)
        places = [(margin_in + column * (width + GAP_IN), y) for column in range(columns)]
        axes.append([figure.add_axes((x / size[0], y / size[1], width / size[0], height / size[1])) for x, y in places])
    for axis in [axis for row_axes in axes for axis in row_axes]:
        axis.set_axis_off()
        axis.set_xlim(left, right)
        axis.set_ylim(bottom, top)
    return figure, axes


def _show(axis: Any, panel: Panel, colors: NDArray[np.uint8], snapshot: MapSnapshot, title: str) -> None:
    picture = paint(panel.raster, colors[panel.shown], snapshot.normals[panel.shown], panel.view, relief=0.5)
    axis.imshow(picture, extent=panel.raster.extent_m, interpolation="antialiased")
    axis.set_title(title, fontsize=12, fontweight="bold", color=INK, loc="left", pad=7, parse_math=False)


def _show_mistakes(
    axis: Any,
    panel: Panel,
    snapshot: MapSnapshot,
    truth: LabelMap,
    answer: LabelMap,
    before: NDArray[np.bool_] | None,
) -> NDArray[np.bool_]:
    """Draw where an answer is wrong, against the mistakes ``before`` it; returns its own mistakes (N,)."""
    known = truth.labels >= 0
    wrong: NDArray[np.bool_] = known & (answer.labels != truth.labels)
    kinds = [(wrong, _WRONG, "wrong")]
    if before is not None:
        kinds = [
            (before & wrong, _WRONG, "still wrong"),
            (before & ~wrong, _MENDED, "mended"),
            (wrong & ~before, _BROKEN, "newly wrong"),
        ]
    colors = grey_of(snapshot.rgb)
    for mask, color, _ in kinds:
        colors[mask] = color
    _show(axis, panel, colors, snapshot, "")
    for x, (mask, color, word) in zip(_WORDS_AT, kinds, strict=False):
        text = f"{word} {100 * mask.sum() / max(int(known.sum()), 1):.1f} %"
        axis.text(x, 1.015, text, fontsize=9, fontweight="bold", color=_hex(color), transform=axis.transAxes)
    return wrong


def _legend(
    axis: Any, maps: list[LabelMap], shown: NDArray[np.intp], names: Sequence[str], palette: NDArray[np.uint8]
) -> None:
    """The names of the labels that can be seen."""
    from matplotlib.patches import Patch

    seen = sorted({int(label) for item in maps for label in np.unique(item.labels[shown])} - {-1})
    handles = [Patch(facecolor=_hex(palette[label]), label=names[label]) for label in seen]
    handles.append(Patch(facecolor=_hex(_UNKNOWN_RGB), label="not known"))
    axis.legend(
        handles=handles, loc="upper left", ncols=_LEGEND_COLUMNS, frameon=False, fontsize=10, labelcolor=QUIET,
        borderaxespad=0.0, handlelength=1.2, handleheight=1.1,
    )  # fmt: skip


def _hex(color: Any) -> str:
    red, green, blue = (int(channel) for channel in color)
    return f"#{red:02x}{green:02x}{blue:02x}"
