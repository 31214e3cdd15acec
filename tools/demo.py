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

# What is asked, and which of the apartment's classes would be a right answer.
QUESTIONS: dict[str, tuple[str, ...]] = {
    "somewhere to sleep": ("bed",),
    "a place to sit": ("chair", "sofa"),
    "toilet": ("toilet",),
    "keep food cold": ("refrigerator",),
    "bathtub": ("bathtub",),
    "bookshelf": ("bookshelf",),
}


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
    _draw(out, report)
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    _print_report(report, out)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "demo")
    parser.add_argument("--seed", type=int, default=3, help="apartment (the network was trained on seeds from 1000 on)")
    parser.add_argument("--frames", type=int, default=240)
    return parser.parse_args()


def _run_graph(arguments: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Start the nodes, follow the walk, ask on the way and at the end, save the map."""
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
        with running("mapping_node", logs / "mapping_node.log", {}) as mapping:
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
            progress.update(task, completed=status.frames_integrated, voxels=f"{status.num_voxels:,} voxels")
            if status.frames_integrated > (len(live_ms) + 1) * frames / 8:
                live_ms.append(client.query(["chair"])[1])
    if player.returncode != 0:
        raise DemoError(f"The replay node ended with {player.returncode}.")
    client.listen(1.0)
    return live_ms


def _ask(client: Client, arguments: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Every question through the service, the labelled map, and the saved file; judged against the ground truth."""
    from geopurify_core.datasets.synthetic import SyntheticDataset
    from geopurify_core.mapping.store import load_map

    status = client.status
    answer, query_ms = client.query(list(QUESTIONS))
    client.save(out / "map.safetensors")
    snapshot = load_map(out / "map.safetensors")
    truth = SyntheticDataset(arguments.seed, num_frames=1)
    return {
        "dataset": truth.name,
        "backbone": snapshot.backbone,
        "purified": None,
        "mapping": {
            "frames": int(status.frames_integrated),
            "frames_dropped": int(status.frames_dropped),
            "frames_failed": int(status.frames_failed),
            "voxels": len(snapshot),
            "voxel_size_m": snapshot.voxel_size_m,
            "map_bytes": int(status.bytes),
        },
        "query_ms": round(query_ms, 1),
        "semantic": _judge_labels(client, truth),
        "queries": {text: _judge_objects(text, answer, truth) for text in QUESTIONS},
    }


def _judge_labels(client: Client, truth: Any) -> dict[str, Any]:
    """mIoU and mAcc of ~/segment against the apartment, over the ScanNet-20 classes that stand in it."""
    import numpy as np

    from geopurify_core.evaluation.metrics import confusion_matrix, scores
    from geopurify_core.labels import load_label_set
    from geopurify_ros.clouds import cloud_points, cloud_rows

    names = list(load_label_set("scannet20").names)
    cloud = client.segment(names).cloud
    points, predicted = cloud_points(cloud), cloud_rows(cloud)["label"]
    expected = truth.ground_truth(points)
    index = np.array([names.index(name) if name in names else 255 for name in truth.class_names] + [255] * 256)
    confusion = confusion_matrix(index[expected], predicted, len(names))
    result = scores(confusion, names)
    return {"miou": result.miou, "macc": result.macc, "accuracy": result.accuracy, "iou": result.iou}


def _judge_objects(text: str, answer: Any, truth: Any) -> dict[str, Any]:
    """The answers to one text, and the class that most of each one's voxels really belong to."""
    from geopurify_ros.clouds import cloud_points, cloud_rows

    points, instance = cloud_points(answer.cloud), cloud_rows(answer.cloud)["instance"]
    rows = []
    for item in (item for item in answer.objects if item.text == text):
        centre, size = item.pose.position, item.size
        rows.append(
            {
                "score": round(item.score, 3),
                "center_m": [round(v, 3) for v in (centre.x, centre.y, centre.z)],
                "size_m": [round(v, 3) for v in (size.x, size.y, size.z)],
                "num_voxels": item.num_voxels,
                "really": _majority(truth.ground_truth(points[instance == item.instance]), truth.class_names),
            }
        )
    right = bool(rows) and rows[0]["really"] in QUESTIONS[text]
    return {"first_is_right": right, "right_answers": list(QUESTIONS[text]), "objects": rows}


def _majority(classes: Any, names: tuple[str, ...]) -> str:
    """The most frequent class, unlabelled points (255) aside."""
    known = classes[classes < len(names)].tolist()
    return names[max(set(known), key=known.count)] if known else "nothing"


def _draw(out: Path, report: dict[str, Any]) -> None:
    """The pictures and the labelled cloud, from the saved map alone, as any other program could make them."""
    from geopurify_core.export import write_cloud
    from geopurify_core.labels import load_label_set
    from geopurify_core.mapping.store import load_map
    from geopurify_core.querying.engine import QueryEngine
    from geopurify_core.vision import load_backbone
    from geopurify_core.viz import draw_map, draw_query

    snapshot = load_map(out / "map.safetensors")
    engine = QueryEngine(snapshot, load_backbone("nano"))
    _say("Drawing …")
    up = (0.0, 0.0, 1.0)
    draw_map(snapshot, out / "map.png", up, title=report["dataset"])
    for result in engine.query(list(QUESTIONS), max_objects=5):
        draw_query(snapshot, result, out / f"query_{_slug(result.text)}.png", up)
    labels = load_label_set("scannet20")
    label, confidence = engine.segment(list(labels.names))
    write_cloud(snapshot, out / "semantic.ply", labels.names, label, confidence, labels.palette)


def _print_report(report: dict[str, Any], out: Path) -> None:
    mapping, semantic = report["mapping"], report["semantic"]
    right = [text for text, answer in report["queries"].items() if answer["first_is_right"]]
    _say(
        f"{mapping['frames']} frames at {mapping['frames_per_s']} frames/s, {mapping['voxels']:,} voxels, "
        f"{mapping['map_bytes'] / 2**20:.0f} MiB; {len(QUESTIONS)} texts answered in {report['query_ms']} ms."
    )
    _say(f"Labels: mIoU {semantic['miou']:.3f}, mAcc {semantic['macc']:.3f} over ScanNet-20, raw (not purified).")
    wrong = [text for text in QUESTIONS if text not in right]
    misses = f"; wrong: {', '.join(wrong)}" if wrong else ""
    _say(f"First answer right for {len(right)} of {len(QUESTIONS)} texts{misses}.")
    _say(f"Look into {_shown(out)}: map.png, query_*.png, semantic.ply, report.json.")


def _say(text: str) -> None:
    from rich.console import Console

    Console(highlight=False).print(text, soft_wrap=True)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def _shown(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


if __name__ == "__main__":
    sys.exit(main())
