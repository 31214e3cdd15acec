"""What the ROS side costs: message codecs, synchronisation, and a live node that maps and answers at the same time.

Codec baselines are the assignments one writes first (``tobytes()``, or the numpy array itself). The live part
publishes 640x480 colour and depth at 15 Hz to a real mapping node with a stub network and asks it meanwhile.
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

_NS = 1_000_000_000


def run(quick: bool) -> dict[str, Any]:
    """Codec and sync times with ratios; share of frames integrated and service latency of a live node."""
    if importlib.util.find_spec("rclpy") is None:
        return {"skipped": "no rclpy here"}
    results = {"codecs": _codecs(10 if quick else 50), "sync": _sync(2_000 if quick else 20_000)}
    if importlib.util.find_spec("geopurify_interfaces") is None:
        return results | {"live": "skipped: geopurify_interfaces is not built"}
    return results | {"live": _live(45 if quick else 300), "purifying": _purifying(20 if quick else 100)}


def _median_ms(step: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times)


def _codecs(rounds: int) -> dict[str, Any]:
    """A 640x480 rgb8 image and a cloud of 200 000 points: ours against ``tobytes``."""
    from sensor_msgs.msg import Image, PointCloud2

    from geopurify_ros.clouds import cloud_points, to_cloud
    from geopurify_ros.messages import byte_array, image_array, to_image

    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)
    points, colors = (
        rng.normal(size=(200_000, 3)).astype(np.float32),
        rng.integers(0, 256, (200_000, 3), dtype=np.uint8),
    )
    image, cloud = to_image(rgb, 1, "camera"), to_cloud(points, colors, 1, "map")
    raw = np.frombuffer(cloud.data, np.uint8)
    image_out, cloud_out = Image(), PointCloud2()

    def assign(message: Any, value: Any) -> None:
        message.data = value

    ours_image = _median_ms(lambda: assign(image_out, byte_array(rgb)), rounds)
    ours_cloud = _median_ms(lambda: assign(cloud_out, byte_array(raw)), rounds)
    return {
        "image_to_message_ms": ours_image,
        "image_tobytes_over_ours": _median_ms(lambda: assign(image_out, rgb.tobytes()), rounds) / ours_image,
        "image_ndarray_over_ours": _median_ms(lambda: assign(image_out, rgb.reshape(-1)), 3) / ours_image,
        "cloud_bytes_to_message_ms": ours_cloud,
        "cloud_tobytes_over_ours": _median_ms(lambda: assign(cloud_out, raw.tobytes()), rounds) / ours_cloud,
        "cloud_pack_200k_ms": _median_ms(lambda: to_cloud(points, colors, 1, "map"), rounds),
        "cloud_read_200k_ms": _median_ms(lambda: cloud_points(cloud), rounds),
        "image_read_ms": _median_ms(lambda: image_array(image), rounds),
    }


def _sync(frames: int) -> dict[str, Any]:
    """Microseconds for each message of two streams, with a rewind in the middle."""
    from geopurify_ros.sync import ApproximateSync

    sync = ApproximateSync(("rgb", "depth"))
    stamps = [_NS + i * _NS // 30 for i in range(frames // 2)] * 2
    started = time.perf_counter()
    sets = sum(len(sync.add(topic, stamp, None)) for stamp in stamps for topic in ("rgb", "depth"))
    return {"us_per_message": 1e6 * (time.perf_counter() - started) / (2 * len(stamps)), "matched": sets / len(stamps)}


def _live(count: int) -> dict[str, Any]:
    """The robot and the stub network of test/ros, at 15 Hz for ``count`` frames."""
    import tempfile

    from geopurify_core.datasets.synthetic import SyntheticDataset
    from geopurify_interfaces.srv import Query

    harness = _harness()
    folder = Path(tempfile.mkdtemp())
    env = harness.make_environment(folder / "site", folder)
    node = harness.Process("mapping_node", env, folder / "node.log", backbone__name="stub", publish_period_s=1.0)
    robot = harness.Robot()
    try:
        robot.until_state("mapping")
        walk = SyntheticDataset(seed=3, num_frames=200, width=640, height=480)
        frames = [walk[i] for i in range(0, 200, 20)]
        robot.send(frames[0], _NS)
        latencies: list[float] = []
        driver = threading.Thread(target=_drive, args=(robot, frames, count))
        driver.start()
        while driver.is_alive():
            started = time.perf_counter()
            robot.call(Query, "query", texts=["corner 7"])
            latencies.append(1e3 * (time.perf_counter() - started))
            time.sleep(0.2)
        time.sleep(1.0)
        status = robot.status
    finally:
        robot.close()
        node.end()
    return {
        "frames_sent": count + 1,
        "share_integrated": status.frames_integrated / (count + 1),
        "dropped_by_the_queue": int(status.frames_dropped),
        "voxels": int(status.num_voxels),
        "query_p50_ms": float(np.quantile(latencies, 0.5)),
        "query_p95_ms": float(np.quantile(latencies, 0.95)),
        "queries": len(latencies),
    }


def _purifying(count: int) -> dict[str, Any]:
    """Latency of ~/query on an idle node, and on one that purifies all the time (a student of width 64)."""
    import tempfile

    from geopurify_core.datasets.synthetic import SyntheticDataset
    from geopurify_interfaces.srv import Purify, Query

    harness = _harness()
    folder = Path(tempfile.mkdtemp())
    student = harness.make_student(harness.stub_class(), folder, hidden=64)
    env = harness.make_environment(folder / "site", folder)
    settings = {"purification__student": str(student), "purification__period_s": 0.0}
    node = harness.Process("mapping_node", env, folder / "node.log", backbone__name="stub", **settings)
    robot = harness.Robot()

    def ask() -> float:
        started = time.perf_counter()
        robot.call(Query, "query", texts=["corner 7"])
        return 1e3 * (time.perf_counter() - started)

    try:
        robot.until_state("mapping")
        walk = SyntheticDataset(seed=3, num_frames=200, width=320, height=240)
        for i in range(0, 200, 10):
            robot.send(walk[i], _NS + i)
        ask()
        idle = [ask() for _ in range(count)]
        client = robot.node.create_client(Purify, "geopurify/purify")
        client.wait_for_service(10.0)
        busy, runs, took_s = [], 0, []
        while len(busy) < count:
            robot.send(walk[runs % 200], 2 * _NS + runs)  # something has changed
            future, runs = client.call_async(Purify.Request()), runs + 1
            while not future.done():
                busy.append(ask())
            took_s.append(float(future.result().seconds))
        voxels = int(robot.status.num_voxels)
    finally:
        robot.close()
        node.end()
    quantiles = {}
    for name, times in (("query_idle", idle), ("query_while_purifying", busy)):
        quantiles |= {f"{name}_p{q}_ms": float(np.quantile(times, q / 100)) for q in (50, 95)}
    return {"voxels": voxels, "runs": runs, "purify_p50_s": statistics.median(took_s), **quantiles}


def _drive(robot: Any, frames: list[Any], count: int) -> None:
    started = time.monotonic()
    for i in range(count):
        time.sleep(max(0.0, started + i / 15 - time.monotonic()))
        robot.send(frames[i % len(frames)], 2 * _NS + i * _NS // 15, wait=False)


def _harness() -> Any:
    spec = importlib.util.spec_from_file_location("ros_harness", ROOT / "test" / "ros" / "conftest.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    import json

    print(json.dumps(run("--quick" in sys.argv), indent=2))
