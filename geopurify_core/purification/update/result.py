"""What a purification leaves behind: for queries, for files, and for the next purification to build on."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from geopurify_core.errors import NotAvailableError, PurificationError
from geopurify_core.mapping.snapshot import MapSnapshot
from geopurify_core.purification.affinity.build import Affinity
from geopurify_core.purification.pooling.packed import PackedAffinity
from geopurify_core.purification.update.whole import COLUMNS_AT_ONCE, pool_columns, raw_scores

FULL, INCREMENTAL, NOTHING = "full", "incremental", "nothing"


@dataclass(frozen=True)
class Report:
    """How a purification came about.

    Attributes:
        modes: For each step "full", "incremental" or "nothing" (the previous rows were kept as they are).
        seconds: Wall seconds of each step.
        rows: Rows that each step recomputed; for the student, rows whose embedding was replaced.
        num_voxels: N.
        student_work: Rows times layers that the student computed, as a share of a full run.
        predicted_seconds: What the cost model expected of each step as it was run.
    """

    modes: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    num_voxels: int = 0
    student_work: float = 1.0
    predicted_seconds: dict[str, float] = field(default_factory=dict)

    @property
    def mode(self) -> str:
        """Full where all that was done was done in full, nothing where nothing was, incremental otherwise."""
        used = set(self.modes.values()) - {NOTHING}
        return NOTHING if not used else FULL if used == {FULL} else INCREMENTAL

    @property
    def total_seconds(self) -> float:
        """All steps together."""
        return sum(self.seconds.values())


@dataclass(frozen=True, eq=False)
class Purification:
    """N purified voxels in key order: sorted by x, then y, then z. Arrays are read-only.

    For each voxel it holds 4·D bytes of embedding, 8·K of affinity, 2·C of features (``pool: features`` only), 32·4 of
    sketch and about 60 of the rest: 2.5 KB at D = 128, K = 96, C = 512. The raw snapshot comes on top.

    Attributes:
        snapshot: The raw map it was made from, rows in their own order.
        keys, coords: (N,) int64 packed keys and (N, 3) int32 coordinates.
        order: (N,) int64, row i here is row ``order[i]`` of ``snapshot``.
        embeddings: (N, D) float32 of the student, not normalised.
        affinity: Neighbours and weights, rows and neighbour indices in key order.
        features: (N, C) float16 pooled features F' = A^T F; None in ``pool: scores``.
        length: (N,) float32, |F'| of each row.
        weight: (N,) float32, the observation weight pooled in the same way.
        steps: T, the pooling steps.
        fingerprint: Student and settings behind it, as text; purifications that differ in it are not comparable.
        report: How it was computed.
        normals: (N, 3) float32, the normals that the student saw, unknown ones filled in.
        sketch: (N, S) float32, a random projection of the pooled feature rows as they were when each row was last
            recomputed: tells the next update how far every row has moved without pooling all channels.
        device: Where pooling runs.
    """

    snapshot: MapSnapshot
    keys: NDArray[np.int64]
    coords: NDArray[np.int32]
    order: NDArray[np.int64]
    embeddings: NDArray[np.float32]
    affinity: Affinity
    features: NDArray[np.float16] | None
    length: NDArray[np.float32]
    weight: NDArray[np.float32]
    steps: int
    fingerprint: str
    report: Report
    normals: NDArray[np.float32]
    sketch: NDArray[np.float32]
    device: str = "cpu"

    def __post_init__(self) -> None:
        for array in self._arrays():
            if array is not self.affinity.neighbors and array is not self.affinity.weights:  # torch warns of such
                array.setflags(write=False)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def nbytes(self) -> int:
        """Bytes held beside the snapshot."""
        packed = self.__dict__.get("_packed")
        return sum(array.nbytes for array in self._arrays()) + (packed.nbytes if packed is not None else 0)

    @cached_property
    def _packed(self) -> PackedAffinity:
        """Made at the first use, for queries in score space: packing costs as much as pooling a text."""
        return PackedAffinity(self.affinity)

    def pool_scores(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """A^T (F vᵀ): the dot products of purified features with vectors, without the purified features.

        Args:
            vectors: (n, C) float32.

        Returns:
            (n, N) float32 in key order; equal to ``vectors @ F'ᵀ`` but for rounding. Divide by ``length`` for cosines.

        Raises:
            PurificationError: Vectors of another width.
        """
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != self.snapshot.feature_dim:
            raise PurificationError(
                "vectors.shape", vectors.shape, f"Give one row of {self.snapshot.feature_dim} channels for each text."
            )
        out = np.empty((len(vectors), len(self)), dtype=np.float32)
        for low in range(0, len(vectors), COLUMNS_AT_ONCE):
            columns = raw_scores(self.snapshot.features, vectors[low : low + COLUMNS_AT_ONCE], self.order)
            out[low : low + COLUMNS_AT_ONCE] = pool_columns(columns, self._packed, self.steps, self.device).T
        return out

    def as_snapshot(self) -> MapSnapshot:
        """The purified map: features F', weight pooled, rows in key order, marked as purified.

        Raises:
            NotAvailableError: ``pool: scores`` keeps no purified features.
        """
        if self.features is None:
            raise NotAvailableError("purification.pool", "scores", "Set purification.pool to features.")
        raw = self.snapshot
        moved = {name: getattr(raw, name)[self.order] for name in ("rgb", "normals", "first_seen_ns", "last_seen_ns")}
        return replace(
            raw,
            coords=self.coords,
            features=self.features,
            weight=self.weight,
            geometry_weight=raw.geometry_weight[self.order],
            purified=self.fingerprint,
            **moved,
        )

    def _arrays(self) -> list[NDArray[np.generic]]:
        arrays = [
            self.keys, self.coords, self.order, self.embeddings, self.affinity.neighbors, self.affinity.weights,
            self.length, self.weight, self.normals, self.sketch,
        ]  # fmt: skip
        return arrays if self.features is None else [*arrays, self.features]
