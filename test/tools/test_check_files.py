"""The checks that run before a commit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def check(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = repository / "tools" / "setup" / "check_files.py"
    return subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.py", "x = 1 \n", "blanks at the end"),
        ("a.py", "x = 1", "exactly one newline"),
        ("a.py", "x = 1\n\n", "exactly one newline"),
        ("a.txt", "<<<<<<< HEAD\na\n", "merge mark"),
        ("a.yaml", "a: [1\n", "does not parse"),
        ("a.json", "{\n", "does not parse"),
        ("a.xml", "<a>\n", "does not parse"),
    ],
)
def test_a_bad_file_is_named(repository: Path, tmp_path: Path, name: str, content: str, problem: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    done = check(repository, "--text", str(tmp_path / name))
    assert done.returncode == 1 and problem in done.stdout and name in done.stdout


def test_good_files_pass_in_silence(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: 1\n---\nb: 2\n", encoding="utf-8")
    (tmp_path / "a.md").write_text("two blanks  \nbreak a line\n", encoding="utf-8")
    done = check(repository, "--text", "--max-mb", "1", str(tmp_path / "a.yaml"), str(tmp_path / "a.md"))
    assert (done.returncode, done.stdout) == (0, "")


def test_a_large_file_is_refused(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "big.bin").write_bytes(b"\0" * 2_000_000)
    assert check(repository, "--max-mb", "1.5", str(tmp_path / "big.bin")).returncode == 1
    assert check(repository, "--max-mb", "6", str(tmp_path / "big.bin")).returncode == 0
