"""``geopurify bag``: recordings as rosbag2."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import track
from rich.table import Table

from geopurify_core.cli.common import err, out, parse_options

app = typer.Typer(no_args_is_help=True, help="Write and inspect rosbag2 recordings.")


@app.command("from-scannet")
def from_scannet(
    scene: Annotated[str, typer.Argument(help="ScanNet folder or .sens (any dataset `geopurify map` takes).")],
    bag: Annotated[Path, typer.Argument(metavar="OUT", help="x.mcap, x.db3, or a folder.")],
    storage: Annotated[str | None, typer.Option(help="mcap or sqlite3; by default what the suffix says.")] = None,
    compress: Annotated[bool, typer.Option(help="Compress with zstd.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    stride: Annotated[int, typer.Option(min=1, help="Use every n-th frame.")] = 1,
    max_frames: Annotated[int | None, typer.Option(min=1, help="Stop after so many frames.")] = None,
    frame_id: Annotated[str, typer.Option(help="Name of the map frame.")] = "map",
    start_s: Annotated[float, typer.Option(min=0, help="Seconds added to every stamp.")] = 0.0,
    dataset_option: Annotated[
        list[str] | None, typer.Option("--dataset-option", "-d", metavar="KEY=VALUE", help="Option of the reader.")
    ] = None,
) -> None:
    """Write a scene as a rosbag2: rgb/image, rgb/camera_info, depth/image, pose (PoseStamped) and tf."""
    from geopurify_core.datasets import iterate, open_dataset
    from geopurify_core.datasets.bag_writer import write_bag

    recording = open_dataset(scene, **parse_options(dataset_option or [], "--dataset-option"))
    total = len(range(0, len(recording), stride))
    total = min(total, max_frames) if max_frames is not None else total
    frames = iterate(recording, stride=stride, stop=None if max_frames is None else max_frames * stride)
    shown = track(frames, description=recording.name, total=total, console=err)
    count = write_bag(
        shown,
        bag,
        storage=storage,
        compress=compress,
        overwrite=force,
        frame_id=frame_id,
        start_ns=round(start_s * 1e9),
    )
    out.print(f"{count} frames  {bag} ({_size(bag) / 2**20:.1f} MB)", markup=False)
    for reason, number in recording.skipped.most_common():
        out.print(f"skipped {number}: {reason}", markup=False)


@app.command("info")
def info(bag: Annotated[Path, typer.Argument(metavar="BAG", help="A rosbag2 folder, .mcap or .db3.")]) -> None:
    """List a bag's topics, and which of them `geopurify map` would use."""
    from geopurify_core.datasets.bag_info import describe_bag

    content = describe_bag(bag)
    out.print(f"{content.duration_s:.1f} s, {content.messages:,} messages", markup=False)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("topic", "type", "messages", "used as"):
        table.add_column(name, justify="right" if name == "messages" else "left")
    for topic in content.topics:
        table.add_row(topic.name, topic.msgtype, str(topic.count), topic.role)
    out.print(table)
    if content.problem:
        err.print(content.problem, style="yellow", markup=False, soft_wrap=True)


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
