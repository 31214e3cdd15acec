"""Ablations as in table 4: the same short schedule for every variant, several seeds, scored on the same unseen rooms.

A run is one variant with one seed: distil, export, score. Its result lies in ``OUT/VARIANT/SEED/result.json`` once it
is whole, so an interrupted ablation goes on where it was, and two processes can share the runs (``share``).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from geopurify_core.errors import DatasetError, InvalidConfigError
from geopurify_core.purification.student.checkpoint import load_student
from geopurify_core.purification.student.trained import Student
from training.experiments.rooms import RAW, STEPS, SWEEP, Rows, ScoredRoom, student_row
from training.experiments.summary import METRICS, average, mean_and_deviation

log = logging.getLogger(__name__)

SEEDS = (0, 1, 2)
RESULT = "result.json"
_UNTRAINED = "untrained"


@dataclass(frozen=True)
class Variant:
    """What differs from the recipe that all variants share.

    Attributes:
        name: Unique, also the folder's name.
        part: What it varies; ``""`` for the recipe itself, which stands in every part's table.
        text: How the tables call it.
        changes: Recipe's field → value.
        teacher: As ``load_teacher`` knows it.
    """

    name: str
    part: str
    text: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    teacher: str = "geometric"


_INFO_NCE = {"contrast": 1.0, "affinity": 0.0, "spread": 0.0}
RECIPE = "recipe"
VARIANTS: tuple[Variant, ...] = (
    Variant(RECIPE, "", "recipe: width 64, geometric teacher, InfoNCE + affinity"),
    Variant("hybrid", "sampling, InfoNCE alone", "hybrid: 48 macro + 16 micro", _INFO_NCE),
    Variant("macro_only", "sampling, InfoNCE alone", "macro-only: 64", {**_INFO_NCE, "macro": 64, "micro": 0}),
    Variant("known", "teacher", "true objects", teacher="known"),
    Variant("random", "teacher", "none: random weights", {"steps": 1, "lr": 1e-9}),
    Variant("affinity_only", "loss", "affinity alone", {"contrast": 0.0}),
    Variant("width_32", "width", "32", {"hidden": 32}),
    Variant("width_96", "width", "96", {"hidden": 96}),
)


@dataclass(frozen=True)
class Run:
    """One variant with one seed."""

    variant: Variant
    seed: int

    def folder(self, out: Path) -> Path:
        """Where it lies."""
        return out / self.variant.name / str(self.seed)


# Trains a run in the folder given and returns its student's file.
Train = Callable[[Run, Path], Path]


def distilling(scenes: Path, changes: Mapping[str, Any], preset: str = "robot") -> Train:
    """Trains runs on prepared ``scenes``: the preset, changed, changed by the variant, with its seed."""

    def train(run: Run, folder: Path) -> Path:
        from training.distillation.export import export_student
        from training.distillation.recipe import Recipe
        from training.distillation.train import distil

        recipe = Recipe.preset(preset, **{**changes, **run.variant.changes, "seed": run.seed})
        distil(recipe, scenes, folder, teacher=run.variant.teacher, quiet=True, resume=True)
        return export_student(folder, folder / "student.safetensors", scenes)

    return train


def runs_of(variants: Sequence[Variant], seeds: Sequence[int], share: str = "0/1") -> list[Run]:
    """All runs, seed by seed, so that an ablation cut short has every variant; with ``share`` "k/n" every n-th, from k.

    Raises:
        InvalidConfigError: The share is not k/n with 0 ≤ k < n.
    """
    try:
        k, n = (int(part) for part in share.split("/"))
    except ValueError:
        k, n = -1, 0
    if not 0 <= k < n:
        raise InvalidConfigError("share", share, "Write k/n with 0 ≤ k < n, as 0/2 and 1/2 for two processes.")
    return [Run(variant, seed) for seed in seeds for variant in variants][k::n]


def chosen(names: Sequence[str]) -> list[Variant]:
    """The variants named, or all. Raises InvalidConfigError for an unknown name."""
    known = {variant.name: variant for variant in VARIANTS}
    for name in names:
        if name not in known:
            raise InvalidConfigError("variant", name, f"Choose from {', '.join(known)}.")
    return [known[name] for name in names] if names else list(VARIANTS)


def ablate(
    runs: Sequence[Run],
    rooms: Sequence[ScoredRoom],
    out: Path,
    train: Train,
    tell: Callable[[str], None] = log.info,
) -> None:
    """Do the runs that have no result yet; ``tell`` hears of each one that is done."""
    for run in runs:
        folder = run.folder(out)
        if (folder / RESULT).exists():
            continue
        student = load_student(train(run, folder))
        scored = score_all(rooms, student)
        _write(folder / RESULT, {"variant": run.variant.name, "seed": run.seed, "rooms": scored})
        mean = average([rows[student_row(STEPS)] for rows in scored.values()])
        tell(f"{run.variant.name}, seed {run.seed}: { ({name: round(value, 1) for name, value in mean.items()}) }")


def score_all(rooms: Sequence[ScoredRoom], student: Student) -> dict[str, Rows]:
    """Room's name → rows: raw, and purified for every T."""
    return {scored.room.name: {RAW: scored.raw(), **scored.of_student(student, SWEEP)} for scored in rooms}


def score_untrained(rooms: Sequence[ScoredRoom], out: Path, teacher: str, folder: Path | None) -> None:
    """Score what needs no training, once."""
    target = out / _UNTRAINED / RESULT
    if not target.exists():
        rows = {s.room.name: {RAW: s.raw(), **s.of_others(teacher, folder, SWEEP)} for s in rooms}
        _write(target, {"variant": _UNTRAINED, "seed": 0, "rooms": rows})


def results_in(out: Path) -> Iterator[dict[str, Any]]:
    """The results that are there, in a fixed order. Raises DatasetError for one that is damaged."""
    for path in sorted(out.glob(f"**/{RESULT}")):
        try:
            yield json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DatasetError("ablation result", str(path), f"Delete it and run again: {error}") from error


@dataclass(frozen=True)
class Line:
    """One line of the ablation table: metric → text, over ``seeds`` seeds."""

    part: str
    text: str
    values: Mapping[str, str]
    seeds: int
    mean: float
    deviation: float


def table(out: Path, variants: Sequence[Variant] = VARIANTS) -> list[Line]:
    """Mean over the rooms, then mean ± deviation over the seeds, of every variant that has results."""
    by_name: dict[str, list[dict[str, Rows]]] = {}
    for result in results_in(out):
        by_name.setdefault(result["variant"], []).append(result["rooms"])
    lines = []
    first = next(iter(by_name.get(RECIPE, [])), next(iter(by_name.get(_UNTRAINED, [])), None))
    if first is not None:
        lines.append(_line("purification", "raw", [first], RAW))
    if RECIPE in by_name:
        lines.append(_line("purification", "purified", by_name[RECIPE], student_row(STEPS)))
        lines += [_line("T", f"T = {step}", by_name[RECIPE], student_row(step)) for step in SWEEP]
    for variant in variants:
        if variant.name in by_name and variant.part:
            lines.append(_line(variant.part, variant.text, by_name[variant.name], student_row(STEPS)))
    for name in next(iter(by_name.get(_UNTRAINED, [{}])[0].values()), {}):
        if name != RAW:
            lines.append(_line("no student", name, by_name[_UNTRAINED], name))
    return lines


def markdown(lines: Sequence[Line]) -> str:
    """A table for the docs."""
    text = ["| part | setting | seeds | mIoU | mAcc | accuracy | mIoU beyond raw |", "|---|---|---|---|---|---|---|"]
    for line in lines:
        values = " | ".join(line.values[name] for name in (*METRICS, "gain"))
        text.append(f"| {line.part} | {line.text} | {line.seeds} | {values} |")
    return "\n".join(text)


def _line(part: str, text: str, seeds: Sequence[Mapping[str, Rows]], row: str) -> Line:
    means = [average([rows[row] for rows in rooms.values()]) for rooms in seeds]
    raws = [average([rows[RAW] for rows in rooms.values()]) for rooms in seeds]
    values = {name: mean_and_deviation([mean[name] for mean in means]) for name in METRICS}
    gains = [mean["mIoU"] - raw["mIoU"] for mean, raw in zip(means, raws, strict=True)]
    values["gain"] = "" if row == RAW else mean_and_deviation(gains, "+")
    miou = np.array([mean["mIoU"] for mean in means])
    return Line(part, text, values, len(seeds), float(miou.mean()), float(miou.std(ddof=min(1, len(miou) - 1))))


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    temporary.replace(path)
