"""``python -m training rooms`` and ``ablate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geopurify_core.cli.common import err, out, parse_options
from geopurify_core.errors import NotAvailableError

if TYPE_CHECKING:
    from geopurify_core.vision.base import SemanticBackbone

_ROOMS = Path("out/distil/nano/evaluation")
_TRAIN = Path("out/distil/nano/train")
Scenes = Annotated[Path, typer.Argument(help="Folder of prepared, labelled maps.")]
Backbone = Annotated[str, typer.Option(help="What made the maps; its text side asks.")]
BackboneOption = Annotated[list[str] | None, typer.Option(help="key=value, as for geopurify map.")]
Threads = Annotated[int, typer.Option(help="Of torch.")]


def rooms(
    scenes: Scenes = _ROOMS,
    student: Annotated[Path | None, typer.Option(help="Checkpoint; by default the shipped one.")] = None,
    seeds: Annotated[str, typer.Option(help="Only these apartments, as 10-19.")] = "",
    sweep: Annotated[int, typer.Option(help="Vary T on so many rooms.")] = 3,
    others: Annotated[int, typer.Option(help="On so many rooms also pool with what needs no student.")] = 3,
    teacher: Annotated[str, typer.Option(help="Whose own affinity is tried, too.")] = "geometric",
    real: Annotated[Path | None, typer.Option(help="Folder of real recordings; the rooms are left out then.")] = None,
    backbone: Backbone = "nano",
    backbone_option: BackboneOption = None,
    target: Annotated[Path | None, typer.Option("--json", help="Write all scores here.")] = None,
    threads: Threads = 1,
) -> None:
    """Score a student on rooms that nobody trained on, or on real recordings, against raw maps."""
    from training.experiments.real import real_scores
    from training.experiments.room import load_rooms, seeds_in
    from training.experiments.rooms import STEPS, score_rooms, student_row
    from training.experiments.summary import markdown, per_class, per_class_markdown, summary

    eyes = _backbone(backbone, backbone_option, threads)
    net = _student(student, eyes)
    report: dict[str, Any] = {"student": net.fingerprint, "trained_on": net.info.trained_on}
    if real is not None:
        report["real"] = real_scores(real, net, eyes)
        for recording, rows in report["real"].items():
            out.print(f"\n{recording}", _plain(rows), sep="\n", markup=False)
    else:
        loaded = load_rooms(scenes, seeds_in(seeds))
        report["rooms"] = score_rooms(
            loaded, net, eyes, sweep=sweep, others=others, teacher=teacher, folder=scenes, tell=_tell
        )
        every = list(report["rooms"].values())
        report["mean"] = summary(every)
        out.print(f"\n{len(every)} rooms\n{markdown(report['mean'])}", markup=False, soft_wrap=True)
        few = every[: max(sweep, others)]
        if few and len(few) < len(every):
            out.print(f"\nthe first {len(few)} of them\n{markdown(summary(few))}", markup=False, soft_wrap=True)
        classes = per_class(every, student_row(STEPS))
        out.print(f"\n{per_class_markdown(classes)}", markup=False, soft_wrap=True)
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(report, indent=1), encoding="utf-8")


def ablate(
    scenes: Annotated[Path, typer.Argument(help="Folder of prepared scenes to train on.")] = _TRAIN,
    to: Annotated[Path, typer.Option("--out", help="Folder of the runs; finished ones are not done again.")] = Path(
        "out/ablation/nano"
    ),
    unseen: Annotated[Path, typer.Option("--rooms", help="Folder of maps to score on.")] = _ROOMS,
    room_seeds: Annotated[str, typer.Option(help="Which of them.")] = "10-13",
    seeds: Annotated[str, typer.Option(help="Training seeds.")] = "0-2",
    variant: Annotated[list[str] | None, typer.Option(help="Only these variants.")] = None,
    change: Annotated[list[str] | None, typer.Option("--set", help="Recipe's field=value, for all variants.")] = None,
    share: Annotated[str, typer.Option(help="k/n: every n-th run from the k-th on, for several processes.")] = "0/1",
    report_only: Annotated[bool, typer.Option(help="Train nothing; tables of what is there.")] = False,
    figure: Annotated[Path | None, typer.Option(help="Draw the table here.")] = None,
    backbone: Backbone = "nano",
    backbone_option: BackboneOption = None,
    threads: Threads = 1,
) -> None:
    """Train every variant with every seed on a short schedule, score them on unseen rooms, print the table."""
    from training.experiments import ablation
    from training.experiments.figure import draw
    from training.experiments.room import seeds_in

    if not report_only:
        changes = parse_options(change or (), "set")
        runs = ablation.runs_of(ablation.chosen(variant or ()), seeds_in(seeds), share)
        scored = _scored(unseen, room_seeds, _backbone(backbone, backbone_option, threads))
        ablation.ablate(runs, scored, to, ablation.distilling(scenes, changes), tell=_tell)
        if share.startswith("0/"):
            ablation.score_untrained(scored, to, "geometric", unseen)
    lines = ablation.table(to)
    out.print(ablation.markdown(lines), markup=False, soft_wrap=True)
    if figure is not None:
        draw(lines, figure)


def _backbone(name: str, options: list[str] | None, threads: int) -> SemanticBackbone:
    import torch

    from geopurify_core.vision import load_backbone

    torch.set_num_threads(threads)
    return load_backbone(name, **parse_options(options or (), "backbone-option"))


def _student(path: Path | None, eyes: SemanticBackbone) -> Any:
    from geopurify_core.purification.student.checkpoint import find_student

    found = find_student(path or "", eyes.fingerprint, device="cpu")
    if found is None:
        raise NotAvailableError("student", eyes.fingerprint, "None is shipped for this backbone; give --student FILE.")
    return found


def _scored(folder: Path, seeds: str, eyes: SemanticBackbone) -> list[Any]:
    from geopurify_core.datasets.synthetic.kinds import SCANNET20
    from training.experiments.room import load_rooms, seeds_in
    from training.experiments.rooms import ScoredRoom
    from training.experiments.scorespace import Texts

    texts = Texts.of(SCANNET20, eyes)
    return [ScoredRoom.of(room, texts) for room in load_rooms(folder, seeds_in(seeds))]


def _tell(line: str) -> None:
    err.print(line, markup=False, soft_wrap=True)


def _plain(rows: dict[str, Any]) -> str:
    kept = {name: {key: value for key, value in row.items() if key != "IoU"} for name, row in rows.items()}
    return "\n".join(f"  {name}: {values}" for name, values in kept.items())
