"""Many scenes: in processes and on Ray whose workers are killed, interrupted, and from the command line."""

import importlib.util
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from geopurify_core.errors import BackboneError, DatasetError, GeoPurifyError, InvalidConfigError
from training.cli import app
from training.scenes import settings, workers
from training.scenes.prepare import choose_runner, prepare_scenes
from training.scenes.prepared import scene_names, scene_path, teacher_path
from training.scenes.settings import Preparation, TeacherChoice
from training.scenes.sources import Source, find_sources

pytestmark = pytest.mark.usefixtures("colours")  # processes start faster without torch
SETTINGS = Preparation("colours", lift={"stride": 1, "border_px": 2}, teachers=(TeacherChoice("known"),))
SLOWLY = replace(SETTINGS, backbone_options={"pause_s": 0.1})  # so that workers are in the midst of a scene
LIFT = ["--lift", "border_px=2", "--stride", "1", "--backbone", "colours"]


@pytest.fixture
def sources(disk, scans):
    """Three good scenes, and one with a broken mesh."""
    bad = disk.write_scannet(scans / "scene0003_00") / "scene0003_00_vh_clean_2.ply"
    bad.write_bytes(bad.read_bytes()[:9000])
    return find_sources([str(scans)], None)


def check(out, report, *given_up):
    """Three whole scenes with their teacher, and the broken one listed, with those that cost their workers."""
    assert report.counts == {"prepared": 3, "failed": 1}
    assert scene_names(out) == ["scene0000_00", "scene0001_00", "scene0002_00"]
    manifest = json.loads((out / "manifest.json").read_text())
    assert list(manifest["scenes"]) == scene_names(out)
    assert all(list(entry["teachers"]) == ["known"] for entry in manifest["scenes"].values())
    skipped = {entry["name"]: entry["error"] for entry in manifest["skipped"]}
    assert skipped == {"scene0003_00": "DatasetError", **dict.fromkeys(given_up, "WorkerDied")}
    assert not list(out.glob("*.tmp"))


def same(out, alone):
    """Scenes and teachers are, bit for bit, those that one process makes."""
    for name in scene_names(alone):
        for folder_of in (scene_path, lambda folder, name: teacher_path(folder, name, "known")):
            assert folder_of(out, name).read_bytes() == folder_of(alone, name).read_bytes()


def test_one_after_the_other(sources, tmp_path):
    told = []
    report = prepare_scenes(sources, tmp_path / "out", SETTINGS, after_each=lambda r: told.append(len(r.outcomes)))
    check(tmp_path / "out", report)
    assert told == [1, 2, 3, 4] and report.scenes_per_hour > 0
    again = prepare_scenes(sources, tmp_path / "out", SETTINGS)
    assert again.counts == {"whole": 3, "failed": 1} and again.scenes_per_hour == 0


@pytest.fixture(scope="module")
def alone(disk, colours, tmp_path_factory):
    """The same scenes prepared without any other process."""
    folder = tmp_path_factory.mktemp("alone")
    scans = [disk.write_scannet(folder / "scans" / f"scene000{i}_00") for i in range(3)]
    prepare_scenes(find_sources([str(scan) for scan in scans], None), folder, SETTINGS)
    return folder


class _Deadly(str):
    """Ends the process that unpickles it, like a scene that needs more memory than there is."""

    def __reduce__(self):
        return os._exit, (9,)


@pytest.mark.slow
def test_killed_processes_lose_nothing(sources, tmp_path, alone):
    """All workers are killed when the first sound scene is done; their scenes are tried again. A scene that kills its
    worker each time is given up, and costs no other."""
    out, killed = tmp_path / "out", []

    def runner(*arguments):
        return workers.run_in_processes(*arguments, workers=2, retries=1)

    def kill(report):
        if not killed and any(outcome.name != "deadly" for outcome in report.outcomes):
            killed.extend(multiprocessing.active_children())
            for child in killed:
                child.kill()  # harmless where it has just ended

    deadly = Source("deadly", "synthetic", _Deadly("synthetic:300"))
    report = prepare_scenes([deadly, *sources], out, SLOWLY, runner, kill)
    assert killed
    deadline = time.monotonic() + 30  # the pool's own thread may be the one that reaps them, a moment later
    while multiprocessing.active_children():
        assert time.monotonic() < deadline, multiprocessing.active_children()
        time.sleep(0.01)
    assert not settings._backbone.cache_info().currsize  # whoever only hands scenes out holds no network
    gave_up = next(outcome for outcome in report.outcomes if outcome.name == "deadly")
    assert gave_up.error == "WorkerDied" and "died 2 times" in gave_up.reason
    report.outcomes.remove(gave_up)
    check(out, report, "deadly")
    same(out, alone)


def test_workers_share_the_cores(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("GEOPURIFY_THREADS", raising=False)
    with workers.thread_limit(2):
        assert os.environ["OMP_NUM_THREADS"] == os.environ["GEOPURIFY_THREADS"] == "2"
    assert os.environ["OMP_NUM_THREADS"] == "7" and "GEOPURIFY_THREADS" not in os.environ


def test_settings_that_suit_no_scene_end_the_run_at_once(sources, tmp_path):
    for wrong, error in (
        (replace(SETTINGS, backbone="nosuch"), BackboneError),
        (replace(SETTINGS, recipe="nosuch"), InvalidConfigError),
        (replace(SETTINGS, label_set="scanet20"), InvalidConfigError),
        (replace(SETTINGS, teachers=(TeacherChoice("nosuch"),)), InvalidConfigError),
    ):
        with pytest.raises(error):
            prepare_scenes(sources, tmp_path / "out", wrong)
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="written"):
        prepare_scenes(sources, tmp_path / "file", SETTINGS)
    with pytest.raises(InvalidConfigError, match="workers"):
        choose_runner(workers=0)
    with pytest.raises(InvalidConfigError, match="--ray"):
        choose_runner(workers=2, gpus=0.5)


# -- Ray -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (pip install ray)")
def test_a_killed_ray_worker_loses_nothing(sources, tmp_path, alone):
    """Two local workers; one is killed in the midst of a scene, and Ray runs its task again."""
    psutil = pytest.importorskip("psutil")
    out, killed, over = tmp_path / "out", [], threading.Event()

    def busy(process):
        with suppress(psutil.Error, IndexError):
            title = process.cmdline()[0]
            return title.startswith("ray::") and "_in_task" in title
        return False

    def kill():
        while not killed and not over.wait(0.02):
            for process in filter(busy, psutil.Process().children(recursive=True)):
                with suppress(psutil.Error):
                    process.kill()
                    killed.append(process.pid)
                    break

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        report = prepare_scenes(sources, out, SLOWLY, choose_runner(workers=2, ray="local"))
    finally:
        over.set()
        killer.join()
    assert killed
    check(out, report)
    same(out, alone)
    import ray

    assert not ray.is_initialized()


def test_without_ray_it_says_what_to_install(sources, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(GeoPurifyError, match="pip install ray"):
        prepare_scenes(sources, tmp_path / "out", SETTINGS, choose_runner(ray="auto"))


def test_a_cluster_that_is_not_there_is_said_at_once(sources, tmp_path):
    pytest.importorskip("ray")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # taken, but nobody listens
        for address in (f"127.0.0.1:{closed.getsockname()[1]}", "no:port"):
            with pytest.raises(GeoPurifyError, match="ray start --head"):
                prepare_scenes(sources, tmp_path / "out", SETTINGS, choose_runner(ray=address))
    assert not scene_names(tmp_path / "out")


# -- the command -----------------------------------------------------------------------------------------------------


def run(*arguments):
    return CliRunner().invoke(app, ["prepare", *(str(argument) for argument in arguments)])


def test_the_command_lists_what_it_would_do_then_does_it(sources, scans, tmp_path):
    out = tmp_path / "out"
    dry = run(scans, "--out", out, *LIFT, "--teacher", "known", "--dry-run")
    assert dry.exit_code == 0 and not out.exists()
    assert re.search(r"scene0000_00\s+scannet:scene0000_00\s+scene, known", dry.output)
    done = run(scans, "--out", out, *LIFT, "--limit", "2")
    assert done.exit_code == 0 and "2 prepared" in done.output
    taught = run("--out", out, "--teacher", "known", "-o", "seed=3")
    assert taught.exit_code == 0 and "2 taught" in taught.output
    failed = run(scans, "--out", out, *LIFT)
    assert failed.exit_code == 1 and "1 failed, 1 prepared, 2 whole" in failed.output
    assert "scene0003_00" in failed.output and "DatasetError" in failed.output


def test_what_is_lost_within_a_scene_is_told(disk, tmp_path, monkeypatch):
    """A frame without its pose, a broken image, and labels that were asked for but are not there."""
    monkeypatch.setenv("COLUMNS", "300")
    scene, out = disk.write_scannet(tmp_path / "scans" / "scene0000_00", aggregation=False), tmp_path / "out"
    (scene / "pose/20.txt").unlink()
    (scene / "color/30.png").write_bytes(b"broken")
    told = run(scene, "--out", out, *LIFT, "--label-set", "scannet200")
    assert told.exit_code == 0
    assert "frames (missing pose file: 1, unreadable image: 1); labels of scannet200" in told.output
    entry = json.loads((out / "manifest.json").read_text())["scenes"]["scene0000_00"]
    assert entry["frames"] == "2/4"
    assert entry["frames_left_out"] == {"missing pose file": 1, "unreadable image": 1}


def test_a_narrow_terminal_hides_no_part_of_a_name(disk, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    mesh = disk.write_scannet(tmp_path / "scene0000_00") / "scene0000_00_vh_clean_2.ply"
    mesh.write_bytes(b"ply")
    told = run(mesh.parent, "--out", tmp_path / "out", *LIFT)
    assert told.exit_code == 1
    assert f"mesh{mesh.name}:" in re.sub(r"\s", "", told.stdout)


def test_a_damaged_shard_is_no_whole_scene(scans, tmp_path):
    out = tmp_path / "out"
    assert run(scans, "--out", out, *LIFT, "--limit", "2").exit_code == 0
    shard = scene_path(out, "scene0001_00")
    shard.write_bytes(shard.read_bytes()[:-1])
    told = run("--out", out)
    assert told.exit_code == 1 and "1 failed, 1 whole" in told.output


def test_the_command_refuses_what_makes_no_sense(scans, tmp_path):
    for arguments in (
        ["--out", tmp_path / "nothing"],
        [tmp_path / "absent"],
        ["synthetic:10"],
        [scans, "--teacher", "known", "--teacher", "geometric", "-o", "seed=1"],
        [scans, "--lift", "colour=3", "--out", tmp_path / "o", "--dry-run"],
        [scans, "--label-set", "scanet20", "--out", tmp_path / "o"],
    ):
        assert run(*arguments).exit_code == 2, arguments


@pytest.mark.slow
def test_interrupted_it_keeps_what_is_done_and_goes_on_later(disk, tmp_path, repository):
    for i in range(8):
        disk.write_scannet(tmp_path / "scans" / f"scene{i:04d}_00")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "training", "prepare", str(tmp_path / "scans"), "--out", str(out), *LIFT]
    command += ["--workers", "2", "-b", "pause_s=0.2"]
    process = subprocess.Popen(command, cwd=repository, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not scene_names(out) and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
        assert process.wait(timeout=60) == 130
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    done = scene_names(out)
    assert 1 <= len(done) < 8 and not list(out.glob("*.tmp"))
    assert list(json.loads((out / "manifest.json").read_text())["scenes"]) == done
    stamps = {name: scene_path(out, name).stat().st_mtime_ns for name in done}
    todo = [source for source in find_sources([str(tmp_path / "scans")], None) if source.name not in done]
    sources = [*find_sources([str(tmp_path / "scans" / name) for name in done], None), todo[0]]
    later = prepare_scenes(sources, out, replace(SETTINGS, teachers=()))
    assert later.counts == {"whole": len(done), "prepared": 1}
    assert {name: scene_path(out, name).stat().st_mtime_ns for name in done} == stamps
