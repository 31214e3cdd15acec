"""Real nodes in real processes, talking over shared memory in a domain of their own."""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
STUB = Path(__file__).with_name("geopurify_stub.py")
FRAME = "camera_optical_frame"


@pytest.fixture(scope="session")
def ros_env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of every ROS process of this run; also that of the test process itself."""
    pytest.importorskip("rclpy")
    pytest.importorskip("geopurify_interfaces.srv", reason="geopurify_interfaces is not built: make setup")
    return make_environment(tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("ros_log"))


def make_environment(site: Path, logs: Path) -> dict[str, str]:
    """A domain of its own, shared memory only, and the stub network as an installed backbone."""
    site.mkdir(parents=True, exist_ok=True)
    (site / STUB.name).write_bytes(STUB.read_bytes())
    info = site / "geopurify_stub-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: geopurify-stub\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[geopurify.backbones]\nstub = geopurify_stub:StubBackbone\n")
    os.environ["ROS_DOMAIN_ID"] = str(random.SystemRandom().randint(1, 100))
    os.environ["FASTRTPS_DEFAULT_PROFILES_FILE"] = str(ROOT / "config" / "fastdds_shm.xml")
    os.environ["ROS_LOG_DIR"] = str(logs)
    path = os.pathsep.join(filter(None, [str(ROOT), str(site), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path}


def until(condition: Callable[[], Any], what: str, timeout_s: float = 15.0) -> None:
    """Wait for something, or fail naming it."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s in vain for {what}"
        time.sleep(0.01)


class Process:
    """A node in its own process; always ended, its output kept."""

    def __init__(
        self, module: str, env: dict[str, str], log: Path, remap: dict[str, str] | None = None, **parameters: Any
    ) -> None:
        arguments = [item for key, value in parameters.items() for item in ("-p", f"{key.replace('__', '.')}:={value}")]
        arguments += [item for old, new in (remap or {}).items() for item in ("-r", f"{old}:={new}")]
        self.log = log
        self._file = open(log, "wb")  # noqa: SIM115  (open as long as the process)
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"geopurify_ros.{module}", "--ros-args", *arguments],
            env=env, stdout=self._file, stderr=subprocess.STDOUT,
        )  # fmt: skip

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self, timeout_s: float = 30.0) -> int:
        return self._process.wait(timeout_s)

    def end(self, number: int = signal.SIGINT, timeout_s: float = 10.0) -> tuple[int, float]:
        """Return code, and how long the end took."""
        started = time.monotonic()
        if self._process.poll() is None:
            self._process.send_signal(number)
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._file.close()
        return code, time.monotonic() - started


class Robot:
    """A camera driver, a localisation and an operator in one node of the test process."""

    def __init__(self) -> None:
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray
        from rclpy.executors import SingleThreadedExecutor

        from geopurify_interfaces.msg import MapStatus

        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node("robot", context=self.context, use_global_arguments=False)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self.status: Any = None
        self.diagnostics: dict[str, Any] = {}
        self.received: dict[str, Any] = {}
        self._publishers: dict[str, Any] = {}
        self._clients: dict[str, Any] = {}
        self.listen(MapStatus, "geopurify/status", self._on_status)
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self._thread = threading.Thread(target=self._spin)
        self._thread.start()

    def _spin(self) -> None:
        from rclpy.executors import ExternalShutdownException

        try:
            self._executor.spin()
        except ExternalShutdownException:
            return

    def close(self) -> None:
        self._executor.shutdown()
        self._thread.join()
        self.node.destroy_node()
        self.context.try_shutdown()

    def _on_status(self, message: Any) -> None:
        self.status = message

    def _on_diagnostics(self, message: Any) -> None:
        self.diagnostics = {item.name.removeprefix("geopurify: "): item for item in message.status}

    def listen(self, kind: Any, topic: str, callback: Callable[[Any], None] | None = None) -> None:
        """Keep the newest (latched) message of a topic in ``received``."""
        from rclpy.qos import DurabilityPolicy, QoSProfile

        qos = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        keep = callback or (lambda message: self.received.__setitem__(topic, message))
        self.node.create_subscription(kind, topic, keep, qos)

    def publish(self, topic: str, message: Any, best_effort: bool = False) -> None:
        """On a publisher made on first use, once it has a listener."""
        from rclpy.qos import QoSProfile, ReliabilityPolicy

        if topic not in self._publishers:
            reliability = ReliabilityPolicy.BEST_EFFORT if best_effort else ReliabilityPolicy.RELIABLE
            qos = QoSProfile(depth=10, reliability=reliability)
            self._publishers[topic] = self.node.create_publisher(type(message), topic, qos)
            until(lambda: self._publishers[topic].get_subscription_count() > 0, f"a subscriber of {topic}")
        self._publishers[topic].publish(message)

    def call(self, kind: Any, name: str, timeout_s: float = 20.0, **fields: Any) -> Any:
        """The answer of a service of the mapping node."""
        if name not in self._clients:
            self._clients[name] = self.node.create_client(kind, f"geopurify/{name}")
            assert self._clients[name].wait_for_service(timeout_s), f"no service {name}"
        future = self._clients[name].call_async(kind.Request(**fields))
        until(future.done, f"the answer of {name}", timeout_s)
        return future.result()

    def send(self, frame: Any, ns: int, *, pose: bool = True, wait: bool = True) -> None:
        """One frame, and by default wait until the node has handled it."""
        from geometry_msgs.msg import PoseStamped

        from geopurify_ros.messages import header, to_camera_info, to_image, to_pose

        self.publish("rgb/camera_info", to_camera_info(frame.camera, ns, FRAME))
        if pose:
            self.publish("pose", PoseStamped(header=header(ns, "map"), pose=to_pose(frame.T_map_camera)))
        self.publish("rgb/image", to_image(frame.rgb, ns, FRAME))
        self.publish("depth/image", to_image(frame.depth_m, ns, FRAME))
        if wait:
            self.until_handled(ns)

    def until_handled(self, ns: int) -> None:
        from geopurify_ros.messages import stamp_ns

        until(lambda: self.status is not None and stamp_ns(self.status.last_stamp) == ns, f"frame {ns} being handled")

    until = staticmethod(until)

    def until_state(self, state: str) -> None:
        until(lambda: self.status is not None and self.status.state == state, f"state {state}", 120.0)


@pytest.fixture(scope="module")
def robot(ros_env: dict[str, str]) -> Iterator[Robot]:
    """One robot for a test file."""
    robot = Robot()
    yield robot
    robot.close()


@pytest.fixture(scope="module")
def start(ros_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Process]]:
    """Starts nodes; whatever still runs at the end of the file is ended."""
    processes: list[Process] = []
    folder = tmp_path_factory.mktemp("nodes")

    def start_one(module: str, **parameters: Any) -> Process:
        processes.append(Process(module, ros_env, folder / f"{len(processes)}_{module}.log", **parameters))
        return processes[-1]

    yield start_one
    for process in processes:
        process.end(signal.SIGKILL)


@pytest.fixture(scope="session")
def frames() -> list[Any]:
    """Frames of the procedural apartment, small."""
    from geopurify_core.datasets.synthetic import SyntheticDataset

    return list(SyntheticDataset(seed=3, num_frames=10, width=160, height=120))


@pytest.fixture(scope="session")
def student(stub: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny student for the stub network, with random weights."""
    return make_student(stub, tmp_path_factory.mktemp("student"))


def make_student(stub: Any, folder: Path, hidden: int = 8) -> Path:
    """A student of that width in a file."""
    import torch

    from geopurify_core.purification.student.checkpoint import StudentInfo, save_student
    from geopurify_core.purification.student.network import GEOMETRY_CHANNELS, StudentAffinityNetwork

    torch.manual_seed(0)
    network = StudentAffinityNetwork(stub.feature_dim + GEOMETRY_CHANNELS, hidden=hidden, out=8, blocks=1)
    save_student(folder / "stub.safetensors", network, StudentInfo(stub.fingerprint, stub.feature_dim, hidden, 8, 1))
    return folder / "stub.safetensors"


@pytest.fixture(scope="session")
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def stub() -> Any:
    """The stub network's class, for what the tests compute themselves."""
    return stub_class()


def stub_class() -> Any:
    """From the file that the nodes have as an installed package."""
    spec = importlib.util.spec_from_file_location(STUB.stem, STUB)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.StubBackbone
