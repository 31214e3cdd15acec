"""``python -m training select``: which few scenes to learn from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geopurify_core.cli.common import err, out
from geopurify_core.errors import DatasetError, InvalidConfigError

if TYPE_CHECKING:
    from training.selection.algorithm import Selection, SelectionSettings
    from training.selection.sources import Skipped
    from training.selection.statistics import SceneStatistics

_LONG_TABLE = 60
_PRESETS = "paper, paper-matterport, official_code, own; or a published list: table6-scannet, table6-matterport"


def select(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(metavar="SOURCE…", help="Scenes, or folders of them: prepared shards, data sets, meshes, maps."),
    ] = None,
    preset: Annotated[str | None, typer.Option(help=f"{_PRESETS}. Without labels: own, else paper.")] = None,
    count: Annotated[int | None, typer.Option(help="Scenes to choose.")] = None,
    clusters: Annotated[
        int | None, typer.Option(help="K of K-Means; by default the preset's, but not more than are chosen.")
    ] = None,
    gamma: Annotated[float | None, typer.Option(help="Weight of richness beside complexity.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of K-Means.")] = None,
    proportions: Annotated[
        bool | None, typer.Option("--proportions/--counts", help="Cluster shares of the classes, or raw counts.")
    ] = None,
    keep_all: Annotated[bool, typer.Option("--keep-all", help="No median filter: for few scenes.")] = False,
    without_labels: Annotated[
        bool,
        typer.Option("--without-labels", help="Sorts of surfaces instead of classes: for a building of one's own."),
    ] = False,
    label_set: Annotated[str | None, typer.Option(help="Classes to count, such as scannet20 or matterport21.")] = None,
    list_file: Annotated[Path | None, typer.Option("--out", help="List for `prepare`: one scene a line.")] = None,
    link: Annotated[
        Path | None, typer.Option(help="Folder of links to the chosen prepared shards, for `distil`.")
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw richness, complexity and clusters here.")] = None,
    show_all: Annotated[bool, typer.Option("--all", help="Show every scene, not the chosen ones only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Choose the scenes to learn from (Algorithm 1): rich ones, balanced ones, and of every sort some."""
    from training.selection.table6 import TABLE6

    preset = preset or ("own" if without_labels else "paper")
    if preset in TABLE6:
        _published(preset, sources or [], list_file, link, as_json)
        return
    settings = _settings(
        preset, count, clusters, gamma=gamma, seed=seed, proportions=proportions, keep_all=keep_all or None
    )
    statistics, skipped = _read(sources or [], label_set, without_labels)
    from training.selection.algorithm import select_scenes

    try:
        selection = select_scenes(statistics, settings)
    finally:
        _tell_skipped(skipped)  # before an error, too: it may be the reason
    chosen = [(one.scene.name, one.scene.source) for one in selection.chosen]
    _write(list_file, link, chosen, f"python -m training select: {len(chosen)} of {len(statistics)} scenes, {settings}")
    kinds = "sorts of surfaces" if without_labels else "classes"
    if picture is not None:
        from training.selection.picture import draw_selection

        draw_selection(selection, picture, kinds)
    _show(selection, skipped, kinds, show_all, as_json)


def _settings(preset: str, count: int | None, clusters: int | None, **changes: Any) -> SelectionSettings:
    """The preset with what was asked for on top; fewer scenes than clusters only where that was asked for."""
    from training.selection.algorithm import SelectionSettings

    settings = SelectionSettings.preset(preset)
    if count is not None:
        changes |= {"count": count, "clusters": min(settings.clusters, count)}
    if clusters is not None:
        changes["clusters"] = clusters
    changed = {name: value for name, value in changes.items() if value is not None}
    return SelectionSettings.preset(preset, **changed)


def _read(
    sources: list[Path], label_set: str | None, without_labels: bool
) -> tuple[list[SceneStatistics], list[Skipped]]:
    from rich.progress import Progress

    from training.selection.label_files import class_count
    from training.selection.sources import find_scenes, read_scenes

    if not sources:
        raise InvalidConfigError("SOURCE", None, "Name at least one scene, or a folder of scenes.")
    if label_set is not None:
        class_count(label_set)  # an unknown one is one error, not one for each scene
    candidates = find_scenes(sources, label_set, without_labels)
    with Progress(console=err, transient=True) as progress:
        bar = progress.add_task("reading scenes", total=len(candidates))
        return read_scenes(candidates, lambda: progress.advance(bar))


def _published(preset: str, sources: list[Path], list_file: Path | None, link: Path | None, as_json: bool) -> None:
    """A list of Table 6, found in the sources where there are any."""
    from training.selection.listing import published
    from training.selection.sources import find_named
    from training.selection.table6 import TABLE6

    names = TABLE6[preset]
    scenes: list[tuple[str, Path | None]] = [(name, None) for name in names]
    missing: list[str] = []
    if sources:
        scenes, missing = published(names, find_named(sources))
    if not scenes:
        raise DatasetError(preset, [str(source) for source in sources], "None of the scenes listed is there.")
    _write(list_file, link, scenes, f"GeoPurify, Table 6: {preset}")
    if as_json:
        typer.echo(json.dumps({"preset": preset, "chosen": [name for name, _ in scenes], "missing": missing}, indent=2))
    else:
        out.print("\n".join(str(source or name) for name, source in scenes), markup=False, soft_wrap=True)
    if missing:
        err.print(f"{len(missing)} of {len(names)} are missing: {', '.join(missing)}", style="yellow", markup=False)


def _write(list_file: Path | None, link: Path | None, scenes: list[tuple[str, Path | None]], heading: str) -> None:
    from training.selection.listing import link_shards, write_list

    if list_file is not None:
        write_list(list_file, scenes, heading)
    if link is not None:
        link_shards(link, scenes)


def _show(selection: Selection, skipped: list[Skipped], kinds: str, show_all: bool, as_json: bool) -> None:
    from training.selection.listing import plain, table_of

    if as_json:
        typer.echo(json.dumps(plain(selection, skipped), ensure_ascii=False, indent=2))
        return
    short = show_all or len(selection.scenes) <= _LONG_TABLE
    out.print(table_of(selection.scenes if short else selection.chosen))
    passed = sum(one.passed for one in selection.scenes)
    medians = f"N_c ≥ {selection.median_richness:g} and H_c ≥ {selection.median_complexity_bits:.3f}"
    filter_ = "no filter" if selection.settings.keep_all else f"{passed} have {medians}"
    counts = f"{len(selection.scenes)} scenes, {filter_}; {len(selection.chosen)} chosen"
    out.print(f"{counts}. N_c and H_c are of {kinds}.", markup=False, soft_wrap=True)
    if selection.filled:
        out.print(f"{selection.filled} of them fill up for clusters smaller than their share.", markup=False)


def _tell_skipped(skipped: list[Skipped]) -> None:
    if skipped:
        err.print(f"{len(skipped)} scenes left out:", style="yellow")
    for one in skipped:
        err.print(f"  {one.name}: {one.reason}", markup=False, soft_wrap=True)
