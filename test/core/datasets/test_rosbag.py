"""Frames written to a bag and read back are the same frames; nothing gets a pose that was not recorded."""

import io

import numpy as np
import pytest
from PIL import Image
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from scipy.spatial.transform import Rotation

from geopurify_core.camera import PinholeCamera
from geopurify_core.datasets import iterate, open_dataset
from geopurify_core.datasets.bag_info import describe_bag
from geopurify_core.datasets.bag_writer import write_bag
from geopurify_core.datasets.rosbag import RosbagDataset, camera_of
from geopurify_core.errors import DatasetError
from geopurify_core.frame import RGBDFrame

CAMERA = PinholeCamera(30, 31, 15.5, 11.5, 32, 24)
DEPTH_CAMERA = PinholeCamera(15, 15.5, 7.5, 5.5, 16, 12)
STORE = get_typestore(Stores.ROS2_JAZZY)
T = STORE.types


def frames(count=5, millimetres=True, start_ns=1_700_000_000_000_000_000):
    rng = np.random.default_rng(0)
    for i in range(count):
        pose = np.eye(4)
        pose[:3, :3] = Rotation.random(random_state=i).as_matrix()
        pose[:3, 3] = rng.normal(size=3)
        depth = rng.integers(0, 6000, (12, 16)).astype(np.uint16).astype(np.float32) / np.float32(1000)
        depth = depth if millimetres else rng.random((12, 16), dtype=np.float32)
        rgb = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        yield RGBDFrame(rgb, depth, CAMERA, pose, start_ns + i * 33_333_333, DEPTH_CAMERA)


def assert_same(expected, actual, pose_tolerance=1e-9):
    expected, actual = list(expected), list(actual)
    assert len(expected) == len(actual)
    for a, b in zip(expected, actual, strict=True):
        np.testing.assert_array_equal(a.rgb, b.rgb)
        np.testing.assert_array_equal(a.depth_m, b.depth_m)
        np.testing.assert_allclose(a.T_map_camera, b.T_map_camera, atol=pose_tolerance)
        assert (a.stamp_ns, a.camera, a.depth_camera) == (b.stamp_ns, b.camera, b.depth_camera)


@pytest.mark.parametrize("millimetres", [True, False])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mcap", {}),
        ("a.mcap", {"compress": True}),
        ("a.db3", {}),
        ("folder", {}),
        ("folder", {"storage": "sqlite3"}),
        ("folder", {"storage": "sqlite3", "compress": True}),
    ],
)
def test_round_trip(tmp_path, name, options, millimetres):
    assert write_bag(frames(millimetres=millimetres), tmp_path / name, **options) == 5
    dataset = open_dataset(tmp_path / name)
    assert_same(frames(millimetres=millimetres), dataset)
    assert len(dataset) == 5 and not dataset.skipped
    assert [path.name for path in tmp_path.iterdir()] == [name]  # no scratch left


def test_stride_and_start(tmp_path):
    write_bag(frames(9), tmp_path / "a.mcap")
    assert_same(list(frames(9))[1:8:3], iterate(open_dataset(tmp_path / "a.mcap"), stride=3, start=1, stop=8))


def test_real_recording_through_a_bag(tmp_path, shared_dir):
    scene = open_dataset(shared_dir / "data/seq_redkitchen")
    write_bag(iterate(scene, stride=50), tmp_path / "a.mcap")
    # its poses are orthonormal to 1e-7 only, a quaternion always is
    assert_same(iterate(scene, stride=50), open_dataset(tmp_path / "a.mcap"), pose_tolerance=1e-6)


def test_an_existing_bag_is_kept_unless_told(tmp_path):
    out = tmp_path / "a.mcap"
    out.write_text("precious")
    with pytest.raises(DatasetError, match="--force"):
        write_bag(frames(), out)
    assert out.read_text() == "precious"
    write_bag(frames(), out, overwrite=True)
    assert len(list(open_dataset(out))) == 5
    write_bag(frames(2), tmp_path / "folder")
    write_bag(frames(3), tmp_path / "folder", overwrite=True)
    assert len(list(open_dataset(tmp_path / "folder"))) == 3


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_bag_leaves_nothing(tmp_path, error):
    def broken():
        yield from frames(2)
        raise error

    (tmp_path / "a.mcap").write_text("old")
    with pytest.raises(error):
        write_bag(broken(), tmp_path / "a.mcap", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mcap"] and (tmp_path / "a.mcap").read_text() == "old"


@pytest.mark.parametrize(
    ("name", "options", "field"),
    [
        ("a", {"storage": "tape"}, "storage"),
        ("a.mcap", {"storage": "sqlite3"}, "storage"),
        ("a.db3", {"compress": True}, "compress"),
    ],
)
def test_contradictions_are_named(tmp_path, name, options, field):
    with pytest.raises(DatasetError) as caught:
        write_bag(frames(), tmp_path / name, **options)
    assert caught.value.field == field and not list(tmp_path.iterdir())


def test_no_frame_no_bag(tmp_path):
    with pytest.raises(DatasetError, match="no usable frame"):
        write_bag([], tmp_path / "a.mcap")
    assert not list(tmp_path.iterdir())


# ---- bags of other people: written message by message


def header(stamp_ns, frame="camera"):
    return T["std_msgs/msg/Header"](T["builtin_interfaces/msg/Time"](*divmod(stamp_ns, 10**9)), frame)


def image(stamp_ns, encoding="rgb8", frame="camera", value=0):
    kind, channels = {"rgb8": (np.uint8, 3), "16UC1": (np.uint16, 1), "32FC1": (np.float32, 1)}.get(
        encoding, (np.uint8, 3)
    )
    data = np.full(24 * 32 * channels, value, kind).view(np.uint8)
    return T["sensor_msgs/msg/Image"](header(stamp_ns, frame), 24, 32, encoding, 0, data.size // 24, data)


def info(stamp_ns=0, k=(30.0, 0, 15.5, 0, 30, 11.5, 0, 0, 1)):
    roi = T["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
    k = np.array(k, float)
    return T["sensor_msgs/msg/CameraInfo"](
        header(stamp_ns), 24, 32, "plumb_bob", np.zeros(5), k, np.eye(3).ravel(), np.zeros(12), 0, 0, roi
    )


def pose_parts(x, yaw=0.0, q=None):
    point = (float(x), 0.0, 0.0)
    q = Rotation.from_euler("z", yaw).as_quat() if q is None else q
    return point, T["geometry_msgs/msg/Quaternion"](*map(float, q))


def pose(stamp_ns, x, q=None, frame="map"):
    point, turn = pose_parts(x, q=q)
    return T["geometry_msgs/msg/PoseStamped"](
        header(stamp_ns, frame), T["geometry_msgs/msg/Pose"](T["geometry_msgs/msg/Point"](*point), turn)
    )


def odometry(stamp_ns, x, child):
    point, turn = pose_parts(x)
    inner = T["geometry_msgs/msg/Pose"](T["geometry_msgs/msg/Point"](*point), turn)
    zero = T["geometry_msgs/msg/Vector3"](0.0, 0.0, 0.0)
    twist = T["geometry_msgs/msg/TwistWithCovariance"](T["geometry_msgs/msg/Twist"](zero, zero), np.zeros(36))
    with_covariance = T["geometry_msgs/msg/PoseWithCovariance"](inner, np.zeros(36))
    return T["nav_msgs/msg/Odometry"](header(stamp_ns, "odom"), child, with_covariance, twist)


def tf(stamp_ns, parent, child, x, yaw=0.0):
    point, turn = pose_parts(x, yaw)
    move = T["geometry_msgs/msg/Transform"](T["geometry_msgs/msg/Vector3"](*point), turn)
    return T["tf2_msgs/msg/TFMessage"]([T["geometry_msgs/msg/TransformStamped"](header(stamp_ns, parent), child, move)])


def bag(path, messages):
    """messages: (topic, log time in ns, message)."""
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections = {}
        for topic, when, message in messages:
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, message.__msgtype__, typestore=STORE)
            writer.write(connections[topic], when, STORE.serialize_cdr(message, message.__msgtype__))
    return path


MS = 1_000_000


def camera_messages(count=3, shift_ms=5, **color):
    for i in range(count):
        stamp = (100 + 100 * i) * MS
        yield "/cam/color/image_raw", stamp, image(stamp, value=i, **color)
        yield "/cam/color/camera_info", stamp, info(stamp)
        yield "/cam/depth/image_rect", stamp + 1, image(stamp + shift_ms * MS, "16UC1", value=1000 + i)


def test_tf_is_chained_and_interpolated(tmp_path):
    static = [("/tf_static", 0, tf(0, "base", "camera", 0.5))]
    moving = [("/tf", t * MS, tf(t * MS, "map", "base", t / 1000, yaw=t / 1000)) for t in (50, 150, 250, 290)]
    dataset = RosbagDataset(bag(tmp_path / "b", [*static, *moving, *camera_messages()]))
    got = list(dataset)
    assert [frame.stamp_ns for frame in got] == [100 * MS, 200 * MS] and dataset.skipped == {"no pose": 1}
    for frame, t in zip(got, (0.1, 0.2), strict=True):  # half way between two samples; the third is past the last one
        expected = np.eye(4)
        expected[:3, :3] = Rotation.from_euler("z", t).as_matrix()
        expected[:3, 3] = [t + 0.5 * np.cos(t), 0.5 * np.sin(t), 0]
        np.testing.assert_allclose(frame.T_map_camera, expected, atol=1e-12)
    assert dataset.map_frame == "map" and got[1].depth_m[0, 0] == np.float32(1.001)


def test_a_gap_in_the_poses_is_not_bridged(tmp_path):
    poses = [("/pose", t * MS, pose(t * MS, t)) for t in (90, 110, 390, 1400)]
    dataset = RosbagDataset(bag(tmp_path / "b", [*poses, *camera_messages(8)]), max_pose_gap_s=0.2)
    assert [frame.stamp_ns // MS for frame in dataset] == [100]
    assert dataset.skipped == {"no pose": 7}
    wider = RosbagDataset(tmp_path / "b", max_pose_gap_s=0.3)
    assert [frame.T_map_camera[0, 3] for frame in wider] == [100, 200, 300]


def test_unset_poses_do_not_count_as_poses(tmp_path):
    poses = [("/pose", t * MS, pose(t * MS, t, q=(0, 0, 0, 0) if t == 200 else None)) for t in (100, 200, 300)]
    dataset = RosbagDataset(bag(tmp_path / "b", [*poses, *camera_messages()]), max_pose_gap_s=0.1)
    assert [frame.stamp_ns // MS for frame in dataset] == [100, 300] and dataset.skipped == {"no pose": 1}


def test_odometry_needs_the_way_from_body_to_camera(tmp_path):
    moves = [("/odom", t * MS, odometry(t * MS, t, "base")) for t in (100, 200, 300)]
    without = RosbagDataset(bag(tmp_path / "b", [*moves, *camera_messages()]))
    assert not list(without) and without.skipped == {"no pose": 3}
    static = [("/tf_static", 0, tf(0, "base", "camera", 0.5))]
    dataset = RosbagDataset(bag(tmp_path / "c", [*static, *moves, *camera_messages()]))
    assert [frame.T_map_camera[0, 3] for frame in dataset] == [100.5, 200.5, 300.5] and dataset.map_frame == "odom"


def test_depth_too_far_in_time_is_not_used(tmp_path):
    poses = [("/pose", t * MS, pose(t * MS, t)) for t in (100, 200, 300)]
    dataset = RosbagDataset(bag(tmp_path / "b", [*poses, *camera_messages(shift_ms=25)]))
    assert not list(dataset) and dataset.skipped == {"no depth image": 3}
    assert len(list(RosbagDataset(tmp_path / "b", slop_s=0.03))) == 3


def test_broken_images_are_counted(tmp_path):
    poses = [("/pose", t * MS, pose(t * MS, t)) for t in (100, 200, 300, 400)]
    good = list(camera_messages(4))
    good[0] = (*good[0][:2], image(100 * MS, "yuv422"))
    good[4] = (*good[4][:2], info(k=np.zeros(9)))
    good[9] = (*good[9][:2], image(50 * MS))  # the clock ran backwards
    dataset = RosbagDataset(bag(tmp_path / "b", [*poses, *good]))
    assert [frame.stamp_ns // MS for frame in dataset] == [200]
    assert dataset.skipped == {"unreadable image": 1, "invalid camera": 1, "unsorted stamp": 1}


@pytest.mark.parametrize("leave_out", ["color/image", "depth", "camera_info", "pose"])
def test_a_missing_topic_is_named_with_what_there_is(tmp_path, leave_out):
    messages = [("/pose", 0, pose(0, 0)), *camera_messages()]
    path = bag(tmp_path / "b", [entry for entry in messages if leave_out not in entry[0]])
    with pytest.raises(DatasetError, match="The bag has") as caught:
        open_dataset(path)
    assert caught.value.field.startswith("bag topic for")


def test_topics_can_be_given(tmp_path):
    other = [("/other/rgb/image", m[1], image(m[1], value=77)) for m in camera_messages() if "color/image" in m[0]]
    poses = [("/pose", t * MS, pose(t * MS, t)) for t in (100, 200, 300)]
    path = bag(tmp_path / "b", [*poses, *camera_messages(), *other])
    topics = {"color": "/other/rgb/image", "camera_info": "/cam/color/camera_info"}
    assert {frame.rgb[0, 0, 0] for frame in open_dataset(path, topics=topics)} == {77}
    with pytest.raises(DatasetError, match="/cam/color/image_raw"):
        open_dataset(path, topics={"color": "/nowhere"})
    with pytest.raises(DatasetError, match="Known keys"):
        open_dataset(path, topics={"colour": "/cam/color/image_raw"})


def test_damaged_bags_are_dataset_errors(tmp_path):
    write_bag(frames(), tmp_path / "a.mcap")
    data = (tmp_path / "a.mcap").read_bytes()
    for name, content in (
        ("cut.mcap", data[: len(data) // 2]),
        ("text.mcap", b"hello"),
        ("text.db3", b"hello"),
        ("no.mcap", b""),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DatasetError):
            list(open_dataset(tmp_path / name))
    (tmp_path / "x").mkdir()
    (tmp_path / "x/metadata.yaml").write_text("rosbag2_bagfile_information: {version: 99}")
    with pytest.raises(DatasetError):
        open_dataset(tmp_path / "x")


def test_the_bag_has_the_topics_of_the_contract(tmp_path):
    write_bag(frames(), tmp_path / "a.mcap", start_ns=10)
    with AnyReader([tmp_path / "a.mcap"]) as reader:
        types = {connection.topic: connection.msgtype for connection in reader.connections}
        connection = next(c for c in reader.connections if c.topic == "/pose")
        _, stamp, raw = next(iter(reader.messages(connections=[connection])))
        message = reader.deserialize(raw, connection.msgtype)
    assert types["/rgb/image"] == types["/depth/image"] == "sensor_msgs/msg/Image"
    assert types["/rgb/camera_info"] == "sensor_msgs/msg/CameraInfo"
    assert types["/pose"] == "geometry_msgs/msg/PoseStamped" and types["/tf"] == "tf2_msgs/msg/TFMessage"
    assert message.header.frame_id == "map" and stamp == 1_700_000_000_000_000_010


def test_compressed_images_are_read(tmp_path):
    def packed(stamp, pixels, kind, form):
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, format=kind)
        return T["sensor_msgs/msg/CompressedImage"](header(stamp), form, np.frombuffer(out.getvalue(), np.uint8))

    depth = np.arange(24 * 32, dtype=np.uint16).reshape(24, 32)
    messages = [
        ("/pose", 100 * MS, pose(100 * MS, 1)),
        (
            "/cam/color/image_raw/compressed",
            100 * MS,
            packed(100 * MS, np.full((24, 32, 3), 90, np.uint8), "JPEG", "jpeg"),
        ),
        ("/cam/color/camera_info", 100 * MS, info(100 * MS)),
        (
            "/cam/depth/image_raw/compressedDepth",
            100 * MS,
            packed(100 * MS, depth, "PNG", "16UC1; compressedDepth png"),
        ),
    ]
    (frame,) = open_dataset(bag(tmp_path / "b", messages))
    np.testing.assert_array_equal(frame.depth_m, depth.astype(np.float32) / np.float32(1000))
    np.testing.assert_allclose(frame.rgb, 90, atol=2)


def test_a_bag_is_described_even_if_it_cannot_be_mapped(tmp_path):
    poses = [("/pose", t * MS, pose(t * MS, t)) for t in (100, 200)]
    content = describe_bag(bag(tmp_path / "a", [*poses, *camera_messages(2)]))
    roles = {topic.name: topic.role for topic in content.topics}
    assert (
        roles["/cam/color/image_raw"] == "color"
        and roles["/cam/depth/image_rect"] == "depth"
        and roles["/pose"] == "pose"
    )
    assert content.messages == 8 and not content.problem and abs(content.duration_s - 0.1) < 0.01
    lacking = describe_bag(bag(tmp_path / "b", poses))
    assert "bag topic for color" in lacking.problem and [topic.role for topic in lacking.topics] == [""]


@pytest.mark.parametrize("storage", ["bag", "bag.mcap"])
def test_overwriting_never_removes_a_folder_that_is_no_bag(tmp_path, storage):
    precious = tmp_path / storage
    precious.mkdir()
    (precious / "thesis.tex").write_text("years of work")
    with pytest.raises(DatasetError, match="no bag"):
        write_bag(frames(1), precious, overwrite=True)
    assert (precious / "thesis.tex").read_text() == "years of work" and len(list(tmp_path.iterdir())) == 1


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="cannot be written"):
        write_bag(frames(1), tmp_path / "file" / "x.mcap")


def test_stamps_beyond_ros_time_are_refused(tmp_path):
    with pytest.raises(DatasetError, match="stamp"):
        write_bag(frames(1), tmp_path / "x.mcap", start_ns=2**62)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("slop_s", float("nan")), ("slop_s", -1.0), ("slop_s", "wide"), ("max_pose_gap_s", float("inf")),
        ("depth_scale", 0), ("depth_scale", "abc"), ("depth_scale", float("nan")), ("map_frame", 5), ("topics", "rgb"),
        ("topics", {"color": ["/rgb/image"]}),
    ],
)  # fmt: skip
def test_bad_reader_options_are_named(tmp_path, option, value):
    write_bag(frames(2), tmp_path / "x.mcap")
    with pytest.raises(DatasetError) as error:
        open_dataset(tmp_path / "x.mcap", **{option: value})
    assert error.value.field.startswith(option)


def test_one_stamp_in_the_future_does_not_end_the_recording(tmp_path):
    poses = [("/pose", t * MS, pose(t * MS, t)) for t in range(0, 900, 100)]
    messages = [*poses, *camera_messages(5)]
    usable = len(list(RosbagDataset(bag(tmp_path / "x", messages))))
    spoiled = ("/cam/color/image_raw", 150 * MS, image(1_500_000_000 * 10**9))
    reader = RosbagDataset(bag(tmp_path / "y", [*messages, spoiled]))
    assert usable == 5 and len(list(reader)) == usable and reader.skipped == {"no pose": 1}


@pytest.mark.parametrize(("topic", "f"), [("/a/image_rect", 20.0), ("/rectified/image", 20.0), ("/direct/image", 30.0)])
def test_projection_serves_rectified_images_only(topic, f):
    message = info()
    message.p[:] = [20, 0, 15.5, 0, 0, 20, 11.5, 0, 0, 0, 1, 0]
    assert camera_of(message, topic, (24, 32)).fx == f


def test_a_damaged_first_camera_info_is_not_the_end(tmp_path):
    poses = [("/pose", t * MS, pose(t * MS, t)) for t in range(0, 900, 100)]
    path = bag(tmp_path / "x", [*poses, *camera_messages(3)])
    with Writer(tmp_path / "y", version=9, storage_plugin=StoragePlugin.MCAP) as writer, AnyReader([path]) as reader:
        known = {c.id: writer.add_connection(c.topic, c.msgtype, typestore=STORE) for c in reader.connections}
        damaged = False
        for connection, when, raw in reader.messages():
            first_info = connection.topic.endswith("camera_info") and not damaged
            damaged |= first_info
            writer.write(known[connection.id], when, raw[:8] if first_info else raw)
    reader = RosbagDataset(tmp_path / "y")
    assert len(list(reader)) == 3 and reader.skipped == {"unreadable message": 1}
