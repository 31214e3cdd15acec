"""What an evaluation does wherever the published ones differ: three presets, each value of which can be changed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from geopurify_core.errors import InvalidConfigError
from geopurify_core.labels.prompts import WORDINGS

FEATURELESS = ("drop", "nearest")


@dataclass(frozen=True)
class Protocol:
    """How points are scored.

    Attributes:
        name: ``openscene``, ``geopurify`` or ``map``.
        featureless: What points that no view saw get: ``drop``: nothing (OpenScene); ``nearest``: the feature of the
            nearest point that has one (GeoPurify).
        wording: Of the prompts, see ``label_prompts``.
        spelling: Whose class names.
        random_frame: Turn and scale the points by a random frame before they are voxelised, as both released codes do
            at evaluation too.
        repeats: How often to do so; scores are summed. Only purified scores depend on it.
        steps: T, the pooling steps to report, ascending.
        sharpening: Factor before the cosine in the affinity.
        neighbors: K.
        voxel_size_m: Of the purification; 0 takes what the student was trained on, or 0.02 where it does not say.
        reach_m: How far a scan point may be from the centre of the map's nearest voxel (``map`` only).
        seed: Of the random frames.
    """

    name: str = "openscene"
    featureless: str = "drop"
    wording: str = "names"
    spelling: str = "openscene"
    random_frame: bool = True
    repeats: int = 5
    steps: tuple[int, ...] = (18,)
    sharpening: float = 20.0
    neighbors: int = 96
    voxel_size_m: float = 0.0
    reach_m: float = 0.1
    seed: int = 5557

    def __post_init__(self) -> None:
        _one_of("featureless", self.featureless, FEATURELESS)
        _one_of("wording", self.wording, WORDINGS)
        if self.repeats < 1:
            raise InvalidConfigError("repeats", self.repeats, "Give a whole number of at least 1.")
        if not self.steps or min(self.steps) < 1 or list(self.steps) != sorted(set(self.steps)):
            raise InvalidConfigError("steps", self.steps, "Give different whole numbers of at least 1, ascending.")
        if not 1 <= self.neighbors <= 4096:
            raise InvalidConfigError("neighbors", self.neighbors, "Give a whole number from 1 to 4096.")
        for name in ("sharpening", "voxel_size_m", "reach_m"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InvalidConfigError(name, getattr(self, name), "Give a finite number of at least 0.")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Protocol:
        """A preset with some values changed; those that are None stay.

        Raises:
            InvalidConfigError: An unknown preset or value.
        """
        _one_of("protocol", name, tuple(PROTOCOLS))
        known = {item.name for item in fields(cls)}
        for key in changes:
            _one_of("protocol", key, tuple(known))
        return replace(PROTOCOLS[name], **{key: value for key, value in changes.items() if value is not None})

    def as_plain(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "steps": list(self.steps)}


def _one_of(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidConfigError(field, value, f"Choose one of {', '.join(allowed)}.")


PROTOCOLS = {
    "openscene": Protocol(),
    # T = 19: the released code pools once before its loop of 18 (geopurify.md A.0.4).
    "geopurify": Protocol("geopurify", featureless="nearest", spelling="geopurify", repeats=1, steps=(19,)),
    "map": Protocol("map", random_frame=False, repeats=1),
}
