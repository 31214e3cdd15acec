"""X-Decoder from the command line: mapping and asking with a small random network; listing, fetching, converting."""

from __future__ import annotations

import http.server
import json
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from geopurify_core.cli.app import app
from geopurify_core.mapping.store import load_map, read_extra

torch = pytest.importorskip("torch")
runner = CliRunner()
TINY = Path(__file__).with_name("tiny.json")


@pytest.fixture(autouse=True)
def _nothing_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GEOPURIFY_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "160")


def run(*arguments: str) -> str:
    result = runner.invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: str) -> str:
    result = runner.invoke(app, list(arguments))
    assert result.exit_code == 2, result.output
    return " ".join(result.stderr.split())


def test_a_map_is_made_and_asked_with_random_weights(tmp_path: Path) -> None:
    path = tmp_path / "a.map"
    random = ("--backbone", "xdecoder", "-b", "weights=random", "-b", f"variant={TINY}")
    run("map", "synthetic:3", "-o", str(path), *random, "--max-frames", "2", "--stride", "4")
    snapshot = load_map(path)
    assert len(snapshot) > 100 and snapshot.features.shape[1] == 32
    assert snapshot.backbone.startswith("xdecoder:open:")
    assert read_extra(path)["backbone"]["options"] == {"weights": "random", "variant": str(TINY)}
    answer = json.loads(run("query", str(path), "chair", "--json", "--max-objects", "2"))
    assert list(answer) == ["chair"]  # what it finds means nothing


def test_mapping_without_weights_says_how_to_get_them(tmp_path: Path) -> None:
    said = refused("map", "synthetic:3", "-o", str(tmp_path / "a.map"), "--backbone", "xdecoder")
    assert "geopurify weights download xdecoder_focall_last" in said and "huggingface.co" in said


def test_no_labels_for_the_vocabulary(tmp_path: Path) -> None:
    options = ("-b", "weights=random", "-b", f"variant={TINY}", "-b", "assignment=vocabulary", "-b", "labels=[]")
    assert "at least one" in refused(
        "map", "synthetic:3", "-o", str(tmp_path / "a.map"), "--backbone", "xdecoder", *options
    )


def test_weights_lists_source_licence_size_and_checksum() -> None:
    listed = run("weights")
    for word in ("https://huggingface.co/xdecoder", "Apache-2.0", "CC-BY-NC", "about 1366 MB", "sha256", "here     no"):
        assert word in listed
    entries = json.loads(run("weights", "--json"))
    assert {entry["variant"] for entry in entries} == {"focalt", "focall", "sonata"}
    assert all(entry["from"].startswith("https://") and entry["licence"] and entry["sha256"] for entry in entries)


def test_download_from_a_mirror_then_listed_as_here(tmp_path: Path) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"bytes")

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/x"
        wrong = refused("weights", "download", "xdecoder_focalt_last", "--url", url, "--sha256", "0" * 64)
        said = run("weights", "download", "xdecoder_focalt_last", "--url", url)
        server.shutdown()
        thread.join()
    assert "Nothing is kept" in wrong and "checked against: nothing" in said
    entry = next(e for e in json.loads(run("weights", "--json")) if e["name"] == "xdecoder_focalt_last")
    assert Path(entry["here"]).read_bytes() == b"bytes" and len(entry["sha256"]) == 64
    assert "Known: xdecoder_focalt_last" in refused("weights", "download", "xdecoder_davitd5")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint in the authors' format, of the small configuration."""
    from geopurify_core.vision.xdecoder.random_weights import random_network

    path = tmp_path / "small.pt"
    torch.save(random_network(json.loads(TINY.read_text())).state_dict(), path)
    return path


def test_convert_and_map_with_the_result(checkpoint: Path, tmp_path: Path) -> None:
    said = run("weights", "convert", str(checkpoint), "--variant", str(TINY))
    converted = checkpoint.with_suffix(".safetensors")
    checksum = Path(f"{converted}.sha256").read_text().split()[0]
    assert checksum in said and str(converted) in said
    maps = []
    for weights in (checkpoint, converted):
        maps.append(tmp_path / f"{weights.suffix}.map")
        options = ("-b", f"weights={weights}", "-b", f"variant={TINY}")
        run("map", "synthetic:3", "-o", str(maps[-1]), "--backbone", "xdecoder", *options, "--max-frames", "1")
    one, other = (load_map(path).backbone for path in maps)
    assert one == other  # the same network, whatever file it came from


def test_what_cannot_be_converted_or_loaded_is_said(checkpoint: Path, tmp_path: Path) -> None:
    assert "No such file" in refused("weights", "convert", str(tmp_path / "lost.pt"))
    assert "set variant" in refused("weights", "convert", str(checkpoint))
    assert "missing" in refused("weights", "convert", str(checkpoint), "--variant", "focalt")
    assert not list(tmp_path.glob("*.safetensors"))
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1000])
    truncated = refused(
        "map", "synthetic:3", "-o", str(tmp_path / "a.map"), "--backbone", "xdecoder",
        "-b", f"weights={checkpoint}", "-b", f"variant={TINY}",
    )  # fmt: skip
    assert "truncated" in truncated and "small.pt" in truncated
