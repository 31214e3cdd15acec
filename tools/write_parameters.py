"""Write config/mapping.yaml and the tables of docs/ros.md from the schema: run it after a change of parameters."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from geopurify_core.config import Setting, settings  # noqa: E402
from geopurify_ros.parameters import RUNTIME, schema  # noqa: E402
from geopurify_ros.replay_node import ReplayConfig  # noqa: E402

_HEAD = "| Parameter | Default | Range | At run time | Meaning |"


def _default(item: Setting) -> str:
    return "''" if item.type is dict else yaml.safe_dump(item.default, default_flow_style=True).split("\n")[0]


def table(items: Iterable[Setting]) -> str:
    """A Markdown table of parameters."""
    lines = [_HEAD, "|---|---|---|---|---|"]
    for item in items:
        limits = f"{item.ge:g} … {item.le:g}" if item.ge is not None and item.le is not None else ""
        unit = f" {item.unit}" if item.unit else ""
        change = "yes" if item.key.startswith(RUNTIME) else ""
        span = " \\| ".join(item.choices) or limits
        lines.append(f"| `{item.key}` | `{_default(item)}`{unit} | {span} | {change} | {item.description} |")
    return "\n".join(lines) + "\n"


def parameter_file() -> str:
    """config/mapping.yaml: every parameter with its default and a comment."""
    lines = ["# Every parameter of mapping_node with its default. Written by tools/write_parameters.py."]
    lines += ["/**:", "  ros__parameters:"]
    for item in schema():
        span = f" One of: {', '.join(item.choices)}." if item.choices else ""
        unit = f" [{item.unit}]" if item.unit else ""
        lines.append(f"    # {item.description}{span}{unit}")
        # rcl cannot read an empty list, it has no type
        lines.append(f"    {'# ' if item.type is list else ''}{item.key}: {_default(item)}")
    return "\n".join(lines) + "\n"


def docs(text: str) -> str:
    """docs/ros.md with its two tables, of mapping_node and of replay_node, written anew."""
    tables = {"replay_node": table(settings(ReplayConfig)), "mapping_node": table(schema())}
    for name, content in tables.items():
        pattern = rf"(<!-- parameters of {name} -->\n)(?:\|.*\n)*"
        text, count = re.subn(pattern, lambda match, content=content: match[1] + content, text)
        if count != 1:
            raise SystemExit(f"docs/ros.md needs one line <!-- parameters of {name} -->")
    return text


def main() -> None:
    """Write both files."""
    (ROOT / "config" / "mapping.yaml").write_text(parameter_file(), encoding="utf-8")
    page = ROOT / "docs" / "ros.md"
    page.write_text(docs(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
