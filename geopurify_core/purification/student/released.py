"""Checkpoint files as tensors: our safetensors, and the torch files that the released training code writes.

Nothing in a file is trusted: torch files are read as weights only, and whatever is wrong becomes a StudentError.
"""

from __future__ import annotations

import contextlib
import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from geopurify_core.errors import StudentError

VERSION = 1
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_STATE = "model_state_dict"
_PARALLEL_PREFIX = "module."


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The tensors of a checkpoint on the CPU, and its ``student`` entry where it has one.

    Raises:
        StudentError: There is no such file, it is truncated, or it is something else.
    """
    start = _first_bytes(path)
    if start.startswith((_ZIP, _PICKLE)):
        return _read_torch(path), None
    try:
        with safe_open(str(path), framework="pt") as file:
            entry = _entry_of(path, file.metadata())
            return {name: file.get_tensor(name) for name in file.keys()}, entry  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise _foreign(path, error) from error


def read_entry(path: Path) -> dict[str, Any] | None:
    """The ``student`` entry of a safetensors file; reads the header only. Raises StudentError as read_tensors does."""
    _first_bytes(path)
    try:
        with safe_open(str(path), framework="pt") as file:
            return _entry_of(path, file.metadata())
    except (SafetensorError, OSError, ValueError) as error:
        raise _foreign(path, error) from error


def _first_bytes(path: Path) -> bytes:
    if not path.is_file():
        raise StudentError("student", str(path), "There is no such file; name a checkpoint.")
    try:
        with path.open("rb") as file:
            return file.read(8)
    except OSError as error:
        raise StudentError("student", str(path), f"It cannot be read: {error.strerror or error}.") from error


def _foreign(path: Path, error: Exception) -> StudentError:
    reason = str(error).strip().split("\n")[0][:200]
    return StudentError(
        "student", str(path), f"It is no whole safetensors or torch checkpoint ({reason}); copy or download it again."
    )


def _entry_of(path: Path, metadata: Mapping[str, str] | None) -> dict[str, Any] | None:
    if not metadata or "student" not in metadata:
        return None
    entry = json.loads(metadata["student"])
    if not isinstance(entry, dict):
        raise StudentError("student", str(path), "Its student entry must be a JSON object.")
    version = entry.pop("version", VERSION)
    if type(version) is not int or version > VERSION:
        raise StudentError("student.version", version, f"This program reads up to {VERSION}; install a newer one.")
    return entry


def _read_torch(path: Path) -> dict[str, Tensor]:
    """``model_state_dict`` of a torch file (or the file itself, if it is a bare state dict).

    The optimiser's state beside it is twice as large: mapped files leave it on disk.
    """
    mapped = path.open("rb").read(4) == _ZIP
    try:
        with _numpy_scalars():
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise StudentError(
            "student",
            str(path),
            "It holds more than tensors and numbers, or is damaged. Such a file can run programs and is not opened; "
            "save the state dict alone.",
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise _foreign(path, error) from error
    state = content.get(_STATE, content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise StudentError("student", str(path), f"It has no {_STATE} with tensors by name.")
    return {str(name).removeprefix(_PARALLEL_PREFIX): tensor for name, tensor in state.items()}


@contextlib.contextmanager
def _numpy_scalars() -> Iterator[None]:
    """Within it, weights-only files may hold numpy numbers: the released ``tensorboard_scalars`` can be such."""
    allow = getattr(torch.serialization, "safe_globals", None)
    if allow is None:  # an older torch, which then refuses such files
        yield
        return
    scalar = np.float64(0).__reduce__()[0]  # its module has another name in each version of numpy
    kinds = [type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8")]
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    with allow([*names, np.dtype, *kinds]):
        yield
