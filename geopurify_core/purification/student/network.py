"""The Student Affinity Network φ_S: one embedding for each voxel; similar embeddings mean one surface, one thing.

GeoPurify, appendix A.1 and table 5: a 3³ convolution into the hidden width, four residual blocks of two 3³
convolutions, a 1³ convolution to the embedding; all on the voxels that are there, all of stride 1. Parameter names and
shapes are those of the released code on MinkowskiEngine, so its checkpoints load.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from geopurify_core.errors import InvalidConfigError, PurificationError, SparseError
from geopurify_core.sparse import CoordinateMap, SparseTensor
from geopurify_core.sparse.engine import Engine, load_engine
from geopurify_core.sparse.layers import add_relu_

GEOMETRY_CHANNELS = 6  # r g b nx ny nz, after the semantic ones
_MAP_BYTES = 27 * 8 + 64  # most kernel map and keys a voxel can cost

Progress = Callable[[float], None]
Cancelled = Callable[[], bool]


class ResidualBlock(nn.Module):
    """relu(x + norm2(conv2(relu(norm1(conv1(x))))))."""

    def __init__(self, channels: int, engine: Engine) -> None:
        super().__init__()
        self.conv1 = engine.SubmanifoldConv3d(channels, channels)
        self.norm1 = engine.SparseBatchNorm(channels)
        self.conv2 = engine.SubmanifoldConv3d(channels, channels)
        self.norm2 = engine.SparseBatchNorm(channels)

    def first_half(self, x: Any) -> Any:
        """relu(norm1(conv1(x)))."""
        h = self.norm1(self.conv1(x))
        return h.replace(add_relu_(h.features))

    def second_half(self, h: Any, x: Any) -> Any:
        """relu(x + norm2(conv2(h)))."""
        h = self.norm2(self.conv2(h))
        return h.replace(add_relu_(h.features, x.features))

    def forward(self, x: Any) -> Any:
        """(V, C) to (V, C) on the same voxels."""
        return self.second_half(self.first_half(x), x)


class StudentAffinityNetwork(nn.Module):
    """φ_S: (V, in) features on voxels → (V, out) embeddings, not normalised (the affinity takes their cosine).

    Args:
        in_channels: Width of the map's features plus 6: ``[semantic | r g b | nx ny nz]``, see ``inputs.py``.
        hidden: Width of the body; 512 as published, 64 to 128 for machines without a GPU (cost goes with its square).
        out: Width of the embedding.
        blocks: Residual blocks.
        engine: ``torch``, or ``minkowski`` where it is installed; the same weights and results.

    Raises:
        InvalidConfigError: A width below 1, a negative number of blocks, or another engine.
        NotAvailableError: MinkowskiEngine is not there.

    Source: GeoPurify, appendix A.1; ``models/affinity_module.py`` of the released code.
    """

    def __init__(
        self, in_channels: int = 518, hidden: int = 512, out: int = 128, blocks: int = 4, *, engine: str = "torch"
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("in_channels", in_channels, 1), ("hidden", hidden, 1), ("out", out, 1), ("blocks", blocks, 0),
        ):  # fmt: skip
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
                raise InvalidConfigError(f"student.{name}", value, f"It must be a whole number, {least} or more.")
        self.in_channels, self.hidden, self.out, self.blocks = in_channels, hidden, out, blocks
        layers = load_engine(engine)
        self.tensor = layers.SparseTensor  # what the layers take: tensor(features, coordinate map)
        self.input_layer = nn.Sequential(
            layers.SubmanifoldConv3d(in_channels, hidden),
            layers.SparseBatchNorm(hidden),
            layers.SparseReLU(inplace=True),
        )
        self.res_blocks = nn.ModuleList(ResidualBlock(hidden, layers) for _ in range(blocks))
        self.output_layer = layers.SubmanifoldConv3d(hidden, out, kernel_size=1)

    @property
    def receptive_field(self) -> int:
        """Voxels along each axis, in each direction, beyond which nothing changes an embedding: 9 for 4 blocks."""
        return 1 + 2 * self.blocks

    @property
    def device(self) -> torch.device:
        """Where the parameters are, and where inputs are moved to."""
        return self._kernel.device

    @property
    def _kernel(self) -> Tensor:
        kernel = self.output_layer.kernel
        assert isinstance(kernel, Tensor)
        return kernel

    def workspace_bytes(self, num_voxels: int) -> int:
        """Most memory :meth:`embed` takes beside parameters, input and output: the sorted input, three activations,
        and the neighbour lists of fully occupied surroundings."""
        return num_voxels * (4 * self.in_channels + 3 * 4 * self.hidden + _MAP_BYTES) + (64 << 20)

    def forward(self, coords: Any, features: Any = None) -> Tensor:
        """Embeddings in the order of the rows given; differentiable, batch statistics in train mode.

        Args:
            coords: (V, 3) integer voxel coordinates; numpy or torch. Or a :class:`SparseTensor` and nothing else, whose
                coordinate map (and the neighbours it has found already) is then used as it is.
            features: (V, in_channels) floating point. The two may be swapped: exactly one of them is integral.

        Returns:
            (V, out) on the network's device, in its dtype; not normalised.

        Raises:
            SparseError: Not exactly one of the two is integral; another number of rows or channels; coordinates twice
                or beyond ±2^20; fewer than two voxels in train mode.
            PurificationError: Some features are NaN or infinite.
        """
        x, back = self._prepared(coords, features)
        if not len(x.coordinates):
            return x.features.new_empty(0, self.out)
        out = self._run(x.coordinates, x.features, lambda _: None)
        return out if back is None else out[back]

    def embed(
        self, coords: Any, features: Any = None, *, progress: Progress | None = None, cancelled: Cancelled | None = None
    ) -> Tensor:
        """:meth:`forward` for inference: running statistics, no gradients, whatever mode the network is in.

        Args:
            coords, features: As for :meth:`forward`.
            progress: Told the share done, in (0, 1], after each convolution.
            cancelled: Asked after each convolution whether to stop.

        Returns:
            (V, out), bit for bit the same rows for any order of the input rows and any integer shift of ``coords``.

        Raises:
            SparseError, PurificationError: As :meth:`forward`; PurificationError also where it was cancelled.
        """

        def tick(share: float) -> None:
            if progress is not None:
                progress(share)
            if cancelled is not None and cancelled():
                raise PurificationError("student", "cancelled", "Ask again for its embeddings.")

        was_training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                x, back = self._prepared(coords, features)
                if not len(x.coordinates):
                    return x.features.new_empty(0, self.out)
                out = self._run(x.coordinates, x.features, tick)
                return out if back is None else out[back]
        finally:
            self.train(was_training)

    def _run(self, coordinates: CoordinateMap, features: Tensor, tick: Progress) -> Tensor:
        convolutions = 1 + 2 * self.blocks
        x = self.input_layer(self.tensor(features, coordinates))
        tick(1 / convolutions)
        for i, block in enumerate(self.res_blocks):
            assert isinstance(block, ResidualBlock)
            h = block.first_half(x)
            tick((2 + 2 * i) / convolutions)
            x = block.second_half(h, x)
            tick((3 + 2 * i) / convolutions)
        embeddings: Tensor = self.output_layer(x).features
        return embeddings

    def _prepared(self, coords: Any, features: Any) -> tuple[SparseTensor, Tensor | None]:
        """The input in key order, checked, on the network's device; and the rows that undo the sorting, if it was any.

        Neighbours in space are then neighbours in memory, and the sums are added in one order whatever the caller's.
        """
        if isinstance(coords, SparseTensor):
            if features is not None:
                raise SparseError("features", type(features).__name__, "A SparseTensor brings its own: give it alone.")
            return coords.replace(self._checked(coords.features)), None
        coords, features = _told_apart(_as_tensor(coords), _as_tensor(features))
        coordinates = CoordinateMap(coords.to(self.device))
        values = self._checked(features)
        if len(values) != len(coordinates):
            raise SparseError(
                "features.shape", tuple(values.shape), f"Give one row for each of the {len(coordinates)} voxels."
            )
        order = coordinates.order
        if order is None:
            return SparseTensor(values, coordinates), None
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        return SparseTensor(values[order], CoordinateMap(coordinates.coords[order])), back

    def _checked(self, features: Tensor) -> Tensor:
        if features.dim() != 2 or features.shape[1] != self.in_channels:
            raise SparseError(
                "features.shape",
                tuple(features.shape),
                f"This student takes (V, {self.in_channels}): {self.in_channels - GEOMETRY_CHANNELS} semantic, r g b, "
                "nx ny nz.",
            )
        values = features.to(self.device, self._kernel.dtype)
        if not bool(torch.isfinite(values.detach().sum(dim=1)).all()):
            bad = int((~torch.isfinite(values)).any(dim=1).sum())
            if bad:
                raise PurificationError("features", f"{bad} of {len(values)} rows", "They hold NaN or infinite values.")
        return values


def _as_tensor(array: Any) -> Tensor:
    if array is None:
        raise SparseError("features", None, "Give coordinates and features, or one SparseTensor.")
    if isinstance(array, Tensor):
        return array
    values = np.asarray(array)
    kind = np.int64 if values.dtype.kind == "u" else values.dtype.newbyteorder("=")
    try:
        return torch.from_numpy(np.require(values, kind, ["C", "W"]))
    except TypeError as error:
        raise SparseError("coords, features", str(values.dtype), "Give arrays of numbers that torch knows.") from error


def _told_apart(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """(coords, features), however they came."""
    integral = [not (t.is_floating_point() or t.is_complex() or t.dtype == torch.bool) for t in (first, second)]
    if integral[0] == integral[1]:
        raise SparseError(
            "coords, features", (str(first.dtype), str(second.dtype)), "One must be integer, the other floating point."
        )
    return (first, second) if integral[0] else (second, first)
