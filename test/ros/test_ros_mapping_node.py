"""The mapping node in its own process: what a robot and an operator see of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.ros
FRAME = "camera_optical_frame"
SECOND = 1_000_000_000
BASE = 1_000 * SECOND
_clock = iter(range(1, 1_000_000))


def next_stamp() -> int:
    """Stamps that only ever grow, 0.1 s apart."""
    return BASE + next(_clock) * SECOND // 10


@pytest.fixture(scope="module")
def node(start: Callable[..., Any], robot: Any) -> Iterator[Any]:
    process = start(
        "mapping_node",
        backbone__name="stub", map__voxel_size_m=0.05, publish_period_s=0.3, pose_wait_s=0.2, queue_size=50,
    )  # fmt: skip
    robot.until_state("mapping")
    yield process
    code, seconds = process.end()
    assert code == 0, process.output
    assert seconds < 5.0
    assert "Traceback" not in process.output, process.output


@pytest.fixture
def empty(node: Any, robot: Any) -> Any:
    """The robot, facing an empty map."""
    from std_srvs.srv import Trigger

    assert robot.call(Trigger, "reset").success
    return robot


def voxels(robot: Any) -> int:
    """Voxels now, from the diagnostics (the status only moves with frames)."""
    from geopurify_interfaces.srv import SaveMap

    answer = robot.call(SaveMap, "save_map", path="/dev/shm/geopurify_test_count.safetensors")
    Path("/dev/shm/geopurify_test_count.safetensors").unlink(missing_ok=True)
    assert answer.success, answer.message
    return int(answer.num_voxels)


def core_map(frames: list[Any], backbone: Any) -> Any:
    """The same frames through the core, without ROS."""
    from geopurify_core.config import Config
    from geopurify_core.pipeline import SemanticMapper

    mapper = SemanticMapper(Config.from_dict({"map": {"voxel_size_m": 0.05}}), backbone)
    for frame in frames:
        mapper.integrate(frame)
    return mapper.snapshot()


def as_rows(snapshot: Any) -> dict[tuple[int, ...], np.ndarray]:
    return {tuple(c): f for c, f in zip(snapshot.coords.tolist(), snapshot.features.astype(np.float32), strict=True)}


def test_map_equals_that_of_the_core(empty: Any, frames: list[Any], tmp_path: Path, stub: Any) -> None:
    """Poses pass through quaternions (1e-16), so a pixel on a voxel's face may change sides: 0.1 % of keys, 2e-3."""
    from geopurify_core.mapping.store import load_map
    from geopurify_interfaces.srv import SaveMap

    for frame in frames:
        empty.send(frame, next_stamp())
    answer = empty.call(SaveMap, "save_map", path=str(tmp_path / "ros.map"))
    assert answer.success, answer.message
    mine, theirs = as_rows(load_map(tmp_path / "ros.map")), as_rows(core_map(frames, stub()))
    common = mine.keys() & theirs.keys()
    assert len(theirs) > 2000
    assert len(common) >= 0.999 * max(len(mine), len(theirs))
    difference = np.array([np.abs(mine[key] - theirs[key]).max() for key in common])
    assert np.quantile(difference, 0.999) <= 2e-3


def test_millimetres_and_metres_give_the_same_voxels(empty: Any, frames: list[Any], tmp_path: Path) -> None:
    import dataclasses

    from geopurify_core.mapping.store import load_map
    from geopurify_interfaces.srv import SaveMap
    from geopurify_ros.messages import to_image

    depth_mm = np.round(frames[0].depth_m * 1000)
    frame = dataclasses.replace(frames[0], depth_m=depth_mm.astype(np.float32) / np.float32(1000))
    maps = []
    for name in ("metres", "millimetres"):
        ns = next_stamp()
        if name == "metres":
            empty.send(frame, ns)
        else:
            robot_send_depth(empty, frame, ns, to_image(depth_mm.astype(np.uint16), ns, FRAME))
        assert empty.call(SaveMap, "save_map", path=str(tmp_path / name)).success
        maps.append(as_rows(load_map(tmp_path / name)))
        from std_srvs.srv import Trigger

        empty.call(Trigger, "reset")
    assert maps[0].keys() == maps[1].keys()
    assert all((maps[0][key] == maps[1][key]).all() for key in maps[0])


def robot_send_depth(robot: Any, frame: Any, ns: int, depth: Any, wait: bool = True) -> None:
    """A frame with another depth message."""
    from geometry_msgs.msg import PoseStamped

    from geopurify_ros.messages import header, to_camera_info, to_image, to_pose

    robot.publish("rgb/camera_info", to_camera_info(frame.camera, ns, FRAME))
    robot.publish("pose", PoseStamped(header=header(ns, "map"), pose=to_pose(frame.T_map_camera)))
    robot.publish("rgb/image", to_image(frame.rgb, ns, FRAME))
    robot.publish("depth/image", depth)
    if wait:
        robot.until_handled(ns)


def test_queries_are_answered_while_frames_arrive(empty: Any, frames: list[Any]) -> None:
    from geopurify_interfaces.srv import Query
    from geopurify_ros.messages import stamp_ns

    empty.send(frames[0], next_stamp())
    integrated = empty.status.frames_integrated
    done = threading.Event()

    def drive() -> None:
        for frame in frames * 3:
            empty.send(frame, next_stamp(), wait=False)
            time.sleep(0.03)
        done.set()

    driver = threading.Thread(target=drive)
    driver.start()
    stamps, objects = [], 0
    while not done.is_set():
        answer = empty.call(Query, "query", texts=["corner 7", "corner 0"])
        assert answer.success, answer.message
        stamps.append(stamp_ns(answer.map_stamp))
        objects += len(answer.objects)
        assert answer.cloud.width == sum(item.num_voxels for item in answer.objects)
    driver.join()
    assert stamps == sorted(stamps)
    assert stamps[-1] > stamps[0], "the map must have gone on between the answers"
    assert objects > 0
    assert empty.status.frames_integrated > integrated


def bad_messages(frame: Any) -> dict[str, Callable[[int], Any]]:
    from geopurify_ros.messages import to_image

    def image(pixels: Any, ns: int, **changes: Any) -> Any:
        message = to_image(pixels, ns, FRAME)
        for key, value in changes.items():
            setattr(message, key, value)
        return message

    return {
        "encoding": lambda ns: image(frame.depth_m, ns, encoding="yuv9"),
        "step": lambda ns: image(frame.depth_m, ns, step=3),
        "height": lambda ns: image(frame.depth_m, ns, height=1000),
        "colour as depth": lambda ns: image(frame.rgb, ns),
        "empty": lambda ns: image(frame.depth_m, ns, height=0, width=0),
    }


@pytest.mark.parametrize("kind", ["encoding", "step", "height", "colour as depth", "empty"])
def test_a_bad_depth_image_is_refused_and_nothing_is_integrated(empty: Any, frames: list[Any], kind: str) -> None:
    failed = empty.status.frames_failed if empty.status else 0
    ns = next_stamp()
    robot_send_depth(empty, frames[0], ns, bad_messages(frames[0])[kind](ns))
    assert empty.status.frames_failed == failed + 1
    assert empty.status.message
    assert voxels(empty) == 0


def test_bad_depth_values_leave_no_trace(empty: Any, frames: list[Any], tmp_path: Path) -> None:
    from geopurify_core.mapping.store import load_map
    from geopurify_interfaces.srv import SaveMap
    from geopurify_ros.messages import to_image

    for value in (np.nan, np.inf, -np.inf, 0.0, -1.0):
        ns = next_stamp()
        robot_send_depth(empty, frames[0], ns, to_image(np.full((120, 160), value, np.float32), ns, FRAME))
    ns = next_stamp()
    robot_send_depth(empty, frames[0], ns, to_image(np.full((120, 160), 65535, np.uint16), ns, FRAME))
    assert voxels(empty) == 0
    spotted = frames[0].depth_m.copy()
    spotted[::7, ::5] = np.nan
    ns = next_stamp()
    robot_send_depth(empty, frames[0], ns, to_image(spotted, ns, FRAME))
    assert empty.call(SaveMap, "save_map", path=str(tmp_path / "m")).num_voxels > 100
    snapshot = load_map(tmp_path / "m")
    assert np.isfinite(snapshot.features).all()
    assert np.isfinite(snapshot.normals).all()


def test_without_a_pose_nothing_is_integrated_until_poses_come_back(empty: Any, frames: list[Any]) -> None:
    failed = empty.status.frames_failed
    for _ in range(3):
        empty.send(frames[0], next_stamp(), pose=False)
    assert empty.status.frames_failed == failed + 3
    assert voxels(empty) == 0
    diagnostic(empty, "pose", b"\x02", "'map' -> 'camera_optical_frame'")
    integrated = empty.status.frames_integrated
    empty.send(frames[0], next_stamp())
    assert empty.status.frames_integrated == integrated + 1, "the first frame with a pose must be in the map"
    assert empty.status.message == ""


def diagnostic(robot: Any, name: str, level: bytes, text: str) -> None:
    """Wait for a diagnostic of that level which says that."""
    item = lambda: robot.diagnostics.get(name)  # noqa: E731
    robot.until(lambda: item() and item().level == level and text in item().message, f"{name} saying {text!r}", 2.5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"frame_id": "odom"}, "'odom'"),
        ({"q": (0.0, 0.0, 0.0, 0.0)}, "pose.orientation"),
        ({"t": (float("nan"), 0.0, 0.0)}, "NaN"),
        ({"age_s": 1.0}, "nearest 1.0"),
    ],
)
def test_an_unusable_pose_is_no_pose(empty: Any, frames: list[Any], change: dict[str, Any], said: str) -> None:
    """Wrong frame, unset quaternion, NaN, one second stale: no voxel, and the diagnostics say why."""
    from geometry_msgs.msg import Point, PoseStamped, Quaternion

    from geopurify_ros.messages import header, to_pose

    for _ in range(20):  # beyond pose_tolerance_s of earlier poses
        next_stamp()
    ns = next_stamp()
    pose = to_pose(frames[0].T_map_camera)
    if "q" in change:
        pose.orientation = Quaternion(**dict(zip("xyzw", change["q"], strict=True)))
    if "t" in change:
        pose.position = Point(**dict(zip("xyz", change["t"], strict=True)))
    at = ns - round(change.get("age_s", 0.0) * SECOND)
    empty.publish("pose", PoseStamped(header=header(at, change.get("frame_id", "map")), pose=pose))
    empty.send(frames[0], ns, pose=False)
    assert voxels(empty) == 0
    diagnostic(empty, "pose", b"\x02", said)


def test_a_bag_that_starts_over_keeps_the_map_and_goes_on(empty: Any, frames: list[Any]) -> None:
    first = [next_stamp() for _ in frames]
    for frame, ns in zip(frames, first, strict=True):
        empty.send(frame, ns)
    for _ in range(30):
        next_stamp()
    empty.send(frames[-1], next_stamp())
    before, integrated = voxels(empty), empty.status.frames_integrated
    for frame, ns in zip(frames, first, strict=True):
        empty.send(frame, ns, wait=False)
        time.sleep(0.05)
    empty.until_handled(first[-1])
    assert empty.status.frames_integrated == integrated + len(frames), "no frame of the second round may be lost"
    assert voxels(empty) >= before
    for _ in range(30):  # the next test's stamps must be newer than everything so far
        next_stamp()


def test_zero_late_and_duplicate_stamps_are_counted_and_left_out(empty: Any, node: Any, frames: list[Any]) -> None:
    ns = next_stamp()
    empty.send(frames[0], ns)
    integrated = empty.status.frames_integrated
    for stamp in (0, ns, ns - SECOND // 20):
        empty.send(frames[0], stamp, wait=False)
    empty.send(frames[1], next_stamp())
    assert empty.status.frames_integrated == integrated + 1

    def counts() -> dict[str, int]:
        sync = empty.diagnostics.get("sync")
        return {item.key: int(item.value) for item in sync.values if item.value.isdecimal()} if sync else {}

    empty.until(lambda: all(counts().get(key, 0) > 0 for key in ("zero_stamp", "late", "duplicate")), "the counts", 3)
    assert node.output.count("its stamp is not set") == 1, "logged once for its kind"


def test_pause_and_resume(empty: Any, frames: list[Any]) -> None:
    from std_srvs.srv import Trigger

    assert empty.call(Trigger, "pause").success
    empty.send(frames[0], next_stamp())
    assert empty.status.state == "paused"
    assert voxels(empty) == 0
    assert empty.call(Trigger, "resume").success
    empty.send(frames[0], next_stamp())
    assert voxels(empty) > 100


def test_save_load_reset_and_a_file_that_is_no_map(empty: Any, frames: list[Any], tmp_path: Path) -> None:
    from std_srvs.srv import Trigger

    from geopurify_interfaces.srv import LoadMap, Query, SaveMap

    empty.send(frames[0], next_stamp())
    path = str(tmp_path / "room.map")
    saved = empty.call(SaveMap, "save_map", path=path).num_voxels
    before = empty.call(Query, "query", texts=["corner 7"])
    empty.call(Trigger, "reset")
    assert voxels(empty) == 0
    assert empty.call(LoadMap, "load_map", path=path).num_voxels == saved
    after = empty.call(Query, "query", texts=["corner 7"])
    assert [o.num_voxels for o in after.objects] == [o.num_voxels for o in before.objects]
    Path(path).write_bytes(Path(path).read_bytes()[:-10])
    for bad in (path, str(tmp_path / "absent"), ""):
        answer = empty.call(LoadMap, "load_map", path=bad)
        assert not answer.success
        assert answer.message
    assert not empty.call(SaveMap, "save_map", path=str(tmp_path / "no" / "folder" / "m")).success
    assert voxels(empty) == saved, "a refused file leaves the map as it was"


def test_answers_that_cannot_be_given_say_why(empty: Any, frames: list[Any]) -> None:
    from geopurify_interfaces.srv import Purify, Query, Segment

    empty.send(frames[0], next_stamp())
    for texts in ([], [""], ["x" * 10_000], ["a"] * 300):
        answer = empty.call(Query, "query", texts=texts)
        assert not answer.success
        assert "texts" in answer.message
    for texts in (["🪑"], ["كرسي"], ["<b>'; DROP TABLE chairs; --"]):
        assert empty.call(Query, "query", texts=texts).success
    assert not empty.call(Query, "query", texts=["x"], purified=True).success
    assert "purif" in empty.call(Purify, "purify").message
    assert not empty.call(Segment, "segment", labels=[]).success


def test_clouds_and_markers_wait_for_late_listeners(empty: Any, frames: list[Any]) -> None:
    from sensor_msgs.msg import PointCloud2
    from visualization_msgs.msg import Marker, MarkerArray

    from geopurify_interfaces.srv import Query, Segment
    from geopurify_ros.clouds import cloud_rows

    empty.send(frames[0], next_stamp())
    count = voxels(empty)
    labels = [f"corner {i}" for i in range(8)]
    segmented = empty.call(Segment, "segment", labels=labels)
    assert sum(segmented.counts) <= count
    answer = empty.call(Query, "query", texts=["corner 7", "corner 0"], max_objects=2)
    for kind, topic in ((PointCloud2, "semantic_cloud"), (PointCloud2, "query_cloud"), (MarkerArray, "objects")):
        empty.listen(kind, f"geopurify/{topic}")
    got = lambda topic: empty.received.get(f"geopurify/{topic}")  # noqa: E731
    empty.until(lambda: got("semantic_cloud") and got("query_cloud") and got("objects"), "the latched messages")
    rows = cloud_rows(got("semantic_cloud"))
    assert rows.dtype.names == ("x", "y", "z", "rgb", "label", "confidence", "instance")
    assert len(rows) == count
    assert set(np.unique(rows["label"])) <= set(range(-1, 8))
    assert got("semantic_cloud").header.frame_id == "map"
    found = cloud_rows(got("query_cloud"))
    assert np.bincount(found["instance"]).tolist() == [item.num_voxels for item in answer.objects]
    markers = got("objects").markers
    assert markers[0].action == Marker.DELETEALL
    assert len(markers) == 1 + 2 * len(answer.objects)
    empty.call(Segment, "segment", labels=labels[:1])


def test_a_bad_parameter_is_refused_at_run_time_and_the_old_value_stays(empty: Any) -> None:
    from rcl_interfaces.msg import Parameter, ParameterValue
    from rcl_interfaces.srv import GetParameters, SetParametersAtomically

    def set_two(max_range_m: float, min_range_m: float) -> Any:
        values = [
            Parameter(name=f"depth.{name}", value=ParameterValue(type=3, double_value=value))
            for name, value in (("max_range_m", max_range_m), ("min_range_m", min_range_m))
        ]
        return empty.call(SetParametersAtomically, "set_parameters_atomically", parameters=values).result

    refused = set_two(1.0, 2.0)
    assert not refused.successful
    assert "depth.min_range_m" in refused.reason
    names = ["depth.max_range_m", "depth.min_range_m"]
    kept = [v.double_value for v in empty.call(GetParameters, "get_parameters", names=names).values]
    assert kept == [5.0, 0.25]
    assert set_two(4.0, 0.3).successful
    assert set_two(5.0, 0.25).successful
    voxel_size = Parameter(name="map.voxel_size_m", value=ParameterValue(type=3, double_value=0.1))
    fixed = empty.call(SetParametersAtomically, "set_parameters_atomically", parameters=[voxel_size]).result
    assert not fixed.successful
