"""tools/minkowski.sh says what is wrong before it touches anything."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest


def test_a_missing_wheel_is_named(repository: Path, tmp_path: Path) -> None:
    if not (repository / ".venv" / "bin" / "python").exists():
        pytest.skip("no .venv beside the sources: this suite runs in another environment")
    missing = tmp_path / "absent.whl"
    done = subprocess.run(
        [repository / "tools" / "minkowski.sh"],
        env=os.environ | {"MINKOWSKI_WHEEL": str(missing)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1
    assert f"MINKOWSKI_WHEEL is not a file: {missing}" in done.stderr
