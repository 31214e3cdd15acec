"""What a run tells: progress with points a second, CSV, TensorBoard, pictures, versions."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.distillation.distiller import Distiller

_SMOOTH = 20  # steps between lines of the log
COLUMNS = ("step", "epoch", "loss", "contrast", "affinity", "spread", "gradient", "lr", "points_per_s", "seconds")
_LIBRARIES = ("numpy", "torch", "lightning-fabric", "scipy", "safetensors", "geopurify-ros")


def versions() -> dict[str, str]:
    """Of the libraries that a result depends on."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


class Progress:
    """A bar with steps, time left and points a second."""

    def __init__(self, distiller: Distiller, hidden: bool) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        from geopurify_core.cli.common import err

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Bar(*columns, TextColumn("{task.fields[said]}"), console=err, disable=hidden)
        self._distiller, self._began, self._points = distiller, time.perf_counter(), 0.0

    def __enter__(self) -> Progress:
        self._bar.start()
        total, done = self._distiller.plan.steps, self._distiller.step
        self._task = self._bar.add_task("distilling", total=total, completed=done, said="")
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def show(self, figures: dict[str, float]) -> None:
        """After a step."""
        self._points += figures["points"] * self._distiller.fabric.world_size
        speed = self._points / max(1e-9, time.perf_counter() - self._began)
        said = f"{speed:,.0f} points/s, loss {figures['loss']:.3f}"
        self._bar.update(self._task, completed=self._distiller.step, said=said)


class Record:
    """``log.csv``, TensorBoard and pictures of a run; only its first process has one.

    Args:
        folder: The run's.
        distiller: What is recorded; lines after its step are cut off, for they will come again.
        quiet: The CSV only.
    """

    def __init__(self, folder: Path, distiller: Distiller, *, quiet: bool = False) -> None:
        self._folder, self._distiller, self._quiet = folder, distiller, quiet
        self._path = folder / "log.csv"
        kept = [row for row in read_log(folder) if int(row["step"]) <= distiller.step]
        self._rewrite(kept)
        self._before_s = kept[-1]["seconds"] if kept else 0.0
        self._recent: list[dict[str, float]] = []
        self._began = self._last = time.perf_counter()
        self._board: Any = None
        if not quiet:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=distiller.step + 1)

    def add(self, step: int, figures: dict[str, float]) -> None:
        """After each step; every so often a line of means."""
        self._recent.append(figures)
        if (
            len(self._recent) >= min(_SMOOTH, self._distiller.plan.steps_per_epoch)
            or step == self._distiller.plan.steps
        ):
            self._line(step)

    def flush(self) -> None:
        """With each checkpoint: what was gathered, and the pictures."""
        if self._recent:
            self._line(self._distiller.step)
        if self._quiet:
            return
        from training.distillation.pictures import draw_affinity, draw_loss

        draw_loss(read_log(self._folder), self._folder / "loss.png")
        draw_affinity(self._distiller, self._folder / "affinity.png")

    def close(self) -> None:
        """At the end, however it came."""
        if self._board is not None:
            self._board.close()

    def _line(self, step: int) -> None:
        now = time.perf_counter()
        points = sum(figures["points"] for figures in self._recent) * self._distiller.fabric.world_size
        means = {
            name: sum(figures[name] for figures in self._recent) / len(self._recent)
            for name in COLUMNS
            if name in self._recent[0]
        }
        row = {
            "step": step,
            "epoch": round(step / self._distiller.plan.steps_per_epoch, 3),
            **{name: float(f"{value:.6g}") for name, value in means.items()},
            "points_per_s": round(points / max(1e-9, now - self._last)),
            "seconds": round(self._before_s + now - self._began, 1),
        }
        with self._path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, COLUMNS).writerow(row)
        if self._board is not None:
            for name, value in row.items():
                if name not in ("step", "epoch", "seconds"):
                    self._board.add_scalar(name, value, step)
        self._recent.clear()
        self._last = now

    def _rewrite(self, rows: Iterable[dict[str, float]]) -> None:
        temporary = self._path.with_suffix(".tmp")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        temporary.replace(self._path)


def read_log(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's ``log.csv``, numbers where there are any; nothing where there is no file."""
    path = folder / "log.csv"
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
