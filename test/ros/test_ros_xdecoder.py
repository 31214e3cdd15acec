"""The mapping node with X-Decoder, small and with made-up weights: that answers come counts, not what they say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from geopurify_core.config import Config

pytest.importorskip("rclpy")

pytestmark = pytest.mark.ros
TINY = Path(__file__).parents[1] / "core" / "vision" / "xdecoder" / "tiny.json"


def test_two_frames_and_a_query_through_the_node(
    start: Callable[..., Any], robot: Any, frames: list[Any], tmp_path: Path, ros_env: Any, monkeypatch: Any
) -> None:
    """Options pass through a ROS parameter as YAML; the map must tell which network made it."""
    from geopurify_core.mapping.store import load_map
    from geopurify_interfaces.srv import Query, SaveMap

    monkeypatch.setitem(ros_env, "OMP_NUM_THREADS", "1")  # for layers this narrow, threads only wait for each other
    # With objectness: mask there are no 133 names to encode.
    options = f"'{{weights: random, variant: {TINY}, objectness: mask, text_cache: none}}'"
    node = start("mapping_node", backbone__name="xdecoder", backbone__options=options, pose_wait_s=0.2)
    robot.until_state("mapping")
    for i, frame in enumerate(frames[:2]):
        robot.send(frame, (1_000 + i) * 1_000_000_000)
    assert (robot.status.frames_integrated, robot.status.frames_failed) == (2, 0), node.output
    answer = robot.call(Query, "query", texts=["chair", "something to write on"])
    assert answer.success, answer.message
    assert robot.call(SaveMap, "save_map", path=str(tmp_path / "x.map")).success
    snapshot = load_map(tmp_path / "x.map")
    assert len(snapshot) > 100
    assert snapshot.features.shape[1] == 32
    assert snapshot.backbone.startswith("xdecoder:open:")
    code, _ = node.end()
    assert code == 0, node.output
    assert "Traceback" not in node.output, node.output
    assert "rehearsal" not in node.output, node.output


def test_a_checkpoint_that_is_not_there_is_named(tmp_path: Path) -> None:
    from geopurify_core.errors import BackboneError, NotAvailableError
    from geopurify_ros.session import MapSession

    absent = str(tmp_path / "xdecoder_focalt_nowhere.pt")
    options = {"weights": absent, "variant": "focalt"}
    session = MapSession(
        Config.from_dict({"backbone": {"name": "xdecoder", "options": options}}), "", lambda text: None
    )
    with pytest.raises(BackboneError):
        session.prepare()
    assert session.state == "failed"
    assert absent in str(session.failure)
    with pytest.raises(NotAvailableError) as refused:  # what every service answers
        _ = session.mapper
    assert absent in str(refused.value)
