"""One scene: read, lifted or mapped, described by its teachers, written. Done twice, the second time costs nothing."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopurify_core.errors import DatasetError, GeoPurifyError
from geopurify_core.scans import Scan, lift, read_matterport, read_scannet
from training.scenes.mapped import map_apartment, map_recording, map_scan
from training.scenes.prepared import (
    LEFT_OUT,
    PreparedScene,
    load_scene,
    save_scene,
    save_teacher,
    scene_path,
    teacher_path,
)
from training.scenes.seeds import walk_of
from training.scenes.settings import MIN_POINTS, Preparation, TeacherChoice
from training.scenes.shard_header import ShardHeader, read_header
from training.scenes.sources import Source

log = logging.getLogger(__name__)
PREPARED, TAUGHT, WHOLE, FAILED = "prepared", "taught", "whole", "failed"


@dataclass(frozen=True)
class Outcome:
    """What became of a scene.

    Attributes:
        name, source: The scene's.
        status: ``prepared``; ``taught``: only teachers were missing; ``whole``: nothing was; ``failed``.
        points: In its shard.
        seconds: It took.
        error, reason: Kind of the error and its words, of a failed one.
        left_out: What of a prepared scene could not be used, with numbers; "" where nothing was lost.
    """

    name: str
    source: str
    status: str
    points: int = 0
    seconds: float = 0.0
    error: str = ""
    reason: str = ""
    left_out: str = ""


def prepare_one(source: Source, out: Path, settings: Preparation) -> Outcome:
    """Write what is missing of a scene's shards. Never raises for a bad scene: the outcome says what was wrong."""
    started = time.perf_counter()
    try:
        status, points, lost = _prepare(source, out, settings)
        return Outcome(source.name, source.label, status, points, time.perf_counter() - started, left_out=lost)
    except GeoPurifyError as error:
        kind, reason = type(error).__name__, str(error)
    except Exception as error:  # one scene must not cost the others, whatever a damaged file does to a library
        log.exception("%s failed in an unforeseen way", source.name)
        kind, reason = type(error).__name__, str(error)
    seconds = time.perf_counter() - started
    return Outcome(source.name, source.label, FAILED, 0, seconds, kind, " ".join(reason.split()))


def _prepare(source: Source, out: Path, settings: Preparation) -> tuple[str, int, str]:
    status, lost = WHOLE, ""
    scene: PreparedScene | None = None
    header = read_header(scene_path(out, source.name))
    if source.kind == "prepared" and header is None:
        load_scene(out, source.name)  # raises, and says what is wrong with it
    if source.kind != "prepared" and not is_whole(header, source, settings):
        scene = make_scene(source, settings)
        save_scene(out, scene)
        status, lost = PREPARED, _lost(scene, settings.label_set)
    for choice in settings.teachers:
        if status == PREPARED or not is_taught(out, source.name, choice):
            scene = scene or load_scene(out, source.name)
            _teach(out, scene, choice)
            status = TAUGHT if status == WHOLE else status
    points = len(scene) if scene is not None else header.points if header is not None else 0
    return status, points, lost


def _lost(scene: PreparedScene, label_set: str) -> str:
    """What a scene lacks that its source should have had: frames, and labels that were asked for by name."""
    parts = [f"{reason}: {count}" for reason, count in sorted(scene.about.get(LEFT_OUT, {}).items())]
    frames = [f"frames ({', '.join(parts)})"] if parts else []
    labels = [f"labels of {label_set}"] if label_set and scene.labels is None else []
    return "; ".join([*frames, *labels])


# -- is it there? ----------------------------------------------------------------------------------------------------


def missing(source: Source, out: Path, settings: Preparation) -> list[str]:
    """What a run would make of a scene: ``scene`` and names of teachers; empty: nothing."""
    header = read_header(scene_path(out, source.name))
    scene = source.kind != "prepared" and not is_whole(header, source, settings)
    taught = [choice.name for choice in settings.teachers if scene or not is_taught(out, source.name, choice)]
    return ["scene", *taught] if scene else taught


def is_whole(header: ShardHeader | None, source: Source, settings: Preparation) -> bool:
    """Whether a shard holds this scene, made with these settings from these files.

    What a shard does not say, because it is older than the setting, counts as made with the default.
    """
    if header is None:
        return False
    about, backbone = header.about, settings.load_backbone()
    defaults = Preparation(as_map=settings.as_map).fingerprint(source.kind)
    wanted = {
        "backbone": (about.get("backbone"), backbone.fingerprint),
        "text space": (about.get("text_fingerprint"), backbone.text_fingerprint),
        "source": (about.get("source"), source.label),
        "settings": (_filled(about.get("recipe"), defaults), settings.fingerprint(source.kind)),
        "files": (about.get("inputs", ""), source.inputs() if "inputs" in about else ""),
        "label set": (about.get("labels_wanted", about.get("label_set", "")), settings.labels_of(source.kind)),
        "walk": (about.get("frames"), _frames(about, source)),
    }
    for what, (found, expected) in wanted.items():
        if found != expected:
            log.info("%s is made again: its %s differs", source.name, what)
            return False
    return True


def _filled(stored: Any, defaults: dict[str, Any]) -> Any:
    """Stored settings; those of the defaults where they say nothing."""
    if stored is None:
        return defaults
    if not isinstance(stored, dict):
        return stored
    new = {key: value for key, value in defaults.items() if key not in stored}
    groups = {
        key: _filled(value, defaults[key]) for key, value in stored.items() if isinstance(defaults.get(key), dict)
    }
    return {**stored, **new, **groups}


def is_taught(out: Path, name: str, choice: TeacherChoice) -> bool:
    """Whether the teacher's shard of a scene is there, whole and made by this very teacher from as many points."""
    header, scene = read_header(teacher_path(out, name, choice.name)), read_header(scene_path(out, name))
    if header is None or scene is None or header.points != scene.points:
        return False
    stored = header.about.get("scene")  # of shards that remember it
    same_scene = stored is None or stored == scene.digest
    return same_scene and header.about.get("fingerprint") == choice.load().fingerprint


def _frames(about: dict[str, Any], source: Source) -> Any:
    """Of a synthetic room the frames of its walk; of anything else what the shard says."""
    if source.kind != "synthetic":
        return about.get("frames")
    length, used = walk_of(source.seed)
    return f"{used}/{length}"


# -- make it ---------------------------------------------------------------------------------------------------------


def make_scene(source: Source, settings: Preparation) -> PreparedScene:
    """The scene, not yet written.

    Raises:
        GeoPurifyError: It cannot be read, or nothing is in it that could be trained on.
    """
    backbone = settings.load_backbone()
    about: dict[str, Any] = {
        "backbone": backbone.fingerprint,
        "backbone_name": settings.backbone,
        "text_fingerprint": backbone.text_fingerprint,
        "source": source.label,
        "recipe": settings.fingerprint(source.kind),
        "inputs": source.inputs(),
        "labels_wanted": settings.labels_of(source.kind),  # the scan may not have them
    }
    if source.kind == "synthetic":
        scene, about["frames"] = map_apartment(source.seed, settings.config, backbone, source.name)
    elif source.kind == "recording":
        stride = settings.stride or 1
        scene, about["frames"] = map_recording(source.name, source.place, stride, settings.config, backbone)
    else:
        scan = _only(_read_scan(source, settings), settings.labels_of(source.kind))
        if settings.as_map:
            stride = settings.lift_settings().stride
            scene, about["frames"] = map_scan(scan, stride, settings.config, backbone)
        else:
            scene, about["frames"] = _lifted(scan, source.kind, settings)
        scene = replace(scene, name=source.name)
    _check(scene)
    return replace(scene, about={**scene.about, **about})


def _read_scan(source: Source, settings: Preparation) -> Scan:
    if source.kind == "scannet":
        return read_scannet(source.place, align=settings.align, strict=True)
    return read_matterport(source.place, images=settings.images or None, strict=True)


def _only(scan: Scan, label_set: str) -> Scan:
    return replace(scan, labels={name: values for name, values in scan.labels.items() if name == label_set})


def _lifted(scan: Scan, kind: str, settings: Preparation) -> tuple[PreparedScene, str]:
    lifted = lift(scan, settings.load_backbone(), settings.lift_settings(), texts=settings.texts(kind))
    label_set, labels = next(iter(scan.labels.items()), ("", None))
    scene = PreparedScene(
        scan.name,
        points_m=scan.points_m,
        rgb=scan.rgb,
        normals=scan.normals.astype(np.float16),
        features=lifted.features,
        weight=_weight(lifted.views, lifted.features),
        labels=labels,
        instances=scan.instances,
        about={"voxel_size_m": 0.0, "label_set": label_set, LEFT_OUT: dict(lifted.left_out)},
    )
    return scene, lifted.frames


def _weight(views: NDArray[np.int32], features: NDArray[np.float16]) -> NDArray[np.float32]:
    """Number of views; a feature copied from the nearest seen point weighs as much as one view."""
    copied = (views == 0) & features.any(axis=1)
    return np.where(copied, 1, views).astype(np.float32)


def _check(scene: PreparedScene) -> None:
    if len(scene) < MIN_POINTS:
        raise DatasetError(f"scene {scene.name}", f"{len(scene)} points", f"64 negatives need {MIN_POINTS}.")
    if not (scene.weight > 0).any():
        raise DatasetError(f"scene {scene.name}", "no features", "No image shows any of its points.")


def _teach(out: Path, scene: PreparedScene, choice: TeacherChoice) -> None:
    teacher = choice.load()
    features = teacher.describe(scene.cloud())
    if len(features) != len(scene):
        raise DatasetError(f"teacher {choice.name}", len(features), f"It must describe all {len(scene)} points.")
    header = read_header(scene_path(out, scene.name))
    about = {
        "fingerprint": teacher.fingerprint,
        "licence": teacher.licence,
        "scene": "" if header is None else header.digest,
    }
    save_teacher(out, scene.name, choice.name, features, about)
