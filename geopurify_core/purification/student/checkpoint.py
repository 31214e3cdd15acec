"""Student checkpoints on disk: reading ours and the released ones, writing ours, finding the one that fits a backbone.

Ours are safetensors files whose metadata hold a JSON entry ``student`` (the fields of :class:`StudentInfo`). The
released checkpoints ({epoch, model_state_dict, optimizer_state_dict, tensorboard_scalars}) load as well; they do not
say which backbone they were trained for, so whoever names one says so.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from geopurify_core.errors import NotAvailableError, StudentError
from geopurify_core.purification.student.network import GEOMETRY_CHANNELS, StudentAffinityNetwork
from geopurify_core.purification.student.released import VERSION, read_entry, read_tensors
from geopurify_core.purification.student.trained import Student, StudentInfo

__all__ = [
    "Student",
    "StudentInfo",
    "find_student",
    "load_student",
    "resolve_device",
    "save_student",
    "shipped_student",
    "weights_fingerprint",
]

log = logging.getLogger(__name__)

SHIPPED_FOLDER = Path(__file__).parent / "weights"
_MOST_NAMES_SHOWN = 4
_FLOAT16_MAX = 65504.0


# -- finding ---------------------------------------------------------------------------------------------------------


def find_student(
    path: str | Path, backbone: str, *, device: str | torch.device = "auto", engine: str = "torch"
) -> Student | None:
    """The student for maps of ``backbone``: the one at ``path``, or where that is empty the shipped one, or None.

    Raises:
        StudentError: The file cannot be read, or says that it was trained for another backbone.
        NotAvailableError: The device or the engine is not there.
    """
    found = Path(path) if str(path) else shipped_student(backbone)
    if found is None:
        return None
    student = load_student(found, device=device, engine=engine)
    student.check_backbone(backbone)
    if not student.backbone:
        log.warning("%s does not say which backbone it was trained for; it is taken to be %s", found, backbone)
    return student


def shipped_student(backbone: str) -> Path | None:
    """The checkpoint in this package that was trained for that fingerprint; reads nothing but headers."""
    for path in sorted(SHIPPED_FOLDER.glob("*.safetensors")):
        try:
            entry = read_entry(path)
        except StudentError as error:
            log.warning("a shipped student cannot be read: %s", error)
            continue
        if entry is not None and entry.get("backbone") == backbone:
            return path
    return None


def resolve_device(device: str | torch.device) -> torch.device:
    """``auto`` is CUDA where there is one. Raises NotAvailableError for CUDA where there is none."""
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    resolved = torch.device(device)
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise NotAvailableError("purification.device", str(device), "torch finds no CUDA here: set auto or cpu.")
    return resolved


# -- reading ---------------------------------------------------------------------------------------------------------


def load_student(
    path: str | Path, *, device: str | torch.device = "cpu", backbone: str = "", engine: str = "torch"
) -> Student:
    """A student from a safetensors file of ours or a released torch checkpoint; its sizes follow from the weights.

    Args:
        path: The file.
        device: ``auto``, or a torch device.
        backbone: Fingerprint to assume where the file does not say which backbone it is for.
        engine: Implementation of the sparse layers (``sparse.engine`` in the configuration).

    Returns:
        Network in evaluation mode, float32, without gradients; what the file says; identity of the weights.

    Raises:
        StudentError: No file, truncated, weights missing or foreign, shapes that contradict each other or the
            description, weights that are not finite, or another backbone than ``backbone``.
        NotAvailableError: The device or the engine is not there.
    """
    path = Path(path)
    target = resolve_device(device)
    tensors, entry = read_tensors(path)
    network = _network_for(path, tensors, engine)
    info = _sizes(network) if entry is None else _agreed(StudentInfo.from_dict(entry), _sizes(network))
    if backbone and info.backbone and info.backbone != backbone:
        raise StudentError("student.backbone", info.backbone, f"It was not trained for {backbone}; name one that was.")
    for name, tensor in tensors.items():
        _check_values(path, name, tensor)
    # Copies: some are mapped from the file, which may be replaced while the network lives.
    state = {name: value.to(_loaded_dtype(value), copy=True) for name, value in tensors.items()}
    network.load_state_dict(state, assign=True)
    network.requires_grad_(False).eval()
    return Student(network.to(target), replace(info, backbone=info.backbone or backbone), weights_fingerprint(network))


def _check_values(path: Path, name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        return
    if not bool(torch.isfinite(tensor).all()):
        raise StudentError(f"student {name}", str(path), "It holds NaN or infinite weights: use another checkpoint.")
    if name.endswith("running_var") and bool((tensor < 0).any()):
        raise StudentError(f"student {name}", str(path), "It holds negative variances: use another checkpoint.")


def _loaded_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.is_floating_point() else tensor.dtype


def _sizes(network: StudentAffinityNetwork) -> StudentInfo:
    return StudentInfo("", network.in_channels - GEOMETRY_CHANNELS, network.hidden, network.out, network.blocks)


def _agreed(described: StudentInfo, measured: StudentInfo) -> StudentInfo:
    for name in ("feature_dim", "hidden", "out", "blocks"):
        said, found = getattr(described, name), getattr(measured, name)
        if said != found:
            raise StudentError(f"student.{name}", said, f"Its weights have {found}; describe them as they are.")
    return described


def _network_for(path: Path, tensors: Mapping[str, Tensor], engine: str) -> StudentAffinityNetwork:
    """An empty network (on torch's meta device) of the sizes that the weights have, once names and shapes agree."""
    stem, head = tensors.get("input_layer.0.kernel"), tensors.get("output_layer.kernel")
    if stem is None or head is None or stem.dim() != 3 or head.dim() != 2:
        raise _foreign_keys(path, {"input_layer.0.kernel", "output_layer.kernel"}, set(tensors))
    blocks = len({name.split(".")[1] for name in tensors if name.startswith("res_blocks.")})
    in_channels, hidden, out = stem.shape[1], stem.shape[2], head.shape[1]
    if in_channels <= GEOMETRY_CHANNELS or min(hidden, out) < 1:
        raise StudentError("student input_layer.0.kernel", tuple(stem.shape), "Expected (27, features + 6, hidden).")
    with torch.device("meta"):
        network = StudentAffinityNetwork(in_channels, hidden, out, blocks, engine=engine)
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    if expected.keys() != tensors.keys():
        raise _foreign_keys(path, set(expected), set(tensors))
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise StudentError(f"student {name}", tuple(tensors[name].shape), f"Its other weights ask for {shape}.")
    return network


def _foreign_keys(path: Path, expected: set[str], found: set[str]) -> StudentError:
    def shown(names: set[str]) -> str:
        some = ", ".join(sorted(names)[:_MOST_NAMES_SHOWN])
        return f"{len(names)} ({some}{', …' if len(names) > _MOST_NAMES_SHOWN else ''})" if names else "none"

    missing, unexpected = shown(expected - found), shown(found - expected)
    remedy = f"Give a Student Affinity Network; of its weights {missing} are missing and {unexpected} are foreign."
    return StudentError("student", str(path), remedy)


def weights_fingerprint(network: StudentAffinityNetwork) -> str:
    """``student:`` and 16 hexadecimal digits of the SHA-256 over names, shapes and float32 values."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        if value.is_floating_point():
            digest.update(f"{name}{tuple(value.shape)}".encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().data)
    return f"student:{digest.hexdigest()[:16]}"


# -- writing ---------------------------------------------------------------------------------------------------------


def save_student(path: str | Path, network: StudentAffinityNetwork, info: StudentInfo, *, half: bool = True) -> None:
    """Write a checkpoint, atomically; the same weights and description give the same bytes.

    Args:
        path: A ``.safetensors`` file; its folder must exist.
        network: The weights.
        info: What it was trained for; its sizes must be the network's.
        half: Store the convolutions as float16 (half the size; batch normalisation stays float32).

    Raises:
        StudentError: Sizes disagree, a weight is not finite or too large for float16, or the file cannot be written.
    """
    from safetensors.torch import save

    path = Path(path)
    _agreed(info, _sizes(network))
    state = {}
    for name, value in network.state_dict().items():
        tensor = value.detach().cpu().contiguous()
        halved = half and name.endswith("kernel")
        if tensor.is_floating_point() and not bool((tensor.abs() <= (_FLOAT16_MAX if halved else float("inf"))).all()):
            raise StudentError(f"student {name}", str(path), "It holds NaN, or weights beyond float16: see half=False.")
        state[name] = tensor.half() if halved else tensor
    described = {name: value for name, value in asdict(info).items() if name != "extra"}
    entry = json.dumps({**info.extra, **described, "version": VERSION}, sort_keys=True)
    _replace(path, save(state, metadata={"student": entry}))  # one key: of several, safetensors shuffles the order


def _replace(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise StudentError("student", str(path), f"It cannot be written: {error.strerror or error}.") from error
