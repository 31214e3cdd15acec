"""Downloading from a server of this process: progress, going on, wrong checksums; where checkpoints are looked for."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from geopurify_core.errors import BackboneError
from geopurify_core.vision.download import checksum_file, download, known_checksum, sha256_of
from geopurify_core.vision.xdecoder.weights import MODELS, download_model, find_weights, model_file, weights_folder

DATA = np.random.default_rng(0).bytes(3_000_001)
DIGEST = hashlib.sha256(DATA).hexdigest()


class Store(http.server.ThreadingHTTPServer):
    """Serves ``data`` with ETag and ranges, breaks off where it is told to, and remembers what it was asked."""

    data, etag, announced, ranges = DATA, '"v1"', "", True
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.break_after: list[int] = []
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/model.pt"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Store

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.send_response(302)
        self.send_header("Location", "/elsewhere")
        if self.server.announced:
            self.send_header("X-Linked-ETag", f'"{self.server.announced}"')
        self.end_headers()

    def do_GET(self) -> None:
        store = self.server
        store.asked.append(self.headers.get("Range", ""))
        if self.path != "/model.pt":
            return self.send_error(404)
        start = 0
        same = self.headers.get("If-Range") == store.etag
        if store.ranges and self.headers.get("Range") and same:
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        if start >= len(store.data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(store.data)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(store.data) - 1}/{len(store.data)}")
        self.send_header("ETag", store.etag)
        self.send_header("Content-Length", str(len(store.data) - start))
        self.end_headers()
        stop = start + store.break_after.pop(0) if store.break_after else len(store.data)
        self.wfile.write(store.data[start:stop])


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Store() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No weights on this machine."""
    monkeypatch.delenv("GEOPURIFY_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_file_comes_whole_with_progress_and_checksum(store: Store, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = tmp_path / "new" / "model.pt"
    done = download(store.url, path, progress=lambda *step: seen.append(step))
    assert path.read_bytes() == DATA and done.sha256 == DIGEST and done.checked_against == "nothing"
    assert seen[-1] == (len(DATA), len(DATA)) and [a for a, _ in seen] == sorted(a for a, _ in seen)
    assert checksum_file(path).read_text() == f"{DIGEST}  model.pt\n" and known_checksum(path) == DIGEST
    assert sorted(p.name for p in path.parent.iterdir()) == ["model.pt", "model.pt.sha256"]


def test_a_second_call_only_checks(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    download(store.url, path)
    assert download(store.url, path).checked_against == "earlier download" and store.asked == [""]
    path.write_bytes(DATA[:-1])
    with pytest.raises(BackboneError, match=f"should have {DIGEST}"):
        download(store.url, path)


def test_a_broken_connection_goes_on_by_itself(store: Store, tmp_path: Path) -> None:
    store.break_after = [1_000_000, 500_000]
    done = download(store.url, tmp_path / "model.pt")
    assert done.sha256 == DIGEST and store.asked == ["", "bytes=1000000-", "bytes=1500000-"]


def test_a_later_call_goes_on_where_the_first_stopped(store: Store, tmp_path: Path) -> None:
    store.break_after = [1_000_000, 0]
    with pytest.raises(BackboneError, match=r"broke off.*1,000,000 bytes are kept"):
        download(store.url, tmp_path / "model.pt")
    store.asked.clear()
    assert download(store.url, tmp_path / "model.pt").sha256 == DIGEST and store.asked == ["bytes=1000000-"]


def test_a_download_that_only_missed_its_last_step_is_not_repeated(store: Store, tmp_path: Path) -> None:
    (tmp_path / "model.pt.part").write_bytes(DATA)
    (tmp_path / "model.pt.part.etag").write_text(store.etag)
    assert download(store.url, tmp_path / "model.pt").sha256 == DIGEST and store.asked == [f"bytes={len(DATA)}-"]


@pytest.mark.parametrize("case", ["replaced", "no ranges", "no tag kept", "longer than the new one"])
def test_what_cannot_be_continued_starts_again(case: str, store: Store, tmp_path: Path) -> None:
    part = tmp_path / "model.pt.part"
    part.write_bytes(b"x" * (1000 if case != "longer than the new one" else len(DATA) + 5))
    if case != "no tag kept":
        part.with_name("model.pt.part.etag").write_text('"v0"' if case == "replaced" else store.etag)
    store.ranges = case != "no ranges"
    assert download(store.url, tmp_path / "model.pt").sha256 == DIGEST
    assert (tmp_path / "model.pt").read_bytes() == DATA


@pytest.mark.parametrize("who", ["given", "server"])
def test_a_wrong_checksum_keeps_nothing(who: str, store: Store, tmp_path: Path) -> None:
    wrong = "0" * 64
    store.announced = wrong if who == "server" else DIGEST
    with pytest.raises(BackboneError, match=f"sha256: '{DIGEST}'.*should have {wrong}"):
        download(store.url, tmp_path / "model.pt", sha256=wrong if who == "given" else "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("who", ["given", "server"])
def test_a_right_checksum_is_reported(who: str, store: Store, tmp_path: Path) -> None:
    store.announced = DIGEST if who == "server" else ""
    done = download(store.url, tmp_path / "model.pt", sha256=DIGEST.upper() if who == "given" else "")
    assert done.checked_against == who


def test_what_goes_wrong_is_said(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackboneError, match="404"):
        download(store.url.replace("model", "other"), tmp_path / "a")
    with pytest.raises(BackboneError, match="https://"):
        download("file:///etc/passwd", tmp_path / "a")
    with pytest.raises(BackboneError, match="64 hexadecimal"):
        download(store.url, tmp_path / "a", sha256="abc")
    (tmp_path / "file").write_text("")
    with pytest.raises(BackboneError, match="cannot be written"):
        download(store.url, tmp_path / "file" / "a")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(BackboneError, match="do not fit: 1,000 are free"):
        download(store.url, tmp_path / "a")


def test_without_a_network_the_message_says_what_to_do(nowhere: Path) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), _Handler) as closed:
        url = f"http://127.0.0.1:{closed.server_port}/model.pt"
    with pytest.raises(
        BackboneError, match=r"cannot be reached.*By hand: fetch .* put it at .*xdecoder_focalt_last\.pt"
    ):
        download_model("xdecoder_focalt_last", url=url)


def test_checkpoints_are_found_by_name_and_by_path(
    store: Store, nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = download_model("xdecoder_focalt_last", url=store.url)
    assert done.path == weights_folder() / "xdecoder_focalt_last.pt" == find_weights("xdecoder_focalt_last")
    assert find_weights("xdecoder_focalt_last.pt") == done.path
    faster = done.path.with_suffix(".safetensors")
    faster.write_bytes(b"")
    assert find_weights("xdecoder_focalt_last") == faster
    (nowhere / "own.pt").write_bytes(b"")
    (nowhere / "mine.yaml").write_bytes(b"")
    assert find_weights("own.pt", nowhere / "mine.yaml") == nowhere / "own.pt"
    monkeypatch.setenv("GEOPURIFY_WEIGHTS", str(nowhere / "all"))
    assert weights_folder() == nowhere / "all" / "xdecoder"
    with pytest.raises(BackboneError, match="geopurify weights download xdecoder_focalt_last"):
        find_weights("xdecoder_focalt_last")
    with pytest.raises(BackboneError, match="weights=random"):
        find_weights("lost.pt")


def test_every_checkpoint_has_an_address_and_an_unknown_name_lists_them() -> None:
    for model in MODELS:
        assert model.url.startswith("https://") and model.url.endswith(model.file)
        assert model_file(model.file) is model and model.variant in model.name
    with pytest.raises(BackboneError, match="xdecoder_focall_last"):
        model_file("xdecoder_davitd5")


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(DATA)
    assert sha256_of(tmp_path / "a") == DIGEST and known_checksum(tmp_path / "a") == ""
