"""Sonata's encoder: five stages of blocks, each at half the resolution of the one before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from geopurify_core.errors import DatasetError, InvalidConfigError
from geopurify_core.sparse.coordinates import CoordinateMap
from training.teachers.sonata.checkpoint import load_strictly
from training.teachers.sonata.config import SonataConfig
from training.teachers.sonata.layers import Block, Embedding, GridPooling, Points, SubmanifoldConvolution
from training.teachers.sonata.serialization import serialize
from training.teachers.sonata.upcast import trace, upcast

Array = Tensor | NDArray[Any]
UPCAST_LEVELS = 2
_INIT_STD = 0.02


class Sonata(nn.Module):
    """Point Transformer V3 (mode 2) as an encoder, with the published names and shapes of parameters.

    The weights of convolutions are views that are not contiguous: call ``.contiguous()`` on the tensors of
    ``state_dict()`` before writing them with safetensors.
    """

    def __init__(self, config: SonataConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = Embedding(config)
        self.enc = nn.ModuleDict({f"enc{stage}": _stage(config, stage) for stage in range(len(config))})
        self.apply(_initialise)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], state_dict: Mapping[str, Array] | None = None) -> Sonata:
        """A network in evaluation mode, with gradients off.

        Args:
            config: As in a checkpoint, see :meth:`SonataConfig.from_dict`.
            state_dict: Weights under the published names, tensors or arrays; None for random ones.

        Raises:
            InvalidConfigError: The configuration is of something else.
            TeacherError: Keys are missing, unexpected or of other shapes, all listed; or values are not finite.
        """
        architecture = SonataConfig.from_dict(config)
        if state_dict is None:
            model = cls(architecture)
        else:
            with torch.device("meta"):  # drawing 108 million numbers only to overwrite them takes seconds
                model = cls(architecture)
            tensors = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in state_dict.items()}
            load_strictly(model.to_empty(device="cpu"), tensors)
        return model.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.stem.linear.weight.device

    def forward(self, coord: Array, grid_coord: Array, feat: Array, order_permutations: Array | None = None) -> Tensor:
        """(M, C) upcast features of the third-last stage, as ``stages(…)["upcast2"]``; gradients flow where enabled."""
        stages = self.encode(coord, grid_coord, feat, order_permutations)
        return upcast([stage.features for stage in stages], _inverses(stages), UPCAST_LEVELS)

    def describe(
        self, coord: Array, grid_coord: Array, feat: Array, order_permutations: Array | None = None
    ) -> tuple[Tensor, NDArray[np.int64]]:
        """Like calling it, and with it (N,) the row of each of the N points: what a teacher stores."""
        stages = self.encode(coord, grid_coord, feat, order_permutations)
        rows = upcast([stage.features for stage in stages], _inverses(stages), UPCAST_LEVELS)
        return rows, _rows_of_points(stages).cpu().numpy()

    @torch.no_grad()
    def stages(
        self, coord: Array, grid_coord: Array, feat: Array, order_permutations: Array | None = None
    ) -> dict[str, Tensor]:
        """Everything on the way, under the names of the golden files; tensors on the network's device.

        Args:
            coord: (N, 3) float, centred positions, metres.
            grid_coord: (N, 3) integer cells from 0 on, each once, N ≥ 1, in any order.
            feat: (N, in_channels) float.
            order_permutations: (S, O) permutation of the O curves at the entrance and at each of the S - 1 poolings:
                what ``shuffle_orders`` draws in the reference. Row k of a stage's curves is then curve ``p[k]`` of the
                configuration, anew at each stage, and block i uses row ``i % O``. None: not shuffled.

        Returns:
            ``emb`` (N, C0); ``code0``, ``order0`` (O, N) and ``depth0`` () of the entrance; for each stage i
            ``enc{i}_feat`` (N_i, C_i), ``enc{i}_coord`` (N_i, 3), ``enc{i}_grid`` (N_i, 3), ``enc{i}_code`` and
            ``enc{i}_order`` (O, N_i), rows shuffled, ``enc{i}_depth`` (), and from the second stage on
            ``enc{i}_pooling_inverse`` (N_{i-1},); ``upcast2``: the last three stages side by side at the third-last
            one; ``upcast_grid``: that, copied to the N points.

        Raises:
            DatasetError: No points, other shapes, values not finite, cells negative or beyond 2^16.
            SparseError: A cell twice.
            InvalidConfigError: Rows of ``order_permutations`` that are no permutations, or not one for each stage.
        """
        stages = self.encode(coord, grid_coord, feat, order_permutations)
        first = stages[0]
        result = {
            "emb": self.embedding(self._input(feat)),
            "code0": first.curves.code,
            "order0": first.curves.order,
            "depth0": torch.tensor(first.curves.depth),
        }
        for i, stage in enumerate(stages):
            result |= _named(f"enc{i}", stage)
        rows = upcast([stage.features for stage in stages], _inverses(stages), UPCAST_LEVELS)
        return result | {"upcast2": rows, "upcast_grid": rows.index_select(0, _rows_of_points(stages))}

    def encode(
        self, coord: Array, grid_coord: Array, feat: Array, order_permutations: Array | None = None
    ) -> list[Points]:
        """The points of each stage behind its blocks; arguments and errors as of :meth:`stages`."""
        permutations = self._permutations(order_permutations)
        grid, positions = _tensor(grid_coord, self.device), _tensor(coord, self.device).float()
        features = self._input(feat)
        _check(grid, positions, features, self.config.in_channels)
        grid = grid.long()  # after the check: cells that are no integers are refused, not cut off
        curves = serialize(grid, self.config.order, permutations[0])
        points = Points(self.embedding(features), positions, CoordinateMap(grid), curves)
        stages = []
        for stage, permutation in zip(self.enc.children(), permutations, strict=True):
            for module in stage.children():
                points = module(points, permutation) if isinstance(module, GridPooling) else module(points)
            stages.append(points)
        return stages

    def _input(self, feat: Array) -> Tensor:
        return _tensor(feat, self.device).to(self.embedding.stem.linear.weight.dtype)

    def _permutations(self, given: Array | None) -> list[Tensor | None]:
        stages, curves = len(self.config), len(self.config.order)
        if given is None:
            return [None] * stages
        rows = _tensor(given, torch.device("cpu"))
        whole = rows.shape == (stages, curves) and not rows.is_floating_point()
        if not whole or not bool((rows.long().sort(dim=1).values == torch.arange(curves)).all()):
            remedy = f"Give {stages} rows, each a permutation of 0 … {curves - 1}."
            raise InvalidConfigError("order_permutations", rows.tolist(), remedy)
        return list(rows.long())


def _stage(config: SonataConfig, stage: int) -> nn.ModuleDict:
    down = {"down": GridPooling(config, stage)} if stage else {}
    return nn.ModuleDict(
        {**down, **{f"block{index}": Block(config, stage, index) for index in range(config.enc_depths[stage])}}
    )


def _initialise(module: nn.Module) -> None:
    """Normal with deviation 0.02, as the reference starts; biases 0."""
    if isinstance(module, nn.Linear | SubmanifoldConvolution):
        nn.init.trunc_normal_(module.weight, std=_INIT_STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _tensor(value: Array, device: torch.device) -> Tensor:
    tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.ascontiguousarray(value))
    return tensor.to(device)


def _check(grid: Tensor, coord: Tensor, feat: Tensor, channels: int) -> None:
    shapes = {"coord": (coord, 3), "grid_coord": (grid, 3), "feat": (feat, channels)}
    for name, (tensor, width) in shapes.items():
        if tensor.dim() != 2 or tensor.shape != (len(grid), width) or not len(tensor):
            remedy = f"Give one row of {width} for each of the {len(grid)} cells, and at least one."
            raise DatasetError(f"{name}.shape", tuple(tensor.shape), remedy)
        if name == "grid_coord" and (tensor.is_floating_point() or tensor.dtype == torch.bool):
            raise DatasetError("grid_coord.dtype", str(tensor.dtype), "Give integer cells, floor(point / size).")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DatasetError(name, "not finite", "Remove points with NaN or infinite values first.")


def _inverses(stages: list[Points]) -> list[Tensor]:
    return [stage.pooling_inverse for stage in stages if stage.pooling_inverse is not None]


def _rows_of_points(stages: list[Points]) -> Tensor:
    """(N,) row at the stage that the features are upcast to of each point of the first one."""
    inverses = _inverses(stages)[: max(0, len(stages) - 1 - UPCAST_LEVELS)]
    return trace(inverses) if inverses else torch.arange(len(stages[0].coord), device=stages[0].coord.device)


def _named(prefix: str, points: Points) -> dict[str, Tensor]:
    named = {
        "feat": points.features,
        "coord": points.coord,
        "grid": points.grid,
        "code": points.curves.code,
        "order": points.curves.order,
        "depth": torch.tensor(points.curves.depth),
    }
    if points.pooling_inverse is not None:
        named["pooling_inverse"] = points.pooling_inverse
    return {f"{prefix}_{name}": tensor for name, tensor in named.items()}
