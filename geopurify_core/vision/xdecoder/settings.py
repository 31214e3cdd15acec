"""What can be set about the backbone ``xdecoder``: one schema for its options, its YAML and docs/xdecoder.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geopurify_core.config import build, setting
from geopurify_core.errors import BackboneError, InvalidConfigError
from geopurify_core.labels import load_label_set
from geopurify_core.vision.labelled import read_yaml

RANDOM = "random"
BACKGROUND = "background"


@dataclass(frozen=True)
class XDecoderSpec:
    """Keys of the YAML, and options of the backbone."""

    weights: str = setting(
        "xdecoder_focall_last",
        "A checkpoint's name (`geopurify weights`), a .pt or .safetensors file, or random (to try without).",
    )
    variant: str = setting(
        "",
        "focalt, focall, davitd3, davitd5, or a configuration file (.json, .yaml); left out, the weights' name says.",
    )
    assignment: str = setting(
        "open",
        "open needs no labels; vocabulary is the released recipe over the given labels.",
        choices=("open", "vocabulary"),
    )
    labels: list[str] = setting([], "The labels of the assignment vocabulary.")
    label_set: str = setting("", "A label set of this package instead, as scannet20.")
    prompt: str = setting("a {} in a scene", "What a label or query is put into before the 81 templates.")
    objectness: str = setting(
        "background",
        "Weight of a query, assignment open: 1 - p(background) over COCO's names, or its mask's mean probability.",
        choices=("background", "mask"),
    )
    padding: str = setting(
        "crop",
        "crop cuts the padding off the masks; official_code stretches them over the image with it.",
        choices=("crop", "official_code"),
    )
    stride: int = setting(
        4, "Pixels a cell and side, assignment vocabulary (1 is exact); open has its masks' stride, 4.", ge=1, le=32
    )
    fill: bool = setting(
        True, "Assignment vocabulary: pixels without a mask copy the nearest one in 3D, where there is depth."
    )
    focal_px: float = setting(
        0.0, "Focal length for that nearest search; 0 takes 0.9 x the image's width.", unit="px", ge=0.0, le=1e5
    )
    precision: str = setting(
        "fp32", "fp32, bf16, or fp16 (with a GPU only); the map is the same kind.", choices=("fp32", "bf16", "fp16")
    )
    device: str = setting("auto", "auto takes a GPU where there is one.", choices=("auto", "cpu", "cuda"))
    text_cache: str = setting(
        "", "Folder for the vectors of texts; left out, geopurify/text in the user's cache; none keeps none."
    )
    seed: int = setting(0, "Of the random weights.", ge=0, le=2**31 - 1)

    def __post_init__(self) -> None:
        if not all(isinstance(label, str) and label.strip() for label in self.labels):
            raise InvalidConfigError("labels", self.labels, "Give a list of non-empty strings.")
        if self.prompt.count("{}") != 1:
            raise InvalidConfigError("prompt", self.prompt, "Write {} once, where the label goes.")
        if not self.weights:
            raise InvalidConfigError("weights", "", "Name a checkpoint; `geopurify weights` lists them.")

    def vocabulary(self) -> list[str]:
        """The labels that pixels are assigned by; none for the assignment ``open``.

        Raises:
            BackboneError: There are none, there are two lists, a label occurs twice, or they are not used.
            InvalidConfigError: Unknown label set.
        """
        if self.labels and self.label_set:
            raise BackboneError("labels", self.labels, "Give labels or label_set, not both.")
        labels = list(load_label_set(self.label_set).names) if self.label_set else [s.strip() for s in self.labels]
        if self.assignment == "open":
            if labels:
                raise BackboneError("labels", labels, "The open assignment uses none; set assignment: vocabulary.")
            return []
        if not labels:
            raise BackboneError(
                "labels", labels, "The vocabulary assignment needs at least one: set labels or label_set (scannet20)."
            )
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice or BACKGROUND in labels:
            raise BackboneError("labels", twice or BACKGROUND, "Name each label once; background is added by itself.")
        return labels


def read_settings(config: str | Path, overrides: Mapping[str, Any]) -> XDecoderSpec:
    """The YAML (or nothing) with options on top; those that are None are left out. Raises InvalidConfigError."""
    values = read_yaml(Path(config)) if config else {}
    return build(XDecoderSpec, values | {key: value for key, value in overrides.items() if value is not None})
