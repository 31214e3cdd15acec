"""Pictures of a map and of an answer, drawn without a display."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geopurify_core.errors import GeoPurifyError, QueryError
from geopurify_core.geometry import corners_m, estimate_up, unit_up
from geopurify_core.mapping.snapshot import MapSnapshot
from geopurify_core.querying.results import DetectedObject, QueryResult
from geopurify_core.render import Raster, View, below_ceiling, facing_viewer, paint, rasterise, without_specks

log = logging.getLogger(__name__)

INK, QUIET, PAPER = "#1d2433", "#6b7280", "#ffffff"
# Distinct on grey and from each other for the colour-blind too (after Okabe and Ito's palette, darkened for lines).
BOX_COLORS = ("#0072b2", "#009e73", "#9b3fbf", "#b8860b", "#d43f8d", "#117a8b", "#5d4a36", "#3b4cc0")
_HEAT = ("#ffe08a", "#fda63a", "#f1592a", "#c2185b", "#7b0f4b")
_EDGES = [(a, a | 1 << k) for a in range(8) for k in range(3) if not a >> k & 1]
_AZIMUTHS_DEG = (45.0, 135.0, 225.0, 315.0, 0.0, 90.0, 180.0, 270.0)
_MAX_LISTED = 6
_COLUMNS = 3
_DPI = 130
# the sheet in inches: widest, narrowest, a panel's height, and what surrounds the panels
_SHEET_IN, _NARROWEST_IN, _PANEL_IN = 13.5, 9.0, 5.6
_LEFT_IN, _GAP_IN, _HEAD_IN, _FOOT_IN, _ROW_IN = 0.75, 0.35, 1.25, 0.6, 0.42


@dataclass(frozen=True)
class _Panel:
    """One view of the map: which voxels it shows, and where they are in the picture."""

    view: View
    shown: NDArray[np.intp]
    raster: Raster


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
        _save(_empty_figure(title or "Map", facts), path)
        return
    direction = estimate_up(snapshot) if up is None else unit_up(up)
    panels = _panels(snapshot, direction, np.ones(len(snapshot)))
    figure, axes = _figure(panels, title or "Map", facts, footer_in=0.0)
    for axis, panel in zip(axes, panels, strict=True):
        colors = _brighten(snapshot.rgb[panel.shown])
        _show(axis, panel, paint(panel.raster, colors, snapshot.normals[panel.shown], panel.view, relief=0.9))
    _save(figure, path)


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
        _save(_empty_figure(title, "The map is empty."), path)
        return
    objects = result.objects[:max_objects]
    count = f"{len(result.objects)} object{'s' * (len(result.objects) != 1)}"
    facts = f"{count} · {len(snapshot):,} voxels of {snapshot.voxel_size_m * 100:g} cm · frame “{snapshot.frame_id}”"
    direction = estimate_up(snapshot) if up is None else unit_up(up)
    panels = _panels(snapshot, direction, _interest(len(snapshot), objects))
    rows = max(1, -(-len(objects) // _COLUMNS))
    figure, axes = _figure(panels, title, facts, footer_in=_ROW_IN * rows + 0.15)
    low, high = _heat_range(result)
    colors = _heat(_grey(snapshot.rgb), result.scores, low, high)
    for axis, panel in zip(axes, panels, strict=True):
        picture = paint(panel.raster, colors[panel.shown], snapshot.normals[panel.shown], panel.view, relief=0.8)
        _show(axis, panel, picture)
        for rank, found in reversed(list(enumerate(objects))):
            _draw_box(axis, panel.view, found, rank)
    _list_objects(figure, objects)
    _scale(figure, low, high)
    _save(figure, path)


def _interest(count: int, objects: tuple[DetectedObject, ...]) -> NDArray[np.float64]:
    """(count,) how much each voxel deserves to be seen: two thirds for the objects, one third for the rest."""
    wanted = np.zeros(count)
    for rank, found in enumerate(objects):
        wanted[found.voxels] = 1.0 / (1 + rank) / max(len(found.voxels), 1)
    total: NDArray[np.float64] = 2 * wanted / max(float(wanted.sum()), 1e-12) + 1 / count
    return total


def _panels(snapshot: MapSnapshot, up: NDArray[np.float64], interest: NDArray[np.float64]) -> list[_Panel]:
    """From above, and from that side which shows most of what is of interest."""
    centers, normals = snapshot.centers_m, snapshot.normals
    open_above = below_ceiling(centers, normals, up)
    best: tuple[float, View] | None = None
    for azimuth in _AZIMUTHS_DEG:
        view = View.oblique(up, azimuth)
        shown = np.flatnonzero(open_above & facing_viewer(normals, view))
        if not len(shown):
            continue
        coarse = rasterise(centers[shown], view, snapshot.voxel_size_m, pixels_per_voxel=1)
        seen = float(interest[shown[coarse.winner[coarse.covered]]].sum())
        if best is None or seen > 1.05 * best[0]:
            best = (seen, view)
    top = View.top(up)
    views = [(top, np.flatnonzero(open_above))]
    if best is not None:
        facing = open_above & facing_viewer(normals, best[1])
        clean = without_specks(snapshot.coords, facing)
        views.append((best[1], np.flatnonzero(clean if clean.any() else facing)))
    return [_Panel(view, shown, rasterise(centers[shown], view, snapshot.voxel_size_m)) for view, shown in views]


def _figure(panels: list[_Panel], title: str, facts: str, footer_in: float) -> tuple[Any, list[Any]]:
    """A white sheet, as large as the panels need, with one axis for each; both show a metre equally long."""
    extents = [panel.raster.extent_m for panel in panels]
    widths = np.array([extent[1] - extent[0] for extent in extents])
    heights = np.array([extent[3] - extent[2] for extent in extents])
    gaps_in = _LEFT_IN + _GAP_IN * len(panels)
    inches = min((_SHEET_IN - gaps_in) / widths.sum(), _PANEL_IN / heights.max())
    size = (
        max(inches * widths.sum() + gaps_in, _NARROWEST_IN),
        inches * heights.max() + _HEAD_IN + _FOOT_IN + footer_in,
    )
    figure = _sheet(title, facts, size)
    axes, x = [], _LEFT_IN
    for panel, width, height in zip(panels, widths * inches, heights * inches, strict=True):
        y = _FOOT_IN + footer_in + (heights.max() * inches - height) / 2
        axis = figure.add_axes((x / size[0], y / size[1], width / size[0], height / size[1]))
        x += width + _GAP_IN
        axis.set_xlim(panel.raster.extent_m[:2])
        axis.set_ylim(panel.raster.extent_m[2:])
        _dress(axis, is_top=panel is panels[0], upright=bool(panels[0].view.R_view_map[2, 2] > 0.999))
        axes.append(axis)
    return figure, axes


def _sheet(title: str, facts: str, size_in: tuple[float, float]) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size_in, dpi=_DPI, facecolor=PAPER)
    FigureCanvasAgg(figure)
    x, height = 0.3 / size_in[0], size_in[1]
    figure.text(x, 1 - 0.38 / height, title, fontsize=18, fontweight="bold", color=INK, va="center", parse_math=False)
    figure.text(x, 1 - 0.70 / height, facts, fontsize=10, color=QUIET, va="center", parse_math=False)
    return figure


def _empty_figure(title: str, facts: str) -> Any:
    figure = _sheet(title, facts, (_NARROWEST_IN, 4.0))
    figure.text(0.5, 0.5, "nothing mapped yet", fontsize=16, color=QUIET, ha="center")
    return figure


def _dress(axis: Any, is_top: bool, upright: bool) -> None:
    """Metric axes for the view from above, a bare scale bar for the oblique one."""
    for side in ("top", "right", *(() if is_top else ("left", "bottom"))):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color("#c3c8d0")
    axis.tick_params(colors=QUIET, labelsize=8.5, length=3, color="#c3c8d0")
    if is_top:
        axis.set_title("from above", fontsize=10.5, color=QUIET, loc="left", pad=6)
        names = ("x", "y") if upright else ("right", "ahead")
        axis.set_xlabel(f"{names[0]}  [m]", fontsize=9, color=QUIET)
        axis.set_ylabel(f"{names[1]}  [m]", fontsize=9, color=QUIET)
        axis.grid(color="#eceff3", linewidth=0.8)
        axis.set_axisbelow(True)
        return
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_title("from the side, near walls removed", fontsize=10.5, color=QUIET, loc="left", pad=6)
    left, _ = axis.get_xlim()
    bottom, _ = axis.get_ylim()
    axis.plot([left + 0.1, left + 1.1], [bottom + 0.06] * 2, color=INK, linewidth=2.2, solid_capstyle="butt")
    axis.text(left + 0.6, bottom + 0.1, "1 m", fontsize=8.5, color=INK, ha="center", va="bottom")


def _show(axis: Any, panel: _Panel, picture: NDArray[np.uint8]) -> None:
    axis.imshow(picture, extent=panel.raster.extent_m, interpolation="antialiased", zorder=2)
    axis.set_xlim(panel.raster.extent_m[:2])
    axis.set_ylim(panel.raster.extent_m[2:])


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
    column = (width - 2.2 - _LEFT_IN) / _COLUMNS
    rows = max(1, -(-len(objects) // _COLUMNS))
    if not objects:
        figure.text(_LEFT_IN / width, 0.3 / height, "no object reaches the score asked for", fontsize=10, color=QUIET)
    for rank, found in enumerate(objects):
        x = (_LEFT_IN + column * (rank % _COLUMNS)) / width
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


def _grey(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Light greys that keep the map's structure and leave colour to the answer."""
    luminance = rgb @ np.array([0.299, 0.587, 0.114])
    grey = 120 + 115 * (luminance / 255) ** 0.7
    return np.repeat(grey[:, None], 3, axis=1).astype(np.uint8)


def _brighten(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Indoor pictures are dark: stretch the map's own brightness so that its lightest twentieth is nearly white."""
    bright = np.percentile(rgb.max(axis=1), 95) if len(rgb) else 255.0
    stretched = 250 * (rgb / max(float(bright), 64.0)).clip(0, 1) ** 0.85
    return stretched.astype(np.uint8)


def _shorten(text: str, limit: int = 60) -> str:
    single = " ".join(text.split())
    return single if len(single) <= limit else f"{single[: limit - 1]}…"


def _save(figure: Any, path: str | Path) -> None:
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")  # a text in a script the font lacks
            figure.savefig(target)
    except (OSError, ValueError) as error:
        raise GeoPurifyError("picture", str(path), f"It cannot be written: {error}") from error
