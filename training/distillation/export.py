"""From a run's checkpoint to the file that purification loads."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from geopurify_core.errors import DatasetError
from geopurify_core.purification.student.checkpoint import SHIPPED_FOLDER, StudentInfo, save_student
from geopurify_core.purification.student.network import StudentAffinityNetwork
from training.distillation.basis import GEOMETRY, expanded
from training.distillation.checkpoints import load_checkpoint, recipe_of
from training.distillation.objective import sample_piece
from training.distillation.pieces import draw_piece, only_sampled
from training.distillation.recipe import Recipe
from training.distillation.shards import MUST_AGREE, Shards
from training.scenes.prepared import scene_names

log = logging.getLogger("training.distillation")

OURS = "Apache-2.0"
_FREE = {OURS, "MIT", "BSD-2-Clause", "BSD-3-Clause", "ISC", "Zlib", "CC0-1.0", "Unlicense"}
_SETTLE_ON = 40  # crops or scenes that the statistics of batch normalisation are taken from
_SETTLING = 2_000_000  # a seed beyond those of steps


def export_student(run: Path, target: Path, scenes: Path | None = None) -> Path:
    """Write the student of a run, finished or not.

    Args:
        run: The run's folder, or one of its checkpoints.
        target: A ``.safetensors`` file; its folder is made.
        scenes: Where the run's scenes are now, to settle batch normalisation on them as they are. None: where they
            were; if they are gone, the statistics of training stay, gathered on augmented pieces.

    Returns:
        ``target``.

    Raises:
        StudentError: No usable checkpoint, or weights that are not finite.
        DatasetError: Scenes that cannot be used, or are not those of the run.
    """
    state = load_checkpoint(Path(run))
    recipe, origin = recipe_of(state), state["origin"]
    compact = compact_network(state)
    scenes = scenes if scenes is not None else _scenes_of(Path(run))
    if scenes is None:
        log.warning("the scenes of %s are gone: its batch normalisation stays as training left it", run)
    else:
        shards = Shards(Path(scenes), origin["teacher"]["name"], recipe, basis=state["basis"], skip_bad=True)
        _check_scenes(shards, origin)
        settle(compact, shards, recipe)
    info = student_info(state)
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_student(target, full_network(compact, state["basis"]), info)
    return target


def _check_scenes(shards: Shards, origin: Mapping[str, Any]) -> None:
    """Raise DatasetError unless these can stand for the run's scenes: same backbone, texts, voxels and channels."""
    for field in MUST_AGREE:
        if shards.provenance[field] != origin[field]:
            raise DatasetError(
                f"scenes: {field}", shards.provenance[field], f"The run's have {origin[field]!r}: name those."
            )


def _scenes_of(run: Path) -> Path | None:
    """Where a run found its scenes, if they are still there."""
    folder = run if run.is_dir() else run.parent
    try:
        named = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))["scenes_folder"]
    except (OSError, ValueError, KeyError):
        return None
    scenes = folder / named
    return scenes if scene_names(scenes) else None


def installed_path(run: Path) -> Path:
    """Where the package looks for the shipped student of a run's backbone."""
    backbone = str(load_checkpoint(Path(run))["origin"]["backbone"]).partition(":")[0] or "unknown"
    return SHIPPED_FOLDER / f"student_{backbone}.safetensors"


def student_info(state: Mapping[str, Any]) -> StudentInfo:
    """What the file says of itself."""
    recipe, origin = recipe_of(state), state["origin"]
    teacher, names = origin["teacher"], list(origin["scenes"])
    span = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
    truth = "true objects" if teacher["name"] == "known" else "no labels"
    return StudentInfo(
        backbone=origin["backbone"],
        feature_dim=int(origin["channels"]),
        hidden=recipe.hidden,
        out=recipe.out,
        blocks=recipe.blocks,
        text_fingerprint=origin["text_fingerprint"],
        voxel_size_m=float(origin["voxel_size_m"] or recipe.voxel_size_m),
        trained_on=f"{len(names)} scenes ({span}), teacher {teacher['name']} ({teacher['fingerprint']}), {truth}",
        licence=licence_of(teacher["licence"]),
        extra={"recipe": recipe.to_dict(), "steps_done": int(state["step"]), "teacher": dict(teacher)},
    )


def licence_of(teacher: str) -> str:
    """Apache-2.0 where the teacher's licence allows it, or it has no weights ("none: …"); otherwise the teacher's."""
    if teacher in _FREE or teacher.startswith("none:"):
        return OURS
    return teacher or "unknown: the teacher's shards name none"


def compact_network(state: Mapping[str, Any]) -> StudentAffinityNetwork:
    """The (averaged) network of a checkpoint, on inputs in the training basis."""
    recipe = recipe_of(state)
    channels = state["basis"].shape[1] or int(state["origin"]["channels"])
    network = StudentAffinityNetwork(channels + GEOMETRY, recipe.hidden, recipe.out, recipe.blocks)
    network.load_state_dict(state["average"] or state["network"])
    return network.eval()


def full_network(compact: StudentAffinityNetwork, basis: torch.Tensor) -> StudentAffinityNetwork:
    """The same function on all the backbone's channels."""
    if not basis.numel():
        return compact
    network = StudentAffinityNetwork(len(basis) + GEOMETRY, compact.hidden, compact.out, compact.blocks)
    state = dict(compact.state_dict())
    state["input_layer.0.kernel"] = expanded(state["input_layer.0.kernel"], basis)
    network.load_state_dict(state)
    return network.eval()


def settle(network: StudentAffinityNetwork, shards: Shards, recipe: Recipe, pieces: int = _SETTLE_ON) -> None:
    """Batch normalisation's statistics anew, for the weights as they are, from pieces that were not augmented.

    The network is in evaluation mode afterwards.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the pieces
    network.train()
    rng = np.random.default_rng([recipe.seed, _SETTLING])
    plain = replace(recipe, augment=False)
    count = pieces if recipe.view == "crops" else min(pieces, len(shards))
    names = [shards.names[(i * len(shards)) // count] for i in range(count)]
    with torch.no_grad():
        for name in names:
            piece = draw_piece(shards.scene(name), plain, rng)
            if recipe.view == "sampled":
                rows = sample_piece(piece, plain, rng, torch.device("cpu")).rows()
                piece, _ = only_sampled(piece, rows, plain, rng)
            network(piece.coords, piece.inputs)
    network.eval()
    for norm in norms:
        norm.momentum = 0.1


def described(path: Path) -> str:
    """One line of JSON about an exported file."""
    from geopurify_core.purification.student.released import read_entry

    entry = read_entry(path) or {}
    shown = {name: entry.get(name) for name in ("backbone", "hidden", "out", "licence", "trained_on")}
    return json.dumps({"file": str(path), "bytes": path.stat().st_size, **shown})
