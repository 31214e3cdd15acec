"""What each step of a purification is predicted to cost, and which way of doing it is therefore chosen.

Seconds on two cores of an AMD EPYC (Zen 5) that nobody else uses; only their ratios decide. They were measured on rooms
of 100 000 and 290 000 voxels (``tools/bench/incremental.py``, which reports what was predicted beside what it took); on
other machines all of them shift, and mostly together.
"""

from __future__ import annotations

from dataclasses import dataclass

# Seconds for each unit of work.
_MULTIPLY = 5.0e-12  # one multiply-add of the convolutions (400 GFLOP/s)
_PAIRS = 17  # occupied voxels under a 3³ kernel, on scanned surfaces
_ACTIVATION = 1.2e-9  # a channel of a row normalised, added, set to zero, for each layer
_KERNEL_MAP = 6.0e-8  # neighbours of a row found
_LAYER = 1.5e-3  # one more partial layer, however few rows
_RING = 6.0e-7  # hops of a row near a change counted
_INPUT = 5.0e-10  # a channel of a row read and widened
_SEARCH = 1.6e-8  # one of a row's K neighbours found
_NEAR = 4.5e-7  # a row looked at for new or gone voxels nearby
_SOFTMAX = 5.0e-11  # one multiply-add of the cosines
_DIRTY = 1.5e-9  # one neighbour of a row looked at for a change, its weight carried over
_POOL = 1.3e-11  # one multiply-add of pooling
_PACK = 6.0e-9  # one entry of A prepared for pooling
_WALK = 2.0e-10  # one entry of A used in a hop of the walk that finds the halo
_HOLD = 2.0e-10  # a channel of a row carried over
_SKETCH_COLUMNS = 32


@dataclass(frozen=True)
class Size:
    """How large the problem is.

    Attributes:
        rows: N voxels.
        channels: C of the map.
        hidden, layers, embedding: The student's width, number of 3³ convolutions, and D.
        neighbors, steps: K and T.
    """

    rows: int
    channels: int
    hidden: int
    layers: int
    embedding: int
    neighbors: int
    steps: int


def student_full(size: Size) -> float:
    """Every row through every layer."""
    kernel_map = size.rows * _KERNEL_MAP
    return kernel_map + inputs(size, size.rows) + _layers(size, [size.rows] * size.layers)


def student_partial(size: Size, layer_rows: list[int]) -> float:
    """Rows that each layer computes, from the first to the last; found by counting hops, each with its kernel map."""
    if not layer_rows or not layer_rows[0]:
        return 0.0
    overhead = layer_rows[0] * _RING + sum(layer_rows) * _KERNEL_MAP + len(layer_rows) * _LAYER
    return overhead + inputs(size, layer_rows[0]) + _layers(size, layer_rows)


def inputs(size: Size, rows: int) -> float:
    """``rows`` read and widened."""
    return rows * (size.channels + 6) * _INPUT


def _layers(size: Size, layer_rows: list[int]) -> float:
    seconds = 0.0
    for layer, rows in enumerate(layer_rows):
        width = size.channels + 6 if layer == 0 else size.hidden
        seconds += rows * (_PAIRS * width * size.hidden * _MULTIPLY + (width + size.hidden) * _ACTIVATION)
    return seconds + (layer_rows[-1] if layer_rows else 0) * size.hidden * size.embedding * _MULTIPLY


def neighbors_full(size: Size) -> float:
    """Every row's K nearest voxels."""
    return size.rows * size.neighbors * _SEARCH


def neighbors_partial(size: Size, rows: int) -> float:
    """``rows`` searched, after all rows were looked at for what came and went near them."""
    return size.rows * _NEAR + rows * size.neighbors * _SEARCH


def affinity_full(size: Size) -> float:
    """Every row's weights."""
    return size.rows * size.neighbors * size.embedding * _SOFTMAX


def affinity_partial(size: Size, rows: int) -> float:
    """``rows`` of weights, after all rows were looked at for changed neighbours."""
    return size.rows * size.neighbors * _DIRTY + rows * size.neighbors * size.embedding * _SOFTMAX


def pooling_full(size: Size, columns: int) -> float:
    """All rows, all steps, ``columns`` columns: channels, or texts in score space."""
    entries = size.rows * size.neighbors
    return entries * (_PACK + size.steps * columns * _POOL)


def pooling_sketch(size: Size) -> float:
    """The sketch of the whole map, which every purification makes."""
    return pooling_full(size, _SKETCH_COLUMNS)


def pooling_partial(size: Size, columns: int, row_steps: int) -> float:
    """``row_steps`` rows times steps on a sub-graph: one walk to find it, one trial on the sketch, then the columns;
    the other rows are carried over."""
    walk = size.rows * (size.neighbors * size.steps * _WALK + columns * _HOLD)
    pack = row_steps / max(1, size.steps) * size.neighbors * _PACK
    return walk + pack + row_steps * size.neighbors * (columns + _SKETCH_COLUMNS) * _POOL


def pooling_prepared(size: Size, columns: int) -> float:
    """All rows, all steps, on an affinity that is prepared already: score columns of texts, or channels."""
    return size.rows * size.neighbors * size.steps * columns * _POOL


def scores_partial(size: Size, texts: int, row_steps: int) -> float:
    """Scores from columns kept of the previous map: which rows have moved must be found out first, by a sketch.

    For up to 32 texts this alone costs what pooling them does; ``Purification.pool_scores`` therefore keeps nothing
    and always pools anew.
    """
    return pooling_prepared(size, _SKETCH_COLUMNS) + pooling_partial(size, texts, row_steps)


def is_worthwhile(partial_seconds: float, full_seconds: float) -> bool:
    """Whether the partial way is predicted to be the faster one; the full one where they are even."""
    return partial_seconds < full_seconds


def full_run(size: Size, columns: int) -> dict[str, float]:
    """Seconds of each step from scratch, under the names of ``steps.STEPS``."""
    return {
        "inputs": inputs(size, size.rows),
        "student": student_full(size) - inputs(size, size.rows),
        "neighbors": neighbors_full(size),
        "affinity": affinity_full(size),
        "pooling": pooling_sketch(size) + pooling_full(size, columns) - size.rows * size.neighbors * _PACK,
    }
