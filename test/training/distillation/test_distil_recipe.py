"""Presets say what paper and code say, and a wrong value is named."""

import json

import pytest

from geopurify_core.errors import InvalidConfigError
from training.distillation.distiller import Plan
from training.distillation.optimise import learning_rate
from training.distillation.recipe import Recipe


def test_paper_is_table_7():
    recipe = Recipe.preset("paper")
    assert (recipe.lr, recipe.lr_input, recipe.lr_blocks, recipe.lr_output) == (1e-4, 0.1, 1.0, 5.0)
    assert (recipe.warmup_epochs, recipe.warmup_start, recipe.lr_floor, recipe.weight_decay) == (2, 1e-6, 1e-3, 1e-5)
    assert (recipe.epochs, recipe.temperature, recipe.anchors, recipe.macro, recipe.micro) == (50, 0.07, 4096, 48, 16)
    assert (recipe.neighbors, recipe.voxel_size_m, recipe.hidden, recipe.out) == (96, 0.02, 512, 128)
    assert (recipe.view, recipe.random_frame, recipe.augment, recipe.rank) == ("scene", False, False, 0)
    assert recipe.contrast == 1 and recipe.affinity == recipe.spread == recipe.ema == 0


def test_official_code_differs_from_the_paper_in_the_disputed_points_only():
    paper, code = Recipe.preset("paper").to_dict(), Recipe.preset("official_code").to_dict()
    changed = {name: code[name] for name in paper if paper[name] != code[name]}
    assert changed.pop("base") == "official_code" and changed.pop("seed") == 5557
    assert changed == {"epochs": 100, "micro": 15, "view": "sampled", "random_frame": True}


def test_every_preset_survives_json_and_changes_are_kept():
    for name in Recipe.preset_names():
        recipe = Recipe.preset(name, seed=3, lr=1)
        assert recipe.lr == 1.0 and type(recipe.lr) is float
        assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert Recipe.preset("robot", micro=0).micro == 0
    assert Recipe.preset("robot").steps > 0 and Recipe.preset("robot", epochs=2).steps == 0
    assert Recipe.preset("robot", epochs=2, steps=5).steps == 5


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"lr": "fast"}, "lr"), ({"lr": float("nan")}, "lr"), ({"lr": -1.0}, "lr"), ({"epochs": 0}, "epochs"),
        ({"epochs": 2.5}, "epochs"), ({"augment": 1}, "augment"), ({"steps": True}, "steps"), ({"view": "all"}, "view"),
        ({"speed": 3}, "speed"), ({"micro": 97}, "micro"), ({"macro": 0, "micro": 0}, "macro"),
        ({"view": "crops", "crop": 20}, "crop"), ({"contrast": 0}, "contrast"),
        ({"precision": "16-mixed"}, "precision"), ({"view": "sampled", "affinity": 1.0}, "affinity"),
        ({"negative_ceiling": 2}, "negative_ceiling"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named(changes, field):
    with pytest.raises(InvalidConfigError) as caught:
        Recipe.preset("paper", **changes)
    assert caught.value.field == field


def test_an_unknown_preset_is_named():
    with pytest.raises(InvalidConfigError, match="paper, official_code, robot"):
        Recipe.preset("papper")


def test_epochs_show_every_scene_once_and_steps_override_them():
    assert Plan.of(Recipe.preset("paper"), 20) == Plan(1000, 20, 40)
    assert Plan.of(Recipe.preset("paper"), 20, processes=3) == Plan(350, 7, 14)
    assert Plan.of(Recipe.preset("robot"), 40) == Plan(700, 20, 40)
    assert Plan.of(Recipe.preset("robot", steps=100), 40) == Plan(100, 20, 10)
    assert Plan.of(Recipe.preset("paper", epochs=1), 2) == Plan(2, 2, 2)


@pytest.mark.parametrize("factor", [0.1, 1.0, 5.0])
def test_the_schedule_is_that_of_torchs_schedulers(factor):
    """LinearLR from 1e-6, then CosineAnnealingLR to 1e-3 of the base rate, as the released code chains them."""
    import torch

    recipe = Recipe.preset("paper")
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=factor * recipe.lr)
    warm = torch.optim.lr_scheduler.LinearLR(optimiser, 1e-6, 1.0, 40)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 960, eta_min=1e-3 * recipe.lr)
    chained = torch.optim.lr_scheduler.SequentialLR(optimiser, [warm, cosine], [40])
    for step in range(1000):
        expected = optimiser.param_groups[0]["lr"]
        assert learning_rate(step, 1000, 40, factor * recipe.lr, recipe) == pytest.approx(expected, rel=1e-6), step
        optimiser.step()
        chained.step()
