"""The recipe of a distillation run: every value that decides the result, and the presets.

Paper and released code contradict each other; ``paper`` and ``official_code`` are the two readings, ``robot`` is ours
for maps of 4 cm voxels and machines without a GPU. docs/distillation.md has the table of every disputed point.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from geopurify_core.errors import InvalidConfigError

VIEWS = ("scene", "sampled", "crops")
_CHOICES = {
    "view": VIEWS,
    "positive": ("most_similar", "above"),
    "ties": ("first", "random"),
    "anchor_draw": ("even", "contested"),
    "checkpointing": ("auto", "on", "off"),
    "precision": ("32-true", "bf16-mixed"),
}
# Field → (least, most); both inclusive.
_RANGES: dict[str, tuple[float, float]] = {
    "hidden": (1, 4096), "out": (1, 4096), "blocks": (0, 64), "rank": (0, 4096), "crop": (0, 10_000_000),
    "crops": (1, 64), "voxel_size_m": (1e-3, 1.0), "semantic_drop": (0, 1), "semantic_noise": (0, 10),
    "anchors": (1, 1_000_000), "macro": (0, 4096), "micro": (0, 4096), "neighbors": (1, 4096),
    "negative_ceiling": (-1, 1), "same_above": (-1, 1), "temperature": (1e-4, 100), "contrast": (0, 1e6),
    "affinity": (0, 1e6), "spread": (0, 1e6), "sharpening": (0, 1e4), "epochs": (1, 1_000_000),
    "steps": (0, 100_000_000), "lr": (1e-12, 10), "lr_input": (0, 1e3), "lr_blocks": (0, 1e3), "lr_output": (0, 1e3),
    "weight_decay": (0, 1), "warmup_epochs": (0, 1_000_000), "warmup_start": (0, 1), "lr_floor": (0, 1),
    "longest_gradient": (0, 1e9), "ema": (0, 1), "seed": (0, 2**31 - 1),
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result, besides code and data. The defaults are the paper's.

    Attributes:
        base: The preset it started from.
        hidden, out, blocks: The network.
        rank: Directions of the 2D features that training looks at; 0 for all channels. Export turns the first layer
            back into one for all of them.
        view: What the student sees: the whole ``scene``; only voxels with a ``sampled`` point, features averaged over
            the sampled points alone; ``crops``, columns cut from the scene.
        crop, crops: Voxels of a crop (with ``crops``), and scenes or crops of a step.
        voxel_size_m: Edge of the voxels made of scan points; map voxels stay what they are.
        random_frame: Scan points are voxelised in a randomly turned and scaled frame, drawn anew each time.
        augment: Quarter turns, mirroring and repainting.
        semantic_drop, semantic_noise: With ``augment``: chance that a piece, and share of its voxels otherwise, that
            comes without semantic channels; deviation of noise on them, in units of their own.
        anchors: Of a step, at most; at most a third of the points.
        anchor_draw: ``even``, or ``contested``: those with neighbours that the teacher tells apart come first.
        macro, micro: Negatives of each kind.
        neighbors: Nearest points among which micro negatives are looked for, and voxels among which affinity spreads.
        ties: Which of the points with one descriptor: the ``first``, as in the released code, or a ``random`` one.
        positive: The ``most_similar`` point, or a random one ``above`` ``same_above``.
        same_above: Teacher's cosine from which on two points belong together.
        negative_ceiling: Negatives whose teacher's cosine is higher are left out; 1 leaves out none.
        temperature: Of InfoNCE.
        contrast, affinity, spread: Weights of InfoNCE; of the cross-entropy of the affinity's mass on neighbours that
            belong together; of the same for spreading it evenly over them.
        sharpening: Factor before the cosine, as pooling will use it.
        epochs, steps: How long; ``steps`` > 0 overrides ``epochs``.
        lr, lr_input, lr_blocks, lr_output: Peak learning rate, and what it is multiplied with in each group.
        weight_decay: Of AdamW.
        warmup_epochs, warmup_start: Linear warm-up, at most a tenth of ``steps``, and the factor it starts from.
        lr_floor: Factor that the cosine ends at.
        longest_gradient: Longer gradients are shortened to it; 0 leaves them.
        ema: Decay of averaged weights, which are then what is exported; 0 keeps none.
        checkpointing: Whether activations of the residual blocks are computed twice instead of kept.
        precision: As Lightning Fabric names it; its 16-mixed scales losses, which the check of gradients would see.
        seed: Of initial weights, order, augmentation and samples.
    """

    base: str = "paper"
    hidden: int = 512
    out: int = 128
    blocks: int = 4
    rank: int = 0
    view: str = "scene"
    crop: int = 0
    crops: int = 1
    voxel_size_m: float = 0.02
    random_frame: bool = False
    augment: bool = False
    semantic_drop: float = 0.0
    semantic_noise: float = 0.0
    anchors: int = 4096
    anchor_draw: str = "even"
    macro: int = 48
    micro: int = 16
    neighbors: int = 96
    ties: str = "first"
    positive: str = "most_similar"
    same_above: float = 0.7
    negative_ceiling: float = 1.0
    temperature: float = 0.07
    contrast: float = 1.0
    affinity: float = 0.0
    spread: float = 0.0
    sharpening: float = 20.0
    epochs: int = 50
    steps: int = 0
    lr: float = 1e-4
    lr_input: float = 0.1
    lr_blocks: float = 1.0
    lr_output: float = 5.0
    weight_decay: float = 1e-5
    warmup_epochs: int = 2
    warmup_start: float = 1e-6
    lr_floor: float = 1e-3
    longest_gradient: float = 0.0
    ema: float = 0.0
    checkpointing: str = "auto"
    precision: str = "32-true"
    seed: int = 0

    def __post_init__(self) -> None:
        for item in fields(self):
            object.__setattr__(self, item.name, _checked(item.name, getattr(self, item.name), item.type))
        if self.view == "crops" and self.crop < self.least_points:
            raise InvalidConfigError("crop", self.crop, f"Cut at least {self.least_points} voxels, for example 5000.")
        if self.contrast and not self.macro + self.micro:
            raise InvalidConfigError("macro", 0, "Without any negatives set contrast to 0.")
        if self.micro > self.neighbors:
            raise InvalidConfigError("micro", self.micro, f"There are {self.neighbors} neighbors to choose from.")
        if not self.contrast + self.affinity + self.spread:
            raise InvalidConfigError("contrast", 0.0, "Give one of contrast, affinity and spread a weight.")
        if self.view == "sampled" and self.affinity + self.spread:
            raise InvalidConfigError("affinity", self.affinity, "A student that sees sampled voxels has no neighbours.")

    @property
    def least_points(self) -> int:
        """Points that a scene needs: an anchor, its positive, and its negatives."""
        return self.macro + self.micro + 2

    @classmethod
    def preset_names(cls) -> tuple[str, ...]:
        """What ``Recipe.preset`` knows."""
        return tuple(_PRESETS)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Recipe:
        """A preset with some fields changed; ``epochs`` without ``steps`` means what it says in every preset.

        Raises:
            InvalidConfigError: Naming what is wrong.
        """
        if name not in _PRESETS:
            raise InvalidConfigError("preset", name, f"Choose one of {', '.join(_PRESETS)}.")
        unknown = changes.keys() - {item.name for item in fields(cls)}
        if unknown:
            known = ", ".join(item.name for item in fields(cls))
            raise InvalidConfigError(min(unknown), changes[min(unknown)], f"There is no such field; there are {known}.")
        if "epochs" in changes:
            changes.setdefault("steps", 0)
        return replace(cls(), **{"base": name, **_PRESETS[name], **changes})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """What ``to_dict`` gave. Raises InvalidConfigError for unknown fields and values."""
        return cls.preset("paper", **values)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "official_code": {"epochs": 100, "micro": 15, "view": "sampled", "random_frame": True, "seed": 5557},
    "robot": {
        "hidden": 64, "out": 64, "rank": 96, "view": "crops", "crop": 5000, "crops": 2, "voxel_size_m": 0.04,
        "augment": True, "semantic_drop": 0.1, "semantic_noise": 0.5, "anchors": 2048, "anchor_draw": "contested",
        "ties": "random", "positive": "above", "negative_ceiling": 0.5, "contrast": 0.2, "affinity": 1.0,
        "spread": 0.02, "steps": 700, "lr": 4e-3, "lr_input": 1.0, "lr_output": 1.0, "weight_decay": 1e-2,
        "lr_floor": 1e-2, "longest_gradient": 5.0, "ema": 0.99,
    },
}  # fmt: skip


def _checked(name: str, value: Any, kind: Any) -> Any:
    """The value in its field's type, or InvalidConfigError."""
    expected: type[Any] = {"int": int, "float": float, "bool": bool, "str": str}[str(kind)]
    if expected is float and type(value) is int:
        value = float(value)
    if type(value) is not expected:
        raise InvalidConfigError(name, value, f"Give a value of type {expected.__name__}.")
    if name in _CHOICES and value not in _CHOICES[name]:
        raise InvalidConfigError(name, value, f"Choose one of {', '.join(_CHOICES[name])}.")
    if name in _RANGES:
        least, most = _RANGES[name]
        if not math.isfinite(float(value)) or not least <= value <= most:
            raise InvalidConfigError(name, value, f"Give a value from {least:g} to {most:g}.")
    return value
