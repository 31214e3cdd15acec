"""The sheet that pictures of a map are drawn on: which views, where each one sits, its axes, and the file."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopurify_core.errors import GeoPurifyError
from geopurify_core.mapping.snapshot import MapSnapshot
from geopurify_core.render import Raster, View, below_ceiling, facing_viewer, rasterise, without_specks

INK, QUIET, PAPER = "#1d2433", "#6b7280", "#ffffff"
_AZIMUTHS_DEG = (45.0, 135.0, 225.0, 315.0, 0.0, 90.0, 180.0, 270.0)
_DPI = 130
# the sheet in inches: widest, narrowest, a panel's height, and what surrounds the panels
_SHEET_IN, _NARROWEST_IN, _PANEL_IN = 13.5, 9.0, 5.6
LEFT_IN, GAP_IN, HEAD_IN, FOOT_IN = 0.75, 0.35, 1.25, 0.6


@dataclass(frozen=True)
class Panel:
    """One view of the map: which voxels it shows, and where they are in the picture."""

    view: View
    shown: NDArray[np.intp]
    raster: Raster


def choose_panels(snapshot: MapSnapshot, up: NDArray[np.float64], interest: NDArray[np.float64]) -> list[Panel]:
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
    return [Panel(view, shown, rasterise(centers[shown], view, snapshot.voxel_size_m)) for view, shown in views]


def figure_of(panels: list[Panel], title: str, facts: str, footer_in: float) -> tuple[Any, list[Any]]:
    """A white sheet, as large as the panels need, with one axis for each; both show a metre equally long."""
    extents = [panel.raster.extent_m for panel in panels]
    widths = np.array([extent[1] - extent[0] for extent in extents])
    heights = np.array([extent[3] - extent[2] for extent in extents])
    gaps_in = LEFT_IN + GAP_IN * len(panels)
    inches = min((_SHEET_IN - gaps_in) / widths.sum(), _PANEL_IN / heights.max())
    size = (
        max(inches * widths.sum() + gaps_in, _NARROWEST_IN),
        inches * heights.max() + HEAD_IN + FOOT_IN + footer_in,
    )
    figure = sheet(title, facts, size)
    axes, x = [], LEFT_IN
    for panel, width, height in zip(panels, widths * inches, heights * inches, strict=True):
        y = FOOT_IN + footer_in + (heights.max() * inches - height) / 2
        axis = figure.add_axes((x / size[0], y / size[1], width / size[0], height / size[1]))
        x += width + GAP_IN
        axis.set_xlim(panel.raster.extent_m[:2])
        axis.set_ylim(panel.raster.extent_m[2:])
        _dress(axis, is_top=panel is panels[0], upright=bool(panels[0].view.R_view_map[2, 2] > 0.999))
        axes.append(axis)
    return figure, axes


def sheet(title: str, facts: str, size_in: tuple[float, float]) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size_in, dpi=_DPI, facecolor=PAPER)
    FigureCanvasAgg(figure)
    x, height = 0.3 / size_in[0], size_in[1]
    figure.text(x, 1 - 0.38 / height, title, fontsize=18, fontweight="bold", color=INK, va="center", parse_math=False)
    figure.text(x, 1 - 0.70 / height, facts, fontsize=10, color=QUIET, va="center", parse_math=False)
    return figure


def empty_figure(title: str, facts: str) -> Any:
    figure = sheet(title, facts, (_NARROWEST_IN, 4.0))
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
    from matplotlib.patheffects import withStroke

    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_title("from the side, near walls removed", fontsize=10.5, color=QUIET, loc="left", pad=6)
    left, _ = axis.get_xlim()
    bottom, _ = axis.get_ylim()
    halo = [withStroke(linewidth=3.0, foreground="white")]  # legible where the map reaches into this corner
    axis.plot([left + 0.1, left + 1.1], [bottom + 0.06] * 2, color=INK, linewidth=2.2, zorder=5, path_effects=halo)
    axis.text(
        left + 0.6, bottom + 0.1, "1 m", fontsize=8.5, color=INK, ha="center", va="bottom", zorder=5, path_effects=halo
    )


def show(axis: Any, panel: Panel, picture: NDArray[np.uint8]) -> None:
    axis.imshow(picture, extent=panel.raster.extent_m, interpolation="antialiased", zorder=2)
    axis.set_xlim(panel.raster.extent_m[:2])
    axis.set_ylim(panel.raster.extent_m[2:])


def grey_of(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Light greys that keep the map's structure and leave colour to the answer."""
    luminance = rgb @ np.array([0.299, 0.587, 0.114])
    grey = 120 + 115 * (luminance / 255) ** 0.7
    return np.repeat(grey[:, None], 3, axis=1).astype(np.uint8)


def brighten(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Indoor pictures are dark: stretch the map's own brightness so that its lightest twentieth is nearly white."""
    bright = np.percentile(rgb.max(axis=1), 95) if len(rgb) else 255.0
    stretched = 250 * (rgb / max(float(bright), 64.0)).clip(0, 1) ** 0.85
    return stretched.astype(np.uint8)


def save(figure: Any, path: str | Path) -> None:
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")  # a text in a script the font lacks
            figure.savefig(target)
    except (OSError, ValueError) as error:
        raise GeoPurifyError("picture", str(path), f"It cannot be written: {error}") from error
