"""Several backbones as one: each says how sure it is of every cell, and the mean is weighed by that.

With member weights w_i, confidences c_i and powers p_i, a cell gets F = Σ w_i c_i^p_i F_i / Σ w_i c_i^p_i and
confidence Σ w_i c_i^p_i / Σ w_i. Fusion multiplies feature and confidence, so a voxel ends up with the weighted mean
over all members and all views alike: a detector that is sure of a mug outvotes the segmenter that sees only the
table, and where it sees nothing it has no say.
"""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from geopurify_core.config import build, setting
from geopurify_core.errors import BackboneError, InvalidConfigError
from geopurify_core.vision.base import FeatureMap, SemanticBackbone
from geopurify_core.vision.labelled import read_yaml
from geopurify_core.vision.mixture import MixtureBackbone, mix_maps, mix_vectors, on_grid

Array = NDArray[np.float32]
_DEFAULT_GRID = (120, 160)


@dataclass(frozen=True)
class MemberSpec:
    """One entry of ``members:``."""

    backbone: str = setting("", "Name of the backbone (not composite).")
    weight: float = setting(1.0, "How much its opinion counts.", ge=0.0, le=1000.0)
    power: float = setting(
        1.0, "Its confidence is raised to it: above 1 hears only the sure, below 1 also the doubtful.", ge=0.0, le=8.0
    )
    options: dict[str, Any] = setting({}, "Its own options; config is looked up beside this YAML.")


@dataclass(frozen=True)
class CompositeSpec:
    """A composite's YAML."""

    name: str = setting("", "Short name of the mixture.")
    grid: list[int] = setting([], "Rows and columns of the feature map; 120 x 160 when left out.")
    members: list[Any] = setting([], "Two or more backbones: backbone, weight, power, options.")


class CompositeBackbone:
    """``load_backbone("composite", config="composite.yaml")``.

    Args:
        config: The composite's YAML (``docs/backbones.md``).
        members: Instead of a YAML, its list of members.
        grid: Replaces the key of that name.
        weights_dir, num_threads: Handed to every member that has such an option and does not set it itself.

    Raises:
        InvalidConfigError: The YAML has an unknown key or a bad value.
        BackboneError: A member cannot be loaded, or members do not share one text space.
    """

    name = "composite"

    def __init__(
        self,
        config: str | Path = "",
        *,
        members: list[Any] | None = None,
        grid: list[int] | None = None,
        weights_dir: str | Path | None = None,
        num_threads: int = 0,
    ) -> None:
        values = read_yaml(Path(config)) if config else {}
        values.update({key: value for key, value in (("members", members), ("grid", grid)) if value is not None})
        spec = build(CompositeSpec, values)
        self._specs = [_member_spec(i, member) for i, member in enumerate(spec.members)]
        self._grid = _checked_grid(spec.grid)
        if len(self._specs) < 2:
            raise InvalidConfigError("members", spec.members, "Name two or more backbones.")
        if not any(member.weight for member in self._specs):
            raise InvalidConfigError("members", spec.members, "Give at least one member a weight above 0.")
        shared = {"weights_dir": weights_dir, "num_threads": num_threads, "grid": list(self._grid)}
        self.members = tuple(_load_member(member, config, shared) for member in self._specs)
        _check_text_space(self.members)
        first = self.members[0]
        self.feature_dim = first.feature_dim
        self.text_fingerprint = first.text_fingerprint
        self.licence = " AND ".join(dict.fromkeys(member.licence for member in self.members))
        self.fingerprint = self._fingerprint(spec.name)

    def encode_text(self, texts: Sequence[str]) -> Array:
        """(n, C) unit-norm embeddings in the space the members share."""
        return self.members[0].encode_text(texts)

    def encode_image(self, rgb: NDArray[np.uint8], depth_m: NDArray[np.float32] | None = None) -> FeatureMap:
        """The members' weighted mean for an (H, W, 3) RGB image. Raises BackboneError where a member fails."""
        weights, powers = [spec.weight for spec in self._specs], [spec.power for spec in self._specs]
        if all(isinstance(member, MixtureBackbone) for member in self.members):
            mixtures = [cast(MixtureBackbone, member).mixture(rgb, depth_m) for member in self.members]
            if all(mixture.confidence.shape == self._grid for mixture in mixtures):
                return mix_vectors(mixtures, weights, powers)
            maps = [mixture.feature_map() for mixture in mixtures]
        else:
            maps = [member.encode_image(rgb, depth_m) for member in self.members]
        return mix_maps([on_grid(feature_map, self._grid) for feature_map in maps], weights, powers)

    def _fingerprint(self, name: str) -> str:
        parts = [f"{m.fingerprint}*{s.weight}^{s.power}" for m, s in zip(self.members, self._specs, strict=True)]
        digest = hashlib.sha256("\n".join([*parts, str(self._grid)]).encode()).hexdigest()[:12]
        return f"{self.name}:{name or 'mixture'}:{digest}|{self.text_fingerprint}"


def _member_spec(index: int, values: Any) -> MemberSpec:
    member = build(MemberSpec, values, f"members[{index}].")
    if member.backbone in ("", "composite"):
        raise InvalidConfigError(f"members[{index}].backbone", member.backbone, "Name a backbone other than composite.")
    return member


def _load_member(member: MemberSpec, config: str | Path, shared: Mapping[str, Any]) -> SemanticBackbone:
    from geopurify_core import vision

    parameters = inspect.signature(vision.backbone_factory(member.backbone)).parameters
    options = {key: value for key, value in shared.items() if key in parameters and value not in (None, 0)}
    options.update(member.options)
    if config and "config" in member.options:
        options["config"] = os.path.join(os.path.dirname(config), str(member.options["config"]))
    return vision.load_backbone(member.backbone, **options)


def _check_text_space(members: Sequence[SemanticBackbone]) -> None:
    first = members[0]
    for member in members[1:]:
        if member.text_fingerprint != first.text_fingerprint or member.feature_dim != first.feature_dim:
            raise BackboneError(
                "members",
                f"{first.text_fingerprint} and {member.text_fingerprint}",
                f"{first.name} and {member.name} speak different text spaces; mix only backbones that share one.",
            )


def _checked_grid(grid: list[int]) -> tuple[int, int]:
    if not grid:
        return _DEFAULT_GRID
    if len(grid) != 2 or not all(type(n) is int and 1 <= n <= 2048 for n in grid):
        raise InvalidConfigError("grid", grid, "Give [rows, columns], whole numbers from 1 to 2048.")
    return grid[0], grid[1]
