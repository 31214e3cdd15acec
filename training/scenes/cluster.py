"""Many scenes on a cluster: one Ray task for each scene. Ray is optional: ``pip install ray``."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from geopurify_core.errors import NotAvailableError
from training.scenes.one import FAILED, Outcome, prepare_one
from training.scenes.settings import Preparation
from training.scenes.sources import Source
from training.scenes.workers import RETRIES, thread_variables

log = logging.getLogger(__name__)
LOCAL = "local"
_KNOCK_S = 10.0
_TO_RAY = "Install it in every node's environment: pip install ray"


def run_on_ray(
    sources: Sequence[Source],
    out: Path,
    settings: Preparation,
    address: str = LOCAL,
    workers: int = 1,
    retries: int = RETRIES,
    cpus: int = 1,
    gpus: float = 0.0,
) -> Iterator[Outcome]:
    """Outcomes as they come. A task whose worker or node dies is run again by Ray, ``retries`` times.

    Sources and ``out`` must lie under the same paths on all nodes (a shared file system), and each node needs this
    package. Closing the iterator cancels what runs and leaves the cluster.

    Args:
        address: ``auto`` or HOST:PORT of a running cluster; ``local`` starts one here with ``workers`` processes.
        workers: Processes of a local cluster; a running one decides itself how many fit.
        cpus: Cores for each task.
        gpus: Share of a GPU for each task; Ray hides the GPUs from tasks that ask for none.

    Raises:
        NotAvailableError: Ray is not installed, or there is no cluster at the address.
    """
    ray = _import_ray()
    temporary = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
    try:
        _connect(ray, address, workers * cpus, temporary.name)
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=retries)(_in_task)
        environment = {"env_vars": {**thread_variables(cpus), "PYTHONPATH": os.pathsep.join(_python_path())}}
        task = task.options(runtime_env=environment)
        shared = ray.put(settings)
        waiting = {task.remote(source, str(out), shared): source for source in sources}
        try:
            while waiting:
                done, _ = ray.wait(list(waiting), num_returns=1)
                for reference in done:
                    yield _outcome(ray, reference, waiting.pop(reference))
        finally:
            for reference in waiting:
                ray.cancel(reference, force=True)
    finally:
        ray.shutdown()
        temporary.cleanup()


def _in_task(source: Source, out: str, settings: Preparation) -> Outcome:
    return prepare_one(source, Path(out), settings)


def _outcome(ray: Any, reference: Any, source: Source) -> Outcome:
    try:
        outcome: Outcome = ray.get(reference)
        return outcome
    except ray.exceptions.RayError as error:
        reason = f"Ray gave it up: {' '.join(str(error).split())[:300]}"
        return Outcome(source.name, source.label, FAILED, error=type(error).__name__, reason=reason)


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise NotAvailableError("ray", None, _TO_RAY) from error
    return ray


def _connect(ray: Any, address: str, cpus: int, folder: str) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    try:
        if address == LOCAL:
            local = {"num_cpus": cpus, "include_dashboard": False, "_node_ip_address": "127.0.0.1", "_temp_dir": folder}
            ray.init(**local, **quiet)
        else:
            _knock(address)
            ray.init(address=address, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        remedy = f"Start one with `ray start --head`, or use --ray {LOCAL}: {error}"
        raise NotAvailableError("Ray cluster", address, remedy) from error


def _knock(address: str) -> None:
    """Raise OSError where nobody listens at HOST:PORT; Ray itself would try for minutes, and then end the process."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if separator:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()


def _python_path() -> list[str]:
    """This repository and what the driver was given, so that local workers import the same code."""
    root = str(Path(__file__).resolve().parents[2])
    return [root, *(part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part)]
