"""``geopurify export``: a map as a point cloud that other programs open."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from geopurify_core.cli.common import load_config, out


def export_map(
    map_path: Annotated[Path, typer.Argument(metavar="MAP", help="A map file written by `geopurify map`.")],
    cloud: Annotated[Path, typer.Argument(metavar="CLOUD", help="The .ply or .pcd file to write.")],
    text: Annotated[
        list[str] | None,
        typer.Option("--text", "-t", help="Label every voxel with the best of these texts; repeatable."),
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="Label with a built-in set instead, as scannet20 (its colours are used).")
    ] = None,
    paint_labels: Annotated[bool, typer.Option(help="Colour voxels by label instead of as seen.")] = True,
) -> None:
    """Write the map as a point cloud: x y z, rgb, normals, label and confidence."""
    from geopurify_core.export import write_cloud
    from geopurify_core.labels import load_label_set

    names, palette = list(text or []), None
    if labels is not None:
        label_set = load_label_set(labels)
        names, palette = list(label_set.names), label_set.palette
    if names:
        from geopurify_core.cli.text_side import open_engine

        engine = open_engine(map_path, load_config(None).query)
        index, confidence = engine.segment(names)
        snapshot = engine.snapshot
        write_cloud(snapshot, cloud, names, index, confidence, palette, paint_labels=paint_labels)
    else:
        from geopurify_core.mapping.store import load_map

        snapshot = load_map(map_path)
        write_cloud(snapshot, cloud)
    out.print(f"{len(snapshot):,} points  {cloud} ({cloud.stat().st_size / 2**20:.1f} MB)", markup=False)
