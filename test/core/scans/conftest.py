"""Tiny scans on disk, and a backbone whose features are colours."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def load(name: str) -> ModuleType:
    """A helper of this folder, as a module of its own name whichever folder asks."""
    module_name = f"scans{name}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        spec.loader.exec_module(module)
    return sys.modules[module_name]


@pytest.fixture(scope="session")
def disk() -> ModuleType:
    return load("_on_disk")


@pytest.fixture
def colours() -> Any:
    return load("_colours").ColourBackbone()
