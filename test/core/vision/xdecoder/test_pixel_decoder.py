"""The pixel decoder and its attention against the reference outputs, the manifests, torch's own layers and formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from geopurify_core.errors import BackboneError, InvalidConfigError

torch = pytest.importorskip("torch")

from geopurify_core.vision.xdecoder.image import build_backbone, build_pixel_decoder  # noqa: E402
from geopurify_core.vision.xdecoder.layers import (  # noqa: E402
    BlockedConv2d,
    MultiHeadAttention,
    sine_position_encoding,
)
from geopurify_core.vision.xdecoder.pixel_decoder import EncoderLayer, PixelDecoderConfig  # noqa: E402

PREFIX = "sem_seg_head.pixel_decoder."
CHANNELS = {"res2": 8, "res3": 16, "res4": 24, "res5": 40}


def config_of(encoder: dict[str, Any] | None = None, decoder: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "MODEL": {
            "ENCODER": {
                "NAME": "transformer_encoder_fpn",
                "IN_FEATURES": ["res2", "res3", "res4", "res5"],
                "CONVS_DIM": 32,
                "MASK_DIM": 20,
                "NORM": "GN",
                "TRANSFORMER_ENC_LAYERS": 2,
                **(encoder or {}),
            },
            "DECODER": {"NHEADS": 4, "DIM_FEEDFORWARD": 48, "PRE_NORM": False, **(decoder or {})},
        }
    }


def named(outputs: tuple[Any, Any, list[Any]]) -> dict[str, Any]:
    mask_features, transformer, scales = outputs
    scales_by_name = {f"pix_ms{i}": scale for i, scale in enumerate(scales)}
    return {"pix_mask_features": mask_features, "pix_transformer": transformer, **scales_by_name}


@pytest.mark.parametrize("variant", ["focall", "focalt", "davitd5"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 2e-5)])
def test_after_the_backbone_every_stage_is_the_references(
    reference: Callable[[str], Any], variant: str, dtype: torch.dtype, tolerance: float
) -> None:
    data = reference(variant)
    backbone = build_backbone(data.config)
    backbone.load_state_dict(data.weights("backbone."))
    decoder = build_pixel_decoder(data.config, backbone.channels)
    decoder.load_state_dict(data.weights(PREFIX))
    with torch.inference_mode():
        outputs = named(decoder.to(dtype)(backbone.to(dtype)(data.images(dtype))))
    assert list(outputs) == ["pix_mask_features", "pix_transformer", "pix_ms0", "pix_ms1", "pix_ms2"]
    for name, output in outputs.items():
        assert output.dtype == dtype and output.shape == data.stages[name].shape
        assert np.abs(output.numpy() - data.stages[name]).max() <= tolerance, name  # values up to 4.5


def test_full_size_is_the_references(full_focalt: Any) -> None:
    mask_features = full_focalt.mask_features[..., ::8, ::8].numpy()
    for got, key in ((mask_features, "pix_mask_features_s8"), (full_focalt.coarsest.numpy(), "pix_ms0")):
        expected = full_focalt.stages[key]
        assert np.abs(got - expected).max() <= 2e-5, key


@pytest.mark.parametrize("variant", ["focall", "focalt", "davitd3", "davitd5"])
def test_keys_and_shapes_are_the_official_ones(
    variant: str, full_config: Callable[[str], Any], manifest: Callable[[str, str], Any]
) -> None:
    config = full_config(variant)
    with torch.device("meta"):
        decoder = build_pixel_decoder(config, build_backbone(config).channels)
    assert {key: tuple(value.shape) for key, value in decoder.state_dict().items()} == manifest(variant, PREFIX)


@pytest.mark.parametrize("masked", [True, False])
def test_attention_is_torchs_with_the_same_state_dict(masked: bool) -> None:
    torch.manual_seed(0)
    theirs = torch.nn.MultiheadAttention(12, 3, batch_first=True).double()
    ours = MultiHeadAttention(12, 3).double()
    torch.nn.init.normal_(theirs.in_proj_bias)
    ours.load_state_dict(theirs.state_dict())
    query, key, value = (torch.randn(2, n, 12, dtype=torch.float64) for n in (5, 7, 7))
    allowed = torch.rand(2, 1, 5, 7) < 0.6
    allowed[..., 0] = True
    blocked = (~allowed).expand(2, 3, 5, 7).flatten(0, 1)
    expected, _ = theirs(query, key, value, attn_mask=blocked if masked else None)
    got = ours(query, key, value, allowed if masked else None)
    assert torch.allclose(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("pre_norm", [True, False])
def test_encoder_layer_is_torchs_when_all_stand_in_one_place(pre_norm: bool) -> None:
    torch.manual_seed(0)
    config = PixelDecoderConfig(("res5",), 12, 12, 1, 3, 20, pre_norm)
    ours = EncoderLayer(config).double()
    theirs = torch.nn.TransformerEncoderLayer(12, 3, 20, 0.0, batch_first=True, norm_first=pre_norm).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 6, 12, dtype=torch.float64)
    got = ours(x, torch.zeros(6, 12, dtype=torch.float64))
    assert torch.allclose(got, theirs(x), rtol=0, atol=1e-12)


def test_convolution_in_blocks_is_the_convolution_with_fewer_digits_lost() -> None:
    torch.manual_seed(0)
    blocked = BlockedConv2d(256, 8, 3, stride=2, padding=1, block=32)
    plain = torch.nn.Conv2d(256, 8, 3, stride=2, padding=1)
    plain.load_state_dict(blocked.state_dict())
    x = torch.randn(2, 256, 9, 11)
    with torch.inference_mode():
        got, usual = blocked(x), plain(x)
        exact = blocked.double()(x.double())
    assert torch.equal(exact, plain.double()(x.double()))
    assert torch.allclose(got, exact.float(), rtol=0, atol=2e-6)
    # Rounding depends on the processor: no worse than usual, with room for luck.
    assert (got - exact).square().mean() <= 1.5 * (usual - exact).square().mean()


def test_positions_follow_detrs_formula() -> None:
    height, width, channels = 3, 5, 8
    got = sine_position_encoding(height, width, channels, dtype=torch.float64)
    half = channels // 2
    for i in range(height):
        for j in range(width):
            for part, (cell, cells) in enumerate(((i, height), (j, width))):
                angle = 2 * math.pi * (cell + 1) / (cells + 1e-6)
                for c in range(half):
                    phase = angle / 10000 ** (2 * (c // 2) / half)
                    expected = math.sin(phase) if c % 2 == 0 else math.cos(phase)
                    assert abs(float(got[i, j, part * half + c]) - expected) <= 1e-12
    halved = sine_position_encoding(height, width, channels, dtype=torch.float16)
    assert halved.dtype == torch.float16 and torch.allclose(halved.double(), got, atol=1e-3)


def test_extra_features_are_ignored_and_missing_ones_named() -> None:
    decoder = build_pixel_decoder(config_of({"IN_FEATURES": ["res3", "res4", "res5"]}), CHANNELS)
    sizes = {"res2": (8, 12), "res3": (4, 6), "res4": (2, 3), "res5": (1, 2)}
    features = {name: torch.randn(1, CHANNELS[name], *size) for name, size in sizes.items()}
    mask_features, encoded, scales = decoder(features)
    assert mask_features.shape == (1, 20, 4, 6) and encoded.shape == (1, 32, 1, 2)
    assert [tuple(scale.shape[2:]) for scale in scales] == [(1, 2), (2, 3), (4, 6)]
    del features["res4"]
    with pytest.raises(BackboneError, match="res4"):
        decoder(features)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_finite_and_near(reference: Callable[[str], Any], dtype: torch.dtype) -> None:
    data = reference("focalt")
    decoder = build_pixel_decoder(data.config, build_backbone(data.config).channels)
    decoder.load_state_dict(data.weights(PREFIX))
    with torch.inference_mode():
        outputs = named(decoder.to(dtype)({name: value.to(dtype) for name, value in data.features().items()}))
    for name, output in outputs.items():
        assert output.dtype == dtype
        relative = np.linalg.norm(output.float().numpy() - data.stages[name]) / np.linalg.norm(data.stages[name])
        assert relative <= (0.05 if dtype is torch.bfloat16 else 0.01), name


def test_without_group_norms_and_with_norms_first() -> None:
    keys = build_pixel_decoder(config_of({"NORM": ""}, {"PRE_NORM": True}), CHANNELS).state_dict()
    assert "layer_1.bias" in keys and "layer_1.norm.weight" not in keys
    assert "transformer.encoder.norm.weight" in keys


@pytest.mark.parametrize(
    ("encoder", "decoder", "field"),
    [
        ({"NAME": "multiscale_deform"}, {}, "MODEL.ENCODER.NAME"),
        ({"IN_FEATURES": ["res3", "res4", "res6"]}, {}, "MODEL.ENCODER.IN_FEATURES"),
        ({"IN_FEATURES": ["res4", "res5"]}, {}, "MODEL.ENCODER.IN_FEATURES"),
        ({"CONVS_DIM": 48}, {}, "MODEL.ENCODER.CONVS_DIM"),
        ({}, {"NHEADS": 5}, "MODEL.ENCODER.CONVS_DIM"),
        ({"NORM": "BN"}, {}, "MODEL.ENCODER.NORM"),
        ({}, {"DIM_FEEDFORWARD": True}, "MODEL.DECODER.DIM_FEEDFORWARD"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_by_name(
    encoder: dict[str, Any], decoder: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidConfigError) as caught:
        build_pixel_decoder(config_of(encoder, decoder), CHANNELS)
    assert caught.value.field == field
