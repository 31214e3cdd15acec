"""The whole picture as code: frames in, a map inside, answers out."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from geopurify_core.config import Config
from geopurify_core.errors import InvalidConfigError, MapMismatchError, NotAvailableError
from geopurify_core.frame import RGBDFrame
from geopurify_core.mapping.fusion import FusionReport, fuse_frame
from geopurify_core.mapping.snapshot import MapSnapshot
from geopurify_core.mapping.visibility import PointObservation, fuse_points
from geopurify_core.mapping.voxel_map import VoxelMap
from geopurify_core.querying.engine import QueryEngine
from geopurify_core.querying.results import QueryResult
from geopurify_core.vision import load_backbone
from geopurify_core.vision.base import SemanticBackbone

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
    """Integrate frames on one thread, query from any other.

    Args:
        config: The effective configuration.
        backbone: A loaded backbone; by default the one ``config.backbone`` names.
    """

    def __init__(self, config: Config | None = None, backbone: SemanticBackbone | None = None) -> None:
        self.config = config or Config()
        self.backbone = backbone or load_backbone(self.config.backbone.name, **self.config.backbone.options)
        self._lock = threading.Lock()
        self._map = self._empty_map()
        self._engine: QueryEngine | None = None
        self._times_ms = (0.0, 0.0)
        self._epoch = 0

    @property
    def epoch(self) -> int:
        """Counts how often the map was replaced, by a reset or a loaded one."""
        return self._epoch

    def configure(self, config: Config) -> None:
        """Use other depth, fusion and query settings from the next frame and query on.

        Raises:
            InvalidConfigError: The map's or the backbone's settings differ: these are fixed for the mapper's life.
        """
        for part in ("map", "backbone"):
            if getattr(config, part) != getattr(self.config, part):
                raise InvalidConfigError(part, getattr(config, part), "Start a new mapper to change it.")
        with self._lock:
            self.config = config
            self._engine = None

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

    def purify(self) -> None:
        """The place of Geometry-Guided Pooling: snapshot → purified features. It has no implementation yet."""
        raise NotAvailableError(
            "purify", "student network", "This version has none yet: query the raw features (purified: false)."
        )

    def query(
        self, texts: Sequence[str], *, max_objects: int | None = None, min_score: float | None = None
    ) -> list[QueryResult]:
        """Answer each text from the newest snapshot, while integration may go on."""
        return self.engine().query(texts, max_objects=max_objects, min_score=min_score)

    def snapshot(self) -> MapSnapshot:
        """The map as it is now, immutable; the same object until the map changes."""
        with self._lock:
            return self._map.snapshot()

    def engine(self) -> QueryEngine:
        """The query engine over the newest snapshot, rebuilt only when the map has changed."""
        with self._lock:
            if self._engine is not None and self._engine.snapshot.version != self._map.version:
                self._engine = None  # first let go of the old snapshot: its memory then serves the new one
            snapshot = self._map.snapshot()
            if self._engine is None or self._engine.snapshot is not snapshot:
                self._engine = QueryEngine(snapshot, self.backbone, self.config.query)
            return self._engine

    def load(self, snapshot: MapSnapshot) -> None:
        """Replace the map by a loaded one; nothing changes if it does not fit this backbone."""
        if snapshot.backbone != self.backbone.fingerprint:
            raise MapMismatchError(
                "map.backbone",
                snapshot.backbone,
                f"Start with that backbone, or map again with {self.backbone.fingerprint}.",
            )
        loaded = VoxelMap.from_snapshot(snapshot, self.config.map)
        with self._lock:
            self._map, self._engine, self._epoch = loaded, None, self._epoch + 1

    def reset(self) -> None:
        """Forget everything."""
        with self._lock:
            self._map, self._engine, self._epoch = self._empty_map(), None, self._epoch + 1

    def _empty_map(self) -> VoxelMap:
        backbone = self.backbone
        return VoxelMap(self.config.map, backbone.feature_dim, backbone.fingerprint, backbone.text_fingerprint)
