"""Score the one real labelled room that can be had without an agreement, as docs/evaluation.md reports it.

    python tools/real_room.py DATA --weights WEIGHTS      # prints the two tables; goes on where it was stopped

DATA holds ``scan_scene0000_00/labelled.ply`` and posed images in ``rend_scene0000_00`` (rendered from the scan) and
``posed_images_scene0000_00`` (3 photographs); WEIGHTS the segmenter's (docs/backbones.md). Each run is an ordinary
``geopurify eval scans``, whose report stays in ``--out``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VIEWS = {"rend_scene0000_00": "36 rendered views", "posed_images_scene0000_00": "3 photographs"}
BACKBONES = ("nano", "segmenter")
PROTOCOLS = ("openscene", "geopurify", "map")
VARIANTS = ("raw", "T=1", "T=6", "T=18", "T=36")


def main() -> None:
    """Run what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, required=True, help="folder with the segmenter's weights")
    parser.add_argument("--out", type=Path, default=Path("out/real_room"))
    parser.add_argument(
        "--student", type=Path, help="for nano, instead of the shipped one; give it an --out of its own"
    )
    parser.add_argument("--fresh", action="store_true", help="score again what has been scored")
    options = parser.parse_args()
    reports = {}
    for views, backbone, protocol in _runs():
        folder = options.out / f"{views}_{backbone}_{protocol}"
        command = [
            sys.executable, "-m", "geopurify_core.cli", "eval", "scans",
            str(options.data / "scan_scene0000_00" / "labelled.ply"), "--dataset", "cloud",
            "--views", str(options.data / views), "--stride", "1", "--lift", "robot", "--protocol", protocol,
            "--backbone", backbone, "--steps", "1,6,18,36", "--out", str(folder), "--json",
            *(["-b", f"weights_dir={options.weights}"] if backbone == "segmenter" else []),
            *(["--student", str(options.student)] if options.student and backbone == "nano" else []),
            *(["--fresh"] if options.fresh else []),
        ]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        reports[views, backbone, protocol] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    for which in ("seen", "all"):
        sys.stdout.write(f"\nmIoU (accuracy), {which} points\n\n{_table(reports, which)}\n")
    students = {report["student"]: report["student_about"] for report in reports.values()}
    seconds = [report["run"]["seconds"] for report in reports.values()]
    sys.stdout.write(f"\nstudents: {json.dumps(students)}\nseconds a run: {min(seconds)} to {max(seconds)}\n")


def _runs() -> Iterator[tuple[str, str, str]]:
    return ((views, backbone, protocol) for views in VIEWS for backbone in BACKBONES for protocol in PROTOCOLS)


def _table(reports: dict[tuple[str, str, str], Any], which: str) -> str:
    head = ("images", "backbone", "protocol", *(name.replace("=", " = ") for name in VARIANTS))
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for views, backbone, protocol in _runs():
        results = reports[views, backbone, protocol]["results"]
        cells = [_cell(results[name]["20"][which]) if name in results else "n/a" for name in VARIANTS]
        lines.append(f"| {VIEWS[views]} | `{backbone}` | `{protocol}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: dict[str, float]) -> str:
    return f"{100 * values['miou_present']:.1f} ({100 * values['accuracy']:.1f})"


if __name__ == "__main__":
    main()
