"""Preparing many scenes: start the workers, show how far they are, write the manifest whatever happens."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from geopurify_core.errors import DatasetError, InvalidConfigError
from training.scenes.manifest import remove_stale, write_manifest
from training.scenes.one import FAILED, WHOLE, Outcome
from training.scenes.settings import Preparation, forget
from training.scenes.sources import Source
from training.scenes.workers import run_here, run_in_processes

Runner = Callable[[Sequence[Source], Path, Preparation], Iterator[Outcome]]


@dataclass
class Report:
    """How a run went.

    Attributes:
        outcomes: In the order in which scenes were finished.
        total: Scenes asked for.
        seconds: The run took.
        interrupted: It was stopped before its end.
    """

    total: int
    outcomes: list[Outcome] = field(default_factory=list)
    seconds: float = 0.0
    interrupted: bool = False

    @property
    def failed(self) -> list[Outcome]:
        """Scenes that could not be prepared, by name."""
        return sorted((o for o in self.outcomes if o.status == FAILED), key=lambda outcome: outcome.name)

    @property
    def incomplete(self) -> list[Outcome]:
        """Scenes prepared without a part of what their sources should have had, by name."""
        return sorted((o for o in self.outcomes if o.left_out), key=lambda outcome: outcome.name)

    @property
    def counts(self) -> Counter[str]:
        """Scenes of each status."""
        return Counter(outcome.status for outcome in self.outcomes)

    @property
    def scenes_per_hour(self) -> float:
        """Of those that took work."""
        worked = sum(outcome.status not in (WHOLE, FAILED) for outcome in self.outcomes)
        return 3600 * worked / max(self.seconds, 1e-9)


def choose_runner(workers: int = 1, ray: str = "", gpus: float = 0.0) -> Runner:
    """Where scenes are prepared: here, in ``workers`` processes, or on the Ray cluster at an address, with a share of a
    GPU for each scene."""
    if workers < 1:
        raise InvalidConfigError("--workers", workers, "Give a number of at least 1.")
    if gpus and not ray:
        raise InvalidConfigError("--gpus", gpus, "It goes with --ray; processes of one machine share its GPUs anyway.")
    if ray:
        from training.scenes.cluster import run_on_ray

        return lambda sources, out, settings: run_on_ray(sources, out, settings, ray, workers, gpus=gpus)
    if workers == 1:
        return run_here
    return lambda sources, out, settings: run_in_processes(sources, out, settings, workers)


def prepare_scenes(
    sources: Sequence[Source],
    out: Path,
    settings: Preparation,
    runner: Runner = run_here,
    after_each: Callable[[Report], None] = lambda report: None,
) -> Report:
    """Prepare what is missing of some scenes.

    Stopped by Ctrl-C, the workers end at once, finished scenes stay, and the manifest is written.

    Args:
        sources: The scenes.
        out: Folder of the shards; made if need be.
        settings: How.
        runner: Where, see :func:`choose_runner`.
        after_each: Told of the report after each scene.

    Raises:
        DatasetError: The folder cannot be written to.
        GeoPurifyError: The settings cannot be used with any scene.
    """
    settings.check()
    if runner is not run_here:
        forget()
    try:
        out.mkdir(parents=True, exist_ok=True)
        remove_stale(out)
    except OSError as error:
        raise DatasetError("--out", str(out), f"It cannot be written to: {error.strerror}.") from error
    report, started = Report(len(sources)), time.perf_counter()
    try:
        with closing(cast(Any, runner(sources, out, settings))) as outcomes:
            for outcome in outcomes:
                report.outcomes.append(outcome)
                report.seconds = time.perf_counter() - started
                after_each(report)
    except KeyboardInterrupt:
        report.interrupted = True
    finally:
        remove_stale(out, [source.name for source in sources])
        write_manifest(out, report.outcomes)
    report.seconds = time.perf_counter() - started
    return report
