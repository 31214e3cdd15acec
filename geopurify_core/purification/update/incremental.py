"""What is left to do when only part of the map has changed: student, neighbours and affinity, row by row.

Each function takes what the previous purification had and the difference between the maps, recomputes the rows that can
have changed, and copies the others bit for bit:

* an embedding can change within ``receptive_field`` hops of a changed input row or of a voxel that is gone;
* neighbours of a row change only where one of them is gone, or where a new voxel is no farther than the last of them;
* a row of the affinity changes where its neighbours, its embedding, or an embedding of its neighbours did.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from geopurify_core.jit import HAVE_NUMBA, compiled, read_only, run_chunks
from geopurify_core.purification.affinity.build import affinity_rows
from geopurify_core.purification.affinity.neighbors import NeighborSearch, neighbor_reach
from geopurify_core.purification.student.network import ResidualBlock, StudentAffinityNetwork
from geopurify_core.purification.update.delta import Delta
from geopurify_core.purification.update.dilation import occupied_around, rings
from geopurify_core.sparse import CoordinateMap

Mask = NDArray[np.bool_]
Rows = NDArray[np.int64]
Floats = NDArray[np.float32]
Tick = Callable[[float], None]

_MIN_CHUNK = 4096


# -- the student -----------------------------------------------------------------------------------------------------


def changed_inputs(delta: Delta, normals: Floats, previous_normals: Floats) -> Mask:
    """(N,) bool, rows whose student input has changed: features, colour, or the normal as the student sees it.

    Args:
        delta: The difference between the maps.
        normals, previous_normals: (N, 3) and (M, 3) with unknown ones filled in, in key order; the fill changes where
            voxels around it do, though the map's own normal has not.
    """
    changed = delta.features | delta.rgb
    kept = np.flatnonzero(delta.source >= 0)
    changed[kept] |= (normals[kept] != previous_normals[delta.source[kept]]).any(axis=1)
    return changed


@dataclass(frozen=True)
class Reach:
    """How far a change reaches through the student.

    Attributes:
        ring: (N,) uint16 hops from the change; ``2 * field + 1`` where there are more than twice the receptive field.
        field: The receptive field R, voxels; outputs of rings 0..R can differ.
    """

    ring: NDArray[np.uint16]
    field: int

    @property
    def outputs(self) -> Rows:
        """Rows whose embedding can have changed."""
        return np.flatnonzero(self.ring <= self.field)

    @property
    def layer_rows(self) -> list[int]:
        """Rows that each 3³ layer computes: its output is right one ring less far out than its input."""
        counts = np.bincount(self.ring, minlength=2 * self.field + 2)
        within = np.cumsum(counts)
        return [int(within[2 * self.field - layer]) for layer in range(self.field)]

    @property
    def work(self) -> float:
        """Rows times layers, as a share of those of a full run."""
        return sum(self.layer_rows) / max(1, self.field * len(self.ring))


def reach_of(keys: Rows, changed: Mask, removed_coords: NDArray[np.int32], field: int) -> Reach:
    """Where embeddings can have changed, and what it takes to compute them anew."""
    return Reach(rings(keys, changed, 2 * field, occupied_around(keys, removed_coords)), field)


def update_embeddings(
    network: StudentAffinityNetwork,
    coords: NDArray[np.int32],
    reach: Reach,
    inputs_of: Callable[[Rows], torch.Tensor],
    delta: Delta,
    previous: Floats,
    tick: Tick,
) -> Floats:
    """(N, D) embeddings: rows beyond the receptive field copied, the others from the student.

    Layer l of the 2B + 1 runs on the rows of rings 0..2R - l: the halo shrinks by the ring that misses a neighbour.
    """
    embeddings = np.empty((len(coords), network.out), dtype=np.float32)
    kept = np.flatnonzero(reach.ring > reach.field)
    embeddings[kept] = previous[delta.source[kept]]
    rows = np.flatnonzero(reach.ring <= 2 * reach.field)
    if len(rows):
        was_training = network.training
        network.eval()
        try:
            with torch.inference_mode():
                out = _run_shrinking(network, coords[rows], inputs_of(rows), reach.ring[rows], reach.field, tick)
        finally:
            network.train(was_training)
        embeddings[reach.outputs] = out.cpu().numpy()
    return embeddings


def _run_shrinking(
    network: StudentAffinityNetwork,
    coords: NDArray[np.int32],
    inputs: torch.Tensor,
    ring: NDArray[np.uint16],
    field: int,
    tick: Tick,
) -> torch.Tensor:
    device, limit = network.device, 2 * field
    places = torch.from_numpy(np.array(coords)).to(device)
    rings_left = torch.from_numpy(ring.astype(np.int64)).to(device)

    def shrink() -> torch.Tensor:
        nonlocal limit, places, rings_left
        limit -= 1
        keep = rings_left <= limit
        places, rings_left = places[keep], rings_left[keep]
        tick((2 * field - limit) / field)
        return keep

    values = network.input_layer(network.tensor(inputs.to(device), CoordinateMap(places))).features[shrink()]
    for block in network.res_blocks:
        assert isinstance(block, ResidualBlock)
        x = network.tensor(values, CoordinateMap(places))
        h = block.first_half(x).features
        keep = shrink()
        coordinates = CoordinateMap(places)
        whole = block.second_half(network.tensor(h[keep], coordinates), network.tensor(values[keep], coordinates))
        values = whole.features[shrink()]
    out: torch.Tensor = network.output_layer(network.tensor(values, CoordinateMap(places))).features
    return out


# -- neighbours ------------------------------------------------------------------------------------------------------


def stale_neighbors(coords: NDArray[np.int32], delta: Delta, moved: NDArray[np.int32], reach: Rows) -> Mask:
    """(N,) bool, rows whose K nearest voxels have to be looked for again.

    Args:
        coords: (N, 3) of the map now.
        delta: The difference between the maps.
        moved: (N, K) previous neighbours under their numbers now, -1 where one is gone; rows of new voxels: anything.
        reach: (N,) squared distance to the last previous neighbour.
    """
    stale: Mask = delta.added.copy()
    if len(delta.removed_coords):
        stale |= (moved < 0).any(axis=1)
    added = np.flatnonzero(delta.added)
    if len(added):
        from scipy.spatial import cKDTree

        asked = np.flatnonzero(~stale)
        farthest = np.sqrt(float(reach[asked].max(initial=0))) + 0.5
        low, high = coords[added].min(axis=0) - farthest, coords[added].max(axis=0) + farthest
        asked = asked[((coords[asked] >= low) & (coords[asked] <= high)).all(axis=1)]
        tree = cKDTree(coords[added].astype(np.float64))
        distance, _ = tree.query(coords[asked].astype(np.float64), distance_upper_bound=farthest, workers=-1)
        stale[asked] |= distance**2 <= reach[asked] + 0.5  # squared distances are integers; ties are looked at again
    return stale


def update_neighbors(
    coords: NDArray[np.int32],
    delta: Delta,
    previous_coords: NDArray[np.int32],
    previous: NDArray[np.int32],
    k: int,
    worthwhile: Callable[[int], bool],
) -> tuple[NDArray[np.int32], Mask]:
    """(N, k) neighbours as a full search gives them, and (N,) whether each row was looked for.

    Args:
        worthwhile: Whether to search only some rows, given how many.
    """
    count = min(k, len(coords) - 1)
    everything = np.ones(len(coords), dtype=bool)
    if previous.shape[1] != count:
        return NeighborSearch(coords).neighbors(k), everything
    if delta.same_voxels:
        return previous, ~everything
    kept = np.flatnonzero(delta.source >= 0)
    moved = np.empty((len(coords), count), dtype=np.int32)
    moved[kept] = delta.target.astype(np.int32)[previous[delta.source[kept]]]
    reach = np.zeros(len(coords), dtype=np.int64)
    reach[kept] = neighbor_reach(previous_coords, previous)[delta.source[kept]]
    stale = stale_neighbors(coords, delta, moved, reach)
    rows = np.flatnonzero(stale)
    if not worthwhile(len(rows)):
        return NeighborSearch(coords).neighbors(k), everything
    if len(rows):
        moved[rows] = NeighborSearch(coords).neighbors(k, rows)
    return moved, stale


# -- affinity --------------------------------------------------------------------------------------------------------


def update_weights(
    embeddings: Floats,
    neighbors: NDArray[np.int32],
    searched: Mask,
    delta: Delta,
    previous_embeddings: Floats,
    previous_weights: Floats,
    sharpening: float,
    worthwhile: Callable[[int], bool],
) -> tuple[Floats, Mask]:
    """(N, k) weights of the affinity, and (N,) whether each row was computed anew."""
    kept = np.flatnonzero(delta.source >= 0)
    changed = np.ones(len(embeddings), dtype=bool)
    changed[kept] = (embeddings[kept] != previous_embeddings[delta.source[kept]]).any(axis=1)
    dirty = searched | changed
    if changed.any():
        dirty |= _any_of(changed, neighbors)
    rows = np.flatnonzero(dirty)
    if previous_weights.shape[1] != neighbors.shape[1] or not worthwhile(len(rows)):
        return affinity_rows(embeddings, neighbors, sharpening=sharpening), np.ones_like(dirty)
    weights = previous_weights.take(np.maximum(delta.source, 0), axis=0)  # those of new voxels are replaced below
    if len(rows):
        weights[rows] = affinity_rows(embeddings, neighbors[rows], rows, sharpening=sharpening)
    return weights, dirty


def _any_of(marked: Mask, neighbors: NDArray[np.int32]) -> Mask:
    """(N,) whether any neighbour of a row is marked."""
    if not HAVE_NUMBA:
        return np.asarray(marked[neighbors].any(axis=1))
    out = np.empty(len(neighbors), dtype=bool)
    run_chunks(_any_marked, len(out), read_only(marked), read_only(neighbors), out, min_chunk=_MIN_CHUNK)
    return out


@compiled()
def _any_marked(start: int, stop: int, marked: Any, neighbors: Any, out: Any) -> None:
    for i in range(start, stop):
        found = False
        for j in range(neighbors.shape[1]):
            found |= marked[neighbors[i, j]]
        out[i] = found
