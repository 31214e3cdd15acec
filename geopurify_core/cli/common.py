"""What the commands share: consoles, one-line errors, options given as key=value."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
import yaml
from rich.console import Console
from rich.logging import RichHandler

from geopurify_core.config import Config
from geopurify_core.errors import GeoPurifyError, InvalidConfigError

# Answers go to stdout so that they can be piped; everything said on the way goes to stderr.
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

BAD_INPUT = 2
INTERRUPTED = 130


class OneLineErrors(typer.core.TyperGroup):
    """A group that turns a GeoPurifyError into one red line and exit code 2; ``--debug`` shows the traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except GeoPurifyError as error:
            if ctx.params.get("debug"):
                raise
            line = " ".join(str(error).split())
            err.print(line, style="bold red", markup=False, soft_wrap=True)
            raise typer.Exit(BAD_INPUT) from error
        except KeyboardInterrupt as error:
            err.print("Interrupted.", style="yellow")
            raise typer.Exit(INTERRUPTED) from error


def set_up_logging(verbose: bool, debug: bool) -> None:
    """Warnings by default, progress notes with ``--verbose``, everything with ``--debug``."""
    level = logging.DEBUG if debug else logging.INFO if verbose else logging.WARNING
    handler = RichHandler(console=err, show_path=False, show_time=False, markup=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler], force=True)
    logging.getLogger("geopurify_core").setLevel(level)


def parse_options(pairs: Sequence[str], field: str) -> dict[str, Any]:
    """``["a=1", "b=text"]`` as ``{"a": 1, "b": "text"}``; values are read as YAML."""
    options = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key.strip():
            raise InvalidConfigError(field, pair, "Write key=value.")
        try:
            options[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InvalidConfigError(field, pair, f"The value is no YAML: {error}") from error
    return options


def load_config(path: str | None, settings: Sequence[str] = ()) -> Config:
    """The configuration of a file (or the defaults), with dotted ``key=value`` settings on top."""
    config = Config.from_yaml(path) if path else Config()
    values = config.to_dict()
    for key, value in parse_options(settings, "--set").items():
        *groups, leaf = key.split(".")
        place = values
        for group in groups:
            if not isinstance(place.get(group), dict):
                raise InvalidConfigError(key, value, "Unknown key; `geopurify config` lists them all.")
            place = place[group]
        place[leaf] = value
    return Config.from_dict(values)


def parse_up(text: str | None) -> tuple[float, float, float] | None:
    """``"0 0 1"`` or ``"0,0,1"`` as numbers; None passes through."""
    if text is None:
        return None
    try:
        x, y, z = (float(part) for part in text.replace(",", " ").split())
    except ValueError as error:
        raise InvalidConfigError("--up", text, 'Give three numbers, for example --up "0 0 1".') from error
    return x, y, z


def check_destination(path: Path) -> None:
    """Find out before the work, not after it, that the map cannot be written."""
    if path.is_dir():
        raise InvalidConfigError("--out", str(path), "That is a folder; give the name of a file in it.")
    if path.exists() and not path.is_file():
        raise InvalidConfigError("--out", str(path), "That is a device or a pipe; give the name of a file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidConfigError("--out", str(path), f"Its folder cannot be made: {error.strerror}.") from error
    if not os.access(path.parent, os.W_OK):
        raise InvalidConfigError("--out", str(path), "Its folder is read-only; choose another one.")
