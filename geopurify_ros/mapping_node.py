"""The mapping node: it wires inputs, worker, services and outputs, and does nothing else."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Any

import rclpy
from nav_msgs.msg import Odometry
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor
from rclpy.node import Node

from geopurify_core.errors import GeoPurifyError, InvalidPoseError
from geopurify_ros.frames import FrameBuilder, mount
from geopurify_ros.health import Health
from geopurify_ros.inputs import Inputs
from geopurify_ros.messages import pose_matrix, stamp_ns
from geopurify_ros.parameters import Parameters
from geopurify_ros.poses import PoseBuffer, PoseSource, TfPoses
from geopurify_ros.session import MapSession
from geopurify_ros.sync import SyncedSet
from geopurify_ros.worker import DroppingQueue, Worker

try:
    from geopurify_ros.outputs import Outputs, labelled_cloud, plain_cloud
    from geopurify_ros.reports import diagnostics, map_status
    from geopurify_ros.services import Services
except ModuleNotFoundError as missing:
    if not (missing.name or "").startswith("geopurify_interfaces"):
        raise
    raise SystemExit(
        "geopurify_interfaces is not built. In a ROS 2 workspace: colcon build --base-paths src "
        "src/geopurify_ros/geopurify_interfaces (or plain colcon build at the repository's root), then source "
        "install/setup.bash. Without a ROS 2 installation: make setup."
    ) from missing

_STOP_S = 2.0  # launch sends SIGTERM 5 s after SIGINT: the rest of that belongs to saving


class MappingNode(Node):
    """RGB-D or points with poses in; clouds, markers, answers and diagnostics out."""

    def __init__(self) -> None:
        super().__init__("geopurify")
        log = self.get_logger()
        self.parameters = Parameters(self, self._reconfigure)
        log.info(f"Effective configuration:\n{self.parameters.effective()}")
        core, ros = self.parameters.core, self.parameters.ros
        self._labels = list(ros.labels)
        self._shown: Any = None
        self.health = Health(log.warning)
        self.session = MapSession(core, ros.load_path, log.info)
        self.queue = DroppingQueue(ros.queue_size)
        self.worker = Worker(self._prepare, self._work, self.health.failed, self.queue)
        self.frames = FrameBuilder(
            self._pose_source(),
            core.map.frame_id,
            ros.pose_wait_s,
            mount(ros.T_camera_points, "T_camera_points"),
            self._tf,
            log.warning,
            lambda: self.worker.stopping,
        )
        self.outputs = Outputs(self)
        self.answers = Services(self, self.session, self.outputs, self._set_labels, ros.autosave_path)
        self.inputs = Inputs(self, ros, self.health, self._matched, self.frames.set_camera, self._on_pose)
        timers = MutuallyExclusiveCallbackGroup()
        self.create_timer(1.0, self._guarded(self._report), timers)
        self._cloud_timer: Any = None
        self._start_cloud_timer()
        self.worker.start()

    def _pose_source(self) -> PoseSource:
        """What pose_source and the mount parameters ask for."""
        ros, map_frame = self.parameters.ros, self.parameters.core.map.frame_id
        self._tf: TfPoses | None = None
        self._body_frame = ""
        T_base_camera = mount(ros.T_base_camera, "T_base_camera")
        if ros.pose_source == "tf":
            self._tf = TfPoses(self, map_frame)
            return self._tf
        if (ros.pose_source == "odom" and T_base_camera is None) or ros.input == "points":
            with contextlib.suppress(InvalidPoseError):  # without tf2_ros the mount must come from a parameter
                self._tf = TfPoses(self, map_frame)
        fixed = None if T_base_camera is None else lambda camera_frame: T_base_camera
        asked = self._mounted if ros.pose_source == "odom" else None
        self._poses = PoseBuffer(ros.pose_source, map_frame, ros.pose_tolerance_s, fixed or asked)
        return self._poses

    def _mounted(self, camera_frame: str) -> Any:
        """``T_base_camera`` from TF."""
        if self._tf is None:
            raise InvalidPoseError(
                f"mount '{self._body_frame}' -> '{camera_frame}'", None, "Set T_base_camera: x y z qx qy qz qw."
            )
        return self._tf.between(self._body_frame, camera_frame)

    def _on_pose(self, message: Any) -> None:
        pose = message.pose
        if isinstance(message, Odometry):
            self._body_frame, pose = message.child_frame_id, message.pose.pose
        self._poses.add(stamp_ns(message.header.stamp), message.header.frame_id, pose_matrix(pose))

    def _matched(self, matched: SyncedSet) -> None:
        if self.session.paused:
            self.session.last_stamp_ns = matched.stamp_ns
            self._publish_status()
            return
        self.queue.put((time.monotonic(), matched))

    def _prepare(self) -> None:
        self._publish_status()
        try:
            self.session.prepare()
        finally:
            self._publish_status()

    def _work(self, item: tuple[float, SyncedSet]) -> None:
        """One frame, on the worker: decode and place it, then fuse it."""
        received_s, matched = item
        try:
            self.session.integrate(self.frames.build(matched, received_s))
            self.health.succeeded()
        except Exception as error:
            self.session.failed += 1
            self.health.failed(error)
        finally:
            self.session.last_stamp_ns = matched.stamp_ns
            self._publish_status()

    def _set_labels(self, labels: list[str]) -> None:
        self._labels = labels

    def _reconfigure(self) -> None:
        """After an accepted change of parameters."""
        self.session.configure(self.parameters.core)
        if self._labels != self.parameters.ros.labels:
            self._labels, self._shown = list(self.parameters.ros.labels), None
        self._start_cloud_timer()

    def _start_cloud_timer(self) -> None:
        if self._cloud_timer is not None:
            self.destroy_timer(self._cloud_timer)
            self._cloud_timer = None
        if self.parameters.ros.publish_period_s > 0:
            group = MutuallyExclusiveCallbackGroup()
            self._cloud_timer = self.create_timer(
                self.parameters.ros.publish_period_s, self._guarded(self._publish_cloud), group
            )

    def _publish_cloud(self) -> None:
        """The semantic cloud, if map or labels have changed."""
        if self.session.state not in ("mapping", "paused") or not self.outputs.cloud_wanted:
            return
        mapper, labels = self.session.mapper, tuple(self._labels)
        snapshot = mapper.snapshot()
        shown = (snapshot.version, snapshot.stamp_ns, len(snapshot), labels)  # versions start over after a reset
        if self._shown == shown:
            return
        self.outputs.show_cloud(labelled_cloud(mapper.engine(), labels)[0] if labels else plain_cloud(snapshot))
        self._shown = shown

    def _guarded(self, step: Any) -> Any:
        """``step`` as a timer's callback: an exception is reported and ends nothing."""

        def callback() -> None:
            try:
                step()
            except Exception as error:
                self.health.failed(error)

        return callback

    def _publish_status(self) -> None:
        if self.worker.stopping:  # publishers go before the worker does, when a frame takes long
            return
        self.outputs.show_status(map_status(self.parameters.core, self.session, self.queue, self.health, self._labels))

    def _report(self) -> None:
        self.outputs.show_diagnostics(
            diagnostics(self.parameters, self.session, self.queue, self.health, self.inputs.sync)
        )

    def close(self) -> None:
        """Stop the worker and save, within the time that launch leaves."""
        self.worker.stop(_STOP_S)
        log = rclpy.logging.get_logger("mapping_node")  # the node's own publishes to /rosout, which is gone by now
        self.session.autosave(self.parameters.ros.autosave_path, log.info)


def main(args: list[str] | None = None) -> int:
    """Run until SIGINT or SIGTERM."""
    rclpy.init(args=args)
    try:
        node = MappingNode()
    except GeoPurifyError as error:
        rclpy.logging.get_logger("mapping_node").fatal(str(error))
        rclpy.try_shutdown()
        return 2
    executor = MultiThreadedExecutor(num_threads=4)
    executor.add_node(node)
    try:
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        node.close()
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
