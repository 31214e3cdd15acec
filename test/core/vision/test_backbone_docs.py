"""The documentation and the shipped YAMLs follow the schema."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from geopurify_core.config import build, settings
from geopurify_core.vision.composite import CompositeSpec, MemberSpec
from geopurify_core.vision.detector import DetectorSpec
from geopurify_core.vision.segmenter import SegmenterSpec


@pytest.mark.parametrize(
    ("schema", "prefix"),
    [(SegmenterSpec, ""), (DetectorSpec, ""), (CompositeSpec, ""), (MemberSpec, "members[].")],
)
def test_every_key_is_documented(repository: Path, schema: type, prefix: str) -> None:
    rows = {}
    for line in (repository / "docs" / "backbones.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            rows.setdefault(line.split("`")[1], []).append(line)
    for item in settings(schema, prefix):
        assert any(item.description in line for line in rows.get(item.key, [])), item.key
        for choice in item.choices:
            assert any(choice in line for line in rows[item.key]), (item.key, choice)


@pytest.mark.parametrize(
    ("name", "schema"),
    [
        ("mosaic.yaml", SegmenterSpec),
        ("mosaic_argmax.yaml", SegmenterSpec),
        ("yolox_nano.yaml", DetectorSpec),
        ("composite.yaml", CompositeSpec),
    ],
)
def test_shipped_yamls_follow_the_schema(repository: Path, name: str, schema: type) -> None:
    path = repository / "config" / "backbones" / name
    spec = build(schema, yaml.safe_load(path.read_text(encoding="utf-8")))
    for member in getattr(spec, "members", []):
        assert (path.parent / build(MemberSpec, member).options["config"]).is_file()
