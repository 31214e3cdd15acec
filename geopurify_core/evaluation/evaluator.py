"""One scene at a time: open it, see it, score it. Scenes that cannot be used are named, and cost no other."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geopurify_core.config import Config
from geopurify_core.errors import DatasetError, GeoPurifyError, InvalidConfigError, InvalidFrameError, MapMismatchError
from geopurify_core.evaluation.counts import SceneCounts, check_truth, count_scene
from geopurify_core.evaluation.mapped import map_scores
from geopurify_core.evaluation.openscene import readings_of
from geopurify_core.evaluation.points import Progress, check_student, point_scores, seen_points
from geopurify_core.evaluation.protocol import Protocol
from geopurify_core.evaluation.results import ResultsFolder
from geopurify_core.labels import LabelSet
from geopurify_core.labels.prompts import label_prompts
from geopurify_core.scans.lift_settings import LiftSettings
from geopurify_core.scans.scan import Scan
from geopurify_core.vision.base import SemanticBackbone

if TYPE_CHECKING:
    from geopurify_core.mapping.snapshot import MapSnapshot
    from geopurify_core.purification.student.trained import Student

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A scene that can be opened.

    Attributes:
        name: For messages, and to recognise it in a results folder.
        open: Reads it.
    """

    name: str
    open: Callable[[], Scan]


class Evaluator:
    """Scores scenes by one set of settings.

    Args:
        labels: What to tell apart.
        protocol: How.
        backbone: Sees and reads.
        student: Purifies; None scores raw features only.
        lifting: How features get to points; unused by the protocol ``map``.
        config: Of the mapper, for the protocol ``map``.
        snapshot: For the protocol ``map``: the map to judge, in the scan's frame, instead of one made of its images.

    Raises:
        StudentError: The student was made for another backbone or width.
        MapMismatchError: The map was made by another backbone.
        QueryError, BackboneError: The class names cannot be encoded.
        InvalidConfigError: Backbone and protocol would both put class names into a frame.
    """

    def __init__(
        self,
        labels: LabelSet,
        protocol: Protocol,
        backbone: SemanticBackbone,
        student: Student | None = None,
        lifting: LiftSettings | None = None,
        config: Config | None = None,
        snapshot: MapSnapshot | None = None,
    ) -> None:
        if student is not None:
            check_student(student, backbone.fingerprint, backbone.feature_dim)
        if snapshot is not None and snapshot.backbone != backbone.fingerprint:
            raise MapMismatchError("map.backbone", snapshot.backbone, f"{backbone.fingerprint} did not make this map.")
        self.snapshot = snapshot
        self.labels, self.protocol, self.backbone, self.student = labels, protocol, backbone, student
        self.lifting, self.config = lifting or LiftSettings(), config or Config()
        _check_wording(protocol.wording, backbone)
        self.prompts = label_prompts(labels, protocol.wording, protocol.spelling)
        self.vectors: NDArray[np.float32] = backbone.encode_text(self.prompts)

    def settings(self) -> dict[str, Any]:
        """Everything here that decides the numbers, as plain values."""
        student = self.student
        mapping = self.config.to_dict() if self.protocol.name == "map" else {}
        return {
            "labels": self.labels.name,
            "protocol": self.protocol.as_plain(),
            "prompts": list(self.prompts),
            "lifting": {"stride": self.lifting.stride} if mapping else asdict(self.lifting),
            "map": None if self.snapshot is None else _identity(self.snapshot),
            "mapping": {name: mapping[name] for name in ("depth", "map", "fusion") if name in mapping},
            "backbone": {
                "name": self.backbone.name,
                "fingerprint": self.backbone.fingerprint,
                "text_fingerprint": self.backbone.text_fingerprint,
            },
            "student": None if student is None else student.fingerprint,
        }

    def score(self, scan: Scan, progress: Progress | None = None) -> SceneCounts:
        """Confusion matrices of one scene, raw and purified.

        Raises:
            DatasetError: It has no labels of this set, no image, or nothing of it was seen.
            GeoPurifyError: From backbone or purification.
        """
        started = time.monotonic()
        truth = scan.labels.get(self.labels.name)
        if truth is None:
            known = ", ".join(scan.labels) or "none"
            raise DatasetError(scan.name, f"no labels of {self.labels.name}", f"It has those of: {known}.")
        check_truth(scan.name, truth, self.labels)  # before minutes of looking at its images
        tell = progress or (lambda what, share: None)
        counts = self._of_map(scan, truth, tell) if self.protocol.name == "map" else self._of_lifted(scan, truth, tell)
        return replace(counts, about={**counts.about, "seconds": round(time.monotonic() - started, 2)})

    def _of_lifted(self, scan: Scan, truth: NDArray[np.uint8], tell: Progress) -> SceneCounts:
        from geopurify_core.scans.lift import lift

        texts = [self.prompts[i] for i in self._vocabulary()]
        told = lambda n: tell(f"frame {n}", 0.0)  # noqa: E731
        lifted = lift(scan, self.backbone, self.lifting, texts=texts, progress=told)
        scores = point_scores(lifted, self.vectors, self.protocol, self.student, tell)
        counts = count_scene(scan.name, truth, scores, self.labels, seen_points(lifted))
        return replace(counts, about={**counts.about, "frames": lifted.frames})

    def _vocabulary(self) -> tuple[int, ...]:
        """Classes that a recipe which needs a vocabulary is told: GeoPurify names 19 in ScanNet, 21 in Matterport3D."""
        readings = readings_of(self.labels)
        fewest = self.protocol.name == "geopurify" and self.labels.name.startswith("scannet")
        return readings[-1 if fewest else 0].classes

    def _of_map(self, scan: Scan, truth: NDArray[np.uint8], tell: Progress) -> SceneCounts:
        snapshot, frames = self._mapped(scan, tell)
        scores = map_scores(snapshot, scan.points_m, self.vectors, self.protocol, self.student, tell)
        counts = count_scene(scan.name, truth, scores, self.labels)
        return replace(counts, about={**counts.about, "frames": frames, "voxels": len(snapshot)})

    def _mapped(self, scan: Scan, tell: Progress) -> tuple[MapSnapshot, str]:
        from geopurify_core.pipeline import SemanticMapper

        if self.snapshot is not None:
            return self.snapshot, ""
        if scan.frames is None:
            raise DatasetError(f"frames of {scan.name}", None, "The scan has no images: export them beside it.")
        mapper, read, used = SemanticMapper(self.config, self.backbone), 0, 0
        try:
            for frame in scan.frames(self.lifting.stride):
                read += 1
                try:
                    used += bool(mapper.integrate(frame).pixels_valid)
                except InvalidFrameError as error:
                    log.warning("%s: frame %d left out: %s", scan.name, read, error)
                tell(f"frame {read}", 0.0)
            return mapper.snapshot(), f"{used}/{read}"
        finally:
            mapper.close()


@dataclass(frozen=True)
class Step:
    """What became of one scene.

    Attributes:
        name: Of the source.
        counts: What it adds; None where it was skipped.
        reason: Why it was skipped.
        known: Whether it had been scored before.
    """

    name: str
    counts: SceneCounts | None
    reason: str = ""
    known: bool = False


def score_all(
    evaluator: Evaluator, sources: Sequence[Source], folder: ResultsFolder | None, progress: Progress | None = None
) -> Iterator[Step]:
    """Score scene after scene; those that the folder holds are read from it, those that fail are skipped.

    Args:
        evaluator: Scores a scene.
        sources: The scenes.
        folder: Keeps each scene's counts as soon as they are there.
        progress: Told what is done in the current scene.
    """
    known = {} if folder is None else folder.sources()
    held = {name: source for source, name in known.items() if Path(source).exists()}  # a data set may have moved
    names: dict[str, str] = {}
    for source in sources:
        earlier = _earlier(folder, known.get(source.name))
        if earlier is not None:
            names[earlier.name] = source.name
            yield Step(source.name, earlier, known=True)
            continue
        try:
            scan = source.open()
            if scan.name in names or held.get(scan.name, source.name) != source.name:
                other = names.get(scan.name, held.get(scan.name))
                raise InvalidConfigError("scene", scan.name, f"{other} has the same name.")
            scored = evaluator.score(scan, progress)
        except Exception as error:  # one scene of hundreds must not cost the others, whatever is wrong with it
            yield Step(source.name, None, _reason(source.name, error))
            continue
        names[scan.name] = source.name
        counts = replace(scored, about={**scored.about, "source": source.name})
        if folder is not None:
            folder.save(counts)
        yield Step(source.name, counts)


def _earlier(folder: ResultsFolder | None, name: str | None) -> SceneCounts | None:
    """What a scene added in an earlier run; None where it is to be scored (again)."""
    if folder is None or name is None:
        return None
    try:
        return folder.load(name)
    except DatasetError as error:
        log.warning("%s", error)
        return None


def _reason(source: str, error: Exception) -> str:
    expected = isinstance(error, (GeoPurifyError, OSError, MemoryError))
    log.log(logging.INFO if expected else logging.WARNING, "%s is skipped", source, exc_info=not expected)
    text = " ".join(str(error).split())
    return text if expected and text else f"{type(error).__name__}: {text}"


def _check_wording(wording: str, backbone: SemanticBackbone) -> None:
    """Refuse to put names into a frame that the backbone puts them into once more."""
    frame = getattr(getattr(backbone, "settings", None), "prompt", "{}")
    if wording != "names" and frame != "{}":
        own = "-b 'prompt=\"{}\"'"
        remedy = f'{backbone.name} puts names into "{frame}" itself; add {own}, or leave the option out.'
        raise InvalidConfigError("--wording", wording, remedy)


def _identity(snapshot: MapSnapshot) -> str:
    """Changes with everything of a map that scores depend on."""
    digest = hashlib.sha256(f"{snapshot.voxel_size_m} {snapshot.purified}".encode())
    for array in (snapshot.coords, snapshot.features, snapshot.rgb, snapshot.normals):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def folder_sources(paths: Sequence[Path], read: Callable[[Path], Scan]) -> list[Source]:
    """A source for each path, known by its absolute path."""
    return [Source(str(path.resolve()), lambda path=path: read(path)) for path in paths]  # type: ignore[misc]
