"""One step of distillation on a whole scene: samples from the teacher's similarities against the student's two passes.

The scene has 100 000 voxels of 2 cm, the step 4096 anchors with 48 + 16 negatives among all of them. Two teachers:
``cells``, 1088 numbers for each 8 cm cell (Sonata's shape), and ``patches``, 205 numbers for each of a few hundred
surface patches (the geometric teacher's shape). The student is small (64 wide, inputs in 96 directions), which is the
hardest case: the published one takes many times as long while the samples stay what they are. Baseline in the same run:
the released code's way, every anchor against all points (``training.sampling.hybrid_sample``, chunked), measured on a
part of the anchors.
``processor_ratio`` compares processor seconds, which other load disturbs less.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

ANCHORS, RANK, HIDDEN, OUT = 4096, 96, 64, 64
CELL_VOXELS, TEACHERS = 4, {"cells": 1088, "patches": 205}
_BASELINE_PART = 16  # the baseline meets one anchor in so many


def run(quick: bool) -> dict[str, Any]:
    """Seconds, ratios, points a second, memory; 30 000 voxels if quick."""
    scenes = {name: _scene(name, 30_000 if quick else 100_000) for name in TEACHERS}
    rounds = 1 if quick else 3
    results: dict[str, Any] = {"anchors": ANCHORS, "hidden": HIDDEN}
    for name, scene in scenes.items():
        results[name] = _samples(scene, rounds)
    results["student"] = _student(scenes["patches"], rounds)
    passes = results["student"]["forward_backward_s"]
    for name in TEACHERS:
        results[name]["share_of_student"] = results[name]["sampling_s"] / passes
        used = results[name]["sampling_processor_s"] / results["student"]["forward_backward_processor_s"]
        results[name]["processor_share_of_student"] = used
        results[name]["step_points_per_s"] = results[name]["points"] / (results[name]["sampling_s"] + passes)
    return results


def _samples(scene: Any, rounds: int) -> dict[str, Any]:
    """Sampling (neighbours included) over distinct rows; the dense baseline is given the neighbours."""
    import torch

    from training.distillation.objective import sample_piece
    from training.distillation.pieces import whole_scene
    from training.distillation.recipe import Recipe
    from training.sampling import hybrid_sample

    recipe = Recipe.preset("paper", anchors=ANCHORS)
    piece = whole_scene(scene, recipe)
    made = sample_piece(piece, recipe, np.random.default_rng(0), torch.device("cpu"))
    some = slice(0, ANCHORS // _BASELINE_PART)
    dense = piece.rows[piece.index]
    ways = {
        "sampling": lambda: sample_piece(piece, recipe, np.random.default_rng(0), torch.device("cpu")),
        "dense": lambda: hybrid_sample(dense, made.near[some], anchors=made.anchors[some]),
    }
    clock, processor = _measured(ways, rounds)
    return {
        "points": len(piece),
        "rows": len(piece.rows),
        "sampling_s": clock["sampling"],
        "sampling_processor_s": processor["sampling"],
        "dense_s": clock["dense"] * _BASELINE_PART,
        "ratio": clock["dense"] * _BASELINE_PART / clock["sampling"],
        "processor_ratio": processor["dense"] * _BASELINE_PART / processor["sampling"],
        "sampling_extra_mb": _purification()._peak_mb(ways["sampling"]),
    }


def _student(scene: Any, rounds: int) -> dict[str, Any]:
    """Forward and backward of the hybrid InfoNCE; memory with activations kept, and computed twice."""
    from training.distillation.distiller import new_network
    from training.distillation.objective import loss_of, make_batch
    from training.distillation.optimise import Learner
    from training.distillation.recipe import Recipe

    recipe = Recipe.preset("paper", anchors=ANCHORS, hidden=HIDDEN, out=OUT)
    batch = make_batch([scene], recipe, np.random.default_rng(0))
    network = new_network(recipe, RANK)

    def passes(checkpointing: str) -> None:
        learner = Learner(network, checkpointing).train()
        loss, _ = loss_of(learner(batch.coords, batch.inputs), batch, recipe)
        loss.backward()  # type: ignore[no-untyped-call]
        network.zero_grad(set_to_none=True)

    clock, processor = _measured({"kept": lambda: passes("off"), "twice": lambda: passes("on")}, rounds)
    return {
        "forward_backward_s": clock["kept"],
        "forward_backward_processor_s": processor["kept"],
        "checkpointed_s": clock["twice"],
        "points_per_s": batch.points / clock["kept"],
        "extra_mb": _purification()._peak_mb(lambda: passes("off")),
        "checkpointed_extra_mb": _purification()._peak_mb(lambda: passes("on")),
    }


def step_memory(hidden: int, voxels: int, checkpointing: str = "on") -> dict[str, Any]:
    """One whole step, optimiser and scene of 512 channels included: most resident memory of this process, MB.

    Not part of ``run``: it needs a fresh process, and minutes for the published width.
    """
    import resource

    from training.distillation.distiller import new_network
    from training.distillation.objective import loss_of, make_batch
    from training.distillation.optimise import Learner, make_optimiser
    from training.distillation.recipe import Recipe

    scene = _scene("cells", voxels, channels=512)
    recipe = Recipe.preset("paper", hidden=hidden, out=min(hidden, 128))
    batch = make_batch([scene], recipe, np.random.default_rng(0))
    network = new_network(recipe, 512)
    optimiser = make_optimiser(network, recipe)
    used = time.process_time()
    loss, _ = loss_of(Learner(network, checkpointing).train()(batch.coords, batch.inputs), batch, recipe)
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    return {
        "hidden": hidden,
        "voxels": batch.points,
        "passes_processor_s": time.process_time() - used,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


def _scene(teacher: str, voxels: int, channels: int = RANK) -> Any:
    """A room as a training scene: random inputs, random descriptors for cells or for patches of about a third metre."""
    import torch

    from training.distillation.shards import TrainingScene

    coords = _purification().room(voxels)
    cells = coords // CELL_VOXELS if teacher == "cells" else coords // 16
    rows, index = np.unique(cells, axis=0, return_inverse=True)
    rng = np.random.default_rng(0)
    descriptors = torch.from_numpy(rng.standard_normal((len(rows), TEACHERS[teacher]), dtype=np.float32))
    return TrainingScene(
        "room",
        ((coords + 0.5) * 0.02).astype(np.float32),
        rng.standard_normal((len(coords), channels + 6), dtype=np.float32).astype(np.float16),
        torch.nn.functional.normalize(descriptors, dim=1),
        index.reshape(-1).astype(np.int64),
        coords,
    )


def _measured(ways: dict[str, Callable[[], Any]], rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    measured: tuple[dict[str, float], dict[str, float]] = _purification()._measured(ways, rounds)
    return measured


def _purification() -> Any:
    """The bench next door: its room, its clock, its memory."""
    if "bench_purification" not in sys.modules:
        path = Path(__file__).with_name("purification.py")
        spec = importlib.util.spec_from_file_location("bench_purification", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    return sys.modules["bench_purification"]


if __name__ == "__main__":
    import json

    if "--memory" in sys.argv:  # --memory HIDDEN VOXELS
        width, count = (int(word) for word in sys.argv[sys.argv.index("--memory") + 1 :][:2])
        print(json.dumps(step_memory(width, count), indent=2))
        raise SystemExit
    started = time.perf_counter()
    print(json.dumps({**run("--quick" in sys.argv), "seconds": time.perf_counter() - started}, indent=2))
