"""DaViT against the reference outputs, the manifests, and both attentions computed one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from geopurify_core.errors import InvalidConfigError

torch = pytest.importorskip("torch")

from geopurify_core.vision.xdecoder.davit import ChannelAttention, WindowAttention  # noqa: E402
from geopurify_core.vision.xdecoder.image import build_backbone  # noqa: E402

BACKBONE = "backbone."
BASE: dict[str, Any] = {
    "DEPTHS": [1, 1, 2, 1],
    "DIM_EMBED": [8, 16, 24, 32],
    "NUM_HEADS": [2, 2, 4, 4],
    "NUM_GROUPS": [2, 4, 3, 8],
    "PATCH_SIZE": [7, 2, 2, 2],
    "PATCH_STRIDE": [4, 2, 2, 2],
    "PATCH_PADDING": [3, 0, 0, 0],
    "PATCH_PRENORM": [False, True, True, True],
}


def config_of(**values: Any) -> dict[str, Any]:
    return {"MODEL": {"BACKBONE": {"NAME": "davit", "DAVIT": {**BASE, **values}}}}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 2e-5)])
def test_stages_are_the_references(reference: Callable[[str], Any], dtype: torch.dtype, tolerance: float) -> None:
    data = reference("davitd5")
    backbone = build_backbone(data.config)
    backbone.load_state_dict(data.weights(BACKBONE))
    with torch.inference_mode():
        features = backbone.to(dtype)(data.images(dtype))
    for name, feature in features.items():
        expected = data.stages[f"backbone_{name}"]
        assert feature.dtype == dtype and feature.shape == expected.shape
        # No output norm: values reach 90, and the reference is stored in float32.
        assert np.abs(feature.numpy() - expected).max() <= tolerance * np.abs(expected).max(), name


@pytest.mark.parametrize("variant", ["davitd3", "davitd5"])
def test_keys_and_shapes_are_the_official_ones(
    variant: str, full_config: Callable[[str], Any], manifest: Callable[[str, str], Any]
) -> None:
    with torch.device("meta"):
        backbone = build_backbone(full_config(variant))
    assert {key: tuple(value.shape) for key, value in backbone.state_dict().items()} == manifest(variant, BACKBONE)


def test_window_attention_equals_a_loop_over_windows_that_sees_the_padding() -> None:
    torch.manual_seed(0)
    dim, heads, window, height, width = 4, 2, 3, 4, 7
    layer = WindowAttention(dim, heads, window).double()
    x = torch.randn(1, height, width, dim, dtype=torch.float64)
    padded = torch.zeros(6, 9, dim, dtype=torch.float64)
    padded[:height, :width] = x[0]
    expected = torch.zeros_like(padded)
    for top in range(0, 6, window):
        for left in range(0, 9, window):
            cells = padded[top : top + window, left : left + window].reshape(-1, dim)
            q, k, v = (cells @ layer.qkv.weight.T + layer.qkv.bias).split(dim, dim=1)
            parts = []
            for head in (slice(0, 2), slice(2, 4)):
                weights = torch.softmax(q[:, head] @ k[:, head].T / 2**0.5, dim=1)
                parts.append(weights @ v[:, head])
            mixed = torch.cat(parts, dim=1) @ layer.proj.weight.T + layer.proj.bias
            expected[top : top + window, left : left + window] = mixed.reshape(window, window, dim)
    assert torch.allclose(layer(x)[0], expected[:height, :width], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dynamic_scale", [True, False])
def test_channel_attention_equals_a_loop_over_channels(dynamic_scale: bool) -> None:
    torch.manual_seed(0)
    dim, groups, height, width = 6, 2, 3, 4
    layer = ChannelAttention(dim, groups, dynamic_scale).double()
    x = torch.randn(1, height, width, dim, dtype=torch.float64)
    cells = x[0].reshape(-1, dim)
    q, k, v = (cells @ layer.qkv.weight.T + layer.qkv.bias).split(dim, dim=1)
    scale = (height * width if dynamic_scale else dim // groups) ** -0.5
    mixed = torch.zeros_like(cells)
    for c in range(dim):
        group = range(c // 3 * 3, c // 3 * 3 + 3)
        weights = torch.softmax(torch.stack([scale * (q[:, c] * k[:, d]).sum() for d in group]), dim=0)
        mixed[:, c] = sum(weight * v[:, d] for weight, d in zip(weights, group, strict=True))
    expected = (mixed @ layer.proj.weight.T + layer.proj.bias).reshape(height, width, dim)
    assert torch.allclose(layer(x)[0], expected, rtol=0, atol=1e-12)


def test_the_published_paddings_of_d3_halve_the_map() -> None:
    backbone = build_backbone(config_of())
    features = backbone(torch.zeros(1, 3, 96, 160))
    assert {name: tuple(feature.shape[1:]) for name, feature in features.items()} == {
        "res2": (8, 24, 40),
        "res3": (16, 12, 20),
        "res4": (24, 6, 10),
        "res5": (32, 3, 5),
    }
    assert backbone.channels == {"res2": 8, "res3": 16, "res4": 24, "res5": 32}
    assert backbone.strides == {"res2": 4, "res3": 8, "res4": 16, "res5": 32}


def test_any_mode_and_batch_gives_the_same_features() -> None:
    torch.manual_seed(0)
    backbone = build_backbone(config_of(DROP_PATH_RATE=0.9))
    images = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        together = backbone.train()(images)
        channels_last = backbone.eval()(images.contiguous(memory_format=torch.channels_last))
        alone = backbone(images[1:])
    for stage, feature in together.items():
        assert torch.allclose(feature, channels_last[stage], atol=1e-4)
        assert torch.allclose(feature[1:], alone[stage], atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_finite_and_near(reference: Callable[[str], Any], dtype: torch.dtype) -> None:
    data = reference("davitd5")
    backbone = build_backbone(data.config)
    backbone.load_state_dict(data.weights(BACKBONE))
    images = data.images(torch.float32)[..., :64, :64]
    with torch.inference_mode():
        expected = backbone(images)
        features = backbone.to(dtype)(images.to(dtype))
    for name, feature in features.items():
        assert feature.dtype == dtype
        relative = torch.norm(feature.float() - expected[name]) / torch.norm(expected[name])
        assert relative <= (0.1 if dtype is torch.bfloat16 else 0.02), name


def test_convolutions_can_be_left_out() -> None:
    keys = build_backbone(config_of(CONV_AT_ATTN=False, CONV_AT_FFN=False, OUT_FEATURES=["res4"])).state_dict()
    assert not any(".conv1." in key or ".conv2." in key for key in keys)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"DEPTHS": [1, 1, 1, 1, 1]}, "DEPTHS"),
        ({"DIM_EMBED": [8, 16]}, "DIM_EMBED"),
        ({"NUM_HEADS": [3, 2, 4, 4]}, "NUM_HEADS"),
        ({"NUM_GROUPS": [2, 4, 5, 8]}, "NUM_GROUPS"),
        ({"PATCH_PADDING": [3, 0, 0, -1]}, "PATCH_PADDING"),
        ({"PATCH_PRENORM": [0, 1, 1, 1]}, "PATCH_PRENORM"),
        ({"OUT_FEATURES": ["res6"]}, "OUT_FEATURES"),
        ({"WINDOW_SIZE": 0}, "WINDOW_SIZE"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_by_name(values: dict[str, Any], key: str) -> None:
    with pytest.raises(InvalidConfigError) as caught:
        build_backbone(config_of(**values))
    assert caught.value.field == f"MODEL.BACKBONE.DAVIT.{key}"
