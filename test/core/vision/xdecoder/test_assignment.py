"""Pixels to queries with and without labels, and views to points, against the published results and plain loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from geopurify_core.errors import BackboneError
from geopurify_core.vision.xdecoder.assignment import (
    QueryOutputs,
    background_objectness,
    mask_objectness,
    open_weights,
    vocabulary_scores,
    winners,
)
from geopurify_core.vision.xdecoder.views import ViewFeatures, fuse_views, nearest_known, view_features

torch = pytest.importorskip("torch")
SMALL = ("small_focalt", "small_focall", "small_davitd5")


@pytest.fixture(params=SMALL)
def golden(request: pytest.FixtureRequest, shared_dir: Path) -> dict[str, np.ndarray]:
    path = shared_dir / "golden" / "xdecoder" / f"{request.param}_f64.npz"
    if not path.is_file():
        pytest.skip(f"{path.name} is absent")
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


def outputs_of(golden: dict[str, np.ndarray]) -> QueryOutputs:
    return QueryOutputs(
        torch.from_numpy(golden["pred_captions_class_embed"][0, :-1]),
        torch.from_numpy(golden["pred_masks"][0, :-1]),
        golden["image"].shape[1:],
        golden["input_padded"].shape[2:],
    )


def made_up(seed: int = 0, image: tuple[int, int] = (56, 90), padded: tuple[int, int] = (64, 96)) -> QueryOutputs:
    g = torch.Generator().manual_seed(seed)
    masks = 4 * torch.randn(37, padded[0] // 4, padded[1] // 4, generator=g)
    return QueryOutputs(torch.randn(37, 12, generator=g), masks, image, padded)


def test_released_recipe_gives_the_published_assignment(golden: dict[str, np.ndarray]) -> None:
    scores = vocabulary_scores(torch.from_numpy(golden["pred_logits"][0, :-1]))
    np.testing.assert_allclose(scores.numpy(), golden["query_score"], atol=1e-6)
    query, own = winners(outputs_of(golden), scores)
    # "argmax assignments equal on ≥ 99.9 % of pixels"
    assert (query == golden["assign_query"]).mean() >= 0.999
    assert (own == golden["assign_own"]).mean() >= 0.999


def test_winners_are_those_of_a_plain_computation_in_one_piece() -> None:
    outputs = made_up()
    scores = torch.rand(37, generator=torch.Generator().manual_seed(1))
    for padding, size in (("crop", (64, 96)), ("official_code", (56, 90))):
        large = torch.nn.functional.interpolate(outputs.masks[None], size=size, mode="bicubic", antialias=True)[0]
        probability = large[:, :56, :90].sigmoid()
        want = (scores[:, None, None] * probability).argmax(0).numpy()
        query, own = winners(outputs, scores, padding)
        np.testing.assert_array_equal(query, want)
        np.testing.assert_array_equal(own, np.take_along_axis(probability.numpy(), want[None], 0)[0] >= 0.5)


def test_padding_shifts_only_the_official_codes_masks() -> None:
    masks = torch.full((2, 16, 24), -6.0)
    masks[0, :7] = 6.0  # down to row 28 of the image
    masks[1, 7:] = 6.0
    outputs = QueryOutputs(torch.eye(2), masks, (48, 90), (64, 96))
    edges = {p: (winners(outputs, torch.ones(2), p)[0][:, 45] == 0).sum() for p in ("crop", "official_code")}
    assert edges == {"crop": 28, "official_code": 28 * 48 // 64}


def test_open_mixture_equals_a_plain_loop() -> None:
    outputs, objectness = made_up(image=(56, 88)), torch.rand(37, generator=torch.Generator().manual_seed(2))
    weights, confidence = open_weights(outputs, objectness)
    assert weights.shape == (14, 22, 37) and confidence.shape == (14, 22)
    probability = outputs.masks.sigmoid().numpy()
    for i, j in ((0, 0), (13, 21), (5, 17)):
        claim = probability[:, i, j] * objectness.numpy()
        np.testing.assert_allclose(weights[i, j], claim / claim.sum(), atol=1e-6)
        assert confidence[i, j] == pytest.approx(claim.max(), abs=1e-6)


def test_open_mixture_covers_the_image_and_nothing_but_it() -> None:
    masks = torch.arange(24.0).expand(1, 16, 24) / 24  # a ramp along the columns of the padded image
    for image, cells in (((56, 90), (14, 22)), ((56, 88), (14, 22)), ((64, 96), (16, 24))):
        outputs = QueryOutputs(torch.ones(1, 3), masks, image, (64, 96))
        _, confidence = open_weights(outputs, torch.ones(1))
        assert confidence.shape == cells
        # the centre of cell j lies at pixel (j + 0.5) · W / w, which is cell x / 4 - 0.5 of the padded grid
        x = ((np.arange(cells[1]) + 0.5) * image[1] / cells[1] / 4 - 0.5).clip(0, 23)
        np.testing.assert_allclose(confidence[0], 1 / (1 + np.exp(-x / 24)), atol=1e-6)
    stretched = open_weights(QueryOutputs(torch.ones(1, 3), masks, (56, 90), (64, 96)), torch.ones(1), "official_code")
    assert stretched[1].shape == (16, 24)


def test_objectness_is_a_probability_and_an_empty_mask_has_none() -> None:
    masks = torch.full((3, 4, 4), -5.0)
    masks[1, :2] = 3.0
    masks[2] = 0.2
    np.testing.assert_allclose(mask_objectness(masks), [0, 1 / (1 + np.exp(-3)), 1 / (1 + np.exp(-0.2))], atol=1e-6)
    logits = torch.tensor([[9.0, 0.0, 0.0], [0.0, 0.0, 9.0]])
    np.testing.assert_allclose(background_objectness(logits), [1 - 1 / (np.exp(9) + 2), 2 / (np.exp(9) + 2)], atol=1e-5)
    np.testing.assert_allclose(vocabulary_scores(logits), [np.exp(9) / (np.exp(9) + 2), 1 / (np.exp(9) + 2)], rtol=1e-4)


def test_nobody_is_an_object_nobody_knows_anything() -> None:
    weights, confidence = open_weights(made_up(), torch.zeros(37))
    assert not weights.any() and not confidence.any()


def test_views_are_fused_as_published(shared_dir: Path) -> None:
    path = shared_dir / "golden" / "geopurify" / "multiview_fusion.npz"
    if not path.is_file():
        pytest.skip(f"{path.name} is absent")
    with np.load(path) as data:
        views = [
            ViewFeatures(*arrays)
            for arrays in zip(data["view_pts"], data["view_feat"], data["view_logits"], strict=True)
        ]
        fused, counter = fuse_views(data["xyz"], views)
        np.testing.assert_array_equal(counter, data["counter"])
        np.testing.assert_allclose(fused, data["fused"], atol=1e-6)


def plain_fusion(xyz: np.ndarray, views: list[ViewFeatures]) -> np.ndarray:
    fused, seen = np.zeros((len(xyz), views[0].features.shape[1])), np.zeros(len(xyz), bool)
    for point in range(len(xyz)):
        rows = [(v.logits[i], v.features[i]) for v in views for i in np.flatnonzero(v.points == point)]
        if not rows:
            continue
        seen[point] = True
        consensus = np.mean([logits for logits, _ in rows], axis=0).argmax()
        best = sorted(rows, key=lambda row: -row[0][consensus])[:3]
        weights = np.exp([logits[consensus] for logits, _ in best])
        fused[point] = sum(w * f for w, (_, f) in zip(weights / weights.sum(), best, strict=True))
    for point in np.flatnonzero(~seen):
        distance = np.linalg.norm(xyz[seen] - xyz[point], axis=1)
        fused[point] = fused[np.flatnonzero(seen)[distance.argmin()]]
    return fused


def test_views_are_fused_as_in_a_plain_loop_also_with_equal_views() -> None:
    rng = np.random.default_rng(0)
    xyz, views = rng.random((30, 3)), []
    for number in range(6):
        points = rng.permutation(25)[:14]  # five points are never seen
        logits, features = rng.random((14, 4)).astype(np.float32), rng.random((14, 5)).astype(np.float32)
        views.append(ViewFeatures(points, features, logits))
        if number == 2:  # the same opinion again and again: which of them are kept must not matter
            views += [views[-1], views[-1], views[-1]]
    fused, counter = fuse_views(xyz, views)
    np.testing.assert_allclose(fused, plain_fusion(xyz, views), atol=1e-6)
    assert counter.sum() == 14 * len(views) and (counter[25:] == 0).all()


def test_points_without_a_mask_take_their_neighbours_feature() -> None:
    xyz = np.array([[0.0, 0, 0], [1, 0, 0], [1.1, 0, 0], [5, 0, 0]])
    embeds, text = np.array([[3.0, 0], [0, 2.0]], np.float32), np.eye(2, dtype=np.float32)
    view = view_features(
        np.array([4, 7, 9, 2]), xyz, np.array([0, 1, 0, 0]), np.array([True, True, False, False]), embeds, text, 10.0
    )
    np.testing.assert_allclose(view.features, [[1, 0], [0, 1], [0, 1], [0, 1]], atol=1e-6)
    np.testing.assert_allclose(view.logits, 10 * view.features, atol=1e-5)
    np.testing.assert_array_equal(nearest_known(xyz, np.ones(4, bool)), np.arange(4))
    with pytest.raises(BackboneError, match="leave this view out"):
        view_features(np.arange(4), xyz, np.zeros(4, int), np.zeros(4, bool), embeds, text, 10.0)


def test_views_that_do_not_fit_are_named() -> None:
    features, logits = np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32)
    good = ViewFeatures(np.array([0, 1]), features, logits)
    with pytest.raises(BackboneError, match="at least one view"):
        fuse_views(np.zeros((2, 3)), [])
    with pytest.raises(BackboneError, match=r"views\[1\]"):
        fuse_views(np.zeros((2, 3)), [good, ViewFeatures(np.array([0, 1]), features[:1], logits)])
    with pytest.raises(BackboneError, match=r"views\[0\].points.*2 points"):
        fuse_views(np.zeros((2, 3)), [ViewFeatures(np.array([0, 2]), features, logits)])
    with pytest.raises(BackboneError, match="at most once"):
        fuse_views(np.zeros((2, 3)), [ViewFeatures(np.array([1, 1]), features, logits)])
