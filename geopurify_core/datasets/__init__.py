"""Recordings and generated scenes: anything that gives RGB-D frames with poses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from geopurify_core.datasets.base import FrameSequence, FrameSource, RGBDDataset, iterate
from geopurify_core.errors import DatasetError

__all__ = ["FrameSequence", "FrameSource", "RGBDDataset", "iterate", "open_dataset"]

_KINDS = (
    "Give a folder in ScanNet's exported layout (color/ depth/ pose/ intrinsic/), a .sens file, a rosbag2 "
    '(folder with metadata.yaml, .mcap or .db3), or "synthetic[:SEED]".'
)


def open_dataset(spec: str | Path, **options: Any) -> RGBDDataset:
    """The recording that ``spec`` names; its kind is guessed from what is there.

    Args:
        spec: A path, or ``"synthetic"`` / ``"synthetic:SEED"`` for the built-in procedural apartment.
        options: Keyword options of that reader (for example ``topics`` for a bag).

    Raises:
        DatasetError: Nothing is there, its kind is unknown, or a part of it is missing.
    """
    text = str(spec)
    path = Path(spec).expanduser()
    generated = text == "synthetic" or text.startswith("synthetic:")
    if not generated and not path.exists():
        raise DatasetError("dataset", text, f"There is no such file or folder. {_KINDS}")
    try:
        return _open_synthetic(text, options) if generated else _open_path(path, options)
    except TypeError as error:
        raise DatasetError("dataset options", options, f"The reader of {text} does not take them: {error}") from error


def _open_path(path: Path, options: dict[str, Any]) -> RGBDDataset:
    from geopurify_core.datasets.rosbag import RosbagDataset
    from geopurify_core.datasets.scannet import ScanNetFolder, is_scannet_folder
    from geopurify_core.datasets.sens import SensFile

    if path.is_file() and path.suffix == ".sens":
        return SensFile(path, **options)
    if path.is_file() and path.suffix in (".mcap", ".db3"):
        return RosbagDataset(path, **options)
    if (path / "metadata.yaml").is_file():
        return RosbagDataset(path, **options)
    if is_scannet_folder(path):
        return ScanNetFolder(path, **options)
    raise DatasetError("dataset", str(path), _KINDS)


def _open_synthetic(spec: str, options: dict[str, Any]) -> RGBDDataset:
    _, _, seed = spec.partition(":")
    if seed and not seed.isdecimal():
        raise DatasetError("dataset", spec, "Write synthetic:SEED with a whole number, for example synthetic:7.")
    from geopurify_core.datasets.synthetic import SyntheticDataset

    if seed:
        options = {"seed": int(seed), **options}
    scene = SyntheticDataset(**options)
    return FrameSequence(scene.name, scene)
