"""The masked decoder on the reference's own maps, and its parts against plain loops."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from geopurify_core.errors import InvalidConfigError

torch = pytest.importorskip("torch")

from geopurify_core.vision.xdecoder.decoder import DecoderConfig, _may_look, blocked_self_attention  # noqa: E402
from geopurify_core.vision.xdecoder.section import Section  # noqa: E402


def maps(stages: dict[str, np.ndarray], dtype: torch.dtype) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The reference's multi-scale maps and mask features."""
    tensors = [torch.from_numpy(stages[name]).to(dtype) for name in ("pix_ms0", "pix_ms1", "pix_ms2")]
    return tensors, torch.from_numpy(stages["pix_mask_features"]).to(dtype)


# The inputs are stored in float32, so that float64 cannot be nearer than their rounding carried through the layers.
@pytest.mark.parametrize("variant", ["focall", "focalt", "davitd5"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 5e-6), (torch.float32, 2e-5)])
def test_every_layer_is_the_references(
    reference: Callable[[str], Any], network: Callable[..., Any], variant: str, dtype: torch.dtype, tolerance: float
) -> None:
    stages, model = reference(variant).stages, network(variant, dtype)
    with torch.inference_mode():
        *auxiliary, last = model.predictor(*maps(stages, dtype), every_layer=True)
        text = torch.from_numpy(stages["text_embed"]).to(dtype)
        logits = model.logits(last.class_embed, text)
    assert np.abs(last.class_embed.numpy() - stages["pred_captions_class_embed"]).max() <= tolerance
    assert np.abs(logits.numpy() - stages["pred_logits"]).max() <= tolerance
    assert np.abs(last.masks.numpy() - stages["pred_masks"]).max() <= tolerance * np.abs(stages["pred_masks"]).max()
    assert len(auxiliary) == 4
    for i, heads in enumerate(auxiliary):
        assert np.abs(heads.class_embed.numpy() - stages[f"aux{i}_class_embed"]).max() <= tolerance, i


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_quick_way_gives_the_same(
    reference: Callable[[str], Any], network: Callable[..., Any], dtype: torch.dtype
) -> None:
    scales, mask_features = maps(reference("focalt").stages, dtype)
    decoder = network("focalt", dtype).predictor
    with torch.inference_mode():
        (quick,) = decoder(scales, mask_features)
        exact = decoder(scales, mask_features, every_layer=True)[-1]
    assert (quick.class_embed - exact.class_embed).abs().max() <= 2e-5
    assert (quick.masks - exact.masks).abs().max() <= 2e-5


def test_images_of_a_batch_do_not_meet(reference: Callable[[str], Any], network: Callable[..., Any]) -> None:
    decoder = network("focall", torch.float64).predictor
    first, second = (maps(reference(name).stages, torch.float64) for name in ("focall", "focalt"))
    with torch.inference_mode():
        scales = [torch.cat(pair) for pair in zip(first[0], second[0], strict=True)]
        (both,) = decoder(scales, torch.cat([first[1], second[1]]))
        for i, one in enumerate((first, second)):
            (alone,) = decoder(*one)
            assert torch.allclose(both.masks[i], alone.masks[0], rtol=0, atol=1e-10)
            assert torch.allclose(both.class_embed[i], alone.class_embed[0], rtol=0, atol=1e-10)


def test_the_class_token_is_the_mean_of_the_objects_like_it(network: Callable[..., Any]) -> None:
    decoder = network("focall", torch.float64).predictor
    x = torch.randn(2, 21, 64, generator=torch.Generator().manual_seed(0)).double()
    got = decoder._normalised(x)
    for b in range(2):
        y = decoder.decoder_norm(x[b])
        cosines = torch.stack([y[-1] @ q / (y[-1].norm() + 1e-7) / (q.norm() + 1e-7) for q in y[:-1]])
        token = sum(weight * q for weight, q in zip(cosines.softmax(0), y[:-1], strict=True))
        assert torch.allclose(got[b, -1], token, rtol=0, atol=1e-12)
        assert torch.equal(got[b, :-1], y[:-1])


def test_a_query_looks_inside_of_its_mask_or_everywhere() -> None:
    masks = torch.tensor([[[[1.0, -1.0], [0.0, -3.0]], [[-1.0, -2.0], [-0.5, -9.0]]]])
    assert _may_look(masks).tolist() == [[[[True, False, True, False], [True, True, True, True]]]]


def test_who_sees_whom() -> None:
    queries, caption = 4, 3
    blocked = blocked_self_attention(queries, caption)[0]
    for row in range(queries + caption):
        for column in range(queries + caption):
            if row >= queries:
                expected = column > row
            else:
                expected = column >= queries or (row == queries - 1) != (column == queries - 1)
            assert bool(blocked[row, column]) is expected, (row, column)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("PRE_NORM", True),
        ("NHEADS", 7),
        ("NUM_OBJECT_QUERIES", 1),
        ("DEC_LAYERS", 1),
        ("HIDDEN_DIM", 0),
        ("DIM_FEEDFORWARD", None),
    ],
)
def test_a_configuration_that_cannot_be_built_names_the_key(
    reference: Callable[[str], Any], key: str, value: Any
) -> None:
    config = copy.deepcopy(reference("focall").config)
    config["MODEL"]["DECODER"][key] = value
    with pytest.raises(InvalidConfigError, match=key if key != "NHEADS" else "HIDDEN_DIM"):
        DecoderConfig.from_section(Section(config).section("MODEL"))
