"""The published Sonata checkpoint (a teacher of distillation): where it comes from, and where it is kept here."""

from __future__ import annotations

from pathlib import Path

from geopurify_core.errors import BackboneError
from geopurify_core.vision.download import Downloaded, Progress, download
from geopurify_core.vision.xdecoder.weights import weights_folder as xdecoder_folder

NAME = "sonata"
FILE = "sonata.pth"
URL = f"https://huggingface.co/facebook/sonata/resolve/main/{FILE}"
LICENCE = "CC-BY-NC-4.0"
NUM_BYTES = 434_000_000  # 108,461,376 parameters in single precision; the file itself could not be looked at
ABOUT = "Point Transformer V3 encoder, self-supervised; teacher of `python -m training prepare --teacher sonata`"


def sonata_folder() -> Path:
    """Where the download goes: ``$GEOPURIFY_WEIGHTS/sonata``, else a folder of the user's cache."""
    return xdecoder_folder().parent / NAME


def find_sonata() -> Path | None:
    """The checkpoint on this machine, or None."""
    for folder in (sonata_folder(), sonata_folder().parent):
        if (folder / FILE).is_file():
            return folder / FILE
    return None


def how_to_get() -> str:
    """What to do to have the checkpoint here, with a network and without, and under which licence."""
    return (
        f"Run `geopurify weights download {NAME}`, or fetch {URL} (about {NUM_BYTES / 1e6:.0f} MB) and put it at "
        f"{sonata_folder() / FILE}, or give checkpoint=FILE. Its licence is {LICENCE}: not for commercial use. "
        "The geometric teacher needs no weights."
    )


def download_sonata(
    folder: Path | None = None, *, url: str = "", sha256: str = "", progress: Progress | None = None
) -> Downloaded:
    """Fetch the checkpoint; arguments as of :func:`geopurify_core.vision.download.download`.

    Raises:
        BackboneError: No network (the message says what to do without), or a wrong checksum.
    """
    destination = (folder or sonata_folder()) / FILE
    try:
        return download(url or URL, destination, sha256=sha256, progress=progress)
    except BackboneError as error:
        if error.field != "weights":
            raise
        by_hand = f"By hand: fetch {url or URL} and put it at {destination}."
        raise BackboneError(f"weights {NAME}", error.value, f"{error.remedy} {by_hand}") from error
