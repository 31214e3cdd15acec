"""Training nano: what goes in, what one step does, and that an interrupted run goes on as if nothing had happened."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from geopurify_core.datasets.synthetic.kinds import CLASS_NAMES, kinds
from geopurify_core.vision.nano_net import NanoNet, deployable
from training.nano.augment import augment
from training.nano.eval import real, summary
from training.nano.text import load_anchors
from training.nano.train import Recipe, Trainer, batch_at, learning_rate, loss_at, train
from training.nano.views import FIRST_TRAINING_SEED, NOTHING, VALIDATION_SEEDS, Views, render_views

TINY = Recipe(apartments=1, views=4, steps=2, batch=2, seed=3)


@pytest.fixture(scope="module")
def views(tmp_path_factory):
    return render_views(tmp_path_factory.mktemp("views"), FIRST_TRAINING_SEED, 1, 4, 0.25)


@pytest.fixture(scope="module")
def anchors():
    return load_anchors()


def test_scores_are_never_taken_on_what_was_trained_on():
    trained = range(FIRST_TRAINING_SEED, FIRST_TRAINING_SEED + Recipe().apartments)
    assert not set(trained) & (set(VALIDATION_SEEDS) | set(range(10)))


def test_rendering_goes_on_where_it_stopped(tmp_path):
    first = render_views(tmp_path, 1000, 1, 2, 0.0)
    before = np.array(first.rgb)
    state = json.loads((tmp_path / "views.json").read_text())
    assert state["done"] == 1
    again = render_views(tmp_path, 1000, 1, 2, 0.0)
    np.testing.assert_array_equal(before, again.rgb)
    assert set(np.unique(again.kind)) <= {*range(len(kinds())), NOTHING}


def test_augmentation_keeps_labels_on_their_pixels():
    # Left half kind 0 painted dark, right half kind 1 painted bright: whatever happens, dark cells must be labelled 0.
    rgb = np.zeros((240, 320, 3), np.uint8)
    rgb[:, 160:] = 220
    rgb[:, :160] = 40
    kind = np.zeros((240, 320), np.uint8)
    kind[:, 160:] = 1
    agreed = []
    for seed in range(30):
        image, labels = augment(rgb, kind, np.random.default_rng(seed), width=192)
        assert image.shape == (144, 192, 3) and image.dtype == np.uint8
        assert labels.shape == (36, 48)
        cells = image.reshape(36, 4, 48, 4, 3).mean(axis=(1, 3, 4))
        if len(np.unique(labels)) == 2:
            dark, bright = np.median(cells[labels == 0]), np.median(cells[labels == 1])
            agreed.append(((np.abs(cells - dark) < np.abs(cells - bright)) == (labels == 0)).mean())
    assert len(agreed) > 10 and np.median(agreed) > 0.95


def test_a_batch_depends_on_seed_and_step_alone(views):
    first, second = batch_at(views, 5, TINY), batch_at(views, 5, TINY)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert not torch.equal(first[0], batch_at(views, 6, TINY)[0])


def test_cosines_equal_those_of_the_features(anchors):
    net = NanoNet()
    texts = torch.from_numpy(anchors.pick(None))
    neck = torch.randn(2, 5, 96)
    features = torch.nn.functional.normalize(net.project(neck), dim=-1)
    torch.testing.assert_close(net.cosines(neck, texts), features @ texts.t(), atol=1e-5, rtol=1e-4)


def test_folding_the_normalisation_changes_nothing():
    torch.manual_seed(0)
    net = NanoNet()
    net.train()
    net.neck(torch.randn(2, 3, 64, 96) * 2 + 0.3)  # running statistics away from their start
    net.eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        before = net(image)
        after = deployable(net)(image)
    torch.testing.assert_close(before[0], after[0], atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(before[1], after[1], atol=2e-4, rtol=1e-3)


def test_kinds_of_one_class_do_not_compete_over_shared_words(views, anchors):
    assert anchors.class_of_kind.max() == len(CLASS_NAMES) - 1
    trainer = Trainer(TINY, views, anchors)
    images, target = batch_at(views, 0, TINY)
    for step in (0, 1):
        loss, right = loss_at(trainer.net, images, target, anchors, trainer.weights, step, TINY)
        assert torch.isfinite(loss) and 0 <= right <= 1


def test_a_few_steps_on_one_batch_lower_the_loss(views, anchors):
    recipe = replace(TINY, steps=60, lr=2e-3)
    trainer = Trainer(recipe, views, anchors)
    losses = [trainer.advance()["loss"] for _ in range(8)]
    assert np.mean(losses[-2:]) < losses[0]


def test_an_interrupted_run_ends_in_the_same_weights(views, anchors, tmp_path):
    recipe = replace(TINY, steps=2)
    whole = train(recipe, views, tmp_path / "whole", anchors)
    half = Trainer(recipe, views, anchors)
    half.advance()
    (tmp_path / "half").mkdir()
    half.save(tmp_path / "half")
    resumed = train(recipe, views, tmp_path / "half", anchors)
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4, msg=name)
    assert json.loads((tmp_path / "whole" / "recipe.json").read_text())["steps"] == 2


def test_a_checkpoint_of_another_recipe_is_left_alone(views, anchors, tmp_path):
    trainer = Trainer(TINY, views, anchors)
    trainer.save(tmp_path)
    assert not Trainer(replace(TINY, lr=1e-4), views, anchors).resume(tmp_path)
    assert Trainer(TINY, views, anchors).resume(tmp_path)


def test_learning_rate_rises_and_falls():
    recipe = Recipe(steps=100, lr=1.0)
    rates = [learning_rate(step, recipe) for step in range(100)]
    assert rates[0] < rates[3] == max(rates) and rates[-1] < 0.01


def test_summary_against_numbers_worked_out_by_hand():
    matrix = np.zeros((20, 20), dtype=np.int64)
    matrix[0, 0], matrix[0, 1], matrix[1, 1] = 6, 2, 2
    result = summary(matrix)
    assert result["classes"] == 2
    assert result["mIoU"] == pytest.approx(100 * (6 / 8 + 2 / 4) / 2, abs=0.05)
    assert result["mAcc"] == pytest.approx(100 * (6 / 8 + 1) / 2, abs=0.05)
    assert result["pixel_acc"] == pytest.approx(80.0)


def test_views_have_a_length(views):
    assert len(Views(views.rgb, views.kind)) == 4


@pytest.mark.parametrize("layout", ["folders", "side by side"])
def test_labelled_pictures_are_paired_and_mapped_to_the_20_classes(tmp_path, layout):
    picture, labels = Image.new("RGB", (8, 6), (9, 9, 9)), Image.fromarray(np.full((6, 8), 14, np.uint8))
    if layout == "folders":
        for name in ("color", "label"):
            (tmp_path / name).mkdir()
        picture.save(tmp_path / "color" / "1.jpg")
        Image.new("RGB", (4, 4)).save(tmp_path / "color" / "10.jpg")
        labels.save(tmp_path / "label" / "1.png")
    else:
        picture.save(tmp_path / "0007.jpg")
        labels.save(tmp_path / "0007_label.png")
    pairs = list(real(tmp_path))
    assert len(pairs) == 1 and pairs[0][0].shape == (6, 8, 3)
    assert (pairs[0][1] == 12).all()  # NYU40 calls a desk 14, ScanNet-20 puts it 13th


def test_a_second_run_starts_from_the_weights_of_the_first(views, anchors, tmp_path):
    first = Trainer(TINY, views, anchors)
    first.advance()
    first.save(tmp_path)
    second = Trainer(replace(TINY, start_from=str(tmp_path)), views, anchors)
    assert second.step == 0
    torch.testing.assert_close(second.net.project.weight, first.average.project.weight)
