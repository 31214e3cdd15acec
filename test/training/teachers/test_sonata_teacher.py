"""Sonata as a teacher, with a small random network: rows per 8 cm cell, switches, what it refuses, downloading it."""

from __future__ import annotations

import http.server
import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from geopurify_core.cli.app import app
from geopurify_core.errors import DatasetError, InvalidConfigError, NotAvailableError
from training.teachers.base import PointCloud, load_teacher
from training.teachers.sonata import SonataTeacher, prepare

from ._sonata import CONFIG, room, small


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("GEOPURIFY_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "sonata.pth"
    torch.save({"config": CONFIG, "state_dict": small().state_dict()}, path)
    return path


def test_points_of_an_eight_centimetre_cell_share_a_row(checkpoint: Path) -> None:
    cloud, teacher = room(), SonataTeacher(checkpoint, device="cpu")
    answer = teacher.describe(cloud)
    given = prepare(cloud)
    cell = np.unique(given.grid_coord[given.inverse] // 4, axis=0, return_inverse=True)[1].reshape(-1)
    assert np.array_equal(answer.index, cell)  # rows in the order of the cells
    assert answer.rows.shape == (cell.max() + 1, teacher.width) and teacher.width == 72
    assert answer.rows.dtype == np.float16 and answer.index.dtype == np.int32
    stages = small().stages(given.coord, given.grid_coord, given.feat)
    assert np.allclose(answer.dense(), stages["upcast_grid"].numpy()[given.inverse], atol=2e-2)
    assert len(np.unique(answer.rows, axis=0)) > len(answer.rows) // 2


def test_the_same_cloud_the_same_answer(checkpoint: Path) -> None:
    cloud = room(800)
    teacher = load_teacher("sonata", checkpoint=str(checkpoint), device="cpu")
    one, other = teacher.describe(cloud), teacher.describe(cloud)
    assert np.array_equal(one.rows, other.rows) and np.array_equal(one.index, other.index)
    assert teacher.name == "sonata" and teacher.licence == "CC-BY-NC-4.0"


def test_the_answer_does_not_depend_on_the_order_of_the_points(checkpoint: Path) -> None:
    cloud, teacher = room(800), SonataTeacher(checkpoint, device="cpu")
    rows = np.random.default_rng(0).permutation(len(cloud))
    shuffled = PointCloud(cloud.points_m[rows], cloud.rgb[rows], cloud.normals[rows])
    assert np.array_equal(teacher.describe(shuffled).dense(), teacher.describe(cloud).dense()[rows])


def test_every_switch_changes_answer_and_fingerprint(checkpoint: Path) -> None:
    cloud, answers = room(800), {}
    for options in ({}, {"double_division": True}, {"seed": 1}, {"seed": 2}, {"grid_m": 0.03}):
        teacher = SonataTeacher(checkpoint, device="cpu", **options)
        answers[teacher.fingerprint] = teacher.describe(cloud).dense()
        assert np.array_equal(teacher.describe(cloud).dense(), answers[teacher.fingerprint])  # a seed repeats
    values = list(answers.values())
    assert len(values) == 5
    assert all(not np.array_equal(a, b) for i, a in enumerate(values) for b in values[:i])


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_points_and_all_in_one_cell(checkpoint: Path, count: int) -> None:
    points = np.full((count, 3), 3.0, np.float32) + np.arange(count, dtype=np.float32)[:, None] * 1e-4
    cloud = PointCloud(points, np.zeros((count, 3), np.uint8), np.zeros((count, 3), np.float32))
    answer = SonataTeacher(checkpoint, device="cpu").describe(cloud)
    assert answer.rows.shape == (1, 72) and answer.index.tolist() == [0] * count


def test_rows_too_large_for_half_precision_keep_their_direction(tmp_path: Path) -> None:
    model = small()
    for name, value in model.named_parameters():
        if name.endswith("fc2.weight"):
            value.data *= 1e6
    torch.save({"config": CONFIG, "state_dict": model.state_dict()}, tmp_path / "large.pth")
    cloud, given = room(300), prepare(room(300))
    answer = SonataTeacher(tmp_path / "large.pth", device="cpu").describe(cloud).dense()
    exact = model.stages(given.coord, given.grid_coord, given.feat)["upcast_grid"].numpy()[given.inverse]
    assert np.abs(exact).max() > 65504
    cosine = (answer * exact).sum(1) / np.linalg.norm(answer, axis=1) / np.linalg.norm(exact, axis=1)
    assert cosine.min() > 0.9999


def test_bad_clouds_are_refused(checkpoint: Path) -> None:
    teacher, empty = SonataTeacher(checkpoint, device="cpu"), np.zeros((0, 3), np.float32)
    with pytest.raises(DatasetError, match="no point"):
        teacher.describe(PointCloud(empty, empty.astype(np.uint8), empty))
    cloud = room(20)
    with pytest.raises(DatasetError, match="normals"):
        teacher.describe(PointCloud(cloud.points_m, cloud.rgb, cloud.normals * np.nan))


def test_bad_options_are_refused(checkpoint: Path) -> None:
    with pytest.raises(InvalidConfigError, match="precision"):
        SonataTeacher(checkpoint, precision="int8")
    with pytest.raises(InvalidConfigError, match="grid_m"):
        SonataTeacher(checkpoint, grid_m=0)
    with pytest.raises(NotAvailableError, match="CUDA"):
        SonataTeacher(checkpoint, device="cpu", precision="bfloat16")
    with pytest.raises(InvalidConfigError, match="teacher options"):
        load_teacher("sonata", checkpoint=checkpoint, colour=True)


def test_without_weights_it_says_where_they_are_and_under_which_licence(checkpoint: Path) -> None:
    for options in ({}, {"checkpoint": checkpoint.with_name("lost.pth")}):
        with pytest.raises(NotAvailableError) as caught:
            load_teacher("sonata", **options)
        for told in ("geopurify weights download sonata", "huggingface.co/facebook/sonata", "CC-BY-NC-4.0"):
            assert told in str(caught.value)


class _Server(http.server.BaseHTTPRequestHandler):
    """Sends half of the file at the first request, and goes on from where it is asked to afterwards."""

    data, requests = b"", 0

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        kind = type(self)
        kind.requests += 1
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(self.data) - start))
        self.send_header("Content-Range", f"bytes {start}-{len(self.data) - 1}/{len(self.data)}")
        self.send_header("ETag", '"one"')
        self.end_headers()
        self.wfile.write(self.data[start:] if kind.requests > 1 else self.data[: len(self.data) // 2])


def test_a_download_that_broke_off_goes_on_and_is_then_found(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    handler = type("Handler", (_Server,), {"data": checkpoint.read_bytes()})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/sonata.pth"
        result = CliRunner().invoke(app, ["weights", "download", "sonata", "--url", url])
        server.shutdown()
        thread.join()
    assert result.exit_code == 0, result.output
    assert "CC-BY-NC-4.0" in result.stderr and handler.requests >= 2
    listed = json.loads(CliRunner().invoke(app, ["weights", "--json"]).stdout)
    (entry,) = (e for e in listed if e["name"] == "sonata")
    assert Path(entry["here"]).read_bytes() == handler.data and entry["from"].endswith(
        "facebook/sonata/resolve/main/sonata.pth"
    )
    assert "CC-BY-NC" in entry["licence"] and len(entry["sha256"]) == 64
    assert load_teacher("sonata", device="cpu").describe(room(100)).rows.shape[1] == 72
