"""The whole network: every stage of the reference outputs, and what surrounds them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geopurify_core.errors import BackboneError, InvalidConfigError, QueryError

torch = pytest.importorskip("torch")
pytest.importorskip("instant_clip_tokenizer")

from geopurify_core.vision.xdecoder import XDecoder, postprocess  # noqa: E402
from geopurify_core.vision.xdecoder.trace import prompts  # noqa: E402
from geopurify_core.vision.xdecoder.variants import VARIANTS, canonical, published  # noqa: E402

LABELS = ["wall", "floor", "chair", "table", "shower curtain"]
AGREEMENT = 0.999
# Exact in any precision: token ids and masks, and what is stored as whole numbers.
WHOLE = ("tok_ids_template0", "tok_attn_template0")


def check_stages(got: dict[str, Any], expected: dict[str, np.ndarray], tolerance: float) -> None:
    """Every stored stage within the tolerance of its own scale; assignments on 99.9 % of the pixels.

    A suffix ``_sN`` means that every N-th row and column is stored. DaViT's features reach 90: a tolerance for
    unit-scale values is taken times the largest value where that is above 1.
    """
    for name, values in expected.items():
        if name == "image":
            continue
        stride = re.fullmatch(r"(.*)_s(\d+)", name)
        result = got[stride[1] if stride else name].numpy()
        result = result[..., :: int(stride[2]), :: int(stride[2])] if stride else result
        assert result.shape == values.shape, name
        if values.dtype.kind == "f":
            assert np.abs(result - values).max() <= tolerance * max(1.0, np.abs(values).max()), name
        else:
            assert np.mean(result == values) >= (1.0 if name in WHOLE else AGREEMENT), name


@pytest.mark.parametrize("variant", ["focall", "focalt", "davitd5"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 2e-5)])
def test_every_stage_is_the_references(
    reference: Callable[[str], Any], network: Callable[..., Any], variant: str, dtype: torch.dtype, tolerance: float
) -> None:
    data = reference(variant)
    got = network(variant, dtype).stages(torch.from_numpy(data.stages["image"]), LABELS)
    check_stages(got, data.stages, tolerance)
    assert {f"aux{i}_masks" for i in range(4)} <= set(got)
    assert got["pred_masks"].dtype == dtype


@pytest.mark.slow
def test_full_size_focal_t_is_the_references(
    shared_dir: Path, manifest: Callable[..., Any], regenerate: Callable[..., None]
) -> None:
    path = shared_dir / "golden" / "xdecoder" / "full_focalt_256x320_f32.npz"
    if not path.is_file():
        pytest.skip(f"{path.name} is absent")
    model = XDecoder(published("focalt"))
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == manifest("focalt", "")
    regenerate(model, "")
    image = torch.round(255 * torch.rand(3, 256, 320, generator=torch.Generator().manual_seed(7)))
    with np.load(path) as arrays:
        check_stages(model.stages(image, LABELS), dict(arrays), 2e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_keys_shapes_and_types_are_the_manifests(shared_dir: Path, variant: str) -> None:
    path = shared_dir / "reference" / "manifests" / f"xdecoder_{variant}_manifest.json"
    if not path.is_file():
        pytest.skip(f"{path.name} is absent")
    expected = json.loads(path.read_text())["state_dict"]
    with torch.device("meta"):
        state = XDecoder(published(variant)).state_dict()
    got = {key: {"shape": list(v.shape), "dtype": str(v.dtype).removeprefix("torch.")} for key, v in state.items()}
    assert got == expected


@pytest.mark.parametrize("variant", ["focall", "focalt", "davitd5"])
def test_small_networks_have_the_references_keys(
    reference: Callable[[str], Any], network: Callable[..., Any], variant: str
) -> None:
    expected = json.loads((reference(variant).folder / f"small_{variant}_keys.json").read_text())
    assert {k: list(v.shape) for k, v in network(variant, torch.float32).state_dict().items()} == expected


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("Focal-T", "focalt"),
        ("xdecoder_focall_last", "focall"),
        ("xdecoder_focalt_best_openseg", "focalt"),
        ("davitd5_unicl_lang", "davitd5"),
        ("focalx", "focalx"),
    ],
)
def test_variants_have_the_names_that_people_use(name: str, variant: str) -> None:
    assert canonical(name) == variant


def test_forward_gives_the_last_stage(reference: Callable[[str], Any], network: Callable[..., Any]) -> None:
    stages, model = reference("focall").stages, network("focall", torch.float64)
    with torch.inference_mode():
        decoded = model(stages["image"])
    assert decoded.image_size == (100, 140) and decoded.padded_size == (128, 160)
    assert np.abs(decoded.class_embed.numpy() - stages["pred_captions_class_embed"]).max() <= 1e-6
    assert np.abs(decoded.masks.numpy() - stages["pred_masks"]).max() <= 1e-6
    assert model.num_queries == 21 and model.dim == 48


def test_bytes_and_batches_give_what_single_float_images_do(
    reference: Callable[[str], Any], network: Callable[..., Any]
) -> None:
    image, model = reference("focalt").stages["image"], network("focalt", torch.float64)
    flipped = np.ascontiguousarray(image[:, ::-1])
    with torch.inference_mode():
        both = model(np.stack([image, flipped]).astype(np.uint8))
        for i, one in enumerate((image, flipped)):
            alone = model(torch.from_numpy(one))
            assert (both.masks[i] - alone.masks[0]).abs().max() <= 1e-9
            assert (both.class_embed[i] - alone.class_embed[0]).abs().max() <= 1e-9


def test_prepare_is_mean_deviation_and_zeros(network: Callable[..., Any]) -> None:
    model = network("focall", torch.float64)
    image = np.full((3, 33, 64), 200.0)
    padded = model.prepare(image)[0].numpy()
    assert padded.shape == (3, 64, 64) and not padded[:, 33:].any()
    for channel, (mean, std) in enumerate(zip((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), strict=True)):
        assert np.allclose(padded[channel, :33], (200 - mean) / std, rtol=0, atol=1e-12)


def test_prepare_takes_views_that_run_backwards(network: Callable[..., Any]) -> None:
    model, bgr = network("focall", torch.float64), np.random.default_rng(0).uniform(0, 255, (3, 40, 64))
    assert torch.equal(model.prepare(bgr[::-1]), model.prepare(bgr[::-1].copy()))
    assert torch.equal(model.prepare(bgr[:, :, ::-1]), model.prepare(bgr[:, :, ::-1].copy()))


@pytest.mark.parametrize(
    "image",
    [np.zeros((33, 64, 3)), np.zeros((33, 64)), np.zeros((3, 0, 4)), np.zeros((3, 8, 8), bool), np.zeros((2, 4, 8, 8))],
    ids=["channels last", "grey", "empty", "bool", "four channels"],
)
def test_what_is_no_image_is_refused(network: Callable[..., Any], image: np.ndarray) -> None:
    with pytest.raises(BackboneError, match="image"):
        network("focall", torch.float32).prepare(image)


@pytest.mark.parametrize("labels", [[], [""], "wall", [None]])
def test_labels_that_cannot_be_used_are_refused(network: Callable[..., Any], labels: Any) -> None:
    with pytest.raises(QueryError):
        network("focall", torch.float32).stages(np.zeros((3, 32, 32)), labels)


def test_stages_take_one_image(network: Callable[..., Any]) -> None:
    with pytest.raises(BackboneError, match="one image"):
        network("focall", torch.float32).stages(np.zeros((2, 3, 32, 32)), LABELS)


def test_labels_and_prompts_mean_the_same() -> None:
    worded = ["a wall in a scene", "a shower curtain in a scene", "background"]
    assert prompts(["wall", "shower curtain"]) == prompts(worded) == prompts(["wall", "shower curtain", "background"])
    assert prompts(worded) == worded
    assert prompts(["background"])[-1] == "background" and len(prompts(["background"])) == 2


def test_mean_and_deviation_must_be_three_numbers(reference: Callable[[str], Any]) -> None:
    config = {**reference("focall").config, "INPUT": {"PIXEL_MEAN": [1.0, 2.0], "PIXEL_STD": [1.0, 1.0, 1.0]}}
    with torch.device("meta"), pytest.raises(InvalidConfigError, match="PIXEL_MEAN"):
        XDecoder(config)


def test_semantic_inference_is_a_sum_over_queries() -> None:
    g = torch.Generator().manual_seed(3)
    logits, masks = torch.randn(5, 4, generator=g), torch.randn(5, 2, 3, generator=g)
    for rows, with_token in ((4, False), (5, True)):
        expected = torch.zeros(3, 2, 3)
        for q in range(rows):
            for label in range(3):
                expected[label] += logits[q].softmax(0)[label] * masks[q].sigmoid()
        got = postprocess.semantic_inference(logits, masks, include_class_token=with_token)
        assert torch.allclose(got, expected, atol=1e-6)


def test_the_models_semantic_inference_is_the_references(
    reference: Callable[[str], Any], network: Callable[..., Any]
) -> None:
    stages, model = reference("focall").stages, network("focall", torch.float64)
    text = torch.from_numpy(stages["text_embed"]).double()
    got = model.semantic_inference(stages["image"], text)[0]
    assert np.abs(got.numpy() - stages["semantic_inference"]).max() <= 2e-6
    assert model.semantic_inference(stages["image"], text, output_size=(50, 70)).shape == (1, 5, 50, 70)
    every = model.semantic_inference(stages["image"], text, include_class_token=True)[0]
    assert (every > got).all()


def test_the_best_query_wins_a_pixel() -> None:
    g = torch.Generator().manual_seed(4)
    logits, masks = torch.randn(6, 3, generator=g), torch.randn(6, 4, 4, generator=g)
    score, winner, own = postprocess.assign_queries(logits, masks)
    for y in range(4):
        for x in range(4):
            values = [logits[q].softmax(0)[:-1].max() * masks[q, y, x].sigmoid() for q in range(5)]
            assert int(winner[y, x]) == int(np.argmax(values))
            assert bool(own[y, x]) == bool(masks[winner[y, x], y, x] >= 0)
    assert score.shape == (5,)


def test_padding_is_cut_off_or_stretched() -> None:
    masks = torch.zeros(1, 1, 8, 8)
    masks[..., :4] = 10.0  # the left half of the padded grid of 32 x 32 pixels
    cropped = postprocess.masks_at_size(masks, (32, 24), (32, 32))
    stretched = postprocess.masks_at_size(masks, (32, 24), (32, 32), crop_padding=False)
    assert cropped.shape == stretched.shape == (1, 1, 32, 24)
    assert int((cropped[0, 0, 0] > 5).sum()) == 16  # still 16 pixels wide
    assert int((stretched[0, 0, 0] > 5).sum()) == 12  # still half of the image
    assert postprocess.masks_at_size(masks, (32, 24), (32, 32), output_size=(16, 12)).shape == (1, 1, 16, 12)
