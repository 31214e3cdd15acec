"""X-Decoder's reference outputs, the rule that makes their large weights, and full-size configurations."""

from __future__ import annotations

import copy
import json
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

BACKBONE, PIXEL_DECODER = "backbone.", "sem_seg_head.pixel_decoder."
FULL_IMAGES = {
    "focalt": {"NAME": "focal_dw", "EMBED_DIM": 96, "DEPTHS": [2, 2, 6, 2]},
    "focall": {"NAME": "focal", "EMBED_DIM": 192, "DEPTHS": [2, 2, 18, 2]},
    "davitd3": {
        "DEPTHS": [1, 1, 9, 1],
        "DIM_EMBED": [128, 256, 512, 1024],
        "NUM_HEADS": [4, 8, 16, 32],
        "NUM_GROUPS": [4, 8, 16, 32],
        "PATCH_SIZE": [7, 2, 2, 2],
        "PATCH_PADDING": [3, 0, 0, 0],
    },
    "davitd5": {
        "DEPTHS": [1, 1, 9, 1],
        "DIM_EMBED": [256, 512, 1024, 2048],
        "NUM_HEADS": [8, 16, 32, 64],
        "NUM_GROUPS": [8, 16, 32, 64],
    },
}


@dataclass(frozen=True)
class Reference:
    """One shrunken network of the reference data: configuration, weights, and what it computed in float64."""

    folder: Path
    variant: str

    @cached_property
    def config(self) -> dict[str, Any]:
        return json.loads((self.folder / f"small_{self.variant}_config.json").read_text())

    @cached_property
    def stages(self) -> dict[str, np.ndarray]:
        with np.load(self.folder / f"small_{self.variant}_f64.npz") as arrays:
            return dict(arrays)

    def weights(self, prefix: str) -> dict[str, torch.Tensor]:
        """The state dict below a prefix, without it."""
        from safetensors.torch import load_file

        state = load_file(self.folder / f"small_{self.variant}_weights.safetensors")
        return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}

    def images(self, dtype: torch.dtype) -> torch.Tensor:
        """(1, 3, H, W): normalised and padded as the reference did it, with float32 mean and deviation."""
        image = torch.from_numpy(self.stages["image"]).to(dtype)
        mean, std = (torch.tensor(self.config["INPUT"][key])[:, None, None] for key in ("PIXEL_MEAN", "PIXEL_STD"))
        bottom, right = -image.shape[1] % 32, -image.shape[2] % 32
        return torch.nn.functional.pad((image - mean.to(dtype)) / std.to(dtype), (0, right, 0, bottom))[None]

    def features(self) -> dict[str, torch.Tensor]:
        """The reference's own backbone outputs, in float64."""
        return {f"res{i}": torch.from_numpy(self.stages[f"backbone_res{i}"]).double() for i in range(2, 6)}


@pytest.fixture(scope="session")
def reference(shared_dir: Path) -> Callable[[str], Reference]:
    """The reference data of a variant; skips where it is absent."""
    known: dict[str, Reference] = {}

    def load(variant: str) -> Reference:
        folder = shared_dir / "golden" / "xdecoder"
        if not (folder / f"small_{variant}_f64.npz").is_file():
            pytest.skip(f"no reference outputs of {variant} beside the repository")
        return known.setdefault(variant, Reference(folder, variant))

    return load


@pytest.fixture(scope="session")
def full_config(reference: Callable[[str], Reference]) -> Callable[[str], dict[str, Any]]:
    """A configuration whose image side has the published size."""

    def make(variant: str) -> dict[str, Any]:
        config = copy.deepcopy(reference("davitd5" if variant == "davitd3" else variant).config)
        model, values = config["MODEL"], dict(FULL_IMAGES[variant])
        model["BACKBONE"]["NAME"] = values.pop("NAME", "davit")
        model["BACKBONE"]["DAVIT" if variant.startswith("davit") else "FOCAL"].update(values)
        model["ENCODER"].update(CONVS_DIM=512, MASK_DIM=512, TRANSFORMER_ENC_LAYERS=6)
        model["DECODER"].update(HIDDEN_DIM=512, NHEADS=8, DIM_FEEDFORWARD=2048)
        return config

    return make


@pytest.fixture(scope="session")
def manifest(shared_dir: Path) -> Callable[[str, str], dict[str, tuple[int, ...]]]:
    """Shapes of the official state dict below a prefix, by key."""

    def load(variant: str, prefix: str) -> dict[str, tuple[int, ...]]:
        path = shared_dir / "reference" / "manifests" / f"xdecoder_{variant}_manifest.json"
        if not path.is_file():
            pytest.skip(f"{path.name} is absent")
        state = json.loads(path.read_text())["state_dict"]
        return {k.removeprefix(prefix): tuple(v["shape"]) for k, v in state.items() if k.startswith(prefix)}

    return load


@pytest.fixture(scope="session")
def regenerate() -> Callable[..., None]:
    """Fills a module with the weights that the reference run had under these keys (``golden/README.md``)."""

    def fill(module: torch.nn.Module, prefix: str) -> None:
        state = {key: _by_rule(prefix + key, value) for key, value in module.state_dict().items()}
        module.load_state_dict(state)

    return fill


def _by_rule(key: str, value: torch.Tensor) -> torch.Tensor:
    last = key.rsplit(".", 1)[-1]
    if not value.is_floating_point():
        return value
    if key.endswith("logit_scale"):
        return torch.full_like(value, math.log(1 / 0.07))
    seed = zlib.crc32(key.encode()) & 0x7FFFFFFF
    r = torch.randn(value.shape, generator=torch.Generator().manual_seed(seed))
    if last.startswith("gamma"):
        return 0.5 + 0.1 * r
    if value.dim() <= 1:
        return 1 + 0.1 * r if last == "weight" else 0.1 * r
    fan = math.prod(value.shape[1:])
    if last in ("lang_proj", "class_embed", "caping_embed", "backbone_proj"):
        fan = value.shape[0]
    if any(part in key for part in ("embedding", "query_", "level_embed", "pos_embed")):
        fan = 4
    return r / math.sqrt(fan)


@dataclass(frozen=True)
class FullFocalT:
    """What the full-size Focal-T gives on the reference's 256x320 image, and what the reference got."""

    stages: dict[str, np.ndarray]
    features: dict[str, torch.Tensor]
    mask_features: torch.Tensor
    coarsest: torch.Tensor


@pytest.fixture(scope="session")
def full_focalt(
    shared_dir: Path, full_config: Callable[[str], dict[str, Any]], regenerate: Callable[..., None]
) -> FullFocalT:
    """Computed once in float32, with weights by the rule."""
    from geopurify_core.vision.xdecoder.image import build_backbone, build_pixel_decoder

    path = shared_dir / "golden" / "xdecoder" / "full_focalt_256x320_f32.npz"
    if not path.is_file():
        pytest.skip(f"{path.name} is absent")
    with np.load(path) as arrays:
        stages = dict(arrays)
    config = full_config("focalt")
    backbone = build_backbone(config)
    decoder = build_pixel_decoder(config, backbone.channels)
    regenerate(backbone, BACKBONE)
    regenerate(decoder, PIXEL_DECODER)
    image = torch.round(255 * torch.rand(3, 256, 320, generator=torch.Generator().manual_seed(7)))
    mean, std = (torch.tensor(config["INPUT"][key])[:, None, None] for key in ("PIXEL_MEAN", "PIXEL_STD"))
    with torch.inference_mode():
        features = backbone(((image - mean) / std)[None])
        mask_features, _, scales = decoder(features)
    return FullFocalT(stages, features, mask_features, scales[0])


@pytest.fixture(scope="session")
def whole_state(reference: Callable[[str], Reference]) -> Callable[[str], dict[str, torch.Tensor]]:
    """The whole state dict of a shrunken network: the file's, and the token embedding by the rule. A fresh dict."""
    known: dict[str, dict[str, torch.Tensor]] = {}

    def load(variant: str) -> dict[str, torch.Tensor]:
        if variant not in known:
            key = "sem_seg_head.predictor.lang_encoder.lang_encoder.token_embedding.weight"
            width = reference(variant).config["MODEL"]["TEXT"]["WIDTH"]
            known[variant] = {**reference(variant).weights(""), key: _by_rule(key, torch.empty(49408, width))}
        return dict(known[variant])

    return load


@pytest.fixture(scope="session")
def network(
    reference: Callable[[str], Reference], whole_state: Callable[[str], dict[str, torch.Tensor]]
) -> Callable[[str, torch.dtype], Any]:
    """A whole shrunken network with the reference's weights, built once for each variant and type."""
    from geopurify_core.vision.xdecoder import XDecoder

    known: dict[tuple[str, torch.dtype], Any] = {}

    def build(variant: str, dtype: torch.dtype) -> Any:
        if (variant, dtype) not in known:
            config = reference(variant).config
            known[variant, dtype] = XDecoder.from_config(config, whole_state(variant), dtype=dtype)
        return known[variant, dtype]

    return build
