"""The set-up's shell functions: what is missing, which Python, what a failure says. Nothing is installed here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMON_TOOLS = ("bash", "cat", "cut", "sort", "tr", "sha256sum", "find", "xargs", "id", "uname", "grep", "tail", "wc")


def shell(repository: Path, script: str, path: str | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``script`` with the set-up's functions loaded, in an environment that holds nothing else."""
    here = repository / "tools" / "setup"
    prelude = (
        f'set -euo pipefail; HERE="{here}"; ROOT="{repository}"; VENV="$ROOT/no-such-venv"; STAMPS="$VENV/.setup"\n'
        f'MIN_FREE_MB=1; STEPS=1; LOG=/dev/null; cd "$ROOT"\n'
        + "".join(f'. "$HERE/{name}.sh"\n' for name in ("lib", "find_python", "system_packages", "python_packages"))
    )
    environment = {"PATH": path or os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **variables}
    bash = "/bin/bash" if Path("/bin/bash").exists() else "bash"
    return subprocess.run(
        [bash, "-c", prelude + script], env=environment, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.fixture
def bare_bin(tmp_path: Path) -> Path:
    """A PATH that has the everyday tools and neither a compiler, CMake, Python nor apt-get."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in COMMON_TOOLS:
        for source in ("/bin", "/usr/bin"):
            if (Path(source) / name).exists() and not (folder / name).exists():
                (folder / name).symlink_to(Path(source) / name)
    return folder


def fake_program(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
    (folder / name).chmod(0o755)


def real_python(folder: Path, name: str) -> None:
    """A launcher, not a link: a linked interpreter would not find its own library."""
    fake_program(folder, name, f'exec "{os.path.realpath(sys.executable)}" "$@"')


def test_a_missing_compiler_and_cmake_are_named_by_debian_package(repository: Path, bare_bin: Path) -> None:
    real_python(bare_bin, "python3")
    done = shell(repository, 'PYTHON_FOUND="$(command -v python3)"; missing_packages', str(bare_bin))
    assert done.returncode == 0, done.stderr
    assert {"build-essential", "cmake", "ninja-build"} <= set(done.stdout.split())


def test_only_what_is_missing_is_named(repository: Path, bare_bin: Path) -> None:
    real_python(bare_bin, "python3")
    for name in ("cc", "c++", "make", "ninja"):
        fake_program(bare_bin, name, "exit 0")
    done = shell(repository, 'PYTHON_FOUND="$(command -v python3)"; missing_packages', str(bare_bin))
    assert "cmake" in done.stdout.split()
    assert not {"build-essential", "ninja-build"} & set(done.stdout.split())


def test_where_there_is_no_python_it_is_among_the_missing(repository: Path, bare_bin: Path) -> None:
    done = shell(repository, 'PYTHON_FOUND=""; missing_packages', str(bare_bin))
    assert {"python3", "python3-venv", "python3-dev", "libgl1", "libx11-6", "cmake"} <= set(done.stdout.split())


def test_a_library_that_cannot_be_loaded_counts_as_missing(repository: Path, bare_bin: Path) -> None:
    fake_program(bare_bin, "python3", 'case "$*" in *ctypes*) exit 1;; *%d.%d\\"*) echo python3.11;; esac; exit 0')
    done = shell(repository, "PYTHON_FOUND=python3; is_newer_than_wheels() { false; }; missing_packages", str(bare_bin))
    assert {"libgl1", "libx11-6", "libgomp1", "libudev1"} <= set(done.stdout.split())


def test_without_root_the_reader_gets_one_line_to_paste(repository: Path, bare_bin: Path) -> None:
    done = shell(repository, "install_packages cmake libgl1", str(bare_bin))
    assert done.returncode == 1
    lines = [line.strip() for line in done.stderr.splitlines() if "apt-get" in line]
    assert lines == ["sudo apt-get update && sudo apt-get install -y cmake libgl1"]


def test_as_root_apt_is_asked_to_update_first(repository: Path, bare_bin: Path, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    (bare_bin / "id").unlink()
    fake_program(bare_bin, "id", "echo 0")
    fake_program(bare_bin, "env", 'while [[ "$1" == *=* ]]; do shift; done; exec "$@"')
    fake_program(bare_bin, "apt-get", f'echo "$@" >> "{calls}"')
    done = shell(repository, "install_packages cmake", str(bare_bin))
    assert done.returncode == 0, done.stderr
    first, second = calls.read_text(encoding="utf-8").splitlines()
    assert first.startswith("update") and second.startswith("install") and second.endswith("cmake")


@pytest.mark.parametrize("version", ["3.8", "3.9"])
def test_a_python_that_is_too_old_gets_one_line(repository: Path, bare_bin: Path, version: str) -> None:
    fake_program(bare_bin, "python3", f'case "$*" in *print*) echo {version}.1;; *) exit 1;; esac')
    # /usr/bin/python3 of this machine must not come to the rescue.
    done = shell(repository, f"fits() {{ false; }}; find_python || no_python # {version}", str(bare_bin))
    assert done.returncode == 1
    assert f"Python 3.10 or newer is needed, found {version}.1" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_newer_python_beside_an_old_one_is_taken(repository: Path, bare_bin: Path) -> None:
    fake_program(bare_bin, "python3", "exit 1")
    fake_program(bare_bin, "python3.12", "echo shim refuses >&2; exit 127")
    real_python(bare_bin, "python3.11")
    done = shell(repository, "find_python", str(bare_bin))
    assert done.stdout.strip() == str(bare_bin / "python3.11")


def test_a_named_python_is_taken_or_refused_but_never_replaced(repository: Path, bare_bin: Path) -> None:
    real_python(bare_bin, "python3")
    real_python(bare_bin, "mine")
    fake_program(bare_bin, "old", 'case "$*" in *print*) echo 3.7.0;; *) exit 1;; esac')
    assert shell(repository, "find_python", str(bare_bin), PYTHON="mine").stdout.strip() == str(bare_bin / "mine")
    refused = shell(repository, "find_python || no_python", str(bare_bin), PYTHON="old")
    assert refused.returncode == 1 and "PYTHON=old is 3.7.0" in refused.stderr


def test_a_sourced_ros_decides_the_python(repository: Path, bare_bin: Path) -> None:
    real_python(bare_bin, "python3.11")
    fake_program(bare_bin, "python3", "exit 0")  # "can import rclpy"
    sourced = {"ROS_DISTRO": "jazzy", "AMENT_PREFIX_PATH": "/opt/ros/jazzy", "ROS_VERSION": "2"}
    assert shell(repository, "find_python", str(bare_bin), **sourced).stdout.strip() == str(bare_bin / "python3")
    assert shell(repository, "ros_flavour", str(bare_bin), **sourced).stdout.strip() == "sourced-jazzy"
    assert shell(repository, "ros_flavour", str(bare_bin), ROS_DISTRO="noetic", ROS_VERSION="1").stdout == "wheels\n"


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("WARNING: Retrying … NewConnectionError: … Temporary failure in name resolution", "no Python package index"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
        ("ERROR: No matching distribution found for ros-jazzy-rclpy==7.1.6", "no ROS 2 wheels"),
        (
            "ERROR: Could not find a version that satisfies torch==2.13.0+cpu (from versions: none)",
            "no Python package index",
        ),
        (
            "ERROR: … ros-jazzy-rclpy (from versions: none)\nERROR: No matching distribution found for ros-jazzy-rclpy",
            "no ROS 2",
        ),
        ("ERROR: something else", "ERROR: something else"),
    ],
)
def test_a_failed_pip_is_explained_in_one_line(repository: Path, log: str, expected: str) -> None:
    done = shell(repository, 'explain_pip_failure "$TEXT"', TEXT=log)
    assert done.returncode == 1
    assert expected in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_fingerprints_follow_content(repository: Path, tmp_path: Path) -> None:
    folder = tmp_path / "msgs"
    folder.mkdir()
    (folder / "A.msg").write_text("int32 a\n", encoding="utf-8")
    script = f'fingerprint word "{folder}"; fingerprint word "{folder}"; echo "int32 b" > "{folder}/A.msg"; '
    first, again, changed = shell(repository, script + f'fingerprint word "{folder}"').stdout.split()
    assert first == again != changed


def test_a_shell_of_another_flavour_is_refused(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "flavour").write_text("sourced-jazzy\n", encoding="utf-8")
    done = shell(repository, f'STAMPS="{tmp_path}"; refuse_other_flavour')
    assert done.returncode == 1 and "make distclean setup" in done.stderr
