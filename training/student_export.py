"""From a training checkpoint to the file purification loads: ``python -m training.student_export out/student/first``.

``--install`` puts it where the package looks for shipped students.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from geopurify_core.purification.student.checkpoint import SHIPPED_FOLDER, StudentInfo, save_student
from geopurify_core.purification.student.network import StudentAffinityNetwork
from geopurify_core.vision.nano import NanoBackbone
from training.run import load_checkpoint
from training.student import Recipe, settle
from training.student_data import GEOMETRY, Prepared, expanded, prepare
from training.student_scenes import TRAINING_SEEDS, load_scene

log = logging.getLogger("training.student_export")
SETTLE_ON = 12  # training scenes that the statistics of batch normalisation are taken from


def compact_network(state: dict[str, Any]) -> StudentAffinityNetwork:
    """The averaged network of a checkpoint, on inputs in the training basis."""
    recipe = Recipe(**state["recipe"])
    net = StudentAffinityNetwork(state["basis"].shape[1] + GEOMETRY, recipe.hidden, recipe.embedding, recipe.blocks)
    net.load_state_dict(state["average"])
    return net.eval()


def full_network(compact: StudentAffinityNetwork, basis: torch.Tensor) -> StudentAffinityNetwork:
    """The same function on the backbone's full features."""
    net = StudentAffinityNetwork(len(basis) + GEOMETRY, compact.hidden, compact.out, compact.blocks)
    state = dict(compact.state_dict())
    state["input_layer.0.kernel"] = expanded(state["input_layer.0.kernel"], basis.numpy())
    net.load_state_dict(state)
    return net.eval()


def settling_scenes(folder: Path, state: dict[str, Any]) -> list[Prepared]:
    """Some training scenes beside the run, evenly picked."""
    recipe = Recipe(**state["recipe"])
    seeds = TRAINING_SEEDS[: recipe.apartments][:: max(1, recipe.apartments // SETTLE_ON)]
    paths = [folder / "train" / f"{seed:05d}_0.safetensors" for seed in seeds]
    return [prepare(load_scene(path), state["basis"].numpy()) for path in paths]


def export(run: Path, target: Path) -> Path:
    """Write the student of a run (finished or not) to ``target``."""
    state = load_checkpoint(run)
    recipe, compact = Recipe(**state["recipe"]), compact_network(state)
    settle(compact, settling_scenes(run.parent, state), recipe)
    backbone = NanoBackbone()
    first = TRAINING_SEEDS[0]
    info = StudentInfo(
        backbone=backbone.fingerprint,
        feature_dim=backbone.feature_dim,
        hidden=recipe.hidden,
        out=recipe.embedding,
        blocks=recipe.blocks,
        text_fingerprint=backbone.text_fingerprint,
        voxel_size_m=0.04,
        trained_on=f"procedural apartments, seeds {first} to {first + recipe.apartments - 1}, known objects as teacher",
        licence="Apache-2.0",
        extra={"recipe": asdict(recipe), "steps_done": int(state["step"])},
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    save_student(target, full_network(compact, state["basis"]), info)
    return target


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder with checkpoint.pt, beside train/")
    parser.add_argument("--install", action="store_true", help="into the package instead of the run's folder")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder = SHIPPED_FOLDER if arguments.install else arguments.run
    path = export(arguments.run, folder / "student_nano.safetensors")
    log.info("%s: %s", path, json.dumps({"bytes": path.stat().st_size}))


if __name__ == "__main__":
    main()
