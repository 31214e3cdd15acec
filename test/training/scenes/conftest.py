"""Tiny scans on disk, as the tests of ``geopurify_core.scans`` write them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from training.scenes.prepared import PreparedScene

_NAME = "scans_on_disk"


@pytest.fixture(scope="session")
def disk(repository: Path) -> ModuleType:
    if _NAME not in sys.modules:
        spec = importlib.util.spec_from_file_location(_NAME, repository / "test/core/scans/_on_disk.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[_NAME] = module
        spec.loader.exec_module(module)
    return sys.modules[_NAME]


@pytest.fixture(scope="module")
def colours(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Name of a backbone without weights and torch that other processes find too: a package installed for a while."""
    folder = tmp_path_factory.mktemp("packages")
    shutil.copy(repository / "test/core/scans/_colours.py", folder / "colours_backbone.py")
    (folder / "colours-0.dist-info").mkdir()
    (folder / "colours-0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: colours\nVersion: 0\n")
    points = "[geopurify.backbones]\ncolours = colours_backbone:ColourBackbone\n"
    (folder / "colours-0.dist-info/entry_points.txt").write_text(points)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        yield "colours"


@pytest.fixture
def scans(disk: ModuleType, tmp_path: Path) -> Path:
    """A folder with three ScanNet scenes."""
    folder = tmp_path / "scans"
    for i in range(3):
        disk.write_scannet(folder / f"scene000{i}_00")
    return folder


@pytest.fixture
def make_scene() -> Callable[..., PreparedScene]:
    """A random prepared scene of some name and size."""

    def make(name: str, count: int = 100, **about: object) -> PreparedScene:
        rng = np.random.default_rng(0)
        normals = np.tile(np.array([0, 0, 1], np.float16), (count, 1))
        return PreparedScene(
            name,
            rng.uniform(0, 3, (count, 3)).astype(np.float32),
            rng.integers(0, 256, (count, 3), dtype=np.uint8),
            normals,
            rng.standard_normal((count, 8)).astype(np.float16),
            np.ones(count, np.float32),
            rng.integers(0, 20, count, dtype=np.uint8),
            rng.integers(0, 5, count, dtype=np.int32),
            {"backbone": "b:1", "text_fingerprint": "t:1", "voxel_size_m": 0.0, "source": "s", **about},
        )

    return make
