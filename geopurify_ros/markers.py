"""Objects as RViz markers: a translucent box and its name."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence

from geometry_msgs.msg import Point, Pose, Quaternion, Vector3
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

from geopurify_core.querying.results import DetectedObject
from geopurify_ros.messages import header

_MIN_EDGE_M = 0.01
_GOLDEN = 0.618_033_988_75


def palette(index: int) -> tuple[int, int, int]:
    """A colour for the ``index``-th text; neighbours differ by the golden ratio in hue, so few look alike."""
    red, green, blue = colorsys.hsv_to_rgb((index * _GOLDEN) % 1.0, 0.75, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def to_markers(objects: Sequence[DetectedObject], text_indices: Sequence[int], ns: int, frame_id: str) -> MarkerArray:
    """One box and one text for each object. The leading DELETEALL takes away what an earlier answer left."""
    markers = [Marker(header=header(ns, frame_id), action=Marker.DELETEALL)]
    for number, (found, index) in enumerate(zip(objects, text_indices, strict=True)):
        color = [channel / 255 for channel in palette(index)]
        x, y, z = (float(v) for v in found.center_m)
        edges = [max(float(v), _MIN_EDGE_M) for v in found.size_m]
        box = Marker(
            header=header(ns, frame_id), ns="boxes", id=number, type=Marker.CUBE, action=Marker.ADD,
            pose=object_pose(found), scale=Vector3(x=edges[0], y=edges[1], z=edges[2]),
            color=ColorRGBA(r=color[0], g=color[1], b=color[2], a=0.35),
        )  # fmt: skip
        text = Marker(
            header=header(ns, frame_id), ns="names", id=number, type=Marker.TEXT_VIEW_FACING, action=Marker.ADD,
            pose=Pose(position=Point(x=x, y=y, z=z + edges[2] / 2 + 0.1)), scale=Vector3(z=0.15),
            color=ColorRGBA(r=1.0, g=1.0, b=1.0, a=1.0), text=f"{found.text} {found.score:.2f}",
        )  # fmt: skip
        markers += [box, text]
    return MarkerArray(markers=markers)


def object_pose(found: DetectedObject) -> Pose:
    """Centre and heading of an object's box."""
    x, y, z = (float(v) for v in found.center_m)
    half = found.yaw_rad / 2
    return Pose(position=Point(x=x, y=y, z=z), orientation=Quaternion(z=math.sin(half), w=math.cos(half)))
