"""A room to score on: a prepared scene with labels, its voxels in key order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geopurify_core.datasets.synthetic.kinds import CLASS_NAMES, SCANNET20
from geopurify_core.errors import DatasetError
from geopurify_core.mapping.keys import pack_keys
from geopurify_core.mapping.snapshot import MapSnapshot
from training.scenes.prepared import PreparedScene, load_scene, scene_names

UNKNOWN = 255
_ARRAYS = ("points_m", "rgb", "normals", "features", "weight", "labels", "instances")
_STUFF = tuple(CLASS_NAMES.index(name) for name in ("wall", "floor", "ceiling"))
_STUFF_GROUP = 1 << 24
_CENTRE_SHARE = 0.5  # a voxel's centre lies half an edge beyond its corner


@dataclass(frozen=True)
class Room:
    """A prepared map whose points are voxels, V of them, in key order.

    Attributes:
        scene: Where everything comes from, rows in key order.
        coords: (V, 3) int32 voxel coordinates.
        truth: (V,) uint8 index into ``SCANNET20``; 255 where that set has no class for the thing, or nothing is known.
    """

    scene: PreparedScene
    coords: NDArray[np.int32]
    truth: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.coords)

    @property
    def name(self) -> str:
        """That of the scene."""
        return self.scene.name

    def snapshot(self) -> MapSnapshot:
        """The map as a robot would hold it, raw."""
        s, stamps = self.scene, np.zeros(len(self), dtype=np.int64)
        return MapSnapshot(
            self.coords, s.features, s.weight, s.rgb, s.normals, stamps, stamps, s.voxel_size_m, "map", 1, 1,
            s.backbone, str(s.about.get("text_fingerprint", "")),
        )  # fmt: skip

    def groups(self) -> NDArray[np.int32]:
        """(V,) which voxels truly belong together: each object, all walls, all floor, all ceiling; 0 is unknown.

        Two walls that meet in a corner are one group on purpose: mixing their features harms nobody.
        """
        labels, instances = self.scene.labels, self.scene.instances
        if labels is None or instances is None:
            raise DatasetError(self.name, "no instances", "Prepare it from a recording that knows its objects.")
        group = np.where(np.isin(labels, _STUFF), _STUFF_GROUP + labels.astype(np.int32), instances)
        return np.where(instances == 0, 0, group).astype(np.int32)


def room_of(scene: PreparedScene) -> Room:
    """A room of a prepared map. Raises DatasetError where the points are no voxels, or nothing is labelled."""
    if scene.voxel_size_m <= 0 or scene.labels is None:
        raise DatasetError(scene.name, scene.voxel_size_m, "Rooms to score are labelled maps, not scan points.")
    coords = np.rint(scene.points_m / scene.voxel_size_m - _CENTRE_SHARE).astype(np.int32)
    order = np.argsort(pack_keys(coords), kind="stable")
    ordered = _rows(scene, order)
    labels = scene.labels[order]
    return Room(ordered, coords[order], np.where(labels < len(SCANNET20), labels, UNKNOWN).astype(np.uint8))


def cropped(room: Room, size: int) -> Room:
    """The ``size`` voxels nearest the middle of the room, seen from above; the room itself where it has no more."""
    if not 0 < size < len(room):
        return room
    middle = np.median(room.coords[:, :2], axis=0)
    off = np.abs(room.coords[:, :2] - middle).max(axis=1)
    rows = np.sort(np.argpartition(off, size)[:size])
    return Room(_rows(room.scene, rows), room.coords[rows], room.truth[rows])


def load_rooms(folder: Path, seeds: Sequence[int] = (), size: int = 0) -> list[Room]:
    """The rooms of the shards ``apartment_SEED`` in ``folder`` (by default of all shards), cropped where asked.

    Raises:
        DatasetError: No shards, or one that cannot be read or scored on.
    """
    names = [f"apartment_{seed:04d}" for seed in seeds] if seeds else scene_names(folder)
    if not names:
        raise DatasetError("rooms", str(folder), "Prepare some: python -m training prepare synthetic:10-19 --out …")
    return [cropped(room_of(load_scene(folder, name)), size) for name in names]


def seeds_in(text: str) -> list[int]:
    """``"10-12,15"`` → [10, 11, 12, 15]. Raises DatasetError for anything else."""
    seeds: list[int] = []
    for part in filter(None, text.split(",")):
        low, _, high = part.partition("-")
        try:
            seeds += range(int(low), int(high or low) + 1)
        except ValueError:
            raise DatasetError("seeds", text, "Write them as 10-12,15.") from None
    return seeds


def _rows(scene: PreparedScene, rows: NDArray[np.integer]) -> PreparedScene:
    taken = {name: value[rows] for name in _ARRAYS if (value := getattr(scene, name)) is not None}
    return replace(scene, **taken)
