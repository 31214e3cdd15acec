"""The published architectures, as the trees that the official configuration files would give."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

VARIANTS = ("focalt", "focall", "davitd3", "davitd5")

_STAGES = ["res2", "res3", "res4", "res5"]


def canonical(name: str) -> str:
    """``focalt`` from ``Focal-T``, ``xdecoder_focalt_last`` or ``focalt_unicl_lang``; other names unchanged."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower()).removeprefix("xdecoder")
    for variant in VARIANTS:
        if re.fullmatch(variant + "(unicl)?(lang)?(last|bestseg|bestopenseg)?", plain):
            return variant
    return name


def published(variant: str) -> dict[str, Any] | None:
    """The configuration of one of ``VARIANTS``, a fresh copy; None for any other name."""
    name = canonical(variant)
    backbones = {
        "focalt": _focal("focal_dw", 96, [2, 2, 6, 2], levels=3, post_norm_everywhere=True),
        "focall": _focal("focal", 192, [2, 2, 18, 2], levels=4, post_norm_everywhere=True),
        "davitd3": _davit([128, 256, 512, 1024], [4, 8, 16, 32], kernel=2, padding=0),
        "davitd5": _davit([256, 512, 1024, 2048], [8, 16, 32, 64], kernel=3, padding=1),
    }
    if name not in backbones:
        return None
    backbone, width = backbones[name]
    return _model(backbone, width, queries=101 if name == "focalt" else 201)


def _focal(
    name: str, dim: int, depths: list[int], levels: int, post_norm_everywhere: bool
) -> tuple[dict[str, Any], int]:
    focal = {
        "PATCH_SIZE": 4,
        "EMBED_DIM": dim,
        "DEPTHS": depths,
        "FOCAL_LEVELS": [levels] * 4,
        "FOCAL_WINDOWS": [3] * 4,
        "MLP_RATIO": 4.0,
        "PATCH_NORM": True,
        "USE_CONV_EMBED": True,
        "SCALING_MODULATOR": True,
        "USE_POSTLN": post_norm_everywhere,
        "USE_POSTLN_IN_MODULATION": False,
        "USE_LAYERSCALE": True,
        "OUT_FEATURES": list(_STAGES),
        "OUT_INDICES": [0, 1, 2, 3],
    }
    return {"NAME": name, "FOCAL": focal}, 8 * dim


def _davit(dims: list[int], heads: list[int], kernel: int, padding: int) -> tuple[dict[str, Any], int]:
    davit = {
        "PATCH_SIZE": [7, *[kernel] * 3],
        "PATCH_STRIDE": [4, 2, 2, 2],
        "PATCH_PADDING": [3, *[padding] * 3],
        "PATCH_PRENORM": [False, True, True, True],
        "DIM_EMBED": dims,
        "NUM_HEADS": heads,
        "NUM_GROUPS": list(heads),
        "DEPTHS": [1, 1, 9, 1],
        "OUT_FEATURES": list(_STAGES),
        "OUT_INDICES": [0, 1, 2, 3],
    }
    return {"NAME": "davit", "DAVIT": davit}, dims[-1]


def _model(backbone: Mapping[str, Any], width: int, queries: int) -> dict[str, Any]:
    return {
        "MODEL": {
            "DIM_PROJ": 512,
            "BACKBONE_DIM": width,
            "TEXT": {"CONTEXT_LENGTH": 77, "WIDTH": 512, "HEADS": 8, "LAYERS": 12, "AUTOGRESSIVE": True},
            "BACKBONE": copy.deepcopy(dict(backbone)),
            "ENCODER": {
                "NAME": "transformer_encoder_fpn",
                "NUM_CLASSES": 133,
                "CONVS_DIM": 512,
                "MASK_DIM": 512,
                "NORM": "GN",
                "IN_FEATURES": list(_STAGES),
                "TRANSFORMER_ENC_LAYERS": 6,
            },
            "DECODER": {
                "NO_OBJECT_WEIGHT": 0.1,
                "HIDDEN_DIM": 512,
                "NUM_OBJECT_QUERIES": queries,
                "NHEADS": 8,
                "DIM_FEEDFORWARD": 2048,
                "PRE_NORM": False,
                "ENFORCE_INPUT_PROJ": False,
                "SIZE_DIVISIBILITY": 32,
                "DEC_LAYERS": 10,
            },
        },
        "INPUT": {"PIXEL_MEAN": [123.675, 116.28, 103.53], "PIXEL_STD": [58.395, 57.12, 57.375]},
    }
