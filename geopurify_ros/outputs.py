"""Publishers: clouds, markers, status and diagnostics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import PointCloud2
from visualization_msgs.msg import MarkerArray

from geopurify_core.mapping.snapshot import MapSnapshot
from geopurify_core.querying.engine import QueryEngine
from geopurify_core.querying.results import QueryResult
from geopurify_interfaces.msg import MapStatus
from geopurify_ros.clouds import to_cloud
from geopurify_ros.markers import palette, to_markers

_LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class Outputs:
    """~/semantic_cloud ~/query_cloud ~/objects ~/status /diagnostics; the newest of each waits for late subscribers."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._name = node.get_fully_qualified_name().lstrip("/")  # two robots must not share diagnostics
        self._semantic = node.create_publisher(PointCloud2, "~/semantic_cloud", _LATCHED)
        self._query = node.create_publisher(PointCloud2, "~/query_cloud", _LATCHED)
        self._objects = node.create_publisher(MarkerArray, "~/objects", _LATCHED)
        self._status = node.create_publisher(MapStatus, "~/status", _LATCHED)
        self._diagnostics = node.create_publisher(DiagnosticArray, "/diagnostics", 10)

    @property
    def cloud_wanted(self) -> bool:
        """Whether anybody listens to the semantic cloud."""
        return bool(self._semantic.get_subscription_count())

    def show_cloud(self, cloud: PointCloud2) -> None:
        """Publish the semantic cloud."""
        self._semantic.publish(cloud)

    def show_query(self, snapshot: MapSnapshot, results: Sequence[QueryResult], cloud: PointCloud2) -> None:
        """Publish the answer to a query; it replaces the previous one."""
        found = [(item, index) for index, result in enumerate(results) for item in result.objects]
        self._query.publish(cloud)
        self._objects.publish(
            to_markers([item for item, _ in found], [index for _, index in found], snapshot.stamp_ns, snapshot.frame_id)
        )

    def show_status(self, status: MapStatus) -> None:
        """Publish the node's counters."""
        self._status.publish(status)

    def show_diagnostics(self, statuses: list[DiagnosticStatus]) -> None:
        """Publish one round of diagnostics."""
        for item in statuses:
            item.name, item.hardware_id = f"{self._name}: {item.name}", self._name
        message = DiagnosticArray(status=statuses)
        message.header.stamp = self._node.get_clock().now().to_msg()
        self._diagnostics.publish(message)


def plain_cloud(snapshot: MapSnapshot) -> PointCloud2:
    """Every voxel in its own colour, without labels."""
    return to_cloud(snapshot.centers_m, snapshot.rgb, snapshot.stamp_ns, snapshot.frame_id)


def labelled_cloud(engine: QueryEngine, labels: Sequence[str]) -> tuple[PointCloud2, NDArray[np.int32]]:
    """Every voxel with the best of the labels, and the labels (N,) themselves."""
    snapshot = engine.snapshot
    assigned, confidence = engine.segment(list(labels))
    colors = np.array([palette(i) for i in range(len(labels))], dtype=np.uint8)
    rgb = np.where((assigned >= 0)[:, None], colors[assigned], snapshot.rgb)
    cloud = to_cloud(
        snapshot.centers_m,
        rgb,
        snapshot.stamp_ns,
        snapshot.frame_id,
        label=assigned,
        confidence=confidence,
    )
    return cloud, assigned


def objects_cloud(snapshot: MapSnapshot, results: Sequence[QueryResult]) -> PointCloud2:
    """The voxels of all objects: label is the text's number, confidence the score, instance the object's number."""
    parts: list[tuple[Any, ...]] = []
    for index, result in enumerate(results):
        for found in result.objects:
            n = found.num_voxels
            color = np.tile(np.array(palette(index), dtype=np.uint8), (n, 1))
            parts.append((found.voxels, color, np.full(n, index), result.scores[found.voxels], np.full(n, len(parts))))
    if not parts:
        return to_cloud(np.zeros((0, 3)), np.zeros((0, 3), np.uint8), snapshot.stamp_ns, snapshot.frame_id)
    rows, color, label, score, instance = (np.concatenate(column) for column in zip(*parts, strict=True))
    return to_cloud(
        snapshot.centers_m[rows], color, snapshot.stamp_ns, snapshot.frame_id,
        label=label, confidence=score, instance=instance,
    )  # fmt: skip
