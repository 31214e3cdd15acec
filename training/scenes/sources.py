"""What a SOURCE on the command line is, and which scenes it stands for."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from geopurify_core.errors import DatasetError
from training.scenes.prepared import scene_names
from training.scenes.seeds import check_evaluation_seeds, check_seeds
from training.selection.table6 import TABLE6, published_places

log = logging.getLogger(__name__)
KINDS = (
    "Give a ScanNet scene or a folder of them, a Matterport3D house or one of its region_segmentations/regionN.ply, "
    'any recording that `geopurify map` takes, "synthetic:SEED", "synthetic:FIRST-LAST", '
    "table6-scannet:FOLDER or table6-matterport:FOLDER (the paper's twenty), or @FILE with one of these a line."
)
_SCANNET_NAME = re.compile(r"scene\d{4}_\d{2}")
_SYNTHETIC = re.compile(r"synthetic:(\d+)(?:-(\d+))?")


@dataclass(frozen=True)
class Source:
    """One scene to be prepared.

    Attributes:
        name: Of its shard.
        kind: ``scannet``, ``matterport``, ``recording``, ``synthetic``, or ``prepared``: a shard that may only lack
            teachers.
        place: Path, or ``synthetic:SEED``.
    """

    name: str
    kind: str
    place: str

    @property
    def seed(self) -> int:
        """Of a synthetic source."""
        return int(self.place.partition(":")[2])

    @property
    def label(self) -> str:
        """What the shard remembers of where it came from: no folder of this machine."""
        return self.place if self.kind == "synthetic" else f"{self.kind}:{Path(self.place).name}"

    def inputs(self) -> str:
        """Changes with the names and sizes of the files behind the scene, so that a changed recording is noticed."""
        path = Path(self.place)
        if self.kind in ("synthetic", "prepared"):
            return ""
        if self.kind == "matterport":
            files = sorted(path.parent.glob(f"{path.stem}.*"))
        else:
            files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        sizes = [f"{file.relative_to(path.parent)} {file.stat().st_size}" for file in files]
        return hashlib.sha256("\n".join(sizes).encode()).hexdigest()[:16]


def find_sources(specs: Sequence[str], out: Path, evaluation: bool = False) -> list[Source]:
    """The scenes that some SOURCEs stand for, in order; without any, those that ``out`` holds already.

    Args:
        specs: As given by the user.
        out: Folder of the shards.
        evaluation: Synthetic rooms are to be scored by, not trained on: other seeds are allowed.

    Raises:
        DatasetError: A source is missing or of no known kind, two scenes share a name, or a seed is taken.
    """
    if not specs:
        return [Source(name, "prepared", name) for name in scene_names(out)]
    sources = [source for spec in specs for source in _of_spec(spec, evaluation)]
    seen: dict[str, Source] = {}
    for source in sources:
        if seen.setdefault(source.name, source) is not source and seen[source.name] != source:
            places = [seen[source.name].place, source.place]
            raise DatasetError("scene name", source.name, f"Two scenes are called so; prepare them apart: {places}.")
    return list(seen.values())


def _of_spec(spec: str, evaluation: bool) -> list[Source]:
    if spec == "synthetic" or spec.startswith("synthetic:"):
        return _synthetic(spec, evaluation)
    name, _, root = spec.partition(":")
    if name in TABLE6:
        return [_named(place) for place in published_places(name, Path(root).expanduser())]
    if spec.startswith("@"):
        return [source for line in _lines(Path(spec[1:])) for source in _of_spec(line, evaluation)]
    path = Path(spec).expanduser()
    if not path.exists():
        raise DatasetError("source", spec, f"There is no such file or folder. {KINDS}")
    return _of_path(path)


def _lines(path: Path) -> list[str]:
    """Of a list, such as `python -m training select --out` writes: one source a line, # begins a remark."""
    try:
        lines = [line.strip() for line in path.expanduser().read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError("list", f"@{path}", f"It cannot be read: {error}") from error
    named = [line for line in lines if line and not line.startswith("#")]
    if not named or any(line.startswith("@") for line in named):
        raise DatasetError("list", f"@{path}", "Write one scene a line; a list names no other list.")
    return named


def _synthetic(spec: str, evaluation: bool) -> list[Source]:
    match = _SYNTHETIC.fullmatch(spec)
    if match is None:
        raise DatasetError("source", spec, "Write synthetic:SEED or synthetic:FIRST-LAST with whole numbers.")
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise DatasetError("source", spec, "The last seed must not be below the first.")
    seeds = range(first, last + 1)
    (check_evaluation_seeds if evaluation else check_seeds)(seeds)
    return [Source(f"apartment_{seed:04d}", "synthetic", f"synthetic:{seed}") for seed in seeds]


def _of_path(path: Path) -> list[Source]:
    from geopurify_core.scans.scannet import is_scannet_scene

    if path.is_file() and path.suffix.lower() == ".ply":
        return [_region(path)]
    if is_scannet_scene(path):
        return [_named(path)]
    if any((path / "region_segmentations").glob("region*.ply")):
        return _scenes(path)
    if _is_recording(path):
        return [Source(scene_name(path), "recording", str(path))]
    return _below(path)


def _below(path: Path) -> list[Source]:
    """The scenes of a folder of them. What bears a scene's name and lacks its mesh is one too, so that it is listed as
    failed; other folders are said and left out."""
    sources, others = [], []
    below = sorted(child for child in path.iterdir() if child.is_dir()) if path.is_dir() else []
    for child in below:
        found = _scenes(child)
        sources += found
        if not found:
            others.append(child.name)
    if not sources:
        raise DatasetError("source", str(path), f"Nothing known is there. {KINDS}")
    if others:
        log.warning("%s: %d folders hold no scan and are left out: %s", path.name, len(others), ", ".join(others[:8]))
    return sources


def _scenes(path: Path) -> list[Source]:
    from geopurify_core.scans.scannet import is_scannet_scene

    if is_scannet_scene(path) or _SCANNET_NAME.fullmatch(path.name):
        return [_named(path)]
    if not (path / "region_segmentations").is_dir():
        return []
    regions = sorted((path / "region_segmentations").glob("region*.ply"), key=_natural)
    lacking = Source(_clean(path.name), "matterport", str(path / "region_segmentations" / "region*.ply"))
    return [_region(region) for region in regions] or [lacking]


def _named(place: Path) -> Source:
    """A Matterport3D region or ScanNet scene that something says is one."""
    return _region(place) if place.suffix == ".ply" else Source(scene_name(place), "scannet", str(place))


def _is_recording(path: Path) -> bool:
    from geopurify_core.datasets.scannet import is_scannet_folder

    if path.is_file():
        return path.suffix in (".sens", ".mcap", ".db3")
    return (path / "metadata.yaml").is_file() or is_scannet_folder(path)


def _region(path: Path) -> Source:
    house = path.resolve().parent.parent.name
    return Source(_clean(f"{house}_{path.stem}"), "matterport", str(path))


def scene_name(path: Path) -> str:
    """A shard's name for a file or folder: its own, with only letters, digits, - and _."""
    resolved = path.resolve()
    return _clean(resolved.stem if resolved.is_file() else resolved.name)


def _clean(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name) or "scene"


def _natural(path: Path) -> list[int | str]:
    """region2 before region10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]
