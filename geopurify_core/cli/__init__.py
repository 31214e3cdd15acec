"""``geopurify``: map a recording, ask the map, export it, without ROS."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from types import FrameType

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 unexpected, 2 bad input (one line says what), 130 interrupted."""
    from geopurify_core.cli.app import app

    signal.signal(signal.SIGTERM, _interrupt)
    app(args=list(arguments) if arguments is not None else sys.argv[1:], prog_name="geopurify")


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """Being told to end is treated like Ctrl-C, so that half-written files are removed and finished work is kept."""
    raise KeyboardInterrupt
