"""Which scenes there are, and how the histogram of each is read: from labels, or from geometry alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geopurify_core.errors import DatasetError, GeoPurifyError
from training.selection import label_files
from training.selection.statistics import SceneStatistics

_LABELS_PLY, _MESH_PLY = "_vh_clean_2.labels.ply", "_vh_clean_2.ply"
_REGIONS = "region_segmentations"
_KINDS = (
    "Give prepared shards, ScanNet scenes, Matterport3D houses, OpenScene's .pth files, meshes, saved maps, or a .csv "
    "or .json of histograms; a file, or a folder of them."
)

_ENDINGS = {True: (".safetensors", ".ply"), False: (".safetensors", ".ply", ".pth")}  # by: without labels

Histogram = NDArray[np.int64]


@dataclass(frozen=True)
class Candidate:
    """A scene that may be chosen: its name, where it lies, and how to read its histogram."""

    name: str
    source: Path | None
    read: Callable[[], Histogram]


@dataclass(frozen=True)
class Skipped:
    """A scene that could not be read, and why."""

    name: str
    reason: str


def find_scenes(sources: Iterable[Path], label_set: str | None = None, without_labels: bool = False) -> list[Candidate]:
    """All scenes in some files and folders.

    Args:
        sources: Each a scene, or a folder that holds scenes.
        label_set: To count in; by default ScanNet's 20 classes, Matterport3D's 21, those that a shard names, and for
            .pth files whatever is in them.
        without_labels: Sort surfaces by their geometry instead of counting labels.

    Raises:
        DatasetError: A source is missing, or holds no scene.
    """
    found: list[Candidate] = []
    for source in sources:
        scenes = _of_folder(source, without_labels) if source.is_dir() else [source]
        if not source.exists() or not scenes:
            raise DatasetError("source", str(source), f"There is no scene. {_KINDS}")
        for path in scenes:
            found += _of_file(path, label_set, without_labels)
    return found


def read_scenes(
    candidates: Iterable[Candidate], after_each: Callable[[], None] = lambda: None
) -> tuple[list[SceneStatistics], list[Skipped]]:
    """The histograms of scenes, and those scenes that cannot be read, are empty or have foreign labels."""
    good: list[SceneStatistics] = []
    skipped: list[Skipped] = []
    for candidate in candidates:
        try:
            good.append(SceneStatistics(candidate.name, candidate.read(), candidate.source))
        except GeoPurifyError as error:
            skipped.append(Skipped(candidate.name, " ".join(str(error).split())))
        after_each()
    return good, skipped


def find_named(sources: Iterable[Path]) -> list[Candidate]:
    """All scenes in some files and folders, labelled or not, for those who know the names they want."""
    found: list[Candidate] = []
    for source in sources:
        for without_labels in (True, False):
            if source.is_dir():
                files = _of_folder(source, without_labels)
                found += [Candidate(*_name_and_source(path), read=_unread) for path in files]
    return found


def _unread() -> Histogram:
    raise NotImplementedError  # found by name alone


def _of_folder(folder: Path, without_labels: bool) -> list[Path]:
    """Files of scenes in a folder, of the first kind that occurs; data sets keep them up to two folders down."""
    ending = _MESH_PLY if without_labels else _LABELS_PLY
    shards = [path for path in folder.glob("*.safetensors") if "." not in path.stem]  # NAME.TEACHER is no scene
    regions = [path for depth in ("", "*/") for path in folder.glob(f"{depth}{_REGIONS}/*.ply")]
    kinds: tuple[Iterable[Path], ...] = (
        shards,
        [*folder.glob(f"*{ending}"), *folder.glob(f"*/*{ending}")],
        regions,
        () if without_labels else folder.glob("*.pth"),
        folder.glob("*.ply"),
    )
    return next((sorted(paths) for paths in map(list, kinds) if paths), [])


def _of_file(path: Path, label_set: str | None, without_labels: bool) -> list[Candidate]:
    suffix = path.suffix.lower()
    if suffix in (".csv", ".json") and not without_labels:
        table = label_files.of_table(path)
        return [Candidate(name, None, functools.partial(_nonempty, counts, name)) for name, counts in table.items()]
    name, source = _name_and_source(path)
    if suffix not in _ENDINGS[without_labels]:
        raise DatasetError("source", str(path), _KINDS)
    read = functools.partial(_geometry, path, name) if without_labels else _labels(path, source, label_set, name)
    return [Candidate(name, source, read)]


def _name_and_source(path: Path) -> tuple[str, Path]:
    """A scene's name, and what ``prepare`` would be given: the folder of a ScanNet mesh, else the file itself."""
    for ending in (_LABELS_PLY, _MESH_PLY):
        if path.name.endswith(ending):
            return path.name.removesuffix(ending), path.parent
    if path.parent.name == _REGIONS:
        return f"{path.resolve().parent.parent.name}_{path.stem}", path
    return path.stem.removesuffix("_vh_clean_2"), path  # so OpenScene calls its ScanNet files


def _labels(path: Path, source: Path, label_set: str | None, name: str) -> Callable[[], Histogram]:
    if path.suffix == ".safetensors":
        return functools.partial(label_files.of_shard, path)
    if path.suffix == ".pth":
        return functools.partial(label_files.of_pth, path, label_set, name)
    if path.parent.name == _REGIONS:
        return functools.partial(label_files.of_scan, path, label_set or "matterport21", name)
    if label_set in (None, "scannet20"):
        return functools.partial(label_files.of_ply, path, name)
    return functools.partial(label_files.of_scan, source, str(label_set), name)


def _nonempty(counts: Histogram, name: str) -> Histogram:
    if not counts.any():
        raise DatasetError(name, "no points", "The scene is empty; leave it out.")
    return counts


def _geometry(path: Path, name: str) -> Histogram:
    from training.selection.geometry import geometry_histogram

    return geometry_histogram(_points(path), name)


def _points(path: Path) -> NDArray[np.floating]:
    """(N, 3) points, z up, of a mesh, a prepared shard, or a saved map, which is turned upright."""
    if path.suffix.lower() == ".ply":
        from geopurify_core.scans.mesh import read_ply

        return read_ply(path).points_m
    from geopurify_core.geometry import estimate_up, level_rotation

    if _is_map(path):
        from geopurify_core.mapping.store import load_map

        snapshot = load_map(path)
        turned: NDArray[np.floating] = snapshot.centers_m @ level_rotation(estimate_up(snapshot)).T
        return turned
    arrays, about = label_files.read_shard(path, ("points_m",))
    points: NDArray[np.floating] = arrays["points_m"]
    return points @ level_rotation(about["up"]).T if "up" in about else points


def _is_map(path: Path) -> bool:
    from geopurify_core.errors import MapFileError
    from geopurify_core.mapping.store import read_extra

    try:
        read_extra(path)
    except MapFileError:
        return False
    return True
