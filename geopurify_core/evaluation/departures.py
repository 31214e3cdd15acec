"""In what a report's run departs from the one behind the published figures: said beside every figure of ours.

The published run: protocol ``geopurify`` as it is preset, its lifting, X-Decoder's pixels assigned by the labels
(``geopurify.md`` A.2, A.4, A.12).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from geopurify_core.evaluation.points import RAW
from geopurify_core.evaluation.protocol import PROTOCOLS
from geopurify_core.scans.lift_settings import PRESETS, LiftSettings

PUBLISHED = "geopurify"
_OF_SCORES = ("featureless", "wording", "spelling")
_OF_PURIFICATION = ("random_frame", "repeats", "sharpening", "neighbors")
_VOXEL_SIZE_M = 0.02


def departures(report: Mapping[str, Any], variant: str) -> tuple[str, ...]:
    """What one must know before a figure is held against a published one; empty for the published settings.

    Args:
        report: Of ``geopurify eval scans``; what it does not tell is not judged.
        variant: ``raw`` or ``T=18``: what purification does is no matter to raw features.
    """
    purified = variant != RAW
    return (
        *_of_protocol(report["protocol"], purified),
        *_of_lifting(report),
        *_of_backbone(report["backbone"]),
        *(_of_voxels(report) if purified else ()),
    )


def _of_protocol(protocol: Mapping[str, Any], purified: bool) -> list[str]:
    found = [] if protocol["name"] == PUBLISHED else [f"protocol {protocol['name']}"]
    preset = PROTOCOLS[protocol["name"]].as_plain() if protocol["name"] in PROTOCOLS else {}
    names = (*_OF_SCORES, *_OF_PURIFICATION) if purified else _OF_SCORES
    changed = [name for name in names if name in protocol and protocol[name] != preset.get(name)]
    return found + [f"{name} {protocol[name]}" for name in changed]


def _of_lifting(report: Mapping[str, Any]) -> list[str]:
    lifting = report.get("lifting")
    if lifting is None:
        return []
    named = {name: json.loads(json.dumps(asdict(LiftSettings.preset(name)))) for name in PRESETS}
    published = PUBLISHED if report["dataset"] == "scannet" else f"{PUBLISHED}_{report['dataset']}"
    if published not in named or lifting == named[published]:
        return []
    known = next((name for name, values in named.items() if values == lifting), None)
    if known is not None:
        return [f"lifting {known}"]
    changed = [f"{name} {value}" for name, value in lifting.items() if value != named[published].get(name)]
    return [f"lifting with {', '.join(changed)}"]


def _of_backbone(backbone: Mapping[str, Any]) -> list[str]:
    name, assignment, *_ = (*str(backbone.get("fingerprint", "")).split(":"), "")
    return ["pixels assigned without labels"] if (name, assignment) == ("xdecoder", "open") else []


def _of_voxels(report: Mapping[str, Any]) -> list[str]:
    size = report["protocol"].get("voxel_size_m") or report["student_about"].get("voxel_size_m") or _VOXEL_SIZE_M
    return [] if abs(size - _VOXEL_SIZE_M) < 1e-6 else [f"voxels of {size:g} m"]
