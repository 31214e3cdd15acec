"""The whole picture as code: frames in, a map inside, answers out."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from geopurify_core.config import Config
from geopurify_core.errors import MapMismatchError, NotAvailableError
from geopurify_core.frame import RGBDFrame
from geopurify_core.mapping.fusion import FusionReport, fuse_frame
from geopurify_core.mapping.snapshot import MapSnapshot
from geopurify_core.mapping.voxel_map import VoxelMap
from geopurify_core.querying.engine import QueryEngine
from geopurify_core.querying.results import QueryResult
from geopurify_core.vision import load_backbone
from geopurify_core.vision.base import SemanticBackbone

log = logging.getLogger(__name__)


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

    def integrate(self, frame: RGBDFrame) -> FusionReport:
        """Fuse one frame: the network sees the image, then every trusted depth pixel carries its feature into the map."""
        feature_map = self.backbone.encode_image(frame.rgb, frame.depth_m)
        with self._lock:
            return fuse_frame(self._map, frame, feature_map, self.config.depth, self.config.fusion)

    def purify(self) -> None:
        """The place of Geometry-Guided Pooling: snapshot → purified features. It has no implementation yet."""
        raise NotAvailableError(
            "purify", "student network", "This version has none yet: query the raw features (purified: false)."
        )

    def query(self, texts: Sequence[str], *, max_objects: int | None = None, min_score: float | None = None) -> list[QueryResult]:
        """Answer each text from the newest snapshot, while integration may go on."""
        return self.engine().query(texts, max_objects=max_objects, min_score=min_score)

    def snapshot(self) -> MapSnapshot:
        """The map as it is now, immutable; the same object until the map changes."""
        with self._lock:
            return self._map.snapshot()

    def engine(self) -> QueryEngine:
        """The query engine over the newest snapshot, rebuilt only when the map has changed."""
        snapshot = self.snapshot()
        engine = self._engine
        if engine is None or engine.snapshot is not snapshot:
            engine = QueryEngine(snapshot, self.backbone, self.config.query)
            self._engine = engine
        return engine

    def load(self, snapshot: MapSnapshot) -> None:
        """Replace the map by a loaded one; nothing changes if it does not fit this backbone."""
        if snapshot.backbone != self.backbone.fingerprint:
            raise MapMismatchError(
                "map.backbone", snapshot.backbone, f"Start with that backbone, or map again with {self.backbone.fingerprint}."
            )
        loaded = VoxelMap.from_snapshot(snapshot, self.config.map)
        with self._lock:
            self._map = loaded

    def reset(self) -> None:
        """Forget everything."""
        with self._lock:
            self._map = self._empty_map()

    def _empty_map(self) -> VoxelMap:
        backbone = self.backbone
        return VoxelMap(self.config.map, backbone.feature_dim, backbone.fingerprint, backbone.text_fingerprint)
