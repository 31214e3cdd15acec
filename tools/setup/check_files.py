"""Small checks of files before a commit: size, whitespace, merge marks, and that YAML, JSON and XML parse."""

from __future__ import annotations

import argparse
import json
import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from pathlib import Path

_MERGE_MARK = re.compile(r"^(<{7} |={7}$|>{7} )", re.MULTILINE)


def problems_of_text(path: Path) -> Iterator[str]:
    """What is wrong with a text file, one sentence each."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        yield "is not UTF-8"
        return
    if _MERGE_MARK.search(text):
        yield "holds a merge mark"
    if path.suffix != ".md" and any(line != line.rstrip() for line in text.splitlines()):
        yield "has blanks at the end of a line"
    if text and (not text.endswith("\n") or text.endswith("\n\n")):
        yield "must end in exactly one newline"
    yield from _problems_of_syntax(path, text)


def _problems_of_syntax(path: Path, text: str) -> Iterator[str]:
    import yaml

    try:
        if path.suffix in {".yaml", ".yml", ".rviz"}:
            list(yaml.safe_load_all(text))
        elif path.suffix == ".json":
            json.loads(text)
        elif path.suffix in {".xml", ".launch"}:
            ET.fromstring(text)
    except (yaml.YAMLError, json.JSONDecodeError, ET.ParseError) as error:
        yield f"does not parse: {error}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", action="store_true", help="check the content of text files")
    parser.add_argument("--max-mb", type=float, default=0.0, help="refuse larger files")
    parser.add_argument("files", nargs="*", type=Path)
    options = parser.parse_args(arguments)
    bad = 0
    for path in options.files:
        found = list(problems_of_text(path)) if options.text else []
        if options.max_mb and path.stat().st_size > options.max_mb * 1e6:
            found.append(f"is larger than {options.max_mb:g} MB")
        for problem in found:
            sys.stdout.write(f"{path}: {problem}\n")
        bad += bool(found)
    return int(bad > 0)


if __name__ == "__main__":
    raise SystemExit(main())
