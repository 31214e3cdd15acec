"""Frames into a rosbag2 that ROS 2 plays: colour, camera info, depth, pose and TF.

A bag is written beside its destination and moved there when it is complete, so that nobody ever reads half a bag.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from geopurify_core.camera import PinholeCamera
from geopurify_core.errors import DatasetError
from geopurify_core.frame import RGBDFrame

STORAGES = {"mcap": ".mcap", "sqlite3": ".db3"}
_END_OF_ROS_TIME_NS = 2**31 * 1_000_000_000
OPTICAL_FRAME = "camera_optical_frame"
_TOPICS = {
    "/rgb/image": "sensor_msgs/msg/Image",
    "/rgb/camera_info": "sensor_msgs/msg/CameraInfo",
    "/depth/image": "sensor_msgs/msg/Image",
    "/depth/camera_info": "sensor_msgs/msg/CameraInfo",
    "/pose": "geometry_msgs/msg/PoseStamped",
    "/tf": "tf2_msgs/msg/TFMessage",
}


def write_bag(
    frames: Iterable[RGBDFrame],
    out: str | Path,
    *,
    storage: str | None = None,
    compress: bool = False,
    overwrite: bool = False,
    frame_id: str = "map",
    start_ns: int = 0,
) -> int:
    """Write frames as a rosbag2; returns how many.

    Topics: `/rgb/image` (rgb8), `/depth/image` (16UC1 millimetres if that is exact, else 32FC1 metres), camera infos,
    `/pose` (PoseStamped of the optical frame in ``frame_id``) and `/tf` (``frame_id`` → `camera_optical_frame`).

    Args:
        frames: With increasing stamps.
        out: `x.mcap` or `x.db3` gives that single file; any other name a folder with `metadata.yaml`.
        storage: mcap or sqlite3; by default what the suffix says, else mcap.
        compress: zstd, chunks in mcap, messages in sqlite3 (which then needs a folder).
        overwrite: Replace what is there.
        frame_id: The map frame.
        start_ns: Added to every stamp (a recording that starts at 0 then plays as of that time).

    Raises:
        DatasetError: ``out`` exists or cannot be written, the storage is unknown or contradicts the suffix, a stamp
            is beyond what ROS can say, or there was no frame.
    """
    out = Path(out)
    storage = _choose_storage(out, storage, compress)
    _check_destination(out, overwrite)
    scratch: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        folder = scratch / out.stem
        count = _write_folder(frames, folder, storage, compress, frame_id, start_ns)
        if count == 0:
            raise DatasetError("bag", str(out), "There was no usable frame to write; see the skipped counts.")
        _move(folder, out, storage)
        return count
    except OSError as error:
        raise DatasetError("bag", str(out), f"It cannot be written: {error.strerror or error}.") from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def _check_destination(out: Path, overwrite: bool) -> None:
    """Only a bag is ever overwritten: a folder of anything else would be lost with all that is in it."""
    if out.exists() and not overwrite:
        raise DatasetError("bag", str(out), "It exists; remove it, or overwrite it with --force.")
    if out.is_dir() and any(out.iterdir()) and not (out / "metadata.yaml").is_file():
        raise DatasetError(
            "bag", str(out), "That folder is no bag (no metadata.yaml), so it is kept; give another name."
        )
    if out.exists() and not out.is_dir() and not out.is_file():
        raise DatasetError("bag", str(out), "That is a device or a pipe; give another name.")


def _choose_storage(out: Path, storage: str | None, compress: bool) -> str:
    by_suffix = next((name for name, suffix in STORAGES.items() if out.suffix == suffix), None)
    chosen = storage or by_suffix or "mcap"
    if chosen not in STORAGES:
        raise DatasetError("storage", storage, f"Choose one of {', '.join(STORAGES)}.")
    if by_suffix is not None and by_suffix != chosen:
        raise DatasetError("storage", storage, f"The name {out.name} asks for {by_suffix}; change one of the two.")
    if compress and out.suffix == STORAGES["sqlite3"]:
        raise DatasetError(
            "compress", str(out), "A compressed sqlite3 bag needs its metadata: give a folder, or .mcap."
        )
    return chosen


def _move(folder: Path, out: Path, storage: str) -> None:
    """The finished bag to its place: the one storage file, or the whole folder."""
    source = next(folder.glob(f"*{STORAGES[storage]}")) if out.suffix == STORAGES[storage] else folder
    if out.is_dir() and not out.is_symlink():
        shutil.rmtree(out)
    elif source.is_dir() and out.exists():
        out.unlink()
    source.replace(out)


def _write_folder(
    frames: Iterable[RGBDFrame], folder: Path, storage: str, compress: bool, frame_id: str, start_ns: int
) -> int:
    from rosbags.typesys import Stores, get_typestore

    typestore = get_typestore(Stores.ROS2_JAZZY)
    build = _MessageBuilder(typestore.types, frame_id)
    count = 0
    with _writer(folder, storage, compress) as writer:
        connections = {name: writer.add_connection(name, kind, typestore=typestore) for name, kind in _TOPICS.items()}
        for frame in frames:
            stamp_ns = frame.stamp_ns + start_ns
            if not 0 <= stamp_ns < _END_OF_ROS_TIME_NS:
                raise DatasetError("stamp + start", stamp_ns, "ROS counts seconds in 31 bits: start before 2038.")
            for topic, message in build.messages(frame, stamp_ns):
                raw = typestore.serialize_cdr(message, message.__msgtype__)
                writer.write(connections[topic], stamp_ns, raw)
            count += 1
    return count


@contextmanager
def _writer(folder: Path, storage: str, compress: bool) -> Iterator[Any]:
    from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

    writer = Writer(folder, version=9, storage_plugin=StoragePlugin[storage.upper()])
    if compress:
        mode = CompressionMode.STORAGE if storage == "mcap" else CompressionMode.MESSAGE
        writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer:
        yield writer


class _MessageBuilder:
    """ROS messages from frames; ``types`` are the message classes of a rosbags typestore."""

    def __init__(self, types: Any, frame_id: str) -> None:
        self._types = types
        self._frame_id = frame_id

    def messages(self, frame: RGBDFrame, stamp_ns: int) -> Iterator[tuple[str, Any]]:
        """(topic, message), the pose first so that a live reader knows it when the images arrive."""
        camera, depth = self._header(stamp_ns, OPTICAL_FRAME), _to_depth_image(frame.depth_m)
        position, turn = self._pose_parts(frame.T_map_camera)
        make = self._types
        in_map = self._header(stamp_ns, self._frame_id)
        transform = make["geometry_msgs/msg/Transform"](make["geometry_msgs/msg/Vector3"](*position), turn)
        stamped = make["geometry_msgs/msg/TransformStamped"](in_map, OPTICAL_FRAME, transform)
        yield "/tf", make["tf2_msgs/msg/TFMessage"]([stamped])
        pose = make["geometry_msgs/msg/Pose"](make["geometry_msgs/msg/Point"](*position), turn)
        yield "/pose", make["geometry_msgs/msg/PoseStamped"](in_map, pose)
        yield "/rgb/camera_info", self._camera_info(camera, frame.camera)
        yield "/depth/camera_info", self._camera_info(camera, frame.depth_camera)
        yield "/rgb/image", self._image(camera, frame.rgb, "rgb8")
        yield "/depth/image", self._image(camera, depth, "16UC1" if depth.dtype == np.uint16 else "32FC1")

    def _header(self, stamp_ns: int, frame_id: str) -> Any:
        time = self._types["builtin_interfaces/msg/Time"](*divmod(stamp_ns, 1_000_000_000))
        return self._types["std_msgs/msg/Header"](time, frame_id)

    def _pose_parts(self, T: NDArray[np.float64]) -> tuple[list[float], Any]:
        turn = Rotation.from_matrix(T[:3, :3]).as_quat()
        return T[:3, 3].tolist(), self._types["geometry_msgs/msg/Quaternion"](*turn.tolist())

    def _image(self, header: Any, pixels: NDArray[Any], encoding: str) -> Any:
        data = np.ascontiguousarray(pixels)
        height, width = data.shape[:2]
        raw = data.reshape(-1).view(np.uint8)
        return self._types["sensor_msgs/msg/Image"](header, height, width, encoding, 0, raw.size // height, raw)

    def _camera_info(self, header: Any, camera: PinholeCamera) -> Any:
        projection = np.zeros((3, 4))
        projection[:, :3] = camera.K
        return self._types["sensor_msgs/msg/CameraInfo"](
            header=header,
            height=camera.height,
            width=camera.width,
            distortion_model="plumb_bob",
            d=np.zeros(5),
            k=camera.K.ravel(),
            r=np.eye(3).ravel(),
            p=projection.ravel(),
            binning_x=0,
            binning_y=0,
            roi=self._types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False),
        )


def _to_depth_image(depth_m: NDArray[np.float32]) -> NDArray[np.uint16] | NDArray[np.float32]:
    """uint16 millimetres where that gives back the very same float32 metres, else the metres themselves."""
    millimetres = np.rint(depth_m * np.float32(1000))
    if depth_m.min(initial=0) >= 0 and millimetres.max(initial=0) < 65_535:
        depth: NDArray[np.uint16] = millimetres.astype(np.uint16)
        if np.array_equal(depth.astype(np.float32) / np.float32(1000), depth_m):
            return depth
    return depth_m
