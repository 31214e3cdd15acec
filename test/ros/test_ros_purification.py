"""Purification in the node: on request and by itself, waited for, watched, stopped, failing, switched off."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.ros
SECOND = 1_000_000_000
BASE = 20_000 * SECOND
_clock = iter(range(1, 1_000_000))


def next_stamp() -> int:
    """Stamps that only ever grow, 0.1 s apart."""
    return BASE + next(_clock) * SECOND // 10


@pytest.fixture(scope="module")
def hold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that rules the stub's purification."""
    return tmp_path_factory.mktemp("hold") / "word"


@pytest.fixture(scope="class")
def node(start: Callable[..., Any], robot: Any, student: Path, hold: Path) -> Iterator[Any]:
    """A node that purifies when asked to, and not by itself."""
    robot.status = None
    process = start(
        "mapping_node", backbone__name="stub", map__voxel_size_m=0.05, queue_size=50, publish_period_s=0.2,
        backbone__options=f"'{{hold: {hold}}}'", purification__student=str(student), purification__period_s=0.0,
        purification__neighbors=12, purification__steps=3,
    )  # fmt: skip
    robot.until_state("mapping")
    yield process
    code, seconds = process.end()
    assert code == 0, process.output
    assert seconds < 5.0
    assert "Traceback" not in process.output, process.output


@pytest.fixture
def fresh(node: Any, robot: Any, frames: list[Any], hold: Path) -> Iterator[Any]:
    """The robot, facing a map of one frame that was never purified."""
    from std_srvs.srv import Trigger

    hold.unlink(missing_ok=True)
    assert robot.call(Trigger, "reset").success
    robot.send(frames[0], next_stamp())
    yield robot
    hold.unlink(missing_ok=True)


def purify(robot: Any, **fields: Any) -> Any:
    from geopurify_interfaces.srv import Purify

    return robot.call(Purify, "purify", **fields)


def ask(robot: Any, purified: bool) -> Any:
    from geopurify_interfaces.srv import Query

    return robot.call(Query, "query", texts=["corner 7"], purified=purified)


def begin(robot: Any, count: int = 1) -> list[Any]:
    """That many clients of ~/purify at once; their futures."""
    from geopurify_interfaces.srv import Purify

    client = robot.node.create_client(Purify, "geopurify/purify")
    assert client.wait_for_service(20.0)
    return [client.call_async(Purify.Request()) for _ in range(count)]


def state(robot: Any, wanted: str) -> Any:
    """Wait until the status tells this state of purification, and return it."""
    robot.until(lambda: robot.status.purification.state == wanted, f"purification being {wanted}")
    return robot.status.purification


def purification_words(robot: Any, level: bytes, text: str) -> None:
    """Wait for a diagnostic of that level which says that."""
    item = lambda: robot.diagnostics.get("purification")  # noqa: E731
    robot.until(lambda: item() and item().level == level and text in item().message, f"diagnostics saying {text!r}")


class TestOneNode:
    """A node that purifies only when asked to."""

    def test_before_the_first_purification_purified_answers_are_refused_with_the_remedy(self, fresh: Any) -> None:
        from geopurify_interfaces.srv import SaveMap, Segment

        for answer in (
            ask(fresh, True),
            fresh.call(Segment, "segment", labels=["corner 7", "corner 0"], purified=True),
            fresh.call(SaveMap, "save_map", path="/dev/shm/never.map", purified=True),
        ):
            assert not answer.success
            assert "no purified map yet" in answer.message
            assert "urif" in answer.message.split("usable.")[1], "what to do about it"
        assert not Path("/dev/shm/never.map").exists()
        raw = ask(fresh, False)
        assert raw.success
        assert not raw.purified
        now = state(fresh, "idle")
        assert (now.map_stamp.sec, now.num_voxels, now.mode, now.progress, now.remaining_s) == (0, 0, "", 0.0, -1.0)

    def test_a_purified_map_is_that_of_the_core_and_answers_with_its_own_stamp(
        self, fresh: Any, frames: list[Any], student: Path, tmp_path: Path
    ) -> None:
        from geopurify_core.config import PurificationConfig
        from geopurify_core.mapping.store import load_map
        from geopurify_core.purification.student.checkpoint import load_student
        from geopurify_core.purification.update.compute import purify_snapshot
        from geopurify_interfaces.srv import LoadMap, SaveMap, Segment
        from geopurify_ros.messages import stamp_ns

        first = stamp_ns(fresh.status.header.stamp)
        made = purify(fresh)
        assert made.success, made.message
        assert (stamp_ns(made.map_stamp), made.mode) == (first, "full")
        for name, purified in (("raw", False), ("purified", True)):
            saved = fresh.call(SaveMap, "save_map", path=str(tmp_path / name), purified=purified)
            assert saved.num_voxels == made.num_voxels > 500
        settings = PurificationConfig(neighbors=12, steps=3)
        expected = purify_snapshot(load_map(tmp_path / "raw"), load_student(student), settings).as_snapshot()
        found = load_map(tmp_path / "purified")
        assert (found.coords == expected.coords).all()
        np.testing.assert_allclose(found.features.astype(float), expected.features.astype(float), atol=1e-3)
        assert found.purified == expected.purified != ""
        refused = fresh.call(LoadMap, "load_map", path=str(tmp_path / "purified"))
        assert not refused.success, "a purified map cannot be mapped on"

        fresh.send(frames[1], next_stamp())
        raw, purified = ask(fresh, False), ask(fresh, True)
        assert (raw.purified, purified.purified) == (False, True)
        assert stamp_ns(raw.map_stamp) > stamp_ns(purified.map_stamp) == first
        labels = fresh.call(Segment, "segment", labels=["corner 7", "corner 0"], purified=True)
        assert labels.purified
        assert stamp_ns(labels.map_stamp) == first
        assert labels.cloud.width == made.num_voxels
        again = purify(fresh)
        assert stamp_ns(again.map_stamp) == stamp_ns(raw.map_stamp)
        assert again.num_voxels > made.num_voxels
        now = state(fresh, "idle")
        fresh.until(lambda: fresh.status.purification.num_voxels == again.num_voxels, "the status telling of it")
        assert now.message == ""

    def test_an_empty_map_is_purified_to_an_empty_one(self, fresh: Any) -> None:
        from std_srvs.srv import Trigger

        assert fresh.call(Trigger, "reset").success
        made = purify(fresh)
        assert made.success, made.message
        assert (made.num_voxels, made.map_stamp.sec) == (0, 0)
        answer = ask(fresh, True)
        assert answer.success, answer.message
        assert len(answer.objects) == 0

    def test_while_it_runs_everything_else_is_answered_and_many_may_wait(
        self, fresh: Any, frames: list[Any], hold: Path, tmp_path: Path
    ) -> None:
        """Ten clients of ~/purify on a node that lets eight wait; the two others hear that at once."""
        from std_srvs.srv import Trigger

        from geopurify_interfaces.srv import SaveMap

        hold.write_text("wait")
        waiting = begin(fresh, 10)
        running = state(fresh, "running")
        fresh.until(lambda: sum(item.done() for item in waiting) == 2, "two clients being told that enough wait")
        assert all("8 clients wait already" in item.result().message for item in waiting if item.done())
        fresh.until(lambda: fresh.status.purification.progress == 0.25, "progress")
        assert fresh.status.purification.step == "student"
        purification_words(fresh, b"\x00", "running: student, 25 %")
        integrated = fresh.status.frames_integrated
        for frame in frames[1:4]:
            fresh.send(frame, next_stamp())
            assert ask(fresh, False).success
        assert fresh.status.frames_integrated == integrated + 3
        assert fresh.call(SaveMap, "save_map", path=str(tmp_path / "m")).success
        assert fresh.call(Trigger, "pause").success
        assert fresh.call(Trigger, "resume").success
        assert sum(item.done() for item in waiting) == 2
        assert running.num_voxels == 0
        hold.unlink()
        fresh.until(lambda: all(item.done() for item in waiting), "all being answered")
        assert sum(item.result().success for item in waiting) == 8

    def test_cancel_and_reset_let_go_of_those_who_wait(self, fresh: Any, frames: list[Any], hold: Path) -> None:
        from std_srvs.srv import Trigger

        for stop, word in (
            (lambda: purify(fresh, cancel=True), "cancelled"),
            (lambda: fresh.call(Trigger, "reset"), "reset"),
        ):
            fresh.send(frames[0], next_stamp())
            hold.write_text("wait")
            waiting = begin(fresh, 2)
            state(fresh, "running")
            assert stop().success
            fresh.until(lambda waiting=waiting: all(item.done() for item in waiting), "the clients being let go")
            for item in waiting:
                assert not item.result().success
                assert word in item.result().message
                assert item.result().map_stamp.sec == 0
            hold.unlink()
            state(fresh, "idle")
        nothing = purify(fresh, cancel=True)
        assert not nothing.success
        assert "nothing to stop" in nothing.message

    def test_a_client_that_dies_while_it_waits_harms_nobody(
        self, fresh: Any, hold: Path, ros_env: dict[str, str]
    ) -> None:
        client = (
            "import rclpy; from geopurify_interfaces.srv import Purify; rclpy.init(); n = rclpy.create_node('mortal');"
            "c = n.create_client(Purify, 'geopurify/purify'); c.wait_for_service(20.0); c.call_async(Purify.Request());"
            "print('asked', flush=True); rclpy.spin(n)"
        )
        hold.write_text("wait")
        with subprocess.Popen([sys.executable, "-c", client], env=ros_env, stdout=subprocess.PIPE) as mortal:
            assert mortal.stdout is not None and mortal.stdout.readline() == b"asked\n"
            state(fresh, "running")
            mortal.kill()
        waiting = begin(fresh)[0]
        hold.unlink()
        fresh.until(waiting.done, "the living client being answered")
        assert waiting.result().success, waiting.result().message
        assert ask(fresh, True).success

    def test_a_failing_student_is_an_error_until_the_next_one_succeeds(self, fresh: Any, hold: Path) -> None:
        hold.write_text("fail")
        answer = purify(fresh)
        assert not answer.success
        assert "the student fails on purpose" in answer.message
        assert "on purpose" in state(fresh, "failed").message
        purification_words(fresh, b"\x02", "on purpose")
        assert ask(fresh, False).success
        hold.unlink()
        assert purify(fresh).success
        state(fresh, "idle")
        purification_words(fresh, b"\x00", "idle")

    def test_settings_of_purification_change_together_or_not_at_all(self, fresh: Any) -> None:
        from rcl_interfaces.msg import Parameter, ParameterValue
        from rcl_interfaces.srv import SetParametersAtomically

        def change(**values: int | str) -> Any:
            items = [
                Parameter(
                    name=f"purification.{key}",
                    value=ParameterValue(type=2, integer_value=value)
                    if isinstance(value, int)
                    else ParameterValue(type=4, string_value=value),
                )
                for key, value in values.items()
            ]
            return fresh.call(SetParametersAtomically, "set_parameters_atomically", parameters=items).result

        assert purify(fresh).success
        fresh.until(lambda: fresh.status.purification.num_voxels > 0, "the status telling of it")
        made = fresh.status.purification.num_purified
        for values, name in (
            ({"steps": 1, "neighbors": 0}, "neighbors"),
            ({"steps": 1, "preset": "my own"}, "preset"),
            ({"steps": 1, "student": "/another"}, "student"),
        ):
            refused = change(**values)
            assert not refused.successful
            assert name in refused.reason
            assert ask(fresh, True).success, "a refused change leaves the purified map alone"
        assert change(steps=1).successful
        assert "no purified map yet" in ask(fresh, True).message, "one of other settings is dropped"
        assert purify(fresh).success
        fresh.until(lambda: fresh.status.purification.num_purified == made + 1, "a count that other settings keep")
        assert change(budget_mb=5000).successful
        assert ask(fresh, True).success, "another budget is no other way of purifying"
        assert change(budget_mb=4096, steps=3).successful


def test_by_itself_after_changes_and_an_end_while_it_is_stuck(
    start: Callable[..., Any], robot: Any, frames: list[Any], student: Path, tmp_path: Path
) -> None:
    """Triggers, pause, labels from purified features; then SIGINT during a purification that does not listen."""
    from sensor_msgs.msg import PointCloud2
    from std_srvs.srv import Trigger

    from geopurify_core.mapping.store import load_map
    from geopurify_ros.messages import stamp_ns

    word, autosave = tmp_path / "word", tmp_path / "auto.map"
    robot.status = None
    robot.received.clear()
    robot.listen(PointCloud2, "geopurify/semantic_cloud")
    node = start(
        "mapping_node", backbone__name="stub", map__voxel_size_m=0.05, publish_period_s=0.1,
        backbone__options=f"'{{hold: {word}}}'", purification__student=str(student), purification__neighbors=12,
        purification__period_s=0.2, purification__dirty_fraction=0.05, autosave_path=str(autosave),
        cloud_features="purified", labels="['corner 7', 'corner 0']",
    )  # fmt: skip
    robot.until_state("mapping")
    assert robot.status.cloud_features == "raw"
    stamp = next_stamp()
    robot.send(frames[0], stamp)
    robot.until(lambda: robot.status.purification.num_purified == 1, "the first purification")
    now = robot.status.purification
    assert stamp_ns(now.map_stamp) == stamp
    assert robot.status.cloud_features == "purified"
    cloud = lambda: robot.received.get("geopurify/semantic_cloud")  # noqa: E731
    robot.until(lambda: cloud() and cloud().width == now.num_voxels, "a cloud of the purified map")
    time.sleep(0.7)
    assert robot.status.purification.num_purified == 1, "nothing has changed, nothing is done"

    robot.send(frames[1], next_stamp())
    robot.until(lambda: robot.status.purification.num_purified >= 2, "the second purification")
    word.write_text("stuck")
    robot.send(frames[2], next_stamp())
    robot.until(lambda: robot.status.purification.state == "running", "the third one")
    threading.Thread(target=lambda: begin(robot), daemon=True).start()
    assert robot.call(Trigger, "pause").success
    time.sleep(0.2)
    code, seconds = node.end()
    assert code == 0, node.output
    assert seconds < 5.0
    assert "Traceback" not in node.output, node.output
    assert len(load_map(autosave)) == robot.status.num_voxels


@pytest.mark.parametrize(
    ("state", "enabled", "lacks_student", "level"),
    [
        ("off", True, True, b"\x00"),  # a backbone of one's own: nothing is wrong with the robot
        ("off", True, False, b"\x01"),
        ("off", False, False, b"\x00"),
        ("idle", True, False, b"\x00"),
        ("running", True, False, b"\x00"),
        ("failed", True, False, b"\x02"),
    ],
)
def test_only_what_is_wrong_is_a_warning(
    ros_env: dict[str, str], state: str, enabled: bool, lacks_student: bool, level: bytes
) -> None:
    from types import SimpleNamespace

    from geopurify_core.config import Config
    from geopurify_core.purification.purifier import PurifierStatus
    from geopurify_ros.reports import Reports

    session = SimpleNamespace(
        purification=PurifierStatus(state, "why"), lacks_student=lacks_student, stats=lambda: None
    )
    parameters = SimpleNamespace(core=Config.from_dict({"purification": {"enabled": enabled}}))
    reports = Reports(parameters, session, *[SimpleNamespace()] * 3)  # type: ignore[arg-type]
    told = reports._purification_status()
    assert (told.level, "why" in told.message) == (level, True)


def test_a_student_that_cannot_be_read_switches_purification_off_and_says_so(
    start: Callable[..., Any], robot: Any, frames: list[Any], tmp_path: Path
) -> None:
    from rcl_interfaces.msg import Parameter, ParameterValue
    from rcl_interfaces.srv import SetParameters

    (tmp_path / "student.safetensors").write_bytes(b"not a student")
    robot.status = None
    robot.diagnostics.clear()
    node = start("mapping_node", backbone__name="stub", purification__student=str(tmp_path / "student.safetensors"))
    robot.until_state("mapping")
    robot.send(frames[0], next_stamp())
    for answer in (purify(robot), ask(robot, True)):
        assert not answer.success
        assert "student.safetensors" in answer.message
    assert ask(robot, False).success
    assert "student.safetensors" in state(robot, "off").message
    purification_words(robot, b"\x01", "student.safetensors")
    assert "Purification is off" in node.output
    off = Parameter(name="purification.enabled", value=ParameterValue(type=1, bool_value=False))
    assert robot.call(SetParameters, "set_parameters", parameters=[off]).results[0].successful
    purification_words(robot, b"\x00", "purification.enabled")
    assert "purification.enabled" in purify(robot).message
    assert node.end()[0] == 0, node.output
