"""The whole picture as code: frames in, a map inside, answers out."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from geopurify_core.config import Config, PurificationConfig
from geopurify_core.errors import (
    GeoPurifyError,
    InvalidConfigError,
    MapMismatchError,
    NotAvailableError,
    PurificationError,
)
from geopurify_core.frame import RGBDFrame
from geopurify_core.mapping.fusion import FusionReport, fuse_frame
from geopurify_core.mapping.snapshot import MapSnapshot
from geopurify_core.mapping.visibility import PointObservation, fuse_points
from geopurify_core.mapping.voxel_map import VoxelMap
from geopurify_core.purification.purifier import Purifier, PurifierStatus, PurifyPolicy, student_for
from geopurify_core.purification.run import Published, without_frames
from geopurify_core.querying.engine import QueryEngine
from geopurify_core.querying.results import QueryResult
from geopurify_core.vision import load_backbone
from geopurify_core.vision.base import SemanticBackbone

if TYPE_CHECKING:
    from geopurify_core.purification.update.result import Purification

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class MapStats:
    """Size and cost of the map, for reports: bytes in use, voxels forgotten so far, newest frame's stamp and times."""

    num_voxels: int
    nbytes: int
    evicted: int
    stamp_ns: int
    backbone_ms: float
    fusion_ms: float


class SemanticMapper:
    """Integrate frames on one thread, query from any other; purification has a thread of its own.

    Args:
        config: The effective configuration.
        backbone: A loaded backbone; by default the one ``config.backbone`` names.
    """

    def __init__(self, config: Config | None = None, backbone: SemanticBackbone | None = None) -> None:
        self.config = config or Config()
        self.backbone = backbone or load_backbone(self.config.backbone.name, **self.config.backbone.options)
        # Taken in this order: an engine may wait for a frame, a frame never for an engine or for purification.
        self._purifier_lock, self._engine_lock, self._lock = threading.Lock(), threading.Lock(), threading.Lock()
        self._map = self._empty_map()
        self._engine: QueryEngine | None = None
        self._purifier: Purifier | GeoPurifyError | None = None  # not looked for yet, or why there is none
        self._earlier_runs = 0  # of purifiers that other settings have replaced
        self._times_ms = (0.0, 0.0)
        self._epoch = 0

    @property
    def epoch(self) -> int:
        """Counts how often the map was replaced, by a reset or a loaded one."""
        return self._epoch

    def configure(self, config: Config) -> None:
        """Use other depth, fusion, query and purification settings from the next frame, query and purification on.

        A purified map made with other settings is dropped, and one that is being made is stopped, unless they differ
        only in when to purify and in the memory for it.

        Raises:
            InvalidConfigError: The map's or the backbone's settings differ: these are fixed for the mapper's life.
        """
        for part in ("map", "backbone"):
            if getattr(config, part) != getattr(self.config, part):
                raise InvalidConfigError(part, getattr(config, part), "Start a new mapper to change it.")
        with self._purifier_lock:
            before, purifier = self.config, self._purifier
            with self._engine_lock, self._lock:
                self.config, self._engine = config, None
            if (_what(before.purification), before.sparse) != (_what(config.purification), config.sparse):
                self._purifier = None
                if isinstance(purifier, Purifier):
                    purifier.cancel()  # whoever waits is told to ask again
                    self._earlier_runs += purifier.status.runs
                    purifier.close(timeout_s=0.0)
                    self._at_the_end.detach()  # it would keep every student this mapper ever had
            elif isinstance(purifier, Purifier) and before.purification != config.purification:
                purifier.config = config.purification
                purifier.policy = PurifyPolicy(config.purification)

    def stats(self) -> MapStats:
        """Size and cost of the map as it is now."""
        with self._lock:
            living = self._map
            return MapStats(len(living), living.nbytes, living.evicted, living.stamp_ns, *self._times_ms)

    def integrate(self, frame: RGBDFrame | PointObservation, epoch: int | None = None) -> FusionReport:
        """Fuse one frame: the network sees the image, every trusted depth pixel carries its feature into the map.

        A point cloud (lidar, other depth sensors) is fused as far as its colour camera sees it.

        Args:
            frame: What was seen.
            epoch: The map that the frame was meant for, where it has waited since; by default the one of now.

        Raises:
            MapMismatchError: The map was replaced meanwhile; the new one is left alone.
        """
        config = self.config
        epoch = self._epoch if epoch is None else epoch
        depth_m = frame.depth_m if isinstance(frame, RGBDFrame) else None
        feature_map, backbone_ms = self._timed(lambda: self.backbone.encode_image(frame.rgb, depth_m))

        def fuse() -> FusionReport:
            if isinstance(frame, RGBDFrame):
                return fuse_frame(self._map, frame, feature_map, config.depth, config.fusion)
            return fuse_points(self._map, frame, feature_map, config.depth, config.fusion)

        with self._lock:
            if epoch != self._epoch:
                raise MapMismatchError("frame.epoch", epoch, "The map was reset or loaded after it: send newer frames.")
            report, fusion_ms = self._timed(fuse)
        self._times_ms = (backbone_ms, fusion_ms)
        return report

    @staticmethod
    def _timed(step: Callable[[], T]) -> tuple[T, float]:
        """The result of ``step`` and how long it took, milliseconds."""
        started = time.perf_counter()
        result = step()
        return result, 1e3 * (time.perf_counter() - started)

    def query(
        self,
        texts: Sequence[str],
        *,
        max_objects: int | None = None,
        min_score: float | None = None,
        purified: bool = False,
    ) -> list[QueryResult]:
        """Answer each text from the newest snapshot or purified map, while integration goes on."""
        return self.engine(purified).query(texts, max_objects=max_objects, min_score=min_score)

    def snapshot(self) -> MapSnapshot:
        """The map as it is now, immutable; the same object until the map changes."""
        with self._lock:
            return self._map.snapshot()

    def engine(self, purified: bool = False) -> QueryEngine:
        """The query engine over the newest snapshot, or purified map; made again only when that has changed.

        Raises:
            NotAvailableError: ``purified``, and there is no purified map yet, or no student for this backbone.
        """
        if purified:
            return self._purified_engine()
        with self._engine_lock:
            with self._lock:
                if self._engine is not None and self._engine.snapshot.version != self._map.version:
                    self._engine = None  # first let go of the old snapshot: its memory then serves the new one
                snapshot, settings = self._map.snapshot(), self.config.query
            if self._engine is None or self._engine.snapshot is not snapshot:
                self._engine = QueryEngine(snapshot, self.backbone, settings)
            return self._engine

    # -- purification ------------------------------------------------------------------------------------------------

    @property
    def purifier(self) -> Purifier | None:
        """What purifies this map, made on first use (which loads the student); None where purification is off.

        :attr:`purification_status` and :meth:`purify` tell why it is off.
        """
        found = self._find_purifier()
        return found if isinstance(found, Purifier) else None

    @property
    def purification_status(self) -> PurifierStatus:
        """What purification does and has done so far; ``off``, with the reason, where there is none."""
        found = self._find_purifier()
        status = found.status if isinstance(found, Purifier) else PurifierStatus("off", str(found))
        return replace(status, runs=status.runs + self._earlier_runs)

    @property
    def lacks_student(self) -> bool:
        """Whether it is off only because none is shipped for this backbone and none configured: nothing is broken."""
        found = self._find_purifier()
        return isinstance(found, NotAvailableError) and found.field == "student network"

    @property
    def purified(self) -> Purification:
        """The newest purified map.

        Raises:
            NotAvailableError: There is none yet, no student for this backbone, or purification is switched off.
            StudentError: The configured student cannot be used.
        """
        return self._published().result

    def purify(self, timeout_s: float | None = None) -> Purification:
        """Purify the map as it is now, and wait for it; fusion and queries go on meanwhile.

        Args:
            timeout_s: Longest wait; the work goes on after it. None waits as long as it takes.

        Raises:
            NotAvailableError: There is no student for this backbone, or purification is switched off.
            StudentError: The configured student cannot be used.
            PurificationError: It took too long, failed, was cancelled, or the map was replaced meanwhile.
        """
        return self._required_purifier().purify(timeout_s)

    def maybe_purify(self) -> bool:
        """For whoever feeds frames, after each of them: start purifying if enough has changed and time has passed.

        Never waits for it, and never raises because of it. Returns whether it has started one.
        """
        if self.config.purification.period_s <= 0:
            return False
        purifier = self.purifier
        if purifier is None or purifier.busy:
            return False
        with self._lock:
            newest = purifier.latest
            changed = self._map.changed_share(-1 if newest is None else newest.snapshot.version)
        return purifier.maybe_request(changed)

    def _published(self) -> Published:
        published = self._required_purifier().published
        if published is None:
            raise NotAvailableError(
                "purified", "no purified map yet", "Purify first, or ask for the raw one (purified: false)."
            )
        return published

    def _purified_engine(self) -> QueryEngine:
        published = self._published()
        with published.lock:
            settings = self.config.query
            if published.engine is None or published.engine.config is not settings:
                published.engine = QueryEngine.of_purification(published.result, self.backbone, settings)
            engine: QueryEngine = published.engine
            return engine

    def _required_purifier(self) -> Purifier:
        found = self._find_purifier()
        if isinstance(found, Purifier):
            return found
        raise type(found)(found.field, found.value, found.remedy)

    def _find_purifier(self) -> Purifier | GeoPurifyError:
        with self._purifier_lock:
            if self._purifier is None:
                self._purifier = self._new_purifier()
                if isinstance(self._purifier, Purifier):
                    self._at_the_end = weakref.finalize(self, self._purifier.close)
                else:
                    log.info("purification is off: %s", self._purifier)
            return self._purifier

    def _new_purifier(self) -> Purifier | GeoPurifyError:
        settings = self.config.purification
        if not settings.enabled:
            return NotAvailableError("purification.enabled", False, "Set it to true to purify.")
        try:
            backbone, engine = self.backbone, self.config.sparse.engine
            student = student_for(settings, backbone.fingerprint, backbone.feature_dim, engine)
            return Purifier(student, settings, _weakly(self.snapshot))
        except GeoPurifyError as error:
            without_frames(error)  # which hold this mapper
            return error
        except Exception as error:  # an engine that is half installed, say: mapping and raw answers need none of it
            log.exception("what purifies the map could not be made")
            words = f"{type(error).__name__}: {error}"
            return PurificationError("purification", words, "Mend it, or set purification.enabled to false.")

    # -- replace -----------------------------------------------------------------------------------------------------

    def load(self, snapshot: MapSnapshot) -> None:
        """Replace the map by a loaded one; nothing changes if it does not fit this backbone, or is purified."""
        if snapshot.backbone != self.backbone.fingerprint:
            raise MapMismatchError(
                "map.backbone",
                snapshot.backbone,
                f"Start with that backbone, or map again with {self.backbone.fingerprint}.",
            )
        if snapshot.feature_dim != self.backbone.feature_dim:
            remedy = f"This backbone gives {self.backbone.feature_dim} channels: map again."
            raise MapMismatchError("map.features", f"{snapshot.feature_dim} channels", remedy)
        self._replace(VoxelMap.from_snapshot(snapshot, self.config.map))

    def reset(self) -> None:
        """Forget everything."""
        self._replace(self._empty_map())

    def close(self) -> None:
        """End the purification thread and let go of its result. Fusion and raw queries still work afterwards."""
        with self._purifier_lock:
            purifier = self._purifier
            self._purifier = NotAvailableError("purify", "closed", "Make a new mapper.")
        if isinstance(purifier, Purifier):
            purifier.close()

    def _replace(self, living: VoxelMap) -> None:
        with self._engine_lock, self._lock:
            self._map, self._engine, self._epoch = living, None, self._epoch + 1
            purifier = self._purifier
            if isinstance(purifier, Purifier):
                purifier.reset()

    def _empty_map(self) -> VoxelMap:
        backbone = self.backbone
        return VoxelMap(self.config.map, backbone.feature_dim, backbone.fingerprint, backbone.text_fingerprint)


def _what(config: PurificationConfig) -> PurificationConfig:
    """The settings that say how to purify, without those that say when, and with how much memory."""
    return replace(config, period_s=0.0, dirty_fraction=0.0, budget_mb=1)


def _weakly(method: Callable[[], MapSnapshot]) -> Callable[[], MapSnapshot]:
    """The method, without keeping its object alive: a mapper that is dropped frees its map at once."""
    reference = weakref.WeakMethod(method)

    def call() -> MapSnapshot:
        living = reference()
        if living is None:
            raise NotAvailableError("purify", "the mapper is gone", "Make a new mapper.")
        return living()

    return call
