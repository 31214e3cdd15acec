"""From a score per voxel to objects, best first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geopurify_core.config import QueryConfig
from geopurify_core.mapping.snapshot import MapSnapshot
from geopurify_core.querying.boxes import Box, axis_aligned_box, split_until_tight, upright_box
from geopurify_core.querying.components import ScoreTree, VoxelGraph, pieces_of, score_tree, voxel_graph
from geopurify_core.querying.order import descending_order
from geopurify_core.querying.results import DetectedObject

_GENERIC = 1.0
_PEAK_SHARE = 5e-4
_FLOOR_SHARE = 0.25
_KEEP_SHARE = 0.6
_MIN_RISE_SHARE = 0.2
_SIZE_SIGMA = 0.8
_HEIGHT_QUANTILE = 0.95
_SCORE_QUANTILE = 0.9
_MAX_SIZE_PENALTY = 3.0
_MAX_CANDIDATES = 64
_AIRY_VOLUME_M3 = 0.25
_AIRY_GAIN = 0.6


@dataclass(frozen=True)
class SizePrior:
    """How big a thing like this is: greatest extent in metres, and the standard deviation of its logarithm."""

    size_m: float
    log_std: float

    def penalty(self, extent_m: float, surface_m2: float) -> float:
        """0 at the expected size, growing with the squared log ratio, bounded.

        Too large is what stretches too far; too small is what shows too little surface, however scattered.
        """
        sigma = np.hypot(self.log_std, _SIZE_SIGMA)
        too_large = np.log(max(extent_m / self.size_m, 1.0))
        too_small = np.log(max(self.size_m / np.sqrt(surface_m2), 1.0))
        return float(min(0.5 * (max(too_large, too_small) / sigma) ** 2, _MAX_SIZE_PENALTY))


def find_objects(
    text: str,
    snapshot: MapSnapshot,
    scores: NDArray[np.float32],
    up: NDArray[np.floating],
    prior: SizePrior,
    config: QueryConfig,
) -> list[DetectedObject]:
    """Objects of one text, best first, from one score for each voxel.

    1. Candidates rise above a share of the way from the map's median score to its peak.
    2. Their score tree is cut where the pieces hold the most mass above their surroundings (a mug on a table, two
       chairs that touch), weighed by how plausible their size is.
    3. Each piece keeps the voxels above a share of its own height, in one connected part.
    4. Pieces whose box is mostly air are cut in two (walls round a corner), unless their surfaces look outwards.

    The object's score is the one that its best tenth of voxels reaches, less the size penalty: edges, where an object
    shares voxels with what is behind it, say little about how sure its middle is.
    """
    if not len(scores):
        return []
    base = min(float(np.median(scores)), _GENERIC)
    top = max(config.min_voxels, int(len(scores) * _PEAK_SHARE))
    peak = float(np.partition(scores, -min(top, len(scores)))[-min(top, len(scores)) :].mean())
    rise = peak - base
    if rise <= 0:
        return []
    rows = np.flatnonzero(scores >= base + _FLOOR_SHARE * rise).astype(np.int32)
    coords = snapshot.coords[rows]
    floor, graph = base + _FLOOR_SHARE * rise, voxel_graph(coords)
    tree = score_tree(coords, scores[rows], floor, config.min_voxels, _MIN_RISE_SHARE * rise, graph)
    pieces = _pieces(tree, graph, scores[rows], base, prior, snapshot.voxel_size_m, config.min_voxels)
    objects = []
    for piece in pieces:
        objects += _objects_of_piece(text, rows[piece], snapshot, scores, up, prior, config)
    objects.sort(key=lambda item: (-item.score, item.voxels[0]))
    return objects


def select_nodes(tree: ScoreTree, prior: SizePrior, voxel_size_m: float) -> NDArray[np.int32]:
    """(K,) the chosen ancestor-or-self of every node, −1 where a descendant is chosen instead.

    Excess of mass, bottom up: a node stands for its children where its own mass exceeds the sum of theirs.
    """
    count = len(tree.parent)
    shapes = zip(tree.extent * voxel_size_m, tree.count * voxel_size_m**2, strict=True)
    own = tree.mass * np.exp([-prior.penalty(extent_m, surface_m2) for extent_m, surface_m2 in shapes])
    best, below = own.copy(), np.zeros(count)
    taken = np.ones(count, dtype=bool)
    for node in range(count):
        if below[node] > own[node]:
            best[node], taken[node] = below[node], False
        if tree.parent[node] >= 0:
            below[tree.parent[node]] += best[node]
    chosen = np.full(count, -1, dtype=np.int32)
    for node in range(count - 1, -1, -1):
        parent = tree.parent[node]
        above = chosen[parent] if parent >= 0 else -1
        chosen[node] = above if above >= 0 else (node if taken[node] else -1)
    return chosen


def _pieces(
    tree: ScoreTree,
    graph: VoxelGraph,
    scores: NDArray[np.float32],
    base: float,
    prior: SizePrior,
    voxel_size_m: float,
    min_voxels: int,
) -> list[NDArray[np.int64]]:
    """Index arrays of the chosen pieces, the most promising first, each trimmed to a share of its own height."""
    if not len(tree.parent):
        return []  # nothing is as large as the smallest object asked for
    chosen = select_nodes(tree, prior, voxel_size_m)
    owner = np.where(tree.node >= 0, chosen[np.maximum(tree.node, 0)], -1)
    members = np.argsort(owner, kind="stable")
    members = members[owner[members] >= 0]
    if not len(members):
        return []
    starts = np.flatnonzero(np.diff(owner[members], prepend=-1))
    ends = np.append(starts[1:], len(members))
    promise = _mean_of_best(owner, scores, ends, ends - starts, min_voxels)
    groups = [members[starts[i] : ends[i]] for i in np.argsort(-promise, kind="stable")[:_MAX_CANDIDATES]]
    pieces = []
    for group in groups:
        height = float(np.quantile(scores[group], _HEIGHT_QUANTILE))
        core = group[scores[group] >= base + _KEEP_SHARE * (height - base)]
        labels = pieces_of(graph, core)
        core = core[labels == np.argmax(np.bincount(labels))]
        if len(core) >= min_voxels:
            pieces.append(np.sort(core))
    return pieces


def _mean_of_best(
    owner: NDArray[np.int32],
    scores: NDArray[np.float32],
    ends: NDArray[np.int64],
    sizes: NDArray[np.int64],
    count: int,
) -> NDArray[np.float32]:
    """The mean of the ``count`` best scores of every group, for all groups at once: there may be thousands."""
    ascending = descending_order(-scores)
    ascending = ascending[owner[ascending] >= 0]
    ranked = scores[ascending[np.argsort(owner[ascending], kind="stable")]]
    best = np.maximum(ends[:, None] + np.arange(-count, 0), 0)  # what smaller groups would borrow is not used
    return np.asarray(np.where(sizes >= count, ranked[best].mean(axis=1), ranked[ends - 1]), dtype=np.float32)


def _objects_of_piece(
    text: str,
    voxels: NDArray[np.int32],
    snapshot: MapSnapshot,
    scores: NDArray[np.float32],
    up: NDArray[np.floating],
    prior: SizePrior,
    config: QueryConfig,
) -> list[DetectedObject]:
    voxel_size_m = snapshot.voxel_size_m
    points = (snapshot.coords[voxels] + 0.5) * voxel_size_m
    objects = []
    for part in split_until_tight(points, snapshot.normals[voxels], up, voxel_size_m, _AIRY_VOLUME_M3, _AIRY_GAIN):
        if len(part) < config.min_voxels:
            continue
        upright = upright_box(points[part], up, voxel_size_m)
        box: Box = upright if config.oriented_boxes else axis_aligned_box(points[part], voxel_size_m)
        score = float(np.quantile(scores[voxels[part]], _SCORE_QUANTILE)) - prior.penalty(
            float(upright.size_m.max()), len(part) * voxel_size_m**2
        )
        objects.append(
            DetectedObject(
                text=text,
                score=score,
                center_m=box.center_m,
                size_m=box.size_m,
                yaw_rad=box.yaw_rad,
                voxels=np.sort(voxels[part]).astype(np.int32),
                R_map_box=box.R_map_box,
            )
        )
    return objects
