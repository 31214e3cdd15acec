"""``geopurify config``: what can be set."""

from __future__ import annotations

from typing import Any

import typer
import yaml

from geopurify_core.config import Setting, settings


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
