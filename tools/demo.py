"""make demo: the real ROS graph, replay → mapping → query, on the built-in apartment; then pictures and a report."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

from demo_graph import ROOT, Client, DemoError, private_network, running
from demo_judge import QUESTIONS, count_right, judge

RAW_MAP, PURIFIED_MAP = "map.safetensors", "map_purified.safetensors"
UP = (0.0, 0.0, 1.0)


def main() -> int:
    arguments = _arguments()
    out: Path = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    private_network()
    _say(f"The apartment of seed {arguments.seed}, {arguments.frames} frames; logs in {_shown(out)}/logs/.")
    try:
        report = _run_graph(arguments, out)
    except DemoError as error:
        _say(f"[red]{error}[/red] Look into {_shown(out)}/logs/.")
        return 1
    _draw(out, report, arguments.seed)
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    _print_report(report, out)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "demo")
    parser.add_argument("--seed", type=int, default=3, help="apartment (the network was trained on seeds from 1000 on)")
    parser.add_argument("--frames", type=int, default=240)
    parser.add_argument("--student", default="", help="checkpoint to purify with (the shipped one)")
    return parser.parse_args()


def _run_graph(arguments: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Start the nodes, follow the walk, ask on the way and at the end, purify, ask again, save both maps."""
    import rclpy

    logs = out / "logs"
    replay = {
        "dataset": f"synthetic:{arguments.seed}",
        "options": f"'{{num_frames: {arguments.frames}}}'",
        "lockstep": "true",
    }
    rclpy.init()
    client = Client()
    try:
        settings = {"purification.student": arguments.student} if arguments.student else {}
        with running("mapping_node", logs / "mapping_node.log", settings) as mapping:
            _say("Starting the mapping node (the first start compiles its kernels: up to a minute) …")
            client.wait_until_ready(mapping, 180.0)
            started = time.monotonic()
            with running("replay_node", logs / "replay_node.log", replay) as player:
                live_ms = _follow(client, player, arguments.frames)
            walk_s = time.monotonic() - started
            report = _ask(client, arguments, out)
            report["mapping"] |= {"seconds": round(walk_s, 1), "frames_per_s": round(arguments.frames / walk_s, 1)}
            report["query_ms_while_mapping"] = [round(ms, 1) for ms in live_ms]
        report["exit_codes"] = {"mapping_node": mapping.returncode, "replay_node": player.returncode}
        return report
    finally:
        client.destroy_node()
        rclpy.try_shutdown()


def _follow(client: Client, player: Any, frames: int) -> list[float]:
    """Show progress until the recording has ended; ask something every so often. Returns the answers' times, ms."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    count, voxels = "{task.completed}/{task.total} frames", TextColumn("{task.fields[voxels]}")
    columns = ("Driving through", BarColumn(), count, voxels)
    live_ms: list[float] = []
    with Progress(*columns, TimeRemainingColumn()) as progress:
        task = progress.add_task("walk", total=frames, voxels="")
        while player.poll() is None:
            client.listen(0.5)
            status = client.status
            purified = status.purification.num_voxels
            words = f"{status.num_voxels:,} voxels" + (f", {purified:,} purified" if purified else "")
            progress.update(task, completed=status.frames_integrated, voxels=words)
            if status.frames_integrated > (len(live_ms) + 1) * frames / 8:
                live_ms.append(client.query(["chair"])[1])
    if player.returncode != 0:
        raise DemoError(f"The replay node ended with {player.returncode}.")
    client.listen(1.0)
    return live_ms


def _ask(client: Client, arguments: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Everything through the services, of the raw map and then of the purified one, judged against the ground truth."""
    from geopurify_core.datasets.synthetic import SyntheticDataset
    from geopurify_core.mapping.store import load_map

    status = client.status
    truth = SyntheticDataset(arguments.seed, num_frames=1)
    raw = judge(client, truth, purified=False)
    client.save(out / RAW_MAP)
    snapshot = load_map(out / RAW_MAP)
    report = {
        "dataset": truth.name,
        "backbone": snapshot.backbone,
        "mapping": {
            "frames": int(status.frames_integrated),
            "frames_dropped": int(status.frames_dropped),
            "frames_failed": int(status.frames_failed),
            "voxels": len(snapshot),
            "voxel_size_m": snapshot.voxel_size_m,
            "map_bytes": int(status.bytes),
            "purified_on_the_way": int(status.purification.num_purified),
        },
        **raw,
        "purified": None,
    }
    if status.purification.state == "off":
        _say(f"[yellow]Nothing is purified:[/yellow] {status.purification.message}")
        return report
    purified = _purify(client)
    purified |= judge(client, truth, purified=True)
    client.save(out / PURIFIED_MAP, purified=True)
    semantic = purified.pop("semantic")  # beside the rest: report["purified"]["miou"]
    gain = {name: semantic[name] - raw["semantic"][name] for name in ("miou", "macc", "accuracy")}
    gain["first_is_right"] = count_right(purified["queries"]) - count_right(raw["queries"])
    report["purified"] = semantic | purified | {"gain": gain}
    return report


def _purify(client: Client) -> dict[str, Any]:
    """Purify what has been mapped, with a progress bar; how long it took."""
    from rich.progress import BarColumn, Progress, TextColumn

    with Progress("Purifying", BarColumn(), TextColumn("{task.fields[step]}")) as progress:
        task = progress.add_task("purify", total=1.0, step="")
        answer = client.purify(lambda now: progress.update(task, completed=now.progress, step=now.step))
        words = f"{answer.num_voxels:,} voxels in {answer.seconds:.1f} s ({answer.mode})"
        progress.update(task, completed=1.0, step=words)
    client.listen(1.5)  # until the status tells of it
    return {
        "seconds": round(answer.seconds, 2),
        "mode": answer.mode,
        "voxels": int(answer.num_voxels),
        "bytes": int(client.status.purification.bytes),
    }


def _draw(out: Path, report: dict[str, Any], seed: int) -> None:
    """The pictures and the labelled cloud, from the saved maps alone, as any other program could make them."""
    from geopurify_core.export import write_cloud
    from geopurify_core.labels import load_label_set
    from geopurify_core.mapping.store import load_map
    from geopurify_core.querying.engine import QueryEngine
    from geopurify_core.vision import load_backbone
    from geopurify_core.viz import draw_map, draw_query

    _say("Drawing …")
    backbone, labels = load_backbone("nano"), load_label_set("scannet20")
    found = []
    for name in (RAW_MAP, PURIFIED_MAP) if report["purified"] else (RAW_MAP,):
        snapshot = load_map(out / name)
        engine = QueryEngine(snapshot, backbone)
        found.append((snapshot, *engine.segment(list(labels.names))))
    draw_map(snapshot, out / "map.png", UP, title=report["dataset"])
    for result in engine.query(list(QUESTIONS), max_objects=5):  # the purified map, where there is one
        draw_query(snapshot, result, out / f"query_{_slug(result.text)}.png", UP)
    write_cloud(snapshot, out / "semantic.ply", labels.names, *found[-1][1:], labels.palette)
    _draw_labels(out, report, found, labels, seed)


def _draw_labels(out: Path, report: dict[str, Any], found: list[Any], labels: Any, seed: int) -> None:
    """Ground truth, raw and purified labels side by side. The rows of the two maps are in different orders."""
    import numpy as np

    from geopurify_core.datasets.synthetic import SyntheticDataset
    from geopurify_core.mapping.keys import pack_keys
    from geopurify_core.viz_labels import LabelMap, draw_labels

    truth = SyntheticDataset(seed, num_frames=1)
    orders = [np.argsort(pack_keys(snapshot.coords)) for snapshot, *_ in found]
    snapshot = found[-1][0]
    index = np.array([labels.names.index(n) if n in labels.names else -1 for n in truth.class_names] + [-1] * 256)
    really = np.empty(len(snapshot), dtype=np.int64)
    really[orders[-1]] = index[truth.ground_truth(snapshot.centers_m[orders[-1]])]
    answers = []
    for (words, figures), order, item in zip(_figures(report), orders, found, strict=True):
        rows = np.empty(len(snapshot), dtype=np.int64)
        rows[orders[-1]] = item[1][order]
        answers.append(LabelMap(f"{words}: mIoU {figures['miou']:.3f}, mAcc {figures['macc']:.3f}", rows))
    title = f"{report['dataset']}: the 20 classes of ScanNet"
    draw_labels(
        snapshot,
        LabelMap("ground truth", really),
        answers,
        labels.names,
        labels.palette,
        out / "semantic.png",
        UP,
        title,
    )


def _figures(report: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The labels' figures of the raw map, and of the purified one where there is one."""
    return [("raw", report["semantic"]), *([("purified", report["purified"])] if report["purified"] else [])]


def _print_report(report: dict[str, Any], out: Path) -> None:
    mapping, purified = report["mapping"], report["purified"]
    _say(
        f"{mapping['frames']} frames at {mapping['frames_per_s']} frames/s, {mapping['voxels']:,} voxels, "
        f"{mapping['map_bytes'] / 2**20:.0f} MiB; {len(QUESTIONS)} texts answered in {report['query_ms']} ms."
    )
    if purified:
        _say(
            f"Purified {purified['voxels']:,} voxels in {purified['seconds']} s; "
            f"{len(QUESTIONS)} texts answered in {purified['query_ms']} ms."
        )
    for words, figures in _figures(report):
        queries = report["queries"] if words == "raw" else figures["queries"]
        wrong = [text for text, answer in queries.items() if not answer["first_is_right"]]
        _say(
            f"  {words:9s} mIoU {figures['miou']:.3f}, mAcc {figures['macc']:.3f}, accuracy {figures['accuracy']:.3f} "
            f"(ScanNet-20); first answer right for {len(queries) - len(wrong)} of {len(queries)} texts"
            + (f"; wrong: {', '.join(wrong)}" if wrong else "")
        )
    if purified:
        gain = purified["gain"]
        _say(f"  gain      mIoU {gain['miou']:+.3f}, mAcc {gain['macc']:+.3f}, accuracy {gain['accuracy']:+.3f}")
    _say(f"Look into {_shown(out)}: semantic.png, map.png, query_*.png, semantic.ply, report.json.")


def _say(text: str) -> None:
    from rich.console import Console

    Console(highlight=False).print(text, soft_wrap=True)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def _shown(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


if __name__ == "__main__":
    sys.exit(main())
