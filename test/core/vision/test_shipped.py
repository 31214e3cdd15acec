"""A backbone asked for by its name alone takes the YAML that comes with the package."""

from __future__ import annotations

from pathlib import Path

import pytest

from geopurify_core.errors import BackboneError
from geopurify_core.vision import load_backbone
from geopurify_core.vision.shipped import SHIPPED, with_shipped_config


@pytest.mark.parametrize("name", SHIPPED)
def test_without_the_weights_the_error_says_where_to_put_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GEOPURIFY_WEIGHTS", raising=False)
    with pytest.raises(BackboneError, match="GEOPURIFY_WEIGHTS"):
        load_backbone(name)


@pytest.mark.parametrize("name", SHIPPED)
def test_with_the_weights_the_name_is_enough(name: str, shared_dir: Path) -> None:
    backbone = load_backbone(name, weights_dir=str(shared_dir / "weights"))
    config = Path(__file__).resolve().parents[3] / "config" / "backbones" / SHIPPED[name]
    explicit = load_backbone(name, config=str(config), weights_dir=str(shared_dir / "weights"))
    assert backbone.fingerprint == explicit.fingerprint


def test_what_the_user_says_stays() -> None:
    for options in ({"config": "mine.yaml"}, {"model": "mine.onnx", "labels": ["a"]}, {"members": []}):
        assert with_shipped_config("composite", options) == options
    assert with_shipped_config("nano", {}) == {}


def test_an_installation_keeps_them_in_its_share_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installed = tmp_path / "share" / "geopurify_ros" / "config" / "backbones" / "mosaic.yaml"
    installed.parent.mkdir(parents=True)
    installed.write_text("name: mosaic\n")
    monkeypatch.setattr("geopurify_core.vision.shipped.__file__", str(tmp_path / "a" / "b" / "c" / "shipped.py"))
    monkeypatch.setattr("sys.prefix", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    assert with_shipped_config("segmenter", {"grid": [4, 4]}) == {"config": str(installed), "grid": [4, 4]}
