"""A trained student: the network, what it was trained for, and which maps it fits."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any

import torch

from geopurify_core.errors import StudentError
from geopurify_core.mapping.snapshot import MapSnapshot
from geopurify_core.purification.student.network import GEOMETRY_CHANNELS, StudentAffinityNetwork

log = logging.getLogger(__name__)

_VOXEL_TOLERANCE = 0.2


@dataclass(frozen=True)
class StudentInfo:
    """What a student is and what it was trained for.

    Attributes:
        backbone: Fingerprint of the backbone whose features it takes; empty where the file does not say.
        text_fingerprint: Text space of those features; empty where the file does not say.
        feature_dim: C, the map's channels; the network takes C + 6.
        hidden, out, blocks: Its sizes.
        voxel_size_m: Voxel edge it was trained on, metres; 0 where the file does not say.
        trained_on: In words, what it was trained on.
        licence: SPDX identifier of the weights.
        extra: Whatever else the file says.
    """

    backbone: str
    feature_dim: int
    hidden: int
    out: int
    blocks: int
    text_fingerprint: str = ""
    voxel_size_m: float = 0.0
    trained_on: str = ""
    licence: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> StudentInfo:
        """From JSON; keys unknown here go to ``extra``. Raises StudentError for a wrong or missing field."""
        kinds = {"backbone": str, "text_fingerprint": str, "trained_on": str, "licence": str, "voxel_size_m": float}
        known: dict[str, Any] = {}
        for item in fields(cls):
            if item.name == "extra" or item.name not in entry:
                continue
            kind, value = kinds.get(item.name, int), entry[item.name]
            value = float(value) if kind is float and type(value) is int else value
            if type(value) is not kind:
                raise StudentError(
                    f"student.{item.name}", value, f"Expected {kind.__name__}; save the checkpoint anew."
                )
            known[item.name] = value
        missing = {"backbone", "feature_dim", "hidden", "out", "blocks"} - known.keys()
        if missing:
            raise StudentError("student", sorted(missing), "Its description lacks these; save the checkpoint anew.")
        extra = {name: value for name, value in entry.items() if name not in known and name != "extra"}
        return cls(**known, extra={**extra, **entry.get("extra", {})})


@dataclass(frozen=True)
class Student:
    """A loaded network, ready to use.

    Attributes:
        network: In evaluation mode, without gradients, float32.
        info: What it is and what it was trained for.
        fingerprint: Identity of the weights (``student:`` and 16 hexadecimal digits); the same for every storage type
            that gives the same float32 weights.
    """

    network: StudentAffinityNetwork
    info: StudentInfo
    fingerprint: str

    @property
    def backbone(self) -> str:
        """Fingerprint of the backbone it was trained for; empty where unknown."""
        return self.info.backbone

    @property
    def feature_dim(self) -> int:
        """C, the map's channels."""
        return self.info.feature_dim

    @property
    def voxel_size_m(self) -> float:
        """Voxel edge it was trained on, metres; 0 where unknown."""
        return self.info.voxel_size_m

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.network.device

    def check_fits(self, snapshot: MapSnapshot) -> None:
        """Raise StudentError where the map has another width or backbone. Another voxel size is only warned about."""
        self.check_backbone(snapshot.backbone)
        if snapshot.feature_dim != self.feature_dim:
            taken = self.feature_dim + GEOMETRY_CHANNELS
            raise StudentError(
                "student.feature_dim",
                self.feature_dim,
                f"The map has {snapshot.feature_dim} channels; this one takes {self.feature_dim} ({taken} with colour "
                f"and normal): set purification.student to one made for {snapshot.backbone}.",
            )
        trained, size = self.voxel_size_m, snapshot.voxel_size_m
        if trained > 0 and abs(size / trained - 1) > _VOXEL_TOLERANCE:
            _warn_of_voxel_size(self.fingerprint, trained, size)

    def check_backbone(self, backbone: str) -> None:
        """Raise StudentError unless it was trained for that fingerprint, or does not say for which."""
        if self.backbone and self.backbone != backbone:
            raise StudentError(
                "student.backbone",
                self.backbone,
                f"The map was made by {backbone}: set purification.student to one trained for it, or leave it empty "
                "for the shipped one (docs/purification.md says how to train one).",
            )


@lru_cache(maxsize=64)
def _warn_of_voxel_size(fingerprint: str, trained_m: float, size_m: float) -> None:
    """Once for each student and size: a running mapper purifies again and again."""
    log.warning(
        "%s knows voxels of %.3g m, the map has %.3g m: expect rough affinities", fingerprint, trained_m, size_m
    )
