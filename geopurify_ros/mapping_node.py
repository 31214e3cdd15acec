"""The mapping node: it wires inputs, worker, services and outputs, and does nothing else."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import rclpy
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor
from rclpy.node import Node
from rclpy.signals import uninstall_signal_handlers
from rclpy.timer import Timer

from geopurify_core.errors import GeoPurifyError
from geopurify_ros.frames import FrameBuilder
from geopurify_ros.health import Health
from geopurify_ros.inputs import Inputs
from geopurify_ros.parameters import Parameters
from geopurify_ros.pose_inputs import PoseInputs
from geopurify_ros.session import MapSession
from geopurify_ros.sync import SyncedSet
from geopurify_ros.worker import DroppingQueue, Worker

try:
    from geopurify_ros.outputs import Outputs, labelled_cloud, plain_cloud
    from geopurify_ros.reports import Reports
    from geopurify_ros.services import MAX_WAITING, Services
except ModuleNotFoundError as missing:
    if not (missing.name or "").startswith("geopurify_interfaces"):
        raise
    raise SystemExit(
        "geopurify_interfaces is not built. In a ROS 2 workspace: colcon build --base-paths src "
        "src/geopurify_ros/geopurify_interfaces (or plain colcon build at the repository's root), then source "
        "install/setup.bash. Without a ROS 2 installation: make setup."
    ) from missing

_STOP_S = 2.0  # launch sends SIGTERM 5 s after SIGINT: the rest of that belongs to saving
# One for each callback group (inputs, four of services, three of timers, parameters, TF), so that none starves, and for
# whoever waits in ~/purify. A thread is made when it is needed.
_THREADS = 10 + MAX_WAITING
_PURIFIER_STOP_S = 0.3
_NEVER_S = 1e6
_PURIFY_CHECK_S = 0.5
_SWITCH_S = 0.001  # of Python threads: queries wait less for the worker (p95 while mapping 15-60 % shorter)


class MappingNode(Node):
    """RGB-D or points with poses in; clouds, markers, answers and diagnostics out."""

    def __init__(self) -> None:
        super().__init__("geopurify")
        log = self.get_logger()
        self.parameters = Parameters(self, self._reconfigure)
        log.info(f"Effective configuration:\n{self.parameters.effective()}")
        for words in self.parameters.unknown(self._parameter_overrides):
            log.warning(words)
        core, ros = self.parameters.core, self.parameters.ros
        self._labels = list(ros.labels)
        self._cloud_purified = ros.cloud_features == "purified"
        self._given = (ros.labels, ros.cloud_features)
        self._shown: Any = None
        self.ended = False
        self._telling = threading.Lock()
        self.health = Health(log.warning)
        self.session = MapSession(core, ros.load_path, log.info)
        self.worker = Worker(self._prepare, self._work, self.health.failed, DroppingQueue(ros.queue_size))
        poses = PoseInputs(self, ros, core.map.frame_id)
        self.frames = FrameBuilder(
            poses.source,
            core.map.frame_id,
            ros.pose_wait_s,
            poses.T_camera_points,
            poses.tf,
            log.warning,
            lambda: self.worker.stopping,
        )
        self.outputs = Outputs(self)
        self.answers = Services(self, self.session, self.outputs, self._set_labels, ros.autosave_path)
        inputs = Inputs(self, ros, self.health, self._matched, self.frames.set_camera, poses.take, poses.rewind)
        self.reports = Reports(self.parameters, self.session, self.worker, self.health, inputs.sync)
        self._repeat(1.0, self._report)
        self._repeat(_PURIFY_CHECK_S, self.session.tend_purification)
        self._cloud_timer = self._repeat(_NEVER_S, self._publish_cloud)
        self._pace_clouds()
        self.worker.start()

    def _repeat(self, period_s: float, step: Callable[[], None]) -> Timer:
        """A timer that no exception ends, and that ticks also where simulated time stands still."""

        def callback() -> None:
            try:
                step()
            except Exception as error:
                self.health.failed(error)

        steady = Clock(clock_type=ClockType.STEADY_TIME)
        return self.create_timer(period_s, callback, MutuallyExclusiveCallbackGroup(), steady)

    def _pace_clouds(self) -> None:
        self._cloud_timer.timer_period_ns = round(1e9 * (self.parameters.ros.publish_period_s or _NEVER_S))
        self._cloud_timer.reset()

    def _matched(self, matched: SyncedSet) -> None:
        self.worker.queue.put((time.monotonic(), self.session.epoch, matched))

    def _prepare(self) -> None:
        self._publish_status()
        try:
            self.session.prepare()
        finally:
            self._publish_status()

    def _work(self, item: tuple[float, int | None, SyncedSet]) -> None:
        """One frame, on the worker: decode and place it, then fuse it."""
        received_s, epoch, matched = item
        try:
            if not self.session.paused:
                self.session.integrate(self.frames.build(matched, received_s), epoch)
                self.health.succeeded()
        except Exception as error:
            self.session.failed += 1
            self.health.failed(error)
        finally:
            self.session.last_stamp_ns = matched.stamp_ns
            self._publish_status()

    def _set_labels(self, labels: list[str], purified: bool) -> None:
        self._labels, self._cloud_purified = labels, purified

    def _reconfigure(self) -> None:
        """After an accepted change of parameters."""
        self.session.configure(self.parameters.core)
        ros = self.parameters.ros
        if self._given != (ros.labels, ros.cloud_features):  # otherwise those of ~/segment stay
            self._given = (ros.labels, ros.cloud_features)
            self._set_labels(list(ros.labels), ros.cloud_features == "purified")
        self._shown = None  # with other settings the same map may look different
        self._pace_clouds()

    def _publish_cloud(self) -> None:
        """The semantic cloud, if map or labels have changed."""
        if self.session.state not in ("mapping", "paused") or not self.outputs.cloud_wanted:
            return
        mapper, labels, purified = self.session.mapper, tuple(self._labels), self._cloud_purified
        stats, runs = mapper.stats(), self.session.purification.runs if purified else -1
        shown = (mapper.epoch, stats.stamp_ns, stats.num_voxels, self.session.integrated, labels, runs)
        if self._shown == shown:
            return
        cloud = labelled_cloud(self.session.engine(purified), labels)[0] if labels else plain_cloud(mapper.snapshot())
        self.outputs.show_cloud(cloud)
        self._shown = shown

    def _publish_status(self) -> None:
        with self._telling:  # worker and timer: an older count must not come after a newer one
            if not self.worker.stopping:  # publishers go before the worker does, when a frame takes long
                self.outputs.show_status(self.reports.map_status(self._labels, self._cloud_purified))

    def _report(self) -> None:
        self._publish_status()
        clock = self.get_clock()
        self.outputs.show_diagnostics(
            self.reports.diagnostics(clock.ros_time_is_active and clock.now().nanoseconds == 0)
        )

    def close(self) -> None:
        """Stop purifier and worker and save, within the time that launch leaves."""
        self.session.stop_purifying()  # lets go of those who wait for it, and of the processor
        self.worker.stop(_STOP_S)
        log = rclpy.logging.get_logger("mapping_node")  # the node's own publishes to /rosout, which is gone by now
        self.session.autosave(self.parameters.ros.autosave_path, log.info)
        self.ended = self.session.close(_PURIFIER_STOP_S) and not self.worker.is_alive()


def _run() -> int:
    """The node's life; SIGINT and SIGTERM end it at any moment of it, also while it is being made."""
    node = None
    try:
        node = MappingNode()
        executor = MultiThreadedExecutor(num_threads=_THREADS)
        executor.add_node(node)
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except GeoPurifyError as error:
        rclpy.logging.get_logger("mapping_node").fatal(str(error))
        return 2
    except Exception:
        if rclpy.ok():  # otherwise it only stumbled over the context that the signal has shut down
            raise
    finally:
        _ignore_signals()  # an impatient second Ctrl-C must not cost the map
        if node is not None:
            node.close()
            node.destroy_node()
        rclpy.try_shutdown()
    if node is not None and not node.ended:  # native code in a dying interpreter would crash it
        logging.shutdown()
        os._exit(0)
    return 0


def _ignore_signals() -> None:
    uninstall_signal_handlers()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def main(args: list[str] | None = None) -> int:
    """Run until SIGINT or SIGTERM; 2 when a parameter is unusable."""
    logging.basicConfig(format="[%(levelname)s] [%(name)s]: %(message)s")  # what the core has to say
    sys.setswitchinterval(_SWITCH_S)
    rclpy.init(args=args)
    return _run()


if __name__ == "__main__":
    sys.exit(main())
