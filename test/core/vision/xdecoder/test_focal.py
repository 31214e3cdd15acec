"""Focal-T and Focal-L against the reference outputs, the manifests, and a modulation computed cell by cell."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from geopurify_core.errors import InvalidConfigError

torch = pytest.importorskip("torch")

from geopurify_core.vision.xdecoder.focal import FocalBlock, FocalConfig, FocalModulation  # noqa: E402
from geopurify_core.vision.xdecoder.image import build_backbone  # noqa: E402

BACKBONE = "backbone."
BASE: dict[str, Any] = {
    "EMBED_DIM": 8,
    "DEPTHS": [1, 1, 2, 1],
    "FOCAL_LEVELS": [2, 2, 3, 1],
    "FOCAL_WINDOWS": [3, 3, 5, 3],
}


def config_of(name: str = "focal", **values: Any) -> dict[str, Any]:
    return {"MODEL": {"BACKBONE": {"NAME": name, "FOCAL": {**BASE, **values}}}}


def randomise(module: torch.nn.Module) -> torch.nn.Module:
    """Every parameter matters: a layer scale of 1e-4 would hide a wrong branch."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return module


@pytest.mark.parametrize("variant", ["focall", "focalt"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 2e-5)])
def test_stages_are_the_references(
    reference: Callable[[str], Any], variant: str, dtype: torch.dtype, tolerance: float
) -> None:
    data = reference(variant)
    backbone = build_backbone(data.config)
    backbone.load_state_dict(data.weights(BACKBONE))
    with torch.inference_mode():
        features = backbone.to(dtype)(data.images(dtype))
    assert list(features) == ["res2", "res3", "res4", "res5"]
    for name, feature in features.items():
        expected = data.stages[f"backbone_{name}"]
        assert feature.dtype == dtype and feature.shape == expected.shape
        assert np.abs(feature.numpy() - expected).max() <= tolerance, name  # values up to 6


def test_full_size_focal_t_is_the_references(full_focalt: Any) -> None:
    for name, stride in (("res2", 8), ("res3", 4), ("res4", 2), ("res5", 1)):
        key = f"backbone_{name}_s{stride}" if stride > 1 else f"backbone_{name}"
        expected = full_focalt.stages[key]
        error = np.abs(full_focalt.features[name][..., ::stride, ::stride].numpy() - expected).max()
        assert error <= 2e-5 * max(1.0, np.abs(expected).max()), name


@pytest.mark.parametrize("variant", ["focall", "focalt"])
def test_keys_and_shapes_are_the_official_ones(
    variant: str, full_config: Callable[[str], Any], manifest: Callable[[str, str], Any]
) -> None:
    with torch.device("meta"):
        backbone = build_backbone(full_config(variant))
    assert {key: tuple(value.shape) for key, value in backbone.state_dict().items()} == manifest(variant, BACKBONE)


@pytest.mark.parametrize("scaled", [True, False])
def test_modulation_equals_its_equations_cell_by_cell(scaled: bool) -> None:
    config = FocalConfig(False, 3, (1,), (2,), (3,), scale_modulator=scaled, norm_in_modulation=True)
    layer = randomise(FocalModulation(config, 0)).double()
    height, width, dim, levels = 4, 5, 3, 2
    x = torch.randn(1, height, width, dim, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    got = layer(x)[0]

    def gelu(value: torch.Tensor) -> torch.Tensor:
        return value * 0.5 * (1 + torch.erf(value / math.sqrt(2)))

    projected = x[0] @ layer.f.weight.T + layer.f.bias
    query, context, gates = projected[..., :dim], projected[..., dim : 2 * dim], projected[..., 2 * dim :]
    total = torch.zeros_like(context)
    for level in range(levels):
        kernel = layer.focal_layers[level][0].weight[:, 0]
        reach = kernel.shape[-1] // 2
        assert kernel.shape[-1] == 3 + 2 * level
        wider = torch.zeros_like(context)
        for i in range(height):
            for j in range(width):
                for di in range(-reach, reach + 1):
                    for dj in range(-reach, reach + 1):
                        if 0 <= i + di < height and 0 <= j + dj < width:
                            wider[i, j] += kernel[:, di + reach, dj + reach] * context[i + di, j + dj]
        context = gelu(wider)
        total += context * gates[..., level, None]
    total += gelu(context.mean(dim=(0, 1))) * gates[..., levels, None]
    if scaled:
        total /= levels + 1
    modulated = query * (total @ layer.h.weight[:, :, 0, 0].T + layer.h.bias)
    centred = modulated - modulated.mean(-1, keepdim=True)
    normed = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-5) * layer.ln.weight + layer.ln.bias
    expected = normed @ layer.proj.weight.T + layer.proj.bias
    assert torch.allclose(got, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("depthwise", [True, False])
@pytest.mark.parametrize("post_norm", [True, False])
@pytest.mark.parametrize("layer_scale", [True, False])
def test_block_adds_and_norms_in_its_flavours_order(depthwise: bool, post_norm: bool, layer_scale: bool) -> None:
    config = FocalConfig(depthwise, 4, (1,), (1,), (3,), post_norm=post_norm, layer_scale=layer_scale)
    block = randomise(FocalBlock(config, 0)).double()
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    y = x
    for conv, body, norm, gamma in (
        (block.dw1, block.modulation, block.norm1, block.gamma_1),
        (block.dw2, block.mlp, block.norm2, block.gamma_2),
    ):
        scale = gamma if layer_scale else 1.0
        if depthwise:
            y = y + conv(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        if not post_norm:
            y = y + scale * body(norm(y))
        elif depthwise:
            y = norm(y + scale * body(y))
        else:
            y = y + scale * norm(body(y))
    assert torch.allclose(block(x), y, rtol=0, atol=1e-10)
    assert any(key.startswith("gamma") for key in block.state_dict()) == layer_scale


@pytest.mark.parametrize("name", ["focal", "focal_dw"])
def test_any_size_any_mode_any_batch_gives_the_same_features(name: str) -> None:
    backbone = randomise(build_backbone(config_of(name, DROP_PATH_RATE=0.9, DROP_RATE=0.9)))
    images = torch.randn(2, 3, 45, 70, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        together = backbone.train()(images)
        channels_last = backbone.eval()(images.contiguous(memory_format=torch.channels_last))
        alone = backbone(images[1:])
    sizes = {stage: tuple(feature.shape[2:]) for stage, feature in together.items()}
    assert sizes == {"res2": (12, 18), "res3": (6, 9), "res4": (3, 5), "res5": (2, 3)}
    for stage, feature in together.items():
        assert torch.allclose(feature, channels_last[stage], atol=1e-4)
        assert torch.allclose(feature[1:], alone[stage], atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_finite_and_near(reference: Callable[[str], Any], dtype: torch.dtype) -> None:
    data = reference("focalt")
    backbone = build_backbone(data.config)
    backbone.load_state_dict(data.weights(BACKBONE))
    images = data.images(torch.float32)[..., :64, :64]
    with torch.inference_mode():
        expected = backbone(images)
        features = backbone.to(dtype)(images.to(dtype))
    for name, feature in features.items():
        assert feature.dtype == dtype
        relative = torch.norm(feature.float() - expected[name]) / torch.norm(expected[name])
        assert relative <= (0.05 if dtype is torch.bfloat16 else 0.01), name


def test_returns_only_what_is_asked_for() -> None:
    backbone = build_backbone(config_of(OUT_FEATURES=["res3", "res5"], OUT_INDICES=[1, 3]))
    assert backbone.channels == {"res3": 16, "res5": 64} and backbone.strides == {"res3": 8, "res5": 32}
    assert list(backbone(torch.zeros(1, 3, 32, 32))) == ["res3", "res5"]
    assert not any(key.startswith(("norm0", "norm2")) for key in backbone.state_dict())


def test_disjoint_patches_and_no_patch_norm() -> None:
    backbone = build_backbone(config_of(USE_CONV_EMBED=False, PATCH_NORM=False, PATCH_SIZE=2))
    assert backbone.patch_embed.proj.kernel_size == (2, 2)
    assert "patch_embed.norm.weight" not in backbone.state_dict()
    assert backbone(torch.zeros(1, 3, 16, 32))["res2"].shape == (1, 8, 8, 16)


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({}, "MODEL"),
        ({"MODEL": {"BACKBONE": {"NAME": "swin"}}}, "MODEL.BACKBONE.NAME"),
        ({"MODEL": {"BACKBONE": {"NAME": "focal", "DAVIT": {}}}}, "MODEL.BACKBONE.FOCAL"),
        (config_of(EMBED_DIM="wide"), "MODEL.BACKBONE.FOCAL.EMBED_DIM"),
        (config_of(DEPTHS=[]), "MODEL.BACKBONE.FOCAL.DEPTHS"),
        (config_of(DEPTHS=[1, 1, 1, 1, 1]), "MODEL.BACKBONE.FOCAL.DEPTHS"),
        (config_of(FOCAL_LEVELS=[3, 3, 3]), "MODEL.BACKBONE.FOCAL.FOCAL_LEVELS"),
        (config_of(FOCAL_WINDOWS=[3, 3, 4, 3]), "MODEL.BACKBONE.FOCAL.FOCAL_WINDOWS"),
        (config_of(MLP_RATIO=0), "MODEL.BACKBONE.FOCAL.MLP_RATIO"),
        (config_of(USE_POSTLN="yes"), "MODEL.BACKBONE.FOCAL.USE_POSTLN"),
        (config_of(PATCH_SIZE=8), "MODEL.BACKBONE.FOCAL.PATCH_SIZE"),
        (config_of(OUT_INDICES=[0, 4]), "MODEL.BACKBONE.FOCAL.OUT_INDICES"),
        (config_of(OUT_INDICES=[0, 1]), "MODEL.BACKBONE.FOCAL.OUT_FEATURES"),
        (config_of(OUT_FEATURES=["res2", "res2"]), "MODEL.BACKBONE.FOCAL.OUT_FEATURES"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_by_name(config: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidConfigError) as caught:
        build_backbone(copy.deepcopy(config))
    assert caught.value.field == field
