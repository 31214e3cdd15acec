"""The mapper's life inside the node: loading, mapping, paused, failed; and what it has done so far."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from geopurify_core.camera import PinholeCamera
from geopurify_core.config import Config
from geopurify_core.errors import GeoPurifyError, NotAvailableError
from geopurify_core.frame import RGBDFrame
from geopurify_core.mapping.store import load_map, save_map
from geopurify_core.mapping.visibility import PointObservation
from geopurify_core.pipeline import MapStats, SemanticMapper
from geopurify_core.purification.purifier import PurifierStatus
from geopurify_core.purification.update.result import Purification
from geopurify_core.querying.engine import QueryEngine


class MapSession:
    """One mapper, reached from the worker (frames), from services (queries) and from timers (clouds).

    Args:
        config: The core's configuration.
        load_path: Map file to start with, or an empty text.
        log: Told what happens.
    """

    def __init__(self, config: Config, load_path: str, log: Callable[[str], object]) -> None:
        self._config, self._load_path, self._log = config, load_path, log
        self._mapper: SemanticMapper | None = None
        self.failure: Exception | None = None
        self._writing = threading.Lock()
        self.paused = False
        self.integrated = 0
        self.failed = 0
        self.outdated = 0
        self.last_stamp_ns = 0
        self._purified_runs = 0

    @property
    def state(self) -> str:
        """loading, mapping, paused or failed."""
        if self.failure is not None:
            return "failed"
        if self._mapper is None:
            return "loading"
        return "paused" if self.paused else "mapping"

    @property
    def epoch(self) -> int | None:
        """Which map a frame that arrives now is meant for; None, whichever comes, while it is loading."""
        return None if self._mapper is None else self._mapper.epoch

    def prepare(self) -> None:
        """Load the backbone, and the map to start with. Slow; runs on the worker."""
        try:
            mapper = SemanticMapper(self._config)
            if self._load_path:
                mapper.load(load_map(Path(self._load_path).expanduser()))
            self._warm_up(mapper)
            if mapper.purifier is None:
                self._log(f"Purification is off: {mapper.purification_status.message}")
        except Exception as error:
            self.failure = error
            raise
        self._mapper = mapper
        mapper.configure(self._config)  # it may have changed while the backbone was loading
        self._log(
            f"Ready: backbone {mapper.backbone.name}, {mapper.backbone.feature_dim} channels, "
            f"{mapper.stats().num_voxels} voxels."
        )

    def _warm_up(self, mapper: SemanticMapper) -> None:
        """Compile and cache on a throw-away map, so that neither the first frame nor the first query pays for it."""
        rgb = np.full((48, 64, 3), 60, dtype=np.uint8)
        rgb[12:36, 20:44] = (230, 40, 40)  # something that stands out, for the query to find
        camera = PinholeCamera(50.0, 50.0, 31.5, 23.5, 64, 48)
        scratch = SemanticMapper(self._config, mapper.backbone)
        try:
            scratch.integrate(RGBDFrame(rgb, np.full((48, 64), 1.0, dtype=np.float32), camera, np.eye(4), 1))
            scratch.query(["something red"])
            if scratch.purifier is not None:
                scratch.purify()
        except Exception as error:
            self._log(f"The rehearsal before the first frame failed, mapping starts all the same: {error}")
        finally:
            scratch.close()

    @property
    def mapper(self) -> SemanticMapper:
        """The mapper. Raises NotAvailableError while it is loading or when it could not be loaded."""
        if self.failure is not None:
            raise NotAvailableError("map", "failed to start", f"Mend this and start the node again: {self.failure}")
        if self._mapper is None:
            raise NotAvailableError("map", "loading", "The backbone is still loading: ask again in a moment.")
        return self._mapper

    def stats(self) -> MapStats | None:
        """Size and cost of the map; None until it exists."""
        return None if self._mapper is None else self._mapper.stats()

    def configure(self, config: Config) -> None:
        """Use a changed configuration from the next frame and query on."""
        self._config = config
        if self._mapper is not None:
            self._mapper.configure(config)

    def integrate(self, frame: RGBDFrame | PointObservation, epoch: int | None) -> None:
        """Fuse one frame into the map it was meant for; one that a reset or load has overtaken is only counted."""
        mapper = self.mapper
        epoch = mapper.epoch if epoch is None else epoch
        try:
            mapper.integrate(frame, epoch)
            self.integrated += 1
        except GeoPurifyError:
            if mapper.epoch == epoch:
                raise
            self.outdated += 1

    @property
    def purification(self) -> PurifierStatus:
        """What purification is doing; off while the backbone is loading."""
        if self._mapper is None:
            return PurifierStatus("off", str(self.failure or "The backbone is still loading."))
        return self._mapper.purification_status

    @property
    def purified(self) -> Purification | None:
        """The newest purified map; None where there is none yet."""
        purifier = None if self._mapper is None else self._mapper.purifier
        return None if purifier is None else purifier.latest

    @property
    def lacks_student(self) -> bool:
        """Whether there is simply no student for the backbone, which is nothing to warn of."""
        return self._mapper is not None and self._mapper.lacks_student

    def tend_purification(self) -> None:
        """Tell of a run that has ended, and begin another if it is time to; never while paused."""
        if self._mapper is None:
            return
        now = self._mapper.purification_status
        if now.runs > self._purified_runs:
            self._log(f"Purified {now.num_voxels} voxels in {now.seconds:.1f} s ({now.mode}).")
        self._purified_runs = now.runs
        if not self.paused:
            self._mapper.maybe_purify()

    def stop_purifying(self) -> bool:
        """Stop what runs or waits to run, without waiting for its end; False where there is nothing."""
        purifier = None if self._mapper is None else self._mapper.purifier
        return purifier is not None and purifier.cancel()

    def close(self, timeout_s: float) -> bool:
        """End purification for good; whether its thread ended in time."""
        purifier = None if self._mapper is None else self._mapper.purifier
        return purifier is None or purifier.close(timeout_s)

    def engine(self, purified: bool) -> QueryEngine:
        """For clouds: over purified features where these are wanted and there, over raw ones otherwise."""
        if purified and self.purified is not None:
            with suppress(NotAvailableError):  # a reset may take it away in between
                return self.mapper.engine(purified=True)
        return self.mapper.engine()

    def save(self, path: str, purified: bool = False) -> int:
        """Write the map, raw or purified; the number of voxels. One writer at a time."""
        if not path:
            raise NotAvailableError("path", path, "Name the file to write.")
        with self._writing:  # the snapshot is taken inside: those who wait hold no memory
            snapshot = self.mapper.purified.as_snapshot() if purified else self.mapper.snapshot()
            save_map(Path(path).expanduser(), snapshot)
        return len(snapshot)

    def load(self, path: str) -> int:
        """Replace the map by a file's; the number of voxels. The map stays as it was when the file is unusable."""
        if not path:
            raise NotAvailableError("path", path, "Name the file to read.")
        snapshot = load_map(Path(path).expanduser())
        self.mapper.load(snapshot)
        return len(snapshot)

    def autosave(self, path: str, log: Callable[[str], object]) -> None:
        """Save at the end of the node's life, if there is something to save and somewhere to put it."""
        if not path or self._mapper is None or not self._mapper.stats().num_voxels:
            return
        try:
            log(f"Saved {self.save(path)} voxels to {path}.")
        except (GeoPurifyError, OSError) as error:
            log(f"The map could not be saved: {error}")
