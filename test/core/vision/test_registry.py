"""Finding backbones by name."""

from __future__ import annotations

from importlib import metadata

import numpy as np
import pytest

from geopurify_core import vision
from geopurify_core.errors import BackboneError
from geopurify_core.vision import FeatureMap, backbone_names, load_backbone


class Stub:
    name, feature_dim, licence, fingerprint, text_fingerprint = "stub", 4, "MIT", "stub", "stub-text"

    def __init__(self, gain: float = 1.0) -> None:
        if gain < 0:
            raise RuntimeError("negative gain")

    def encode_image(self, rgb, depth_m=None):
        return FeatureMap(np.zeros((4, 1, 1), np.float32), np.zeros((1, 1), np.float32))

    def encode_text(self, texts):
        return np.zeros((len(texts), 4), np.float32)


@pytest.fixture
def third_party(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        metadata.EntryPoint("stub", f"{__name__}:Stub", vision.ENTRY_POINT_GROUP),
        metadata.EntryPoint("lost", "no_such_package:Thing", vision.ENTRY_POINT_GROUP),
        metadata.EntryPoint("wrong", "builtins:dict", vision.ENTRY_POINT_GROUP),
        metadata.EntryPoint("segmenter", "builtins:dict", vision.ENTRY_POINT_GROUP),
    ]
    monkeypatch.setattr(vision, "_entry_points", lambda: points)
    # EntryPoint.load imports by module name, which importlib mode does not register.
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or type(sys)(__name__))
    monkeypatch.setattr(sys.modules[__name__], "Stub", Stub, raising=False)


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(BackboneError, match="nano, segmenter, detector, composite"):
        load_backbone("clip")


def test_unknown_option_is_named() -> None:
    with pytest.raises(BackboneError, match=r"segmenter option colour.*config, model"):
        load_backbone("segmenter", colour="red")


def test_third_parties_can_offer_backbones(third_party: None) -> None:
    assert load_backbone("stub", gain=2.0).feature_dim == 4
    assert backbone_names()[:4] == ["nano", "segmenter", "detector", "composite"]
    assert backbone_names().count("segmenter") == 1
    with pytest.raises(BackboneError, match=r"option gian.*gain"):
        load_backbone("stub", gian=2.0)
    with pytest.raises(BackboneError, match="negative gain"):
        load_backbone("stub", gain=-1.0)
    with pytest.raises(BackboneError, match="no_such_package"):
        load_backbone("lost")
    with pytest.raises(BackboneError, match="interface"):
        load_backbone("wrong")
