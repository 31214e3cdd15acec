"""A picture of a selection: richness against complexity, the filter's medians, clusters, and who was chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from geopurify_core.errors import InvalidConfigError
from geopurify_core.sheet import INK, PAPER, QUIET
from training.selection.algorithm import ScoredScene, Selection

_MOST_NAMES = 40


def draw_selection(selection: Selection, path: Path, kinds: str = "classes") -> None:
    """Write a scatter plot of all scenes.

    Args:
        selection: What to draw.
        path: A ``.png``, or what else matplotlib writes; its folder is made.
        kinds: What was counted, for the axes.

    Raises:
        InvalidConfigError: It cannot be written there, or not in this format.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 6.5), dpi=130, facecolor=PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    out, rest, chosen = _groups(selection)
    axis.scatter(*_places(out), s=18, color="#c9ccd2", label=f"below a median: {len(out)}")
    colours = colormaps["tab20"]
    for scenes, edge, size, label in ((rest, "none", 30, "not chosen"), (chosen, INK, 75, "chosen")):
        faces = [colours(one.cluster % 20) for one in scenes]
        look: dict[str, Any] = {"s": size, "edgecolors": edge, "linewidths": 1.3, "c": faces}
        axis.scatter(*_places(scenes), label=f"{label}: {len(scenes)}", **look)
    axis.axvline(selection.median_richness, color=QUIET, linewidth=0.8, linestyle="--")
    axis.axhline(selection.median_complexity_bits, color=QUIET, linewidth=0.8, linestyle="--")
    for scene in chosen[:_MOST_NAMES]:
        place = scene.scene.richness, scene.scene.complexity_bits
        axis.annotate(scene.scene.name, place, (4, 4), textcoords="offset points", fontsize=6, color=INK)
    used = f"{selection.settings.clusters} clusters (colours) · γ = {selection.settings.gamma:g}"
    axis.set_title(f"{len(chosen)} of {len(selection.scenes)} scenes · {used}", color=INK, loc="left")
    axis.set_xlabel(f"N_c, number of {kinds} that occur", color=QUIET)
    axis.set_ylabel("H_c, entropy of their shares, bits", color=QUIET)
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise InvalidConfigError("--picture", str(path), f"It cannot be written: {error}.") from error


def _groups(selection: Selection) -> tuple[list[ScoredScene], list[ScoredScene], list[ScoredScene]]:
    """Scenes that were filtered out, that were left, and that were chosen."""
    out = [scene for scene in selection.scenes if not scene.passed]
    rest = [scene for scene in selection.scenes if scene.passed and not scene.chosen]
    return out, rest, selection.chosen


def _places(scenes: list[ScoredScene]) -> tuple[list[int], list[float]]:
    return [scene.scene.richness for scene in scenes], [scene.scene.complexity_bits for scene in scenes]
