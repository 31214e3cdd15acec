"""Nodes under other circumstances: trouble at start, failing networks, odometry, points, best effort, a recording."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.ros
FRAME = "camera_optical_frame"
SECOND = 1_000_000_000
BASE = 5_000 * SECOND


def test_a_failing_network_and_a_camera_without_calibration(
    start: Callable[..., Any], robot: Any, frames: list[Any], tmp_path: Path
) -> None:
    """Loading is said, K = 0 and raising or NaN networks are counted, the rest is mapped; SIGTERM saves and gives 0."""
    from sensor_msgs.msg import CameraInfo

    from geopurify_core.mapping.store import load_map
    from geopurify_interfaces.srv import Query
    from geopurify_ros.messages import header

    path = tmp_path / "auto.map"
    node = start(
        "mapping_node", backbone__name="stub", pose_wait_s=0.1, queue_size=50, autosave_path=str(path),
        backbone__options="'{load_s: 3.0, fail_every: 3, nan_every: 4}'",
    )  # fmt: skip
    started = time.monotonic()
    answer = robot.call(Query, "query", texts=["corner 7"])
    if time.monotonic() - started < 2.5:
        assert not answer.success
        assert "loading" in answer.message
    robot.until_state("mapping")
    ns = BASE
    robot.publish("rgb/camera_info", CameraInfo(header=header(ns, FRAME), width=160, height=120))
    robot.until(lambda: "InvalidCameraError" not in node.output and "camera.K" in node.output, "K = 0 being reported")
    for frame in frames[:8]:  # the rehearsal was image 1; of 2..9 the network raises for 3 6 9, answers NaN for 4 8
        ns += SECOND // 10
        robot.send(frame, ns)
    status = robot.status
    assert (status.frames_integrated, status.frames_failed) == (3, 5)
    assert node.output.count("the stub fails on purpose") == 1, "logged once, counted always"
    code, seconds = node.end(signal.SIGTERM)
    assert code == 0, node.output
    assert seconds < 5.0
    assert "rosout" not in node.output
    assert len(load_map(path)) == status.num_voxels


def test_odometry_points_compressed_images_and_best_effort(
    start: Callable[..., Any], robot: Any, frames: list[Any]
) -> None:
    """A robot with a lidar: points in the map frame, JPEG-like colour, odometry with a mount, best effort drivers."""
    import io

    from nav_msgs.msg import Odometry
    from PIL import Image as Picture
    from sensor_msgs.msg import CompressedImage

    from geopurify_core.camera import invert_pose, pose_from_quaternion
    from geopurify_ros.clouds import to_cloud
    from geopurify_ros.messages import byte_array, header, to_camera_info, to_pose

    robot.status = None
    mount = [0.1, 0.0, 1.2, -0.5, 0.5, -0.5, 0.5]
    node = start(
        "mapping_node", backbone__name="stub", input="points", pose_source="odom", rgb_transport="compressed",
        map__frame_id="odom", T_base_camera=str(mount), T_camera_points=str([0.0] * 6 + [1.0]),
        remap={"rgb/image": "png"},
    )  # fmt: skip
    robot.until_state("mapping")
    T_map_base = frames[0].T_map_camera @ invert_pose(pose_from_quaternion(mount[:3], mount[3:]))
    points = frames[0].camera.back_project(frames[0].depth_m)[frames[0].depth_m > 0][::5]
    picture = io.BytesIO()
    Picture.fromarray(frames[0].rgb).save(picture, format="PNG")

    def send(ns: int) -> None:
        odom = Odometry(header=header(ns, "odom"), child_frame_id="base_link")
        odom.pose.pose = to_pose(T_map_base)
        robot.publish("rgb/camera_info", to_camera_info(frames[0].camera, ns, FRAME))
        robot.publish("odom", odom)
        data = byte_array(np.frombuffer(picture.getvalue(), np.uint8))
        robot.publish("png", CompressedImage(header=header(ns, FRAME), format="png", data=data))
        cloud = to_cloud(points, np.zeros((len(points), 3), np.uint8), ns, "lidar")
        robot.publish("points", cloud, best_effort=True)

    ns = BASE + 100 * SECOND
    send(ns)
    robot.until(lambda: "best_effort" in input_words(robot, "/points"), "the QoS clash in the diagnostics", 4.0)
    for i in range(1, 5):
        send(ns + i * SECOND // 10)
        time.sleep(0.05)
    robot.until_handled(ns + 4 * SECOND // 10)
    assert robot.status.frames_integrated >= 3, node.output
    assert robot.status.num_voxels > 500
    robot.until(
        lambda: robot.diagnostics["input /points"].level == b"\x00", "an ordinary best effort driver being no warning"
    )
    code, _ = node.end(signal.SIGINT)
    assert code == 0, node.output


def input_words(robot: Any, topic: str) -> str:
    item = robot.diagnostics.get(f"input {topic}")
    return str(item.message) if item else ""


def test_reliable_by_force_says_that_a_best_effort_driver_cannot_be_heard(
    start: Callable[..., Any], robot: Any, frames: list[Any]
) -> None:
    from geopurify_ros.messages import to_image

    robot.status = None
    robot.diagnostics.clear()
    node = start("mapping_node", backbone__name="stub", qos_reliability="reliable", remap={"depth/image": "be_depth"})
    robot.until_state("mapping")
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    from sensor_msgs.msg import Image

    profile = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
    publisher = robot.node.create_publisher(Image, "be_depth", profile)
    publisher.publish(to_image(frames[0].depth_m, BASE, FRAME))
    robot.until(lambda: "QoS" in input_words(robot, "/be_depth"), "the QoS clash in the diagnostics", 4.0)
    assert robot.diagnostics["input /be_depth"].level != b"\x00"
    robot.node.destroy_publisher(publisher)
    assert node.end(signal.SIGTERM)[0] == 0, node.output


def test_a_recording_is_replayed_without_loss_twice(start: Callable[..., Any], robot: Any) -> None:
    """Lockstep: every frame arrives; then the loop starts over and the mapper follows."""
    robot.status = None
    node = start("mapping_node", backbone__name="stub", queue_size=20, use_sim_time=True)
    options = "'{num_frames: 12, width: 160, height: 120, seed: 3}'"
    replay = start("replay_node", lockstep=True, dataset="synthetic", options=options, publish_clock=True)
    assert replay.wait(90) == 0, replay.output
    assert "Played 12 frames" in replay.output
    robot.until(lambda: robot.status and robot.status.frames_integrated == 12, "all frames integrated")
    assert (robot.status.frames_dropped, robot.status.frames_failed) == (0, 0)
    looped = start("replay_node", lockstep=True, loop=True, options=options, publish_clock=True)
    robot.until(lambda: robot.status.frames_integrated >= 12 * 3, "three rounds", 60.0)
    assert looped.end(signal.SIGTERM)[0] == 0, looped.output
    code, seconds = node.end(signal.SIGINT)
    assert code == 0, node.output
    assert seconds < 5.0
    assert "Traceback" not in looped.output + node.output


def test_without_a_mapping_node_lockstep_says_so(start: Callable[..., Any]) -> None:
    replay = start("replay_node", lockstep=True, wait_for_subscribers_s=0.5)
    assert replay.wait() == 2
    assert "Start mapping_node first" in replay.output


@pytest.mark.parametrize(
    ("module", "parameters", "said"),
    [
        ("mapping_node", {"map__voxel_size_m": 9.0}, "map.voxel_size_m"),
        ("mapping_node", {"pose_source": "tf"}, "tf2_ros"),
        ("replay_node", {"dataset": "/no/such/file"}, "/no/such/file"),
    ],
)
def test_an_unusable_start_is_one_line_and_code_2(
    start: Callable[..., Any], module: str, parameters: dict[str, Any], said: str
) -> None:
    if parameters.get("pose_source") == "tf" and importlib.util.find_spec("tf2_ros"):
        pytest.skip("tf2_ros is installed here")
    node = start(module, **parameters)
    assert node.wait() == 2, node.output
    assert said in node.output
    assert "Traceback" not in node.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_node_is_being_made_ends_it_quietly(
    start: Callable[..., Any], robot: Any, number: int
) -> None:
    node = start("mapping_node", backbone__name="stub", backbone__options="'{load_s: 1.0}'")
    robot.until(lambda: "Effective configuration" in node.output, "the node being made", 60.0)
    assert node.end(number)[0] == 0, node.output
    assert "Traceback" not in node.output


def test_without_the_interfaces_one_sentence_says_how_to_build_them(ros_env: dict[str, str]) -> None:
    code = "import sys; sys.modules['geopurify_interfaces'] = None; import geopurify_ros.mapping_node"
    run = subprocess.run([sys.executable, "-c", code], env=ros_env, capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert "colcon build" in run.stderr
    assert "Traceback" not in run.stderr


def test_an_unknown_backbone_keeps_answering_why(start: Callable[..., Any], robot: Any) -> None:
    from geopurify_interfaces.srv import Query

    robot.status = None
    node = start("mapping_node", backbone__name="xyz")
    robot.until_state("failed")
    answer = robot.call(Query, "query", texts=["chair"])
    assert not answer.success
    assert "xyz" in answer.message
    assert node.end(signal.SIGINT)[0] == 0, node.output


def test_a_recorded_bag_gives_the_map_of_the_command_line(
    start: Callable[..., Any], robot: Any, shared_dir: Path, tmp_path: Path, stub: Any
) -> None:
    """A real recording → rosbag2 → replay → mapping node, against the same folder through the core alone.

    Depth is exact in both; poses go through quaternions twice (1e-15), so a pixel may fall into the neighbouring
    voxel: at least 99.9 % of the voxels are the same ones, and 99.9 % of these agree to 2e-3.
    """
    from geopurify_core.datasets import iterate, open_dataset
    from geopurify_core.datasets.bag_writer import write_bag
    from geopurify_core.mapping.store import load_map
    from geopurify_core.pipeline import SemanticMapper
    from geopurify_interfaces.srv import SaveMap

    recording = shared_dir / "data" / "seq_redkitchen"
    if not recording.is_dir():
        pytest.skip("seq_redkitchen is not among the recordings")
    frames = list(iterate(open_dataset(recording), stop=10))
    write_bag(frames, tmp_path / "walk.mcap")
    robot.status = None
    node = start("mapping_node", backbone__name="stub", queue_size=20)
    replay = start("replay_node", lockstep=True, dataset=str(tmp_path / "walk.mcap"))
    assert replay.wait(90) == 0, replay.output
    robot.until(lambda: robot.status.frames_integrated == len(frames), "all frames integrated")
    assert robot.call(SaveMap, "save_map", path=str(tmp_path / "ros.map")).success
    assert node.end(signal.SIGINT)[0] == 0, node.output
    mapper = SemanticMapper(backbone=stub())
    for frame in frames:
        mapper.integrate(frame)
    mine, theirs = load_map(tmp_path / "ros.map"), mapper.snapshot()
    ours = dict(zip(map(tuple, mine.coords.tolist()), mine.features.astype(np.float32), strict=True))
    core = dict(zip(map(tuple, theirs.coords.tolist()), theirs.features.astype(np.float32), strict=True))
    common = ours.keys() & core.keys()
    assert len(common) >= 0.999 * max(len(ours), len(core)) > 1000
    difference = np.array([np.abs(ours[key] - core[key]).max() for key in common])
    assert np.quantile(difference, 0.999) <= 2e-3
