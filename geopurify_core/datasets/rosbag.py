"""rosbag2 recordings (mcap or sqlite3) through `rosbags`; no ROS installation is needed.

Colour, depth, camera info and pose topics are found by type and name; any of them can be given. A frame's pose is, in
this order: a PoseStamped of the camera (the contract of this package), the TF chain from map to camera, or an Odometry
whose body is tied to the camera by TF. It is interpolated between recorded poses and never made up.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopurify_core.camera import PinholeCamera, pose_from_quaternion
from geopurify_core.datasets.bag_topics import BagTopics, choose_topics
from geopurify_core.datasets.base import FrameSource, SkipFrame, depth_to_metres, skip_reason
from geopurify_core.datasets.image_codec import decode_compressed, decode_image
from geopurify_core.datasets.sync import NearestPairs, Pair
from geopurify_core.datasets.transforms import PoseTrack, TransformTree
from geopurify_core.errors import BadMessageError, DatasetError, GeoPurifyError
from geopurify_core.frame import RGBDFrame

log = logging.getLogger(__name__)
_RECTIFIED = re.compile(r"(^|[/_])rect")  # image_rect, rectified/image; not direct/image


class RosbagDataset(FrameSource):
    """A recorded RGB-D stream.

    Args:
        path: A rosbag2 folder, or a single `.mcap` or `.db3`.
        topics: Overrides: keys color, depth, camera_info, depth_camera_info, pose (values are topic names).
        slop_s: Largest difference of the colour and depth stamps of one frame.
        max_pose_gap_s: Poses farther apart are not interpolated.
        map_frame: TF frame of the map; by default map, else odom, else the root above the camera.
        depth_scale: Depth units in one metre for 16-bit depth (REP-118: 1000).

    Raises:
        DatasetError: Not a readable bag, a needed topic is missing, or an option makes no sense.
    """

    def __init__(
        self,
        path: str | Path,
        topics: Mapping[str, str] | None = None,
        slop_s: float = 0.02,
        max_pose_gap_s: float = 0.5,
        map_frame: str | None = None,
        depth_scale: float = 1000.0,
    ) -> None:
        self.path = Path(path)
        super().__init__(self.path.stem)
        self.slop_ns = round(_number("slop_s", slop_s, 0.0) * 1e9)
        self.max_pose_gap_ns = round(_number("max_pose_gap_s", max_pose_gap_s, 0.0) * 1e9)
        self.depth_scale = _number("depth_scale", depth_scale, 1e-3)
        if map_frame is not None and not isinstance(map_frame, str):
            raise DatasetError("map_frame", map_frame, "Give the name of a TF frame.")
        with open_bag(self.path) as reader:
            self.topics = choose_topics(reader, str(self.path), topics or {})
            self._length = int(reader.topics[self.topics.color].msgcount)
            self._poses = _Poses(reader, self.topics, map_frame, self.max_pose_gap_ns)

    def __len__(self) -> int:
        return self._length

    @property
    def map_frame(self) -> str:
        """The name of the frame that the poses are given in."""
        return self._poses.map_frame

    def _read(self, start: int, stop: int | None, stride: int) -> Iterator[RGBDFrame | SkipFrame]:
        with open_bag(self.path) as reader:
            for index, item in enumerate(self._pairs(reader)):
                if stop is not None and index >= stop:
                    return
                if index >= start and (index - start) % stride == 0:
                    yield item if isinstance(item, SkipFrame) else self._frame(item)

    def _pairs(self, reader: Any) -> Iterator[Pair[Any, Any] | SkipFrame]:
        """Colour messages with their pose, their depth, and the newest camera infos of that moment."""
        names = self.topics
        wanted = [c for c in reader.connections if c.topic in names.streamed()]
        sync: NearestPairs[tuple[Any, dict[str, Any], NDArray[np.float64]], Any] = NearestPairs(self.slop_ns)
        infos: dict[str, Any] = self._first_infos(reader)
        last_ns = -1
        for connection, _, raw in reader.messages(connections=wanted):
            try:
                message = reader.deserialize(raw, connection.msgtype)
            except Exception as error:  # rosbags lets numpy, struct and Unicode errors through for damaged bytes
                yield SkipFrame("unreadable message", f"{connection.topic}: {error}")
                continue
            stamp_ns = stamp_of(message)
            if connection.topic in (names.camera_info, names.depth_camera_info):
                infos = {**infos, connection.topic: message}
            elif connection.topic == names.depth:
                yield from sync.add_second(stamp_ns, message)
            elif stamp_ns <= last_ns:
                yield SkipFrame("unsorted stamp", f"{stamp_ns} ns after {last_ns} ns")
            elif (T_map_camera := self._poses.at(stamp_ns, message.header.frame_id)) is None:
                # asked now, not when its depth is found: a stamp in the future must not make all later ones unsorted
                yield SkipFrame("no pose", f"none recorded around {stamp_ns} ns")
            else:
                last_ns = stamp_ns
                yield from sync.add_first(stamp_ns, (message, infos, T_map_camera))
        yield from sync.flush()

    def _first_infos(self, reader: Any) -> dict[str, Any]:
        """Camera info often arrives after the first image; the first one serves the images before it."""
        infos: dict[str, Any] = {}
        for topic in filter(None, (self.topics.camera_info, self.topics.depth_camera_info)):
            connections = [c for c in reader.connections if c.topic == topic]
            for connection, _, raw in reader.messages(connections=connections):
                with suppress(Exception):  # as in _pairs; a later one will do
                    infos[topic] = reader.deserialize(raw, connection.msgtype)
                    break
        return infos

    def _frame(self, pair: Pair[Any, Any]) -> RGBDFrame | SkipFrame:
        color, infos, T_map_camera = pair.first
        if pair.second is None:
            return SkipFrame("no depth image", f"none within {self.slop_ns / 1e6:g} ms of {pair.stamp_ns} ns")
        info, depth_info = infos.get(self.topics.camera_info), infos.get(self.topics.depth_camera_info)
        if info is None:
            return SkipFrame("no camera info", f"none readable on {self.topics.camera_info}")
        try:
            rgb, depth = _pixels(color), _pixels(pair.second)
            if rgb.ndim != 3 or depth.ndim != 2:
                raise BadMessageError("image.encoding", (rgb.shape, depth.shape), "Choose a colour and a depth topic.")
            return RGBDFrame(
                rgb=rgb,
                depth_m=depth_to_metres(depth, self.depth_scale),
                camera=camera_of(info, self.topics.color, rgb.shape),
                depth_camera=camera_of(depth_info or info, self.topics.depth, depth.shape),
                T_map_camera=T_map_camera,
                stamp_ns=pair.stamp_ns,
            )
        except GeoPurifyError as error:
            return skip_reason(error)


def _number(option: str, value: Any, least: float) -> float:
    """``value`` as a finite float of at least ``least``, or DatasetError."""
    if type(value) not in (int, float) or not (np.isfinite(value) and value >= least):
        raise DatasetError(option, value, f"Give a finite number of at least {least:g}.")
    return float(value)


class _Poses:
    """Where the camera was at any recorded time, from the one source that this bag offers."""

    def __init__(self, reader: Any, topics: BagTopics, map_frame: str | None, max_gap_ns: int) -> None:
        self._max_gap_ns = max_gap_ns
        self._tree = TransformTree()
        samples: list[tuple[int, NDArray[np.float64]]] = []
        self._body = ""
        self.map_frame = map_frame or ""
        self._has_topic = topics.pose is not None
        wanted = [c for c in reader.connections if c.topic == topics.pose or c.topic in topics.transforms]
        for connection, _, raw in reader.messages(connections=wanted):
            try:
                message = reader.deserialize(raw, connection.msgtype)
                if connection.topic != topics.pose:
                    self._add_transforms(message, static=connection.topic.endswith("tf_static"))
                    continue
                samples.append((stamp_of(message), pose_of(message)))
            except Exception as error:  # a broken pose is a missing one; the frames around it are counted as such
                log.debug("%s: unreadable pose: %s", connection.topic, error)
                continue
            self._body = getattr(message, "child_frame_id", "")
            self.map_frame = self.map_frame or message.header.frame_id
        self._track = PoseTrack(samples)

    def _add_transforms(self, message: Any, static: bool) -> None:
        for item in message.transforms:
            move, turn = item.transform.translation, item.transform.rotation
            T = pose_from_quaternion((move.x, move.y, move.z), (turn.x, turn.y, turn.z, turn.w))
            self._tree.add(item.header.frame_id, item.child_frame_id, stamp_of(item), T, static)

    def at(self, stamp_ns: int, camera_frame: str) -> NDArray[np.float64] | None:
        """T_map_camera, or None where nothing recorded tells it."""
        if not self._has_topic:
            self.map_frame = self.map_frame or self._find_map_frame(camera_frame)
            return self._tree.lookup(self.map_frame, camera_frame, stamp_ns, self._max_gap_ns)
        T_map_body = self._track.at(stamp_ns, self._max_gap_ns)
        if T_map_body is None or self._body in ("", camera_frame):
            return T_map_body
        T_body_camera = self._tree.lookup(self._body, camera_frame, stamp_ns, self._max_gap_ns)
        return None if T_body_camera is None else T_map_body @ T_body_camera

    def _find_map_frame(self, camera_frame: str) -> str:
        known = self._tree.frames()
        return next((name for name in ("map", "odom") if name in known), self._tree.root(camera_frame))


@contextmanager
def open_bag(path: Path) -> Iterator[Any]:
    """An open AnyReader; whatever goes wrong inside it becomes a DatasetError that names the bag."""
    from rosbags.highlevel import AnyReader
    from rosbags.typesys import Stores, get_typestore

    if not path.exists():
        raise DatasetError("bag", str(path), "There is no such file or folder.")
    if path.is_dir() and not (path / "metadata.yaml").exists():
        raise DatasetError("bag metadata.yaml", str(path), "It is missing; `ros2 bag reindex` writes it anew.")
    try:
        with AnyReader([path], default_typestore=get_typestore(Stores.ROS2_JAZZY)) as reader:
            yield reader
    except (GeoPurifyError, GeneratorExit):
        raise
    except Exception as error:  # storage plugins raise whatever their parsing meets
        raise DatasetError("bag", str(path), f"It cannot be read as rosbag2; is it complete? ({error!r})") from error


def stamp_of(message: Any) -> int:
    """``header.stamp`` in nanoseconds."""
    stamp = message.header.stamp
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def pose_of(message: Any) -> NDArray[np.float64]:
    """(4, 4) pose of a PoseStamped, PoseWithCovarianceStamped, Odometry or TransformStamped."""
    if hasattr(message, "transform"):
        position, turn = message.transform.translation, message.transform.rotation
    else:
        pose = message.pose if hasattr(message.pose, "position") else message.pose.pose
        position, turn = pose.position, pose.orientation
    return pose_from_quaternion((position.x, position.y, position.z), (turn.x, turn.y, turn.z, turn.w))


def camera_of(info: Any, image_topic: str, shape: tuple[int, ...]) -> PinholeCamera:
    """Intrinsics for an image of ``shape``; those of a rectified image are in P (if set), those of a raw one in K.

    Raises:
        InvalidCameraError: Unset or singular intrinsics.
    """
    K, P = np.asarray(info.k).reshape(3, 3), np.asarray(info.p).reshape(3, 4)
    matrix = P[:, :3] if _RECTIFIED.search(image_topic) and P[0, 0] > 0 else K
    width, height = int(info.width) or shape[1], int(info.height) or shape[0]
    camera = PinholeCamera.from_matrix(matrix, width, height)
    return camera if (height, width) == shape[:2] else camera.scaled(shape[1], shape[0])


def _pixels(message: Any) -> NDArray[Any]:
    if hasattr(message, "format"):
        return decode_compressed(message.format, message.data)
    return decode_image(
        message.encoding, message.height, message.width, message.step, message.data, message.is_bigendian
    )
