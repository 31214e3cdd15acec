"""What preparing a scene depends on, apart from the scene itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

from geopurify_core.config import Config
from geopurify_core.evaluation.openscene import readings_of
from geopurify_core.labels import load_label_set
from geopurify_core.scans.lift_settings import LiftSettings
from geopurify_core.vision import load_backbone
from geopurify_core.vision.base import SemanticBackbone
from training.teachers.base import Teacher, load_teacher

PROMPT = "a {} in a scene"  # of OpenScene and GeoPurify
MIN_POINTS = 66  # an anchor, its positive and 64 negatives
_LABEL_SETS = {"scannet": "scannet20", "matterport": "matterport21", "synthetic": "synthetic"}
_CONFIG_PARTS = ("map", "depth", "fusion")


@dataclass(frozen=True)
class TeacherChoice:
    """A teacher by name, with its options."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Teacher:
        """The teacher; loaded once in each process."""
        return _teacher(self.name, json.dumps(dict(self.options), sort_keys=True))


@dataclass(frozen=True)
class Preparation:
    """How scenes are prepared.

    Attributes:
        backbone, backbone_options: Of the 2D features.
        teachers: Their descriptors are stored beside each scene.
        recipe: Preset of ``LiftSettings`` for scans.
        lift: Settings changed in it.
        config: Mapping settings, for recordings, synthetic rooms and ``as_map``.
        as_map: Also scans are mapped: voxels of their images instead of their own points.
        stride: Every so many frames; None takes the recipe's for scans and every frame for recordings.
        label_set: Labels to keep of those a scan has; "" takes its usual ones.
        images: Where Matterport3D's images lie, if not in the house's folder.
        align: Turn ScanNet scenes to their axes.
    """

    backbone: str = "nano"
    backbone_options: Mapping[str, Any] = field(default_factory=dict)
    teachers: tuple[TeacherChoice, ...] = ()
    recipe: str = "robot"
    lift: Mapping[str, Any] = field(default_factory=dict)
    config: Config = field(default_factory=Config)
    as_map: bool = False
    stride: int | None = None
    label_set: str = ""
    images: str = ""
    align: bool = False

    def load_backbone(self) -> SemanticBackbone:
        """The backbone; loaded once in each process."""
        return _backbone(self.backbone, json.dumps(dict(self.backbone_options), sort_keys=True))

    def check(self) -> None:
        """Load everything once, so that a wrong name or option ends the command and not each scene.

        Raises:
            GeoPurifyError: From the backbone, a teacher, or the settings.
        """
        if self.label_set:
            load_label_set(self.label_set)
        self.lift_settings()
        self.load_backbone()
        for teacher in self.teachers:
            teacher.load()

    def maps(self, kind: str) -> bool:
        """Whether scenes of a kind become voxels of a map."""
        return self.as_map or kind in ("recording", "synthetic")

    def lift_settings(self) -> LiftSettings:
        """The recipe for scans. Raises InvalidConfigError for an unknown one."""
        changes = dict(self.lift)
        if self.stride is not None:
            changes["stride"] = self.stride
        return LiftSettings.preset(self.recipe, **changes)

    def labels_of(self, kind: str) -> str:
        """The label set whose labels are stored for scenes of a kind; "": none."""
        return self.label_set if self.label_set and kind != "synthetic" else _LABEL_SETS.get(kind, "")

    def texts(self, kind: str) -> list[str]:
        """The vocabulary of the consensus recipe; empty for the others, which need none.

        As the released code has it, and ``geopurify eval scans --protocol geopurify``: its spelling, ScanNet without
        its catch-all class. X-Decoder puts names into the frame itself.
        """
        if self.lift_settings().fusion != "consensus":
            return []
        labels = load_label_set(self.labels_of(kind))
        kept = readings_of(labels)[-1 if labels.name.startswith("scannet") else 0].classes
        names = [labels.spelled("geopurify")[i] for i in kept]
        return names if self.backbone == "xdecoder" else [PROMPT.format(name) for name in names]

    def fingerprint(self, kind: str) -> dict[str, Any]:
        """Everything here that changes the features of a scene of a kind, as JSON values."""
        if self.maps(kind):
            config = self.config.to_dict()
            made: dict[str, Any] = {part: config[part] for part in _CONFIG_PARTS}
            made["stride"] = self.stride or (self.lift_settings().stride if kind in ("scannet", "matterport") else 1)
        else:
            made = {"lift": asdict(self.lift_settings()), "texts": self.texts(kind)}
        if kind == "scannet":
            made["align"] = self.align
        values: dict[str, Any] = json.loads(json.dumps(made))
        return values


def forget() -> None:
    """Let go of backbone and teachers: a process that only hands scenes out keeps no network in memory."""
    _backbone.cache_clear()
    _teacher.cache_clear()


@lru_cache(maxsize=1)
def _backbone(name: str, options: str) -> SemanticBackbone:
    return load_backbone(name, **json.loads(options))


@lru_cache(maxsize=4)
def _teacher(name: str, options: str) -> Teacher:
    return load_teacher(name, **json.loads(options))
