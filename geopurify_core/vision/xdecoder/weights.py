"""The published X-Decoder checkpoints: what each is, where it comes from, and where it is kept here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from geopurify_core.errors import BackboneError
from geopurify_core.vision.download import Downloaded, Progress, checksum_file, download, known_checksum
from geopurify_core.vision.labelled import WEIGHTS_VARIABLE

_HUB = "https://huggingface.co/xdecoder/X-Decoder/resolve/main"
LICENCE = "code Apache-2.0; no licence of the weights could be checked, see their page"
NO_CHECKSUM = "none published; the server's is checked, and kept beside the file"


@dataclass(frozen=True)
class ModelFile:
    """One checkpoint of the authors.

    Attributes:
        name: How it is called here.
        variant: Architecture, as ``XDecoder.from_checkpoint`` names it.
        about: What it was trained to be.
        num_bytes: About how large, from the number of its parameters.
        sha256: Checksum, where one is known.
    """

    name: str
    variant: str
    about: str
    num_bytes: int
    sha256: str = ""

    @property
    def file(self) -> str:
        """Its file name at the source and here."""
        return f"{self.name}.pt"

    @property
    def url(self) -> str:
        """Where its authors keep it."""
        return f"{_HUB}/{self.file}"


MODELS = (
    ModelFile("xdecoder_focalt_last", "focalt", "Focal-T, 100 + 1 queries, end of training", 658_000_000),
    ModelFile("xdecoder_focalt_best_openseg", "focalt", "Focal-T, best at open segmentation", 658_000_000),
    ModelFile(
        "xdecoder_focall_last", "focall", "Focal-L, 200 + 1 queries: GeoPurify's released code uses it", 1_366_000_000
    ),
    ModelFile("xdecoder_focall_bestseg", "focall", "Focal-L, best at segmentation", 1_366_000_000),
)


def model_file(name: str) -> ModelFile:
    """A checkpoint by its name (with or without ``.pt``). Raises BackboneError, which lists the names."""
    for model in MODELS:
        if name in (model.name, model.file):
            return model
    raise BackboneError("weights", name, f"Known: {', '.join(model.name for model in MODELS)}.")


def variant_of(name: str, path: Path) -> str:
    """The variant behind weights, by their name, their file's, or what a converted file says of itself.

    Raises:
        BackboneError: None of them says.
    """
    for model in MODELS:
        if model.name in (name.removesuffix(".pt"), path.stem):
            return model.variant
    told = _metadata(path).get("variant", "") if path.suffix == ".safetensors" else ""
    if not told:
        raise BackboneError("variant", "", f"Nothing says what {path.name} is; set variant: focalt, focall, ….")
    return told


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise BackboneError("weights", str(path), f"It is no whole safetensors file: {error}") from error


def convert_file(source: Path, destination: Path, variant: str = "") -> dict[str, str]:
    """Convert a checkpoint to safetensors and keep its checksum beside it.

    Args:
        source: A ``.pt`` of the authors.
        destination: The ``.safetensors``.
        variant: By default, what the name says.

    Returns:
        ``file``, ``variant``, ``sha256``, for people.

    Raises:
        BackboneError: It cannot be read, does not fit, or cannot be written.
    """
    from geopurify_core.vision.xdecoder.checkpoint import convert

    if not source.is_file():
        raise BackboneError("checkpoint", str(source), "No such file; `geopurify weights` says how to get one.")
    known = variant or variant_of(source.stem, source)
    digest = convert(source, destination, known)
    checksum_file(destination).write_text(f"{digest}  {destination.name}\n", encoding="ascii")
    return {"file": str(destination), "variant": known, "sha256": digest}


def weights_folder() -> Path:
    """Where downloads go: ``$GEOPURIFY_WEIGHTS``, else a folder of the user's cache."""
    root = os.environ.get(WEIGHTS_VARIABLE)
    if root:
        return Path(root) / "xdecoder"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "geopurify" / "weights" / "xdecoder"


def find_weights(name: str, config: str | Path = "", weights_dir: str | Path | None = None) -> Path:
    """The file behind the option ``weights``: a path, or a checkpoint's name.

    A converted ``.safetensors`` beside a ``.pt`` is preferred: it loads faster.

    Raises:
        BackboneError: It is nowhere; the message lists the places and says how to get it.
    """
    places = [Path(name)] if not config or Path(name).is_absolute() else [Path(config).parent / name, Path(name)]
    folders = [Path(root) for root in (weights_dir, os.environ.get(WEIGHTS_VARIABLE)) if root]
    folders = [*folders, *(folder / "xdecoder" for folder in folders), weights_folder()]
    stem = name.removesuffix(".pt")
    known = any(stem == model.name for model in MODELS)
    files = [f"{stem}.safetensors", f"{stem}.pt"] if known else [name]
    places = [*(folder / file for folder in folders for file in files), *places] if known else [
        *places, *(folder / name for folder in folders)
    ]  # fmt: skip
    for path in places:
        if path.is_file():
            return path
    listed = ", ".join(str(folder) for folder in dict.fromkeys(path.parent for path in places))
    remedy = f"It is in none of: {listed}. {how_to_get(model_file(stem)) if known else _other_ways()}"
    raise BackboneError("weights", name, remedy)


def how_to_get(model: ModelFile) -> str:
    """What to do to have a checkpoint here, with a network and without."""
    return (
        f"Run `geopurify weights download {model.name}`. Without a network: fetch {model.url} elsewhere "
        f"(about {model.num_bytes / 1e6:.0f} MB) and put it at {weights_folder() / model.file}."
    )


def _other_ways() -> str:
    names = ", ".join(model.name for model in MODELS)
    return f"Give the path of a checkpoint, one of {names}, or weights=random to try without (answers mean nothing)."


def download_model(
    name: str, folder: Path | None = None, *, url: str = "", sha256: str = "", progress: Progress | None = None
) -> Downloaded:
    """Fetch a checkpoint by its name.

    Args:
        name: One of ``MODELS``.
        folder: Where to; by default ``weights_folder()``.
        url: A mirror, instead of the authors' address.
        sha256: Checksum to hold it to.
        progress: See ``download``.

    Raises:
        BackboneError: Unknown name, no network (the message says what to do without), or a wrong checksum.
    """
    model = model_file(name)
    destination = (folder or weights_folder()) / model.file
    try:
        return download(url or model.url, destination, sha256=sha256 or model.sha256, progress=progress)
    except BackboneError as error:
        if error.field != "weights":
            raise
        by_hand = f"By hand: fetch {url or model.url} and put it at {destination}."
        raise BackboneError(f"weights {name}", error.value, f"{error.remedy} {by_hand}") from error


def here(model: ModelFile) -> Path | None:
    """Where a checkpoint lies on this machine, or None."""
    try:
        return find_weights(model.name)
    except BackboneError:
        return None


def checksum_of(model: ModelFile) -> str:
    """What is known about a checkpoint's checksum, for people."""
    path = here(model)
    return model.sha256 or (known_checksum(path) if path is not None else "") or NO_CHECKSUM
