"""Scenes that are maps: frames go through the real pipeline, and the voxels are the points."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from geopurify_core.config import Config
from geopurify_core.datasets import open_dataset
from geopurify_core.datasets.base import iterate
from geopurify_core.datasets.synthetic import SyntheticDataset
from geopurify_core.errors import BackboneError, DatasetError, InvalidFrameError
from geopurify_core.frame import RGBDFrame
from geopurify_core.geometry import estimate_up
from geopurify_core.mapping.keys import pack_keys
from geopurify_core.mapping.snapshot import MapSnapshot
from geopurify_core.pipeline import SemanticMapper
from geopurify_core.purification.student.normals import fill_normals
from geopurify_core.scans.frames import left_out
from geopurify_core.scans.scan import NO_LABEL, Scan
from geopurify_core.vision.base import SemanticBackbone
from training.scenes.prepared import LEFT_OUT, PreparedScene
from training.scenes.seeds import walk_of

log = logging.getLogger(__name__)
_UPRIGHT_COS = np.cos(np.radians(10.0))
REACH_M = 0.1  # a voxel takes the label of the nearest scan point within this distance


def map_frames(
    frames: Iterable[RGBDFrame], config: Config, backbone: SemanticBackbone, name: str
) -> tuple[MapSnapshot, int, dict[str, int]]:
    """The map of all usable frames, their number, and for each reason that of frames left out.

    Raises:
        DatasetError: None could be used.
    """
    mapper = SemanticMapper(config, backbone)
    used, reason = 0, "It holds no usable frame: images, poses or depth are missing or damaged."
    unused: Counter[str] = Counter()
    try:
        for frame in frames:
            try:
                if mapper.integrate(frame).pixels_valid > 0:
                    used += 1
                else:
                    unused["no usable depth"] += 1
            except (InvalidFrameError, BackboneError) as error:
                log.warning("%s: skipping a frame: %s", name, error)
                reason = str(error)
                unused[type(error).__name__] += 1
        if not used:
            raise DatasetError(f"recording {name}", 0, reason)
        return mapper.snapshot(), used, dict(unused)
    finally:
        mapper.close()


def map_recording(
    name: str, place: str, stride: int, config: Config, backbone: SemanticBackbone
) -> tuple[PreparedScene, str]:
    """A recording as a scene without labels, and ``used/all`` frames."""
    recording = open_dataset(place)
    snapshot, used, unused = map_frames(iterate(recording, stride=stride), config, backbone, name)
    about: dict[str, Any] = {LEFT_OUT: {**recording.skipped, **unused}}
    if up := tilted_up(snapshot):
        about["up"] = up
    return scene_of_map(name, snapshot, about=about), f"{used}/{len(range(0, len(recording), stride))}"


def tilted_up(snapshot: MapSnapshot) -> list[float]:
    """Which way is up, where that is clearly not z (a world that is the first camera's); else nothing."""
    up = estimate_up(snapshot)
    return [] if up[2] > _UPRIGHT_COS else [round(float(part), 4) for part in up]


def map_scan(scan: Scan, stride: int, config: Config, backbone: SemanticBackbone) -> tuple[PreparedScene, str]:
    """A scan's images as a map, labelled by the scan's points within 10 cm; and ``used/all`` frames."""
    if scan.frames is None:
        raise DatasetError(f"frames of {scan.name}", None, "The scan has no images: export them beside it.")
    snapshot, used, unused = map_frames(scan.frames(stride), config, backbone, scan.name)
    unused = {**left_out(scan.frames), **unused}
    distance, nearest = cKDTree(scan.points_m).query(snapshot.centers_m)
    near = distance <= REACH_M
    labels = {name: np.where(near, values[nearest], NO_LABEL) for name, values in scan.labels.items()}
    instances = None if scan.instances is None else np.where(near, scan.instances[nearest], 0)
    label_set, values = next(iter(labels.items()), ("", None))
    about = {"label_set": label_set, LEFT_OUT: unused}
    return scene_of_map(scan.name, snapshot, values, instances, about), f"{used}/{used + sum(unused.values())}"


def map_apartment(seed: int, config: Config, backbone: SemanticBackbone, name: str) -> tuple[PreparedScene, str]:
    """The apartment of a seed along its walk, with what is truly there; and ``used/length`` of the walk."""
    length, used = walk_of(seed)
    recording = SyntheticDataset(seed, num_frames=length)
    snapshot, _, _ = map_frames(recording.frames(stop=used), config, backbone, name)
    instances = recording.ground_truth_instances(snapshot.centers_m).astype(np.int32)
    labels = recording.apartment.class_of_instance[instances]
    return scene_of_map(name, snapshot, labels, instances, {"label_set": "synthetic"}), f"{used}/{length}"


def scene_of_map(
    name: str,
    snapshot: MapSnapshot,
    labels: NDArray[np.integer] | None = None,
    instances: NDArray[np.integer] | None = None,
    about: Mapping[str, Any] | None = None,
) -> PreparedScene:
    """A map as a scene: rows in key order, missing normals filled in as purification fills them."""
    order = np.argsort(pack_keys(snapshot.coords), kind="stable")
    normals = fill_normals(snapshot.coords, snapshot.normals)
    return PreparedScene(
        name,
        points_m=snapshot.centers_m[order],
        rgb=snapshot.rgb[order],
        normals=normals[order].astype(np.float16),
        features=snapshot.features[order],
        weight=snapshot.weight[order],
        labels=None if labels is None else labels[order].astype(np.uint8),
        instances=None if instances is None else instances[order].astype(np.int32),
        about={**(about or {}), "voxel_size_m": snapshot.voxel_size_m},
    )
