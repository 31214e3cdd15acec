"""Pictures of a map and of an answer, drawn without a display."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geopurify_core.errors import QueryError
from geopurify_core.geometry import corners_m, estimate_up, unit_up
from geopurify_core.mapping.snapshot import MapSnapshot
from geopurify_core.querying.results import DetectedObject, QueryResult
from geopurify_core.render import View, paint
from geopurify_core.sheet import (
    INK,
    LEFT_IN,
    PAPER,
    QUIET,
    brighten,
    choose_panels,
    empty_figure,
    figure_of,
    grey_of,
    save,
    show,
)  # fmt: skip

# Distinct on grey and from each other for the colour-blind too (after Okabe and Ito's palette, darkened for lines).
BOX_COLORS = ("#0072b2", "#009e73", "#9b3fbf", "#b8860b", "#d43f8d", "#117a8b", "#5d4a36", "#3b4cc0")
_HEAT = ("#ffe08a", "#fda63a", "#f1592a", "#c2185b", "#7b0f4b")
_EDGES = [(a, a | 1 << k) for a in range(8) for k in range(3) if not a >> k & 1]
_MAX_LISTED = 6
_COLUMNS = 3
_ROW_IN = 0.42


def draw_map(snapshot: MapSnapshot, path: str | Path, up: ArrayLike | None = None, title: str | None = None) -> None:
    """Write a picture of the map in its own colours: from above and obliquely.

    Args:
        snapshot: The map; an empty one gives a picture that says so.
        path: A `.png` (or what else matplotlib writes); its folder is made.
        up: The map's up direction; by default estimated.
        title: By default the frame's name.
    """
    facts = f"{len(snapshot):,} voxels of {snapshot.voxel_size_m * 100:g} cm · frame “{snapshot.frame_id}”"
    if not len(snapshot):
        save(empty_figure(title or "Map", facts), path)
        return
    direction = estimate_up(snapshot) if up is None else unit_up(up)
    panels = choose_panels(snapshot, direction, np.ones(len(snapshot)))
    figure, axes = figure_of(panels, title or "Map", facts, footer_in=0.0)
    for axis, panel in zip(axes, panels, strict=True):
        colors = brighten(snapshot.rgb[panel.shown])
        show(axis, panel, paint(panel.raster, colors, snapshot.normals[panel.shown], panel.view, relief=0.9))
    save(figure, path)


def draw_query(
    snapshot: MapSnapshot,
    result: QueryResult,
    path: str | Path,
    up: ArrayLike | None = None,
    max_objects: int = _MAX_LISTED,
) -> None:
    """Write a picture of an answer: the map in grey, the scores as heat, the best objects boxed, numbered and listed.

    Args:
        snapshot: The map that was asked.
        result: Its answer; ``scores`` must have one entry for each voxel.
        path: As for :func:`draw_map`.
        up: As for :func:`draw_map`.
        max_objects: Most boxes drawn.

    Raises:
        QueryError: The answer belongs to another map.
    """
    if len(result.scores) != len(snapshot):
        raise QueryError("result.scores", len(result.scores), f"This map has {len(snapshot)} voxels; ask it again.")
    title = f"“{_shorten(result.text)}”"
    if not len(snapshot):
        save(empty_figure(title, "The map is empty."), path)
        return
    objects = result.objects[:max_objects]
    count = f"{len(result.objects)} object{'s' * (len(result.objects) != 1)}{' · purified' * bool(snapshot.purified)}"
    facts = f"{count} · {len(snapshot):,} voxels of {snapshot.voxel_size_m * 100:g} cm · frame “{snapshot.frame_id}”"
    direction = estimate_up(snapshot) if up is None else unit_up(up)
    panels = choose_panels(snapshot, direction, _interest(len(snapshot), objects))
    rows = max(1, -(-len(objects) // _COLUMNS))
    figure, axes = figure_of(panels, title, facts, footer_in=_ROW_IN * rows + 0.15)
    low, high = _heat_range(result)
    colors = _heat(grey_of(snapshot.rgb), result.scores, low, high)
    for axis, panel in zip(axes, panels, strict=True):
        picture = paint(panel.raster, colors[panel.shown], snapshot.normals[panel.shown], panel.view, relief=0.8)
        show(axis, panel, picture)
        for rank, found in reversed(list(enumerate(objects))):
            _draw_box(axis, panel.view, found, rank)
    _list_objects(figure, objects)
    _scale(figure, low, high)
    save(figure, path)


def _interest(count: int, objects: tuple[DetectedObject, ...]) -> NDArray[np.float64]:
    """(count,) how much each voxel deserves to be seen: two thirds for the objects, one third for the rest."""
    wanted = np.zeros(count)
    for rank, found in enumerate(objects):
        wanted[found.voxels] = 1.0 / (1 + rank) / max(len(found.voxels), 1)
    total: NDArray[np.float64] = 2 * wanted / max(float(wanted.sum()), 1e-12) + 1 / count
    return total


def _draw_box(axis: Any, view: View, found: DetectedObject, rank: int) -> None:
    from matplotlib.patheffects import Normal, Stroke

    color = BOX_COLORS[rank % len(BOX_COLORS)]
    corners = view.project(corners_m(found.center_m, found.size_m, found.R_map_box))
    casing = [Stroke(linewidth=3.6, foreground=PAPER, alpha=0.85), Normal()]
    for a, b in _EDGES:
        axis.plot(
            corners[[a, b], 0], corners[[a, b], 1], color=color, linewidth=1.8, zorder=4, path_effects=casing,
            solid_capstyle="round",
        )  # fmt: skip
    anchor = corners[np.argmax(corners[:, 1] - corners[:, 0])]
    x0, x1 = axis.get_xlim()
    y0, y1 = axis.get_ylim()
    x, y = np.clip(anchor[0], x0 + 0.08, x1 - 0.08), np.clip(anchor[1], y0 + 0.08, y1 - 0.08)
    badge = {"boxstyle": "circle,pad=0.22", "facecolor": color, "edgecolor": PAPER, "linewidth": 1.2}
    axis.text(
        x,
        y,
        str(rank + 1),
        color=PAPER,
        fontsize=9.5,
        fontweight="bold",
        ha="center",
        va="center",
        bbox=badge,
        zorder=6,
    )


def _list_objects(figure: Any, objects: tuple[DetectedObject, ...]) -> None:
    """What the numbers mean, in rows below the pictures."""
    width, height = figure.get_size_inches()
    column = (width - 2.2 - LEFT_IN) / _COLUMNS
    rows = max(1, -(-len(objects) // _COLUMNS))
    if not objects:
        figure.text(LEFT_IN / width, 0.3 / height, "no object reaches the score asked for", fontsize=10, color=QUIET)
    for rank, found in enumerate(objects):
        x = (LEFT_IN + column * (rank % _COLUMNS)) / width
        y = (0.30 + _ROW_IN * (rows - 1 - rank // _COLUMNS)) / height
        badge = {"boxstyle": "circle,pad=0.2", "facecolor": BOX_COLORS[rank % len(BOX_COLORS)], "edgecolor": "none"}
        figure.text(
            x, y, str(rank + 1), color=PAPER, fontsize=9, fontweight="bold", va="center", ha="center", bbox=badge
        )
        where = ", ".join(f"{value:.2f}" for value in found.center_m)
        size = " × ".join(f"{value:.2f}" for value in found.size_m)
        text_x, step = x + 0.19 / width, 0.085 / height
        figure.text(text_x, y + step, f"{found.score:.2f} at ({where}) m", fontsize=9, color=INK, va="center")
        figure.text(text_x, y - step, f"{size} m · {found.num_voxels} voxels", fontsize=8, color=QUIET, va="center")


def _scale(figure: Any, low: float, high: float) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    width, height = figure.get_size_inches()
    axis = figure.add_axes(((width - 1.85) / width, 0.32 / height, 1.5 / width, 0.12 / height))
    bar = figure.colorbar(ScalarMappable(Normalize(low, high), _heat_map()), cax=axis, orientation="horizontal")
    bar.outline.set_visible(False)
    axis.tick_params(colors=QUIET, labelsize=8, length=2)
    axis.set_title("score of a voxel", fontsize=8.5, color=QUIET, pad=4)


def _heat_map() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("heat", _HEAT)


def _heat_range(result: QueryResult) -> tuple[float, float]:
    """Heat begins where a voxel stands out from the map (its best tenth, or all of the best object if that is more) and
    saturates at the best two thousandths, or half way into the best object if that scores higher (it may be tiny)."""
    low, high = (float(value) for value in np.percentile(result.scores, (90.0, 99.8)))
    if result.objects:
        lowest, middle = (
            float(value) for value in np.percentile(result.scores[result.objects[0].voxels], (10.0, 50.0))
        )
        low, high = min(low, lowest), max(high, middle)
    return low, max(high, low + 1e-3)


def _heat(colors: NDArray[np.uint8], scores: NDArray[np.float32], low: float, high: float) -> NDArray[np.uint8]:
    strength = np.clip((scores - low) / (high - low), 0, 1)
    warm = _heat_map()(strength)[:, :3] * 255
    alpha = np.clip(strength * 3, 0, 0.92)[:, None]  # fades in over the first third, so there is no hard border
    mixed: NDArray[np.uint8] = (alpha * warm + (1 - alpha) * colors).astype(np.uint8)
    return mixed


def _shorten(text: str, limit: int = 60) -> str:
    single = " ".join(text.split())
    return single if len(single) <= limit else f"{single[: limit - 1]}…"
