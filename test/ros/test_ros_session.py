"""The mapper's life inside the node: what a reset or a load does to frames that were on their way."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from geopurify_core.config import Config
from geopurify_core.errors import MapMismatchError, PurificationError
from geopurify_core.mapping.store import save_map
from geopurify_core.pipeline import SemanticMapper

pytest.importorskip("rclpy")

from geopurify_ros.session import MapSession


class Held:
    """A mapper whose network does not come to an end before it is let go."""

    def __init__(self, backbone: Any) -> None:
        self.busy, self.release, encode = threading.Event(), threading.Event(), backbone.encode_image

        def slowly(rgb: Any, depth_m: Any = None) -> Any:
            self.busy.set()
            assert self.release.wait(30)
            return encode(rgb, depth_m)

        backbone.encode_image = slowly
        self.mapper = SemanticMapper(Config(), backbone)


@pytest.fixture
def held(stub: Any) -> Held:
    return Held(stub())


@pytest.mark.parametrize("how", ["reset", "load"])
def test_a_frame_overtaken_by_a_new_map_is_not_fused_into_it(
    held: Held, frames: list[Any], tmp_path: Path, how: str
) -> None:
    session = MapSession(Config(), "", lambda text: None)
    session._mapper = held.mapper
    save_map(tmp_path / "empty.map", held.mapper.snapshot())
    worker = threading.Thread(target=session.integrate, args=(frames[0], session.epoch))
    worker.start()
    assert held.busy.wait(30)
    if how == "reset":
        held.mapper.reset()
    else:
        session.load(str(tmp_path / "empty.map"))
    held.release.set()
    worker.join(30)
    assert len(held.mapper.snapshot()) == 0
    assert (session.integrated, session.outdated, session.failed) == (0, 1, 0)
    session.integrate(frames[0], session.epoch)
    assert len(held.mapper.snapshot()) > 100


def test_a_frame_that_waited_in_the_queue_belongs_to_the_map_of_its_arrival(held: Held, frames: list[Any]) -> None:
    held.release.set()
    waiting = held.mapper.epoch
    held.mapper.reset()
    with pytest.raises(MapMismatchError, match=r"frame\.epoch"):
        held.mapper.integrate(frames[0], waiting)
    assert len(held.mapper.snapshot()) == 0


def test_mapping_starts_also_where_what_purifies_is_broken(stub: Any, frames: list[Any], monkeypatch: Any) -> None:
    """Not with a typed error, but as half an installation fails."""
    import geopurify_core.pipeline as pipeline

    def broken(*_: Any) -> Any:
        raise ImportError("libmkl.so is missing")

    monkeypatch.setattr(pipeline, "student_for", broken)
    monkeypatch.setattr(pipeline, "load_backbone", lambda name, **options: stub())
    said: list[str] = []
    session = MapSession(Config(), "", said.append)
    session.prepare()
    assert session.state == "mapping"
    session.integrate(frames[0], session.epoch)
    session.tend_purification()
    assert session.purification.state == "off"
    assert "libmkl.so" in session.purification.message
    assert any("libmkl.so" in words for words in said)
    with pytest.raises(PurificationError, match=r"libmkl\.so"):
        session.mapper.purify()
