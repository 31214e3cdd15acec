"""Mend one defect of the ROS 2 wheels: their CMake files name the Python of the machine that built them.

`/opt/python/cp311-cp311/include/python3.11` (and numpy's headers below the same prefix) exist nowhere else, so CMake
refuses every package that depends on a message package. Run with the virtual environment's Python after each install.
"""

from __future__ import annotations

import re
import sys
import sysconfig
from pathlib import Path

# The build machine's prefix carries the interpreter's tag: cp310-cp310, cp312-cp312, cp313-cp313t, …
_PREFIX = r"/opt/python/cp\d+-cp\d+t?"
_NUMPY_INCLUDE = re.compile(_PREFIX + r"/lib/python[\d.]+t?/site-packages/numpy/_?core/include")
_PYTHON_INCLUDE = re.compile(_PREFIX + r"/include/python[\d.]+t?")


def relocate(text: str, python_include: str, numpy_include: str) -> str:
    """``text`` with the build machine's header directories replaced by this machine's."""
    text = _NUMPY_INCLUDE.sub(lambda _: numpy_include, text)
    return _PYTHON_INCLUDE.sub(lambda _: python_include, text)


def relocate_tree(share: Path, python_include: str, numpy_include: str) -> int:
    """Rewrite ``share/*/cmake/*.cmake`` in place; returns how many files changed (0 on a second run)."""
    changed = 0
    for path in sorted(share.glob("*/cmake/*.cmake")):
        before = path.read_text(encoding="utf-8")
        after = relocate(before, python_include, numpy_include)
        if after != before:
            path.write_text(after, encoding="utf-8")
            changed += 1
    return changed


def main() -> int:
    import numpy

    changed = relocate_tree(Path(sys.prefix) / "share", sysconfig.get_path("include"), numpy.get_include())
    sys.stdout.write(f"mended {changed} CMake files\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
