"""Class histograms out of files: prepared shards, labelled PLY meshes, OpenScene's .pth, tables of histograms."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopurify_core.errors import DatasetError
from geopurify_core.labels import load_label_set
from geopurify_core.scans.mesh import read_ply
from training.selection.statistics import count_labels

_HIGHEST_NYU40 = 40
_SYNTHETIC = "synthetic"  # what `prepare` calls the labels of procedural apartments


def class_count(label_set: str) -> int:
    """How many classes a label set has. Raises InvalidConfigError for an unknown one."""
    if label_set == _SYNTHETIC:
        from geopurify_core.datasets.synthetic.kinds import CLASS_NAMES

        return len(CLASS_NAMES)
    return len(load_label_set(label_set).names)


def of_shard(path: Path) -> NDArray[np.int64]:
    """Classes of a prepared scene. Raises DatasetError for a damaged shard, or one without labels."""
    arrays, about = read_shard(path, ("labels",))
    if "labels" not in arrays:
        raise DatasetError(path.stem, "no labels", "The scene was prepared without them; choose with --without-labels.")
    label_set = about.get("label_set")
    return count_labels(arrays["labels"], class_count(str(label_set)) if label_set else None, path.stem)


def read_shard(path: Path, wanted: tuple[str, ...]) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Some arrays of a prepared scene (those of ``wanted`` it has) and its description, features left on the disk."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            about = json.loads((file.metadata() or {})["scene"])
            return {name: file.get_tensor(name) for name in wanted if name in file.keys()}, about  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise DatasetError("shard", str(path), f"Delete it and prepare the scene again: {error}") from error


def of_ply(path: Path, scene: str) -> NDArray[np.int64]:
    """ScanNet's 20 classes in a mesh whose vertices have NYU40 ids in a field ``label``: ``*_vh_clean_2.labels.ply``.

    Other NYU40 ids count as unlabelled, as in OpenScene; any other number is an error.
    """
    ids = read_ply(path).vertex_field("label", path)
    if not 0 <= int(ids.min()) <= int(ids.max()) <= _HIGHEST_NYU40:
        raise DatasetError(scene, f"label {int(ids.max())}", "The vertex field `label` must hold NYU40 ids, 0 to 40.")
    return count_labels(load_label_set("scannet20").index_of_id()[ids], class_count("scannet20"), scene)


def of_scan(path: Path, label_set: str, scene: str) -> NDArray[np.int64]:
    """Classes of a ScanNet folder in a set that needs its objects (``scannet200``), or of a Matterport3D region."""
    from geopurify_core.scans.matterport import read_matterport
    from geopurify_core.scans.scannet import read_scannet

    labels = (read_scannet(path) if path.is_dir() else read_matterport(path, strict=True)).labels
    if label_set not in labels:
        known = ", ".join(sorted(labels)) or "none"
        raise DatasetError(scene, label_set, f"Labels of this set cannot be read here (those that can: {known}).")
    return count_labels(labels[label_set], class_count(label_set), scene)


def of_pth(path: Path, label_set: str | None, scene: str) -> NDArray[np.int64]:
    """Classes of one of OpenScene's files: a saved tuple (coordinates, colours, labels).

    Only arrays are read from it: a file that holds code is refused, not run.
    """
    import torch

    try:
        with torch.serialization.safe_globals(_array_globals()):
            _, _, labels = torch.load(path, map_location="cpu", weights_only=True)
        labels = np.asarray(labels)
        if not np.isfinite(labels).all():
            raise ValueError("labels that are no numbers")
    except Exception as error:  # unpickling a damaged file may raise nearly anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DatasetError(scene, str(path), f"It is no tuple (coordinates, colours, labels): {reason}") from error
    return count_labels(labels, class_count(label_set) if label_set else None, scene)


def of_table(path: Path) -> dict[str, NDArray[np.int64]]:
    """Histograms of many scenes: CSV headed ``scene,class,…``, or JSON ``{scene: {class: count} or [count, …]}``.

    Raises:
        DatasetError: It cannot be read, or a count is no whole number of at least 0.
    """
    try:
        rows = _csv_rows(path) if path.suffix.lower() == ".csv" else _json_rows(path)
        classes = list(dict.fromkeys(name for row in rows.values() for name in row))
        return {scene: _counts([row.get(name, 0) for name in classes]) for scene, row in rows.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise DatasetError("histograms", str(path), f"It is no table of scenes and classes: {error}") from error


def _csv_rows(path: Path) -> dict[str, dict[str, Any]]:
    with path.open(newline="", encoding="utf-8") as file:
        header, *lines = [line for line in csv.reader(file) if line]
    rows: dict[str, dict[str, Any]] = {}
    for line in lines:
        if line[0] in rows:
            raise ValueError(f"two lines for {line[0]}")
        rows[line[0]] = dict(zip(header[1:], line[1:], strict=True))
    return rows


def _json_rows(path: Path) -> dict[str, dict[str, Any]]:
    data = json.loads(path.read_text(encoding="utf-8"))
    return {
        str(scene): {str(i): count for i, count in enumerate(row)} if isinstance(row, list) else dict(row)
        for scene, row in data.items()
    }


def _counts(row: list[Any]) -> NDArray[np.int64]:
    counts = [float(count) for count in row]
    if any(not count.is_integer() or count < 0 for count in counts):
        raise ValueError(f"{row} are no counts")
    return np.array(counts, dtype=np.int64)


def _array_globals() -> list[Any]:
    """What a pickled NumPy array of numbers names, under NumPy 1 and 2."""
    rebuild = np.zeros(0).__reduce__()[0]
    names = [(rebuild, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    return [*names, np.ndarray, np.dtype, *{type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}]
