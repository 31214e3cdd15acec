"""The ablation's driver: which runs, resuming, tables, picture. Training itself is replaced by untrained networks."""

import json

import pytest
import torch

from geopurify_core.errors import DatasetError, InvalidConfigError
from geopurify_core.purification.student.checkpoint import save_student
from geopurify_core.purification.student.network import StudentAffinityNetwork
from geopurify_core.purification.student.trained import StudentInfo
from training.experiments import ablation
from training.experiments.ablation import RESULT, Run, Variant, ablate, chosen, runs_of, score_untrained, table
from training.experiments.figure import draw
from training.experiments.room import room_of
from training.experiments.rooms import ScoredRoom

VARIANTS = (Variant(ablation.RECIPE, "", "the recipe"), Variant("narrow", "width", "4", {"hidden": 4}))


@pytest.fixture
def scored(scene, texts):
    return [ScoredRoom.of(room_of(scene), texts)]


@pytest.fixture
def train(encoder):
    """An untrained network of the variant's width for each seed; remembers what it was asked for."""

    def made(run, folder):
        made.asked.append((run.variant.name, run.seed))
        torch.manual_seed(run.seed)
        hidden = run.variant.changes.get("hidden", 8)
        network = StudentAffinityNetwork(encoder.feature_dim + 6, hidden, 6, 1).eval()
        folder.mkdir(parents=True, exist_ok=True)
        info = StudentInfo(encoder.fingerprint, encoder.feature_dim, hidden, 6, 1)
        save_student(folder / "student.safetensors", network, info)
        return folder / "student.safetensors"

    made.asked = []
    return made


def test_every_variant_comes_with_every_seed_and_shares_divide_the_runs():
    runs = runs_of(VARIANTS, (0, 1, 2))
    assert [(run.variant.name, run.seed) for run in runs[:3]] == [("recipe", 0), ("narrow", 0), ("recipe", 1)]
    shares = [runs_of(VARIANTS, (0, 1, 2), f"{k}/4") for k in range(4)]
    assert sorted((r.variant.name, r.seed) for part in shares for r in part) == sorted(
        (r.variant.name, r.seed) for r in runs
    )
    for wrong in ("2/2", "half", "-1/2", "0/0"):
        with pytest.raises(InvalidConfigError, match="share"):
            runs_of(VARIANTS, (0,), wrong)


def test_the_shipped_variants_are_recipes_that_can_be_made():
    from training.distillation.recipe import Recipe

    assert len({variant.name for variant in ablation.VARIANTS}) == len(ablation.VARIANTS)
    assert ablation.VARIANTS[0].name == ablation.RECIPE and not ablation.VARIANTS[0].changes
    for variant in ablation.VARIANTS:
        assert Recipe.preset("robot", **variant.changes).to_dict().items() >= dict(variant.changes).items()
    assert [variant.name for variant in chosen(["macro_only"])] == ["macro_only"]
    with pytest.raises(InvalidConfigError, match="variant"):
        chosen(["nonsense"])


def test_what_is_done_is_not_done_again(scored, train, tmp_path):
    runs = runs_of(VARIANTS, (0, 1))
    ablate(runs[:3], scored, tmp_path, train, tell=lambda line: None)
    assert train.asked == [("recipe", 0), ("narrow", 0), ("recipe", 1)]
    ablate(runs, scored, tmp_path, train, tell=lambda line: None)
    assert train.asked[3:] == [("narrow", 1)]
    found = json.loads((Run(VARIANTS[1], 1).folder(tmp_path) / RESULT).read_text())
    assert set(found["rooms"]["apartment_0010"]) == {"raw", *(f"student, T={step}" for step in (1, 6, 18, 36))}


def test_the_table_has_means_over_rooms_and_deviations_over_seeds(tmp_path):
    for name, seed, values in (("recipe", 0, (50, 60)), ("recipe", 1, (54, 60)), ("narrow", 0, (40, 50))):
        rooms = {}
        for index, value in enumerate(values):
            rows = {f"student, T={step}": value + step / 10 for step in (1, 6, 18, 36)} | {"raw": 45.0 + index}
            rooms[str(index)] = {row: {"mIoU": v, "mAcc": v + 5, "accuracy": 80, "IoU": {}} for row, v in rows.items()}
        folder = tmp_path / name / str(seed)
        folder.mkdir(parents=True)
        (folder / RESULT).write_text(json.dumps({"variant": name, "seed": seed, "rooms": rooms}))
    lines = {(line.part, line.text): line for line in table(tmp_path, VARIANTS)}
    assert lines["purification", "raw"].values["mIoU"] == "45.5"
    assert lines["purification", "purified"].values["mIoU"] == "57.8 ± 1.4"
    assert lines["purification", "purified"].values["gain"] == "+12.3 ± 1.4"
    assert lines["T", "T = 1"].values["mIoU"] == "56.1 ± 1.4" and lines["width", "4"].seeds == 1
    text = ablation.markdown(list(lines.values()))
    assert "| width | 4 | 1 | 46.8 | 51.8 | 80.0 | +1.3 |" in text
    assert draw(list(lines.values()), tmp_path / "pictures" / "ablation.png").stat().st_size > 5000
    (tmp_path / "narrow" / "0" / RESULT).write_text("{")
    with pytest.raises(DatasetError, match="run again"):
        table(tmp_path, VARIANTS)


def test_what_needs_no_training_is_scored_once(scored, tmp_path):
    score_untrained(scored, tmp_path, "known", None)
    stamp = (tmp_path / "untrained" / RESULT).stat().st_mtime_ns
    score_untrained(scored, tmp_path, "known", None)
    assert (tmp_path / "untrained" / RESULT).stat().st_mtime_ns == stamp
    lines = {line.text: line for line in table(tmp_path)}
    assert lines["true objects, T=18"].mean > lines["raw"].mean and lines["known teacher, T=36"].part == "no student"
