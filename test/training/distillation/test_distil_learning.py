"""The student learns: affinity separates objects, pooling gets purer; each ingredient alone can be learned."""

import numpy as np
import pytest
import torch

from geopurify_core.purification.affinity.build import build_affinity
from geopurify_core.purification.affinity.neighbors import nearest_neighbors
from geopurify_core.purification.pooling.pool import pool
from training.distillation.checkpoints import load_checkpoint
from training.distillation.distiller import new_network
from training.distillation.export import compact_network
from training.distillation.optimise import Average, Learner, make_optimiser
from training.distillation.pieces import whole_scene
from training.distillation.recipe import Recipe
from training.distillation.record import read_log
from training.distillation.shards import Shards
from training.distillation.train import distil
from training.scenes.prepared import load_scene

QUIET = {"teacher": "known", "quiet": True, "accelerator": "cpu"}
SMALL = {
    "hidden": 16, "out": 16, "blocks": 1, "rank": 0, "crop": 2000, "crops": 1, "anchors": 300, "neighbors": 48,
    "steps": 60, "lr": 1e-2, "ema": 0.8, "macro": 24, "micro": 8, "semantic_drop": 0.0, "semantic_noise": 0.1,
}  # fmt: skip


def purity(folder, name, network, recipe):
    """Share of a point's own object in what pooling gives it after six steps, on points with strangers around."""
    scene, shards = load_scene(folder, name), Shards(folder, "known", recipe)
    piece = whole_scene(shards.scene(name), recipe)
    embeddings = network.embed(piece.coords, piece.inputs).numpy()
    neighbors = nearest_neighbors(piece.coords.numpy(), recipe.neighbors)
    truth = np.eye(5, dtype=np.float32)[scene.instances]
    pooled = pool(truth, build_affinity(piece.coords.numpy(), embeddings, neighbors=neighbors), 6)
    contested = (scene.instances[neighbors] != scene.instances[:, None]).mean(1) > 0.2
    return float((pooled * truth).sum(1)[contested].mean())


@pytest.mark.parametrize(
    "weights",
    [
        {}, {"affinity": 0.0, "spread": 0.0, "contrast": 1.0},
        {"affinity": 0.0, "spread": 0.0, "contrast": 1.0, "micro": 0},
        {"contrast": 0.0},
    ],
    ids=["all", "hybrid", "macro-only", "affinity"],
)  # fmt: skip
def test_a_student_learns_to_keep_objects_apart_also_in_a_room_it_has_not_seen(maps, toy, weights, tmp_path):
    from training.scenes.prepared import save_scene

    recipe = Recipe.preset("robot", **{**SMALL, **weights})
    run = distil(recipe, maps, tmp_path / "run", **QUIET)
    rows = read_log(run)
    assert np.mean([r["loss"] for r in rows[-5:]]) < 0.5 * rows[0]["loss"]
    save_scene(tmp_path / "new", toy("new", 9, size=24))
    trained = purity(tmp_path / "new", "new", compact_network(load_checkpoint(run)), recipe)
    shards = Shards(maps, "known", recipe)
    fresh = new_network(recipe, shards.channels).eval()
    assert purity(tmp_path / "new", "new", fresh, recipe) < 0.75 and trained > 0.9, trained


def test_the_papers_recipe_learns_too(maps, tmp_path):
    small = {"hidden": 16, "out": 16, "blocks": 1, "epochs": 20, "anchors": 300, "macro": 24, "micro": 8}
    recipe = Recipe.preset("paper", **small, lr=3e-3)
    run = distil(recipe, maps, tmp_path / "run", **QUIET)
    rows = read_log(run)
    assert rows[-1]["contrast"] < 0.6 * rows[0]["contrast"]


def test_three_learning_rates_cover_every_weight_once():
    network = new_network(Recipe.preset("paper", hidden=8, out=4, blocks=2), 6)
    groups = make_optimiser(network, Recipe.preset("paper")).param_groups
    assert [group["lr"] for group in groups] == pytest.approx([1e-5, 1e-4, 5e-4])
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(map(id, network.parameters()))
    assert any(p is network.output_layer.kernel for p in groups[2]["params"])


def test_activations_computed_twice_change_nothing():
    """Same embeddings, gradients and running statistics (updated once) with and without."""
    torch.manual_seed(0)
    recipe = Recipe.preset("paper", hidden=8, out=4, blocks=2)
    grid = torch.stack(torch.meshgrid(*[torch.arange(7)] * 3, indexing="ij"), -1).reshape(-1, 3)
    coords = grid[torch.randperm(len(grid))[:200]].int()
    inputs = torch.randn(200, 12)
    results = []
    for checkpointing in ("off", "on"):
        learner = Learner(new_network(recipe, 6), checkpointing).train()
        out = learner(coords, inputs)
        (out**2).mean().backward()
        results.append([out, *[p.grad for p in learner.parameters()], *learner.buffers()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    assert int(learner.network.res_blocks[0].norm1.bn.num_batches_tracked) == 1


def test_activations_are_computed_twice_in_all_processes_or_in_none():
    """Another process with a larger scene says yes; one without synchronised statistics decides alone."""
    network, asked = new_network(Recipe.preset("paper", hidden=8, out=4, blocks=1), 6), []

    def elsewhere(here):
        asked.append(here)
        return True

    assert Learner(network, "auto", elsewhere).train()._recomputes(100) and asked == [False]
    assert not Learner(network, "auto").train()._recomputes(100)
    assert not Learner(network, "off", elsewhere).train()._recomputes(100)


def test_averaged_weights_follow_the_mean():
    network = new_network(Recipe.preset("paper", hidden=4, out=2, blocks=1), 3)
    average = Average(network, 0.5)
    with torch.no_grad():
        network.output_layer.kernel.fill_(8.0)
    start = average.network.output_layer.kernel.clone()
    average.update(network, 100)
    torch.testing.assert_close(average.network.output_layer.kernel, (start + 8) / 2)
