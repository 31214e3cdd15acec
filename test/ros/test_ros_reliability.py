"""A node that is started and stopped again and again, and sensors that fall silent and come back."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.ros
SECOND = 1_000_000_000
BASE = 9_000 * SECOND

CYCLES = """
import os, sys, threading, time
import psutil, rclpy
from geopurify_ros.mapping_node import MappingNode
from rclpy.executors import SingleThreadedExecutor

def cycle():
    rclpy.init(args=["--ros-args", "-p", "backbone.name:=stub", "-r", "__ns:=/cycles", "--log-level", "error"])
    node, executor = MappingNode(), SingleThreadedExecutor()
    executor.add_node(node)
    deadline = time.monotonic() + 30
    while node.session.state != "mapping":
        executor.spin_once(0.01)
        assert time.monotonic() < deadline
    node.close()
    assert not node.worker.is_alive()
    executor.shutdown()
    node.destroy_node()
    rclpy.try_shutdown()

for _ in range(8):
    cycle()
before = psutil.Process().memory_info().rss, threading.active_count()
for _ in range(16):
    cycle()
after = psutil.Process().memory_info().rss, threading.active_count()
print(before, after)
assert after[0] < 1.05 * before[0], "memory leaks"
assert after[1] <= before[1], "a thread is left"
"""


def test_start_and_stop_again_and_again_leave_no_thread_and_no_memory(ros_env: dict[str, str]) -> None:
    run = subprocess.run([sys.executable, "-c", CYCLES], env=ros_env, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr


def test_a_sensor_that_falls_silent_is_a_warning_then_an_error_then_over(
    start: Callable[..., Any], robot: Any, frames: list[Any]
) -> None:
    """Each required input in turn, while the others go on; limits scaled down from 4 s and 9 s."""
    robot.status = None
    node = start("mapping_node", backbone__name="stub", pose_wait_s=0.1, stale_warn_s=0.5, stale_error_s=1.6)
    robot.until_state("mapping")
    ns = BASE

    def send(silent: str = "") -> None:
        nonlocal ns
        ns += SECOND // 10
        publish = robot.publish
        robot.publish = lambda topic, *rest, **more: None if topic == silent else publish(topic, *rest, **more)
        try:
            robot.send(frames[0], ns, wait=False)
        finally:
            robot.publish = publish
        time.sleep(0.05)

    def send_until(topic: str, silent: str, level: bytes) -> None:
        deadline = time.monotonic() + 20
        while (item := robot.diagnostics.get(f"input /{topic}")) is None or item.level != level:
            assert time.monotonic() < deadline, f"{topic} never had level {level!r}"
            send(silent)

    for topic in ("rgb/image", "depth/image", "rgb/camera_info", "pose"):
        send_until(topic, "", b"\x00")
        send_until(topic, topic, b"\x01")
        send_until(topic, topic, b"\x02")
        assert "no message for" in robot.diagnostics[f"input /{topic}"].message
    send_until("pose", "", b"\x00")
    assert node.output.count("messages arrive again") >= 3
    integrated = robot.status.frames_integrated
    send()
    robot.until(lambda: robot.status.frames_integrated > integrated, "mapping going on")
    assert node.end()[0] == 0, node.output


def test_without_a_clock_simulated_time_is_said_to_stand_still(start: Callable[..., Any], robot: Any) -> None:
    """The diagnostics themselves must not wait for /clock. A misspelt parameter is not passed over either."""
    robot.status = None
    robot.diagnostics.clear()
    node = start("mapping_node", backbone__name="stub", use_sim_time=True, map__voxel_size="0.1")
    robot.until_state("mapping")
    robot.until(lambda: "clock" in robot.diagnostics, "diagnostics")
    assert robot.diagnostics["clock"].level == b"\x01"
    assert "is 'map.voxel_size_m' meant?" in node.output
    assert node.end()[0] == 0, node.output
