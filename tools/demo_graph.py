"""The demo's ROS graph: the real nodes as processes of their own, and a client that talks to them as a user's would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rclpy
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

from geopurify_interfaces.msg import MapStatus, PurificationStatus
from geopurify_interfaces.srv import Purify, Query, SaveMap, Segment

ROOT = Path(__file__).resolve().parents[1]
_LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
_STOP_S = 10.0
_ANSWER_S, _PURIFY_S = 60.0, 900.0


class DemoError(Exception):
    """The graph did not do what it should; the message says where to look."""


def private_network() -> None:
    """Keep the demo's traffic to itself: its own domain, this machine only, shared memory large enough for images."""
    os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    os.environ.setdefault("FASTRTPS_DEFAULT_PROFILES_FILE", str(ROOT / "config" / "fastdds_shm.xml"))


@contextmanager
def running(module: str, log: Path, parameters: dict[str, Any]) -> Iterator[subprocess.Popen[bytes]]:
    """A node as a process, its output in ``log``; asked to stop by SIGINT at the end, as Ctrl-C would."""
    arguments = [part for key, value in parameters.items() for part in ("-p", f"{key}:={value}")]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        command = [sys.executable, "-m", f"geopurify_ros.{module}", "--ros-args", *arguments]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Client(Node):
    """Hears the mapping node's status and calls its services."""

    def __init__(self) -> None:
        super().__init__("geopurify_demo")
        self.status: MapStatus | None = None
        self.create_subscription(MapStatus, "geopurify/status", self._hear, _LATCHED)
        self._query = self.create_client(Query, "geopurify/query")
        self._segment = self.create_client(Segment, "geopurify/segment")
        self._save = self.create_client(SaveMap, "geopurify/save_map")
        self._purify = self.create_client(Purify, "geopurify/purify")

    def _hear(self, message: MapStatus) -> None:
        self.status = message

    def listen(self, seconds: float) -> None:
        """Handle whatever arrives within this time."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            rclpy.spin_once(self, timeout_sec=left)

    def wait_until_ready(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        """Until the node maps. Raises DemoError when it ends or fails before, or takes longer."""
        deadline = time.monotonic() + seconds
        while self.status is None or self.status.state == "loading":
            self.listen(0.1)
            if process.poll() is not None:
                raise DemoError(f"The mapping node ended with {process.returncode} before it was ready.")
            if time.monotonic() > deadline:
                raise DemoError(f"The mapping node was not ready after {seconds:.0f} s.")
        if self.status.state == "failed":
            raise DemoError(f"The mapping node failed: {self.status.message}")

    def query(self, texts: list[str], max_objects: int = 5, purified: bool = False) -> tuple[Query.Response, float]:
        """The answer of ~/query, and how long it took, milliseconds."""
        start = time.perf_counter()
        request = Query.Request(texts=texts, max_objects=max_objects, purified=purified)
        response = self._call(self._query, request)
        return response, 1e3 * (time.perf_counter() - start)

    def segment(self, labels: list[str], purified: bool = False) -> Segment.Response:
        """Every voxel's best label."""
        return self._call(self._segment, Segment.Request(labels=labels, purified=purified))

    def save(self, path: Path, purified: bool = False) -> SaveMap.Response:
        """The map in a file."""
        return self._call(self._save, SaveMap.Request(path=str(path), purified=purified))

    def purify(self, tell: Callable[[PurificationStatus], object]) -> Purify.Response:
        """Purify the map as it is now; ``tell`` hears how it goes until it is done."""
        return self._call(self._purify, Purify.Request(), _PURIFY_S, lambda: tell(self.status.purification))

    def _call(
        self, client: Any, request: Any, seconds: float = _ANSWER_S, meanwhile: Callable[[], object] = lambda: None
    ) -> Any:
        if not client.wait_for_service(timeout_sec=_ANSWER_S):
            raise DemoError(f"The service {client.srv_name} did not appear within {_ANSWER_S:.0f} s.")
        future, deadline = client.call_async(request), time.monotonic() + seconds
        while not future.done():
            rclpy.spin_until_future_complete(self, future, timeout_sec=0.2)
            meanwhile()
            if time.monotonic() > deadline:
                raise DemoError(f"The service {client.srv_name} did not answer within {seconds:.0f} s.")
        response = future.result()
        if not response.success:
            raise DemoError(f"{client.srv_name}: {response.message}")
        return response
