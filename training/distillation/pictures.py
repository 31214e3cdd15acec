"""Two pictures of a run: its losses, and for some anchors of a scene what teacher and student find alike."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from geopurify_core.geometry import level_rotation
from training.distillation.pieces import column, whole_scene

if TYPE_CHECKING:
    from training.distillation.distiller import Distiller

_PARTS = ("loss", "contrast", "affinity", "spread")
_ANCHORS, _MOST_POINTS, _MOST_VOXELS = 4, 20_000, 60_000


def draw_loss(rows: list[dict[str, float]], path: Path) -> None:
    """The columns of ``log.csv`` over steps."""
    figure, axes = _figure(1, 2, (9, 3.5))
    steps = [row["step"] for row in rows]
    for name in _PARTS:
        if rows and name in rows[0]:
            axes[0].plot(steps, [row[name] for row in rows], label=name)
    axes[0].set_xlabel("step")
    axes[0].set_ylabel("loss")
    axes[0].legend()
    axes[1].plot(steps, [row["lr"] for row in rows])
    axes[1].set_xlabel("step")
    axes[1].set_ylabel("base learning rate")
    _save(figure, path)


def draw_affinity(distiller: Distiller, path: Path) -> None:
    """The first scene from above, coloured by its cosine to an anchor: teacher's row, student's row.

    Of a large scene a column around some voxel is drawn: ten crops, or 10 000 voxels, and never more than 60 000.
    """
    recipe = distiller.recipe
    piece = whole_scene(distiller.shards.scene(distiller.shards.names[0]), recipe)
    rng = np.random.default_rng(0)
    piece = column(piece, min(_MOST_VOXELS, 10 * max(recipe.crop, 1000)), rng)
    student = distiller.student
    embeddings = torch.nn.functional.normalize(student.embed(piece.coords, piece.inputs).float().cpu(), dim=1)
    points = rng.permutation(len(piece))[:_MOST_POINTS]
    anchors = rng.choice(points, min(_ANCHORS, len(points)), replace=False)
    xy = (piece.scene.points_m[piece.points] @ level_rotation(piece.scene.up).T)[:, :2]
    figure, axes = _figure(2, len(anchors), (3 * len(anchors), 6.2))
    of_points = piece.voxels(torch.from_numpy(points))
    for at, anchor in enumerate(anchors):
        teacher = piece.rows[piece.index[points]] @ piece.rows[piece.index[anchor]]
        own = piece.voxels(torch.tensor([int(anchor)]))
        pupil = embeddings[of_points] @ embeddings[own][0]
        for row, (name, value) in enumerate((("teacher", teacher), ("student", pupil))):
            ax = axes[row][at]
            ax.scatter(*xy[points].T, c=value.numpy(), s=1, vmin=-1, vmax=1, cmap="coolwarm", linewidths=0)
            ax.plot(*xy[anchor], "k+", markersize=9)
            ax.set_title(f"{name}, anchor {at + 1}", fontsize=8)
            ax.set_aspect("equal")
            ax.axis("off")
    _save(figure, path)


def _figure(rows: int, columns: int, inches: tuple[float, float]) -> tuple[Any, Any]:
    """A figure that needs no display, and its axes; squeezed only along rows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, axes[0] if rows == 1 else axes


def _save(figure: Any, path: Path) -> None:
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=100)
    temporary.replace(path)
