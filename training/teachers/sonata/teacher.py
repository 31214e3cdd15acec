"""Sonata as a teacher of offline distillation: a descriptor for each 8 cm cell of a scan."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geopurify_core.errors import InvalidConfigError, NotAvailableError
from geopurify_core.purification.student.checkpoint import resolve_device
from geopurify_core.sonata_weights import LICENCE, find_sonata, how_to_get
from training.teachers.base import PointCloud, TeacherFeatures
from training.teachers.sonata.checkpoint import fingerprint_of, read_checkpoint
from training.teachers.sonata.encoder import Sonata
from training.teachers.sonata.errors import TeacherError
from training.teachers.sonata.transform import GRID_M, SonataInput, prepare

log = logging.getLogger(__name__)

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
_FLOAT16_MAX = 65504.0


class SonataTeacher:
    """Frozen Sonata. Its weights are CC-BY-NC-4.0: a student of it must not be used commercially.

    Args:
        checkpoint: ``sonata.pth`` of the authors or a safetensors file; by default the one that
            ``geopurify weights download sonata`` fetched.
        device: ``cpu``, ``cuda``, …; "" takes CUDA where there is one.
        double_division: Colours as in GeoPurify's released code, see ``transform.prepare``.
        grid_m: Edge of the cells that the network sees; it was trained with 2 cm.
        precision: ``float32``, or on CUDA ``bfloat16`` or ``float16``.
        seed: Draw cells' points and shuffle the curves as the reference does at every call, here from this seed anew
            for every cloud. None: neither.
        config: Architecture, for a file that does not say it.

    Raises:
        NotAvailableError: No checkpoint (the message says where to get it), no such device or precision there.
        TeacherError: A checkpoint that cannot be read or does not fit.
        InvalidConfigError: An unknown precision, or a cell size that is not positive.
    """

    name = "sonata"
    licence = LICENCE

    def __init__(
        self,
        checkpoint: str | Path = "",
        device: str = "",
        double_division: bool = False,
        grid_m: float = GRID_M,
        precision: str = "float32",
        seed: int | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise InvalidConfigError("precision", precision, f"Choose one of {', '.join(PRECISIONS)}.")
        if not grid_m > 0:
            raise InvalidConfigError("grid_m", grid_m, "Give a positive number of metres.")
        self._device = resolve_device(device or "auto")
        if PRECISIONS[precision] is not None and self._device.type != "cuda":
            raise NotAvailableError("precision", precision, "Half precision needs CUDA; take float32 here.")
        read = read_checkpoint(_existing(checkpoint), config)
        self._model = Sonata.from_config(read.config, read.state_dict).to(self._device)
        self._double_division, self._grid_m, self._seed = double_division, float(grid_m), seed
        self._dtype = PRECISIONS[precision]
        switches = f"grid={grid_m:g},double_division={double_division},seed={seed},{precision}"
        self.fingerprint = f"sonata:{fingerprint_of(self._model.state_dict())}:{switches}"
        log.info("Sonata's weights are %s", LICENCE)

    @property
    def width(self) -> int:
        """Length of a descriptor: 1088 for the published network."""
        return self._model.config.width

    def describe(self, cloud: PointCloud) -> TeacherFeatures:
        """Rows (M, 1088) float16 for the M occupied 8 cm cells, and each point's cell.

        Raises:
            DatasetError: No points, not finite, or an extent of more than 2^16 cells.
            TeacherError: The network's answer is not finite.
        """
        generator = None if self._seed is None else torch.Generator().manual_seed(self._seed)
        given = prepare(cloud, grid_m=self._grid_m, double_division=self._double_division, generator=generator)
        rows, cell = self._encode(given, self._permutations(generator))
        return TeacherFeatures(_in_half(rows.float().cpu().numpy()), cell[given.inverse].astype(np.int32))

    @torch.inference_mode()
    def _encode(self, given: SonataInput, permutations: Tensor | None) -> tuple[Tensor, NDArray[np.int64]]:
        half = contextlib.nullcontext() if self._dtype is None else torch.autocast("cuda", self._dtype)
        with half:
            return self._model.describe(given.coord, given.grid_coord, given.feat, permutations)

    def _permutations(self, generator: torch.Generator | None) -> Tensor | None:
        if generator is None:
            return None
        stages, curves = len(self._model.config), len(self._model.config.order)
        return torch.stack([torch.randperm(curves, generator=generator) for _ in range(stages)])


def _existing(checkpoint: str | Path) -> Path:
    path = Path(checkpoint) if str(checkpoint) else find_sonata()
    if path is None or not path.is_file():
        raise NotAvailableError("teacher.checkpoint", str(checkpoint), how_to_get())
    return path


def _in_half(rows: NDArray[np.float32]) -> NDArray[np.float16]:
    """Float16; rows too large for it are scaled down, which changes no cosine."""
    if not np.isfinite(rows).all():
        raise TeacherError("sonata", "not finite", "The network overflows on this scan: use precision float32.")
    largest = np.abs(rows).max(axis=1, keepdims=True)
    scaled: NDArray[np.float16] = (rows * np.minimum(1, _FLOAT16_MAX / np.maximum(largest, 1))).astype(np.float16)
    return scaled
