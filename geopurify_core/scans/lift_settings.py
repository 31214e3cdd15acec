"""How 2D features get to the points of a scan: the published recipes, and what this project does, as presets."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from geopurify_core.errors import InvalidConfigError
from geopurify_core.scans.projection import VisibilityTest

FUSIONS = ("confidence", "mean", "consensus")


@dataclass(frozen=True)
class LiftSettings:
    """One recipe; ``LiftSettings.preset("geopurify", stride=1)`` changes a published one.

    Attributes:
        fusion: ``confidence``: mean over views, weighted by the backbone's confidence, as the running map does;
            ``mean``: plain mean (OpenScene); ``consensus``: GeoPurify's best three views, which needs texts.
        stride: Use the frames whose number is a multiple of it.
        image_size: (width, height) pixels to which images are resized for the backbone; None leaves them as they are.
        centred: Take principal points for the images' centres, as GeoPurify's ScanNet mapper does.
        test: When a point counts as seen.
        min_points, max_points: A view that sees fewer or more points is left out; None: no upper limit.
        unit: Bring each view's features to unit length first.
        fill_view: Points of a view whose pixel has no feature copy the nearest point of the view that has one.
        fill_unseen: Points that no view saw copy the nearest seen point; otherwise their features are zero.
        logit_scale: For ``consensus``: factor of the cosines whose softmax weighs the views.

    Raises:
        InvalidConfigError: A value is out of range.
    """

    fusion: str = "confidence"
    stride: int = 20
    image_size: tuple[int, int] | None = None
    centred: bool = False
    test: VisibilityTest = field(default_factory=VisibilityTest)
    min_points: int = 1
    max_points: int | None = None
    unit: bool = False
    fill_view: bool = False
    fill_unseen: bool = False
    logit_scale: float = 1 / 0.07

    def __post_init__(self) -> None:
        if self.fusion not in FUSIONS:
            raise InvalidConfigError("lift.fusion", self.fusion, f"Choose one of {', '.join(FUSIONS)}.")
        for name in ("stride", "min_points"):
            if getattr(self, name) < 1:
                raise InvalidConfigError(f"lift.{name}", getattr(self, name), "Give a number of at least 1.")
        if self.image_size is not None and min(self.image_size) < 16:
            raise InvalidConfigError("lift.image_size", self.image_size, "Give width and height, pixels, 16 or more.")
        if not self.logit_scale > 0:
            raise InvalidConfigError("lift.logit_scale", self.logit_scale, "Give a positive factor.")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> LiftSettings:
        """A published recipe, or ``robot``, with some values changed.

        ``relative_depth`` and ``border_px`` may be given directly, without a ``VisibilityTest`` around them.

        Raises:
            InvalidConfigError: An unknown name or value.
        """
        if name not in _PRESETS:
            raise InvalidConfigError("lift", name, f"Choose one of {', '.join(_PRESETS)}.")
        settings = _PRESETS[name]
        limits = {key: changes.pop(key) for key in ("relative_depth", "border_px") if key in changes}
        try:
            return replace(settings, test=replace(changes.pop("test", settings.test), **limits), **changes)
        except TypeError as error:
            raise InvalidConfigError("lift", changes, f"There is no such setting: {error}") from error


_GEOPURIFY = LiftSettings(
    fusion="consensus", image_size=(648, 484), centred=True, min_points=400, unit=True, fill_view=True, fill_unseen=True
)
_OPENSCENE = LiftSettings(fusion="mean", image_size=(320, 240), test=VisibilityTest(relative_depth=0.25))
_MATTERPORT = VisibilityTest(relative_depth=0.02)
_PRESETS = {
    "robot": LiftSettings(),
    "geopurify": _GEOPURIFY,
    "geopurify_matterport": replace(_GEOPURIFY, image_size=(640, 512), centred=False, stride=1, test=_MATTERPORT),
    "openscene": _OPENSCENE,
    "openscene_matterport": replace(_OPENSCENE, image_size=(640, 512), stride=1, test=_MATTERPORT),
}
PRESETS = tuple(_PRESETS)
