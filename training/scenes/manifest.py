"""``manifest.json``: what lies in a folder of shards, and what could not be prepared; made from the shards."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from training.scenes.one import FAILED, Outcome
from training.scenes.prepared import LEFT_OUT, scene_names, scene_path
from training.scenes.shard_header import ShardHeader, read_header

log = logging.getLogger(__name__)
FILE = "manifest.json"
FORMAT = 1
_STALE_S = 600.0  # nobody pauses that long in the middle of a shard


def write_manifest(folder: Path, outcomes: Sequence[Outcome] = ()) -> dict[str, Any]:
    """Describe every whole shard in ``folder``; write it atomically, and return it.

    Scenes that failed in an earlier run stay listed until they are there or were tried again.
    """
    scenes = {name: entry for name in scene_names(folder) if (entry := _scene(folder, name)) is not None}
    tried = {outcome.name for outcome in outcomes}
    skipped = [entry for entry in _earlier(folder) if entry["name"] not in tried and entry["name"] not in scenes]
    skipped += [
        {"name": outcome.name, "source": outcome.source, "error": outcome.error, "reason": outcome.reason}
        for outcome in outcomes
        if outcome.status == FAILED
    ]
    manifest = {
        "format": FORMAT,
        "points": sum(entry["points"] for entry in scenes.values()),
        "backbones": sorted({entry["backbone"] for entry in scenes.values()}),
        "label_sets": sorted({entry["label_set"] for entry in scenes.values() if entry["label_set"]}),
        "scenes": scenes,
        "skipped": sorted(skipped, key=lambda entry: entry["name"]),
    }
    temporary = folder / f"{FILE}.{uuid4().hex[:12]}.tmp"
    temporary.write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(folder / FILE)
    return manifest


def _scene(folder: Path, name: str) -> dict[str, Any] | None:
    path = scene_path(folder, name)
    header = read_header(path)
    if header is None:
        log.warning("%s is damaged or of another format; it is left out", path.name)
        return None
    about = header.about
    return {
        **_file(path, header),
        "backbone": about.get("backbone", ""),
        "text_fingerprint": about.get("text_fingerprint", ""),
        "voxel_size_m": about.get("voxel_size_m", 0.0),
        "source": about.get("source", ""),
        "frames": about.get("frames", ""),
        LEFT_OUT: about.get(LEFT_OUT, {}),
        "label_set": about.get("label_set", "") if "labels" in header.arrays else "",
        "instances": "instances" in header.arrays,
        "teachers": _teachers(folder, name, header),
    }


def _teachers(folder: Path, name: str, scene: ShardHeader) -> dict[str, Any]:
    teachers = {}
    for path in sorted(folder.glob(f"{name}.*.safetensors")):
        header = read_header(path)
        if header is None or header.points != scene.points:
            log.warning("%s is damaged, or describes another scene; it is left out", path.name)
            continue
        about = header.about
        told = {key: about.get(key, "") for key in ("fingerprint", "licence")}
        teachers[path.name.split(".")[1]] = {**_file(path, header), **told}
    return teachers


def _file(path: Path, header: ShardHeader) -> dict[str, Any]:
    return {"file": path.name, "bytes": header.nbytes, "points": header.points, "channels": header.channels}


def _earlier(folder: Path) -> list[dict[str, str]]:
    """What earlier runs could not prepare; nothing where there is no manifest, or one that cannot be read."""
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return [{key: str(entry[key]) for key in ("name", "source", "error", "reason")} for entry in content["skipped"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def remove_stale(folder: Path, names: Iterable[str] | None = None) -> list[str]:
    """Remove what killed workers left half written, and return the names of these files.

    Args:
        folder: Of the shards.
        names: Scenes on which surely nobody works now: all their unfinished files go. By default every unfinished file
            that nobody has touched for ten minutes.
    """
    removed = []
    for path in folder.glob("*.tmp"):
        try:
            mine = names is not None and path.name.split(".")[0] in set(names)
            if mine or (names is None and time.time() - path.stat().st_mtime > _STALE_S):
                path.unlink()
                removed.append(path.name)
        except FileNotFoundError:  # its worker has just finished it
            continue
    return sorted(removed)
