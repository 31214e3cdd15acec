"""Run every benchmark of this folder and write out/bench.json with the facts about the machine.

Each `tools/bench/<area>.py` offers `run(quick: bool) -> dict` (JSON-able; speeds as ratios against a baseline measured
in the same run). One that fails is reported and does not stop the others; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parents[1]
sys.path.insert(0, str(ROOT))  # as `python tools/bench/run.py` is called from anywhere


def areas(folder: Path = BENCH) -> dict[str, Path]:
    """Name → file of every benchmark: all Python files but this one and those that start with an underscore."""
    return {path.stem: path for path in sorted(folder.glob("*.py")) if path.stem != "run" and path.stem[0] != "_"}


def machine_facts() -> dict[str, Any]:
    """What a reader must know to compare the figures with his own."""
    import numpy
    import psutil
    import torch

    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "--short=12", "HEAD") + ("+changes" if _git("status", "--porcelain") else ""),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def run_area(path: Path, quick: bool) -> dict[str, Any]:
    """The area's result with its duration, or ``{"error": …}``."""
    started = time.perf_counter()
    try:
        spec = importlib.util.spec_from_file_location(f"bench_{path.stem}", path)
        if spec is None or spec.loader is None:
            raise ImportError(path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        result = dict(module.run(quick))
        json.dumps(result)
    except Exception as error:  # a broken benchmark must not hide the others
        result = {"error": f"{type(error).__name__}: {error}"}
    result["seconds"] = round(time.perf_counter() - started, 2)
    return result


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a nested result with its dotted key."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{prefix}{key}.")
    elif isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        for index, item in enumerate(value):
            yield from leaves(item, f"{prefix}{index}.")
    else:
        yield prefix.rstrip("."), value


def show(results: dict[str, dict[str, Any]]) -> None:
    """One table for people."""
    from rich.console import Console
    from rich.table import Table

    table = Table("area", "figure", "value", title="bench")
    for area, result in results.items():
        for key, value in leaves(result):
            table.add_row(area, key, f"{value:.4g}" if isinstance(value, float) else str(value))
        table.add_section()
    Console().print(table)


def write(path: Path, document: dict[str, Any]) -> None:
    """The JSON file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def parse(arguments: Iterable[str] | None, known: Iterable[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure speed and memory; figures go to out/bench.json.")
    parser.add_argument("--only", nargs="+", metavar="AREA", choices=sorted(known), help=f"one of: {', '.join(known)}")
    parser.add_argument("--quick", action="store_true", help="smaller inputs and fewer repetitions")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "bench.json")
    return parser.parse_args(None if arguments is None else list(arguments))


def main(arguments: Iterable[str] | None = None) -> int:
    found = areas()
    options = parse(arguments, found)
    results = {}
    for name in options.only or found:
        sys.stderr.write(f"bench {name} …\n")
        results[name] = run_area(found[name], options.quick)
        write(options.out, {"machine": machine_facts(), "quick": options.quick, "results": results})
    show(results)
    sys.stderr.write(f"written: {options.out}\n")
    return int(any("error" in result for result in results.values()))


if __name__ == "__main__":
    raise SystemExit(main())
