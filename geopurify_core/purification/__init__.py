"""Purification: the Student Affinity Network says which voxels belong together, Geometry-Guided Pooling acts on it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Imported on first use: torch takes a second that a command which does not purify should not pay.
_EXPORTS = {
    "StudentAffinityNetwork": "student.network",
    "Affinity": "affinity.build",
    "build_affinity": "affinity.build",
    "pool": "pooling.pool",
    "Purifier": "purifier",
}

__all__ = ["Affinity", "Purifier", "StudentAffinityNetwork", "build_affinity", "pool"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
