"""Subscriptions: their QoS, the stamps, and which messages belong together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Odometry
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import QoSPolicyKind, QoSProfile, ReliabilityPolicy, qos_policy_name_from_kind
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2

from geopurify_ros.health import Health
from geopurify_ros.messages import stamp_ns
from geopurify_ros.parameters import RosConfig
from geopurify_ros.sync import ApproximateSync, SyncedSet

_DROPPED = {
    "zero_stamp": "its stamp is not set: stamp the messages",
    "future": "it is ahead of the clock by more than max_future_s: agree the clocks, or play bags with --clock",
    "duplicate": "its stamp was there before",
    "late": "newer ones were matched before it came",
    "unmatched": "no partner came within sync_slop_s",
}
_IMAGE = {"raw": Image, "compressed": CompressedImage}


class Inputs:
    """Every sensor subscription of the node. Callbacks count, match stamps and hand over; none does real work.

    Args:
        node: The node to subscribe on.
        config: Which inputs, and how.
        health: Told of every message, refusal and QoS clash.
        on_set: Takes matched messages: (colour, depth) or (colour, points).
        on_camera: Takes ("rgb" or "depth", CameraInfo).
        on_pose: Takes PoseStamped or Odometry.
        on_rewind: Told that time has jumped back.
    """

    def __init__(
        self,
        node: Node,
        config: RosConfig,
        health: Health,
        on_set: Callable[[SyncedSet], None],
        on_camera: Callable[[str, CameraInfo], None],
        on_pose: Callable[[Any], None],
        on_rewind: Callable[[], None],
    ) -> None:
        self._node, self._config, self._health = node, config, health
        self._on_set, self._on_rewind = on_set, on_rewind
        self._group = MutuallyExclusiveCallbackGroup()
        self._to_best_effort: set[str] = set()
        self._told: set[str] = set()
        self._subscriptions: dict[str, Any] = {}
        self._subscribe: dict[str, Callable[[bool], None]] = {}
        geometry = "depth/image" if config.input == "rgbd" else "points"
        self.sync = ApproximateSync(
            ("rgb/image", geometry), config.sync_slop_s, config.sync_queue_size, max_future_s=config.max_future_s
        )
        self._add("rgb/camera_info", CameraInfo, lambda m: on_camera("rgb", m))
        if config.pose_source == "pose":
            self._add("pose", PoseStamped, on_pose)
        if config.pose_source == "odom":
            self._add("odom", Odometry, on_pose)
        self._add("rgb/image", _IMAGE[config.rgb_transport], lambda m: self._synced("rgb/image", m))
        if config.input == "rgbd":
            self._add("depth/camera_info", CameraInfo, lambda m: on_camera("depth", m), required=False)
            self._add(geometry, _IMAGE[config.depth_transport], lambda m: self._synced(geometry, m))
        else:
            self._add(geometry, PointCloud2, lambda m: self._synced(geometry, m))
        node.create_timer(0.5, self._switch_reliability, self._group, Clock(clock_type=ClockType.STEADY_TIME))

    def _add(self, topic: str, kind: Any, handle: Callable[[Any], None], required: bool = True) -> None:
        name = self._node.resolve_topic_name(topic)
        self._health.watch(name, required)

        def callback(message: Any) -> None:
            self._health.arrived(name)
            try:
                handle(message)
            except Exception as error:  # an exception here would end the executor, and with it the node
                self._health.refused(name, error)

        def subscribe(reliable: bool) -> None:
            self._subscriptions[name] = self._node.create_subscription(
                kind,
                topic,
                callback,
                QoSProfile(
                    depth=self._config.qos_depth,
                    reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
                ),
                callback_group=self._group,
                event_callbacks=SubscriptionEventCallbacks(
                    incompatible_qos=lambda event: self._incompatible(name, event), use_default_callbacks=False
                ),
            )
            self._subscribe[name] = subscribe

        subscribe(self._config.qos_reliability != "best_effort")

    def _incompatible(self, name: str, event: Any) -> None:
        policy = qos_policy_name_from_kind(event.last_policy_kind)
        note = f"a publisher's QoS is incompatible ({policy}): its messages cannot be received."
        self._health.noted(name, note)
        if self._config.qos_reliability == "auto" and event.last_policy_kind == QoSPolicyKind.RELIABILITY:
            self._to_best_effort.add(name)
        else:
            self._node.get_logger().warning(f"{name}: {note} See qos_reliability.")

    def _switch_reliability(self) -> None:
        """Subscribe anew where a publisher offers best effort only (never inside the event itself)."""
        for name in sorted(self._to_best_effort):
            self._node.destroy_subscription(self._subscriptions[name])
            self._subscribe[name](False)
            note = "a publisher's QoS offers best_effort only: subscribed best_effort."
            self._health.noted(name, note)
            self._node.get_logger().info(f"{name}: {note}")
        self._to_best_effort.clear()

    def _synced(self, topic: str, message: Any) -> None:
        rewinds = self.sync.rewinds
        clock = self._node.get_clock()  # simulated time may lag behind the data it came with: no judge of the future
        now_ns = 0 if clock.ros_time_is_active else clock.now().nanoseconds
        found = self.sync.add(topic, stamp_ns(message.header.stamp), message, now_ns)
        if self.sync.rewinds > rewinds:
            self._on_rewind()
            self._node.get_logger().warning(
                "Time has jumped back: buffers are reset, the map is kept, mapping goes on."
            )
        for matched in found:
            self._on_set(matched)
        for kind in self.sync.counts.keys() - self._told:
            if self.sync.counts[kind]:
                self._told.add(kind)
                self._node.get_logger().warning(f"{topic}: a message was dropped, {_DROPPED[kind]} (see /diagnostics).")
