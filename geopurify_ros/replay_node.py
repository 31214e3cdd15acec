"""Plays a recording, or the built-in apartment, as a live RGB-D camera with poses."""

from __future__ import annotations

import itertools
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import rclpy
from geometry_msgs.msg import PoseStamped, TransformStamped, Vector3
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image

from geopurify_core.config import build, setting, settings
from geopurify_core.datasets import RGBDDataset, iterate, open_dataset
from geopurify_core.errors import GeoPurifyError, NotAvailableError
from geopurify_core.frame import RGBDFrame
from geopurify_ros.messages import header, stamp_ns, to_camera_info, to_image, to_pose, to_stamp
from geopurify_ros.parameters import declare, plain

_RELIABLE = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
_LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
_NS = 1_000_000_000
# The mapping node believes that time has jumped back (this recording once more) after three frames: these go unawaited.
_SURE_OF_REWIND = 2
_SETTLE_S = 0.3  # a publisher knows of its subscriber a little before the subscriber knows of it


@dataclass(frozen=True)
class ReplayConfig:
    """Parameters of replay_node."""

    dataset: str = setting("synthetic", "A ScanNet folder, .sens, rosbag2, or synthetic[:SEED].")
    options: dict[str, Any] = setting({}, "Keyword options of that reader, YAML or JSON.")
    rate: float = setting(1.0, "Speed, as a multiple of real time.", ge=0.001, le=1000.0)
    fps: float = setting(0.0, "Frames each second whatever their stamps; 0 follows the stamps.", ge=0.0, le=1000.0)
    stride: int = setting(1, "Play every n-th frame.", ge=1, le=100_000)
    max_frames: int = setting(0, "Stop after this many frames; 0 plays all.", ge=0, le=1_000_000_000)
    loop: bool = setting(False, "Start over at the end, with the same stamps.")
    lockstep: bool = setting(False, "Send a frame when the mapping node is done with the one before: nothing is lost.")
    lockstep_timeout_s: float = setting(30.0, "Then send the next one all the same.", unit="s", ge=0.1, le=3600.0)
    status_topic: str = setting("geopurify/status", "Where the mapping node tells what it has done.")
    wait_for_subscribers_s: float = setting(30.0, "Longest wait for a subscriber.", unit="s", ge=0.0, le=3600.0)
    publish_clock: bool = setting(False, "Publish /clock, for nodes with use_sim_time.")
    publish_tf: bool = setting(True, "Publish /tf where tf2_msgs is installed.")
    map_frame: str = setting("map", "Frame of the poses.")
    camera_frame: str = setting("camera_optical_frame", "Frame of the images.")


class ReplayNode(Node):
    """Publishers for one camera, and the ear for the mapping node's status."""

    def __init__(self) -> None:
        super().__init__("geopurify_replay")
        items = {item.key: item for item in settings(ReplayConfig)}
        given = declare(self, items.values())
        self.config = build(ReplayConfig, {key: plain(items[key], value) for key, value in given.items()})
        self._images = {name: self.create_publisher(Image, name, _RELIABLE) for name in ("rgb/image", "depth/image")}
        self._infos = {
            name: self.create_publisher(CameraInfo, name, _RELIABLE)
            for name in ("rgb/camera_info", "depth/camera_info")
        }
        self._pose = self.create_publisher(PoseStamped, "pose", _RELIABLE)
        self._clock_publisher = self.create_publisher(Clock, "/clock", _RELIABLE) if self.config.publish_clock else None
        self._tf = self._tf_publisher() if self.config.publish_tf else None
        self._status: Any = None
        self._changed = threading.Condition()
        if self.config.lockstep:
            from geopurify_interfaces.msg import MapStatus

            self.create_subscription(MapStatus, self.config.status_topic, self._on_status, _LATCHED)

    def _tf_publisher(self) -> Callable[[TransformStamped], None] | None:
        try:
            from tf2_msgs.msg import TFMessage
        except ImportError:
            return None
        publisher = self.create_publisher(TFMessage, "/tf", 100)
        return lambda transform: publisher.publish(TFMessage(transforms=[transform]))

    def _on_status(self, message: Any) -> None:
        with self._changed:
            self._status = message
            self._changed.notify_all()

    def wait_for_listeners(self) -> None:
        """Until images and poses have a subscriber, and in lockstep until the mapping node is ready; bounded.

        Raises:
            NotAvailableError: In lockstep there is no mapping node.
        """
        needed = [*self._images.values(), self._infos["rgb/camera_info"], self._pose]
        deadline = time.monotonic() + self.config.wait_for_subscribers_s
        topic, ready = self.config.status_topic, ("mapping", "paused")
        while rclpy.ok() and time.monotonic() < deadline:
            heard = not self.config.lockstep or (self._status is not None and self._status.state in ready)
            if heard and all(publisher.get_subscription_count() for publisher in needed):
                time.sleep(_SETTLE_S)
                return
            if self._status is not None and self._status.state == "loading" and self.count_publishers(topic):
                deadline = time.monotonic() + self.config.wait_for_subscribers_s  # it is alive, and takes its time
            time.sleep(0.05)
        if self.config.lockstep:
            state = "silent" if self._status is None else f"{self._status.state} {self._status.message}"
            raise NotAvailableError("mapping node", state, f"Start mapping_node first ({self.config.status_topic}).")
        self.get_logger().warning("Not every topic has a subscriber; playing all the same.")

    def publish(self, frame: RGBDFrame, ns: int) -> None:
        """One frame on every topic, all with the stamp ``ns``; the small messages first, so that nobody waits."""
        if self._clock_publisher is not None:
            self._clock_publisher.publish(Clock(clock=to_stamp(ns)))
        head = header(ns, self.config.camera_frame)
        pose = to_pose(frame.T_map_camera)
        for name, camera in (("rgb/camera_info", frame.camera), ("depth/camera_info", frame.depth_camera)):
            self._infos[name].publish(to_camera_info(camera, ns, head.frame_id))
        self._pose.publish(PoseStamped(header=header(ns, self.config.map_frame), pose=pose))
        if self._tf is not None:
            transform = TransformStamped(header=header(ns, self.config.map_frame), child_frame_id=head.frame_id)
            p = pose.position
            transform.transform.translation = Vector3(x=p.x, y=p.y, z=p.z)
            transform.transform.rotation = pose.orientation
            self._tf(transform)
        self._images["rgb/image"].publish(to_image(frame.rgb, ns, head.frame_id))
        self._images["depth/image"].publish(to_image(frame.depth_m, ns, head.frame_id))

    def wait_until_handled(self, ns: int) -> bool:
        """Until the mapping node says that it is done with this frame; False when it does not in time."""
        deadline = time.monotonic() + self.config.lockstep_timeout_s
        with self._changed:
            while rclpy.ok() and time.monotonic() < deadline:
                if stamp_ns(self._status.last_stamp) == ns:
                    return True
                self._changed.wait(0.1)
        return False

    def flush(self) -> None:
        """Until the last messages have arrived, so that exiting loses none."""
        from rclpy.duration import Duration

        for publisher in (*self._images.values(), self._pose):
            publisher.wait_for_all_acked(Duration(seconds=2.0))


def play(node: ReplayNode, dataset: RGBDDataset) -> int:
    """Send every frame at its time; returns how many."""
    config, sent = node.config, 0
    node.wait_for_listeners()
    while True:
        start_s, start_ns, offset_ns = time.monotonic(), None, 0
        for index, frame in enumerate(_frames(dataset, config)):
            if start_ns is None:
                start_ns = frame.stamp_ns
                offset_ns = _NS if start_ns == 0 else 0  # a zero stamp means "not set" in ROS
            if not config.lockstep:
                due_s = index / config.fps if config.fps else (frame.stamp_ns - start_ns) / _NS / config.rate
                _sleep_until(start_s + due_s)
            if not rclpy.ok():
                return sent
            node.publish(frame, frame.stamp_ns + offset_ns)
            sent += 1
            if config.lockstep and index >= _SURE_OF_REWIND and not node.wait_until_handled(frame.stamp_ns + offset_ns):
                node.get_logger().warning(f"Frame {sent} was not handled in time; going on.")
            if sent % 50 == 0:
                node.get_logger().info(f"{sent} of {len(dataset)} frames")
        if not config.loop or start_ns is None:
            return sent


def _frames(dataset: RGBDDataset, config: ReplayConfig) -> Iterator[RGBDFrame]:
    frames = iterate(dataset, stride=config.stride)
    return itertools.islice(frames, config.max_frames) if config.max_frames else frames


def _sleep_until(when_s: float) -> None:
    while rclpy.ok() and (left := when_s - time.monotonic()) > 0:
        time.sleep(min(left, 0.1))


def _spin(executor: SingleThreadedExecutor) -> None:
    try:
        executor.spin()
    except ExternalShutdownException:
        return


def _run() -> None:
    node, executor = ReplayNode(), SingleThreadedExecutor()
    executor.add_node(node)
    ear = threading.Thread(target=_spin, args=(executor,), name="replay-ear")
    ear.start()
    try:
        dataset = open_dataset(node.config.dataset, **node.config.options)
        started = time.monotonic()
        sent = play(node, dataset)
        if rclpy.ok():
            node.flush()
            seconds = time.monotonic() - started
            skipped = ", ".join(f"{count} {reason}" for reason, count in dataset.skipped.items()) or "none"
            node.get_logger().info(f"Played {sent} frames in {seconds:.1f} s; left out: {skipped}.")
    finally:
        executor.shutdown()
        ear.join()
        node.destroy_node()


def main(args: list[str] | None = None) -> int:
    """Play, and exit with 0; 2 when the recording or a parameter is unusable, or there is nobody to play to."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    rclpy.init(args=args)
    try:
        _run()
    except (KeyboardInterrupt, ExternalShutdownException):
        return 0
    except GeoPurifyError as error:
        rclpy.logging.get_logger("replay_node").fatal(str(error))
        return 2
    finally:
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
