"""The ablation as a picture: a point for each setting, its deviation over seeds, and the raw map as a line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from geopurify_core.sheet import INK, PAPER, QUIET
from training.experiments.ablation import Line

_POINT, _WIDTH_IN, _LINE_IN, _MARGIN_IN = "#2563eb", 8.0, 0.28, 1.0


def draw(lines: Sequence[Line], path: Path) -> Path:
    """Write the picture (.png, .svg); its folder is made."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [line for line in lines if line.text != "raw"]
    raw = next((line.mean for line in lines if line.text == "raw"), None)
    figure = Figure(figsize=(_WIDTH_IN, _LINE_IN * len(shown) + _MARGIN_IN), facecolor=PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    height = list(range(len(shown)))[::-1]
    mean, deviation = [line.mean for line in shown], [line.deviation for line in shown]
    axes.errorbar(mean, height, xerr=deviation, fmt="o", color=_POINT, ecolor=_POINT, markersize=5, capsize=2)
    if raw is not None:
        axes.axvline(raw, color=QUIET, linestyle="--", linewidth=1)
        axes.annotate(
            "raw", (raw, 1.0), xycoords=("data", "axes fraction"), color=QUIET, ha="center", va="bottom", fontsize=8
        )
    axes.set_yticks(height, [f"{line.part}: {line.text}" for line in shown], color=INK, fontsize=8)
    axes.set_xlabel("mIoU, %: mean over the rooms; bar: deviation over seeds", color=INK, fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", color="#e5e7eb")
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return path
