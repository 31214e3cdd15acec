"""The folder of an evaluation: one small file a scene, so that a run that was stopped goes on where it was.

settings.json       what decides the numbers; a folder takes no scene that was scored by other settings
scenes/NAME.npz     confusion matrices of one scene
report.json         all of it, see ``report.py``; with scenes.csv, classes.csv and pictures
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from geopurify_core.errors import DatasetError, InvalidConfigError
from geopurify_core.evaluation.counts import Key, SceneCounts

log = logging.getLogger(__name__)
FORMAT = 1
_ABOUT = "about"


class ResultsFolder:
    """Scenes that were scored by one set of settings.

    Args:
        path: The folder; made if it is not there.
        settings: Everything that decides the numbers, as JSON values.
        fresh: Start anew: forget what is there.

    Raises:
        InvalidConfigError: The folder holds scenes that were scored by other settings, or cannot be written.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, fresh: bool = False) -> None:
        self.path, self._scenes = path, path / "scenes"
        self.settings = json.loads(json.dumps({"format": FORMAT, **settings}))
        try:
            self._scenes.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidConfigError("--out", str(path), f"It cannot be made: {error.strerror}.") from error
        if fresh:
            self._forget()
        self._agree()

    def done(self) -> list[str]:
        """Names of the scenes that are there, sorted."""
        return sorted(path.name[: -len(".npz")] for path in self._scenes.glob("*.npz"))

    def sources(self) -> dict[str, str]:
        """Source → name of the scenes that are there; damaged files are left out, with a word in the log."""
        found = {}
        for name in self.done():
            try:
                with np.load(self._path(name), allow_pickle=False) as file:  # reads nothing but what is asked for
                    found[str(json.loads(str(file[_ABOUT])).get("source", name))] = name
            except Exception as error:  # zipfile, zlib and numpy each have their own
                log.warning("%s is damaged (%s); its scene is scored again", self._path(name), error)
        return found

    def scenes(self) -> Sequence[SceneCounts]:
        """All scenes that are there, each read when it is looked at: 300 of 200 classes would fill a memory."""
        return _SceneFiles(self)

    def save(self, scene: SceneCounts) -> None:
        """Write a scene's file; it bears its name only once it is whole."""
        arrays: dict[str, Any] = {str(key): value for key, value in scene.confusions.items()}
        arrays[_ABOUT] = np.array(json.dumps(dict(scene.about)))
        path = self._path(scene.name)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)
        temporary.replace(path)

    def load(self, name: str) -> SceneCounts:
        """Read a scene's file. Raises DatasetError where it is damaged."""
        path = self._path(name)
        try:
            with np.load(path, allow_pickle=False) as file:
                about = json.loads(str(file[_ABOUT]))
                confusions = {Key.parse(key): file[key] for key in file.files if key != _ABOUT}
        except Exception as error:  # zipfile, zlib and numpy each have their own
            raise DatasetError(
                "scene result", str(path), f"Delete it; the scene is then scored again: {error}"
            ) from error
        return SceneCounts(name, confusions, about)

    def write_json(self, name: str, content: Mapping[str, Any]) -> Path:
        """Write a JSON file into the folder, atomically."""
        path = self.path / name
        temporary = path.with_name(f".{name}.{os.getpid()}")
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        temporary.replace(path)
        return path

    def _path(self, name: str) -> Path:
        if not name or "/" in name or name.startswith("."):
            raise DatasetError("scene name", name, "It must be fit for a file's name.")
        return self._scenes / f"{name}.npz"

    def _forget(self) -> None:
        for path in (*self._scenes.glob("*.npz"), self.path / "settings.json", self.path / "report.json"):
            path.unlink(missing_ok=True)

    def _agree(self) -> None:
        path = self.path / "settings.json"
        if path.is_file() and self.done():
            try:
                before = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise InvalidConfigError(
                    "--out", str(path), "It cannot be read; give --fresh or another folder."
                ) from error
            changed = sorted(key for key in {*before, *self.settings} if before.get(key) != self.settings.get(key))
            if changed:
                raise InvalidConfigError(
                    "--out",
                    str(self.path),
                    f"Its scenes were scored with another {', '.join(changed)}; give --fresh or another folder.",
                )
        self.write_json("settings.json", self.settings)


class _SceneFiles(Sequence[SceneCounts]):
    """The scenes of a folder, in the order of their names."""

    def __init__(self, folder: ResultsFolder) -> None:
        self._folder, self._names = folder, folder.done()

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, index: int) -> SceneCounts: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[SceneCounts]: ...
    def __getitem__(self, index: int | slice) -> SceneCounts | Sequence[SceneCounts]:
        if isinstance(index, slice):
            return [self._folder.load(name) for name in self._names[index]]
        return self._folder.load(self._names[index])
