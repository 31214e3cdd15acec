"""Who listens to whom, and how much: a softmax over the K nearest voxels of the embeddings' cosines (equation 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopurify_core.errors import PurificationError
from geopurify_core.jit import HAVE_NUMBA, read_only, run_chunks
from geopurify_core.purification.affinity.neighbors import NeighborSearch, check_rows
from geopurify_core.purification.kinds import is_tensor, like, to_numpy
from geopurify_core.purification.pooling.visiting import visit_order

if HAVE_NUMBA:
    from geopurify_core.purification.affinity import kernels

_CHUNK_VALUES = 1 << 22
_MIN_CHUNK = 4096


@dataclass(frozen=True)
class Affinity:
    """A sparse row-stochastic matrix A: row i has ``weights[i, j]`` in column ``neighbors[i, j]``.

    Attributes:
        neighbors: (V, k) int32 row numbers; k = 0 where there is a single voxel.
        weights: (V, k) float32; each row sums to 1.
        order: (V,) int32, rows in an order in which neighbours follow each other, or None for the order as it is.
            Pooling visits rows like that; the result does not depend on it, the time does.
    """

    neighbors: Any
    weights: Any
    order: Any = None

    def __len__(self) -> int:
        return len(self.neighbors)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(int(part.nbytes) for part in (self.neighbors, self.weights, self.order) if part is not None)


def build_affinity(
    coords: Any, embeddings: Any, k: int = 96, sharpening: float = 20.0, neighbors: Any = None
) -> Affinity:
    """The affinity of every voxel to its K nearest ones, itself excluded.

    Args:
        coords: (V, 3) integers within ±2^20, no voxel twice, rows in any order.
        embeddings: (V, D) float, the student's; their length does not matter. A row of zeros has cosine 0 with all.
        k: Neighbours of each voxel, 1 to 4096; with V ≤ k voxels there are V-1.
        sharpening: α, the factor before the cosine in softmax(α·cos). Released code: 20. The paper calls α = 1/20,
            which can only be a temperature, that is a factor of 20: the literal factor 0.05 leaves every weight within
            about ±5 % (±10 % at most) of 1/K and turns pooling into a box blur that ignores the embeddings.
        neighbors: (V, k) row numbers to be used as they are, instead of the K nearest.

    Returns:
        Rows in the order of ``coords``; numpy, or torch where the embeddings are.

    Raises:
        PurificationError: Coordinates as in :func:`nearest_neighbors`; embeddings not (V, D) or not finite; sharpening
            not finite or negative; neighbours of another shape or out of range.

    Source: equation 3 of the GeoPurify paper; models/affinity_module.py of its code.
    """
    search = NeighborSearch(coords)
    _check_embeddings(embeddings, len(search))
    if neighbors is None:
        neighbors = like(search.neighbors(k), embeddings)
    else:
        neighbors = like(_check_neighbors(neighbors, len(search), len(search)), embeddings)
    order = like(visit_order(to_numpy(coords)), embeddings)
    return Affinity(neighbors, _weights(embeddings, neighbors, None, sharpening, order), order)


def affinity_rows(embeddings: Any, neighbors: Any, rows: Any = None, sharpening: float = 20.0) -> Any:
    """Weights of some rows, equal to the last bit to those of all rows.

    Args:
        embeddings: (V, D) float.
        neighbors: (n, k) neighbours of these rows.
        rows: (n,) row numbers; all of them by default.
        sharpening: As for :func:`build_affinity`.

    Returns:
        (n, k) float32, same kind as ``embeddings``.
    """
    return _weights(embeddings, neighbors, rows, sharpening, None)


def _weights(embeddings: Any, neighbors: Any, rows: Any, sharpening: float, order: Any) -> Any:
    _check_embeddings(embeddings, len(embeddings))
    _check_sharpening(sharpening)
    count = len(embeddings) if rows is None else len(rows)
    nearest = _check_neighbors(neighbors, count, len(embeddings))
    own = np.arange(count) if rows is None else check_rows(to_numpy(rows), len(embeddings))
    if not HAVE_NUMBA or (is_tensor(embeddings) and embeddings.device.type != "cpu"):
        return weights_in_torch(embeddings, own, nearest, sharpening)
    visit = np.arange(count, dtype=np.int32) if order is None else to_numpy(order)
    return like(_weights_compiled(to_numpy(embeddings), own, nearest, sharpening, visit), embeddings)


def _weights_compiled(
    embeddings: NDArray[Any],
    own: NDArray[np.int64],
    neighbors: NDArray[np.int32],
    sharpening: float,
    visit: NDArray[np.int32],
) -> NDArray[np.float32]:
    if embeddings.dtype == np.float16:
        embeddings = embeddings.astype(np.float32)
    unit, weights = np.empty(embeddings.shape, dtype=np.float32), np.empty(neighbors.shape, dtype=np.float32)
    run_chunks(kernels.unit_rows, len(unit), read_only(embeddings), unit, min_chunk=_MIN_CHUNK)
    factor = np.float32(sharpening)
    run_chunks(
        kernels.softmax_of_cosines, len(own), visit, own, neighbors, unit, factor, weights, min_chunk=_MIN_CHUNK // 8
    )
    return weights


def weights_in_torch(embeddings: Any, own: NDArray[np.int64], neighbors: NDArray[np.int32], sharpening: float) -> Any:
    """(n, k) float32 weights in plain torch, a few rows at a time: the reference, and the way on other devices."""
    import torch

    given = (embeddings if is_tensor(embeddings) else torch.from_numpy(np.ascontiguousarray(embeddings))).detach()
    length = given.double().norm(dim=1, keepdim=True)
    unit = (given / torch.where(length > 0, length, torch.inf)).float()
    rows, nearest = (torch.from_numpy(part).to(unit.device) for part in (own, neighbors))
    weights = torch.empty(nearest.shape, dtype=torch.float32, device=unit.device)
    step = max(1, _CHUNK_VALUES // max(1, nearest.shape[1] * unit.shape[1]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        cosine = torch.bmm(unit[nearest[part].long()], unit[rows[part]].unsqueeze(2)).squeeze(2)
        weights[part] = torch.softmax(sharpening * cosine, dim=1)
    return weights if is_tensor(embeddings) else weights.numpy()


def _check_sharpening(sharpening: Any) -> None:
    try:
        usable = 0 <= float(sharpening) < float("inf")
    except (TypeError, ValueError):
        usable = False
    if not usable:
        raise PurificationError("sharpening", sharpening, "Give a finite factor of at least 0.")


def _check_embeddings(embeddings: Any, rows: int) -> None:
    if not hasattr(embeddings, "shape"):
        raise PurificationError("embeddings", type(embeddings).__name__, "Give a numpy array or a torch tensor.")
    shape = tuple(embeddings.shape)
    if len(shape) != 2 or shape[0] != rows:
        raise PurificationError("embeddings", shape, f"Give ({rows}, D), one row for each voxel.")
    values = to_numpy(embeddings)
    if values.dtype.kind != "f":
        raise PurificationError("embeddings", str(values.dtype), "Give floating-point embeddings.")
    bad = int((~np.isfinite(values)).any(axis=1).sum())
    if bad:
        raise PurificationError("embeddings", f"{bad} of {rows} rows with NaN or infinity", "Give finite embeddings.")


def _check_neighbors(neighbors: Any, rows: int, total: int) -> NDArray[np.int32]:
    nearest = to_numpy(neighbors)
    if nearest.ndim != 2 or len(nearest) != rows or nearest.dtype.kind not in "iu":
        raise PurificationError("neighbors", f"{nearest.dtype}{nearest.shape}", f"Give ({rows}, k) row numbers.")
    if nearest.size and not (nearest.min() >= 0 and nearest.max() < total):
        raise PurificationError("neighbors", int(nearest.max()), f"Give row numbers from 0 to {total - 1}.")
    return np.ascontiguousarray(nearest, dtype=np.int32)
