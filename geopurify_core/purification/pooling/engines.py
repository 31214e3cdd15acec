"""Who multiplies: compiled loops for float16 and float32 on the CPU, torch for everything else."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from geopurify_core.errors import NotAvailableError, PurificationError
from geopurify_core.jit import HAVE_NUMBA, read_only, run_chunks, run_each
from geopurify_core.purification.kinds import is_tensor, to_numpy
from geopurify_core.purification.pooling.packed import PackedAffinity

if HAVE_NUMBA:
    from geopurify_core.purification.pooling import kernels

ENGINES = ("auto", "numba", "torch")
_COMPILED_DTYPES = ("float16", "float32")
_CPU_BLOCK, _DEVICE_BLOCK = 64, 512
_MIN_CHUNK = 4096


class Engine(Protocol):
    """Applies an affinity to blocks of channels. Blocks are the engine's own, with rows in visiting order; there is
    one at a time."""

    block_channels: int

    def load(self, features: Any, low: int, high: int) -> Any:
        """Channels [low, high) as a block, in the precision of the arithmetic."""
        ...

    def load_products(self, features: Any, vectors: NDArray[np.float32]) -> Any:
        """features · vectorsᵀ as a block, for vectors (n, C)."""
        ...

    def step(self, block: Any) -> Any:
        """A · block. The given block is used up."""
        ...

    def store(self, block: Any, out: Any, low: int, high: int) -> None:
        """The block into channels [low, high) of ``out`` (V, C), in its dtype and row order."""
        ...

    def store_columns(self, block: Any, out: Any, low: int, high: int) -> None:
        """The block into rows [low, high) of ``out`` (n, V) float32."""
        ...

    def no_squares(self) -> Any:
        """(V,) float64 zeros to sum squares in."""
        ...

    def add_squares(self, block: Any, total: Any) -> None:
        """``total`` plus |row|² of the block, in place."""
        ...

    def lengths(self, total: Any) -> NDArray[np.float32]:
        """(V,) square roots of what :meth:`add_squares` summed, in the caller's row order."""
        ...


def engine_for(features: Any, packed: PackedAffinity, engine: str) -> Engine:
    """The engine that serves these features, or NotAvailableError where the one asked for cannot."""
    if engine not in ENGINES:
        raise PurificationError("engine", engine, f"Choose one of {', '.join(ENGINES)}.")
    dtype = str(features.dtype).removeprefix("torch.")
    on_cpu = not is_tensor(features) or features.device.type == "cpu"
    suited = HAVE_NUMBA and on_cpu and dtype in _COMPILED_DTYPES
    if engine == "numba" and not suited:
        raise NotAvailableError("engine", engine, "It needs numba, and float16 or float32 features on the CPU.")
    return CompiledEngine(packed) if suited and engine != "torch" else TorchEngine(packed, features)


class CompiledEngine:
    """Blocks are two arrays (rows, channels) float32 that change places at each step, padded to groups and vectors."""

    block_channels = _CPU_BLOCK

    def __init__(self, packed: PackedAffinity) -> None:
        self._packed, self._order = packed, packed.order
        packed.rank  # noqa: B018  (checks the order before compiled code relies on it)
        self._groups = -(-len(packed) // kernels.GROUP)
        self._pair = (np.empty((0, 0), dtype=np.float32),) * 2

    def load(self, features: Any, low: int, high: int) -> NDArray[np.float32]:
        block, source = self._block(high - low), bits_of(to_numpy(features))
        self._in_chunks(kernels.load_block, source, low, high, block)
        return block

    def load_products(self, features: Any, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        block = self._block(len(vectors))
        right = np.zeros((vectors.shape[1], block.shape[1]), dtype=np.float32)
        right[:, : len(vectors)] = vectors.T
        given, together = bits_of(to_numpy(features)), vectors_for(block.shape[1])
        run_chunks(kernels.multiply_features, self._groups, together, self._order, given, right, block, min_chunk=256)
        return block

    def step(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        target = self._pair[1] if block is self._pair[0] else self._pair[0]
        together = vectors_for(block.shape[1])
        run_each(kernels.multiply, [(together, *piece, block, target) for piece in self._packed.merged])
        return target

    def store(self, block: NDArray[np.float32], out: Any, low: int, high: int) -> None:
        values = to_numpy(out)
        half = values.dtype == np.float16
        kernel, target = (kernels.store_half_block, values.view(np.uint16)) if half else (kernels.store_block, values)
        self._in_chunks(kernel, block, target, low, high)

    def store_columns(self, block: NDArray[np.float32], out: Any, low: int, high: int) -> None:
        self._in_chunks(kernels.store_columns, block, to_numpy(out), low, high)

    def no_squares(self) -> NDArray[np.float64]:
        return np.zeros(len(self._order))

    def add_squares(self, block: NDArray[np.float32], total: NDArray[np.float64]) -> None:
        run_chunks(kernels.add_squares, len(total), block, total, min_chunk=_MIN_CHUNK)

    def lengths(self, total: NDArray[np.float64]) -> NDArray[np.float32]:
        result = np.empty(len(total), dtype=np.float32)
        result[self._order] = np.sqrt(total)
        return result

    def _block(self, channels: int) -> NDArray[np.float32]:
        shape = (self._groups * kernels.GROUP, -(-channels // kernels.LANES) * kernels.LANES)
        if self._pair[0].shape != shape:
            self._pair = (np.empty(shape, dtype=np.float32), np.empty(shape, dtype=np.float32))
        return self._pair[0]

    def _in_chunks(self, kernel: Any, *arguments: Any) -> None:
        run_chunks(kernel, len(self._order), self._order, *arguments, min_chunk=_MIN_CHUNK)


class TorchEngine:
    """Weighted sums by ``embedding_bag``, rows in visiting order, float32 (float64 for float64) on any device."""

    def __init__(self, packed: PackedAffinity, features: Any) -> None:
        import torch

        self._device = features.device if is_tensor(features) else torch.device("cpu")
        self._dtype = torch.float64 if str(features.dtype).endswith("float64") else torch.float32
        nearest, weights = packed.parts()
        self._places = order = packed.order
        self._order = torch.from_numpy(order.astype(np.int64)).to(self._device)
        self._neighbors = torch.from_numpy(packed.rank[nearest[order]]).to(self._device)
        self._weights = torch.from_numpy(weights[order]).to(self._device, self._dtype)
        self.block_channels = _CPU_BLOCK if self._device.type == "cpu" else _DEVICE_BLOCK

    def load(self, features: Any, low: int, high: int) -> Any:
        return self._rows(features, slice(0, None), slice(low, high))

    def load_products(self, features: Any, vectors: NDArray[np.float32]) -> Any:
        import torch

        right = torch.from_numpy(vectors.T.copy()).to(self._device, self._dtype)
        starts = range(0, max(1, len(self._places)), _MIN_CHUNK)
        return torch.cat([self._rows(features, slice(low, low + _MIN_CHUNK), slice(None)) @ right for low in starts])

    def step(self, block: Any) -> Any:
        from torch.nn.functional import embedding_bag

        return embedding_bag(self._neighbors, block, per_sample_weights=self._weights, mode="sum")

    def store(self, block: Any, out: Any, low: int, high: int) -> None:
        target = self._writable(out)
        target[self._order, low:high] = block.to(target.dtype)

    def store_columns(self, block: Any, out: Any, low: int, high: int) -> None:
        self._writable(out)[low:high, self._order] = block.T.float()

    def no_squares(self) -> Any:
        import torch

        return torch.zeros(len(self._order), dtype=torch.float64, device=self._device)

    def add_squares(self, block: Any, total: Any) -> None:
        total += block.double().square().sum(dim=1)

    def lengths(self, total: Any) -> NDArray[np.float32]:
        result = np.empty(len(total), dtype=np.float32)
        result[to_numpy(self._order)] = to_numpy(total.sqrt())
        return result

    @staticmethod
    def _writable(out: Any) -> Any:
        import torch

        return out if is_tensor(out) else torch.from_numpy(out)

    def _rows(self, features: Any, part: slice, channels: slice) -> Any:
        """These of the visiting order, in the precision of the arithmetic; numpy may be read-only, so it gathers."""
        import torch

        if is_tensor(features):
            return features.detach()[:, channels][self._order[part]].to(self._dtype)
        return torch.from_numpy(features[self._places[part], channels]).to(self._dtype)


def rows_of_step(features: NDArray[np.float32], packed: PackedAffinity, rows: NDArray[np.int32]) -> Any:
    """(n, C) float32: ``rows`` of A · features, compiled; rows of features as the caller has them."""
    channels = features.shape[1]
    width = -(-channels // kernels.LANES) * kernels.LANES
    source = np.ascontiguousarray(np.pad(features, ((0, 0), (0, width - channels))) if width != channels else features)
    target = np.empty((-(-len(rows) // kernels.GROUP) * kernels.GROUP, width), dtype=np.float32)
    calls = []
    for piece in packed.merge(rows):
        given = piece._replace(columns=packed.order[piece.columns], fresh=packed.order[piece.fresh])
        calls.append((vectors_for(width), *given, source, target))
    run_each(kernels.multiply, calls)
    return target[: len(rows), :channels]


def vectors_for(width: int) -> tuple[int, ...]:
    """A tuple as long as the number of vectors that a kernel holds at once for blocks of this width."""
    vectors = width // kernels.LANES
    return (0,) * next(n for n in range(kernels.MOST_VECTORS, 0, -1) if vectors % n == 0)


def bits_of(values: NDArray[Any]) -> NDArray[Any]:
    """Features as the kernels read them: float16 as its bits, read-only and contiguous."""
    return read_only(values.view(np.uint16) if values.dtype == np.float16 else values)
