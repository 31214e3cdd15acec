"""The living map: a hash-indexed structure of arrays that never outgrows its byte budget."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopurify_core.config import MapConfig
from geopurify_core.errors import MapMismatchError
from geopurify_core.jit import HAVE_NUMBA, run_chunks
from geopurify_core.mapping import budget
from geopurify_core.mapping.arena import SnapshotArena, lazy_zeros
from geopurify_core.mapping.hash import new_index
from geopurify_core.mapping.keys import key_centers, pack_keys, unpack_keys
from geopurify_core.mapping.snapshot import MapSnapshot

log = logging.getLogger(__name__)

BLOCK_ROWS = 64
_MOVE_CHUNK = 2048
_MAX_ARENAS = 3
_SHARED_ARRAYS = ("features", "weight", "geometry_weight", "first_seen_ns", "last_seen_ns")
_SNAPSHOT_FIELDS: dict[str, tuple[tuple[int, ...], Any]] = {
    "coords": ((3,), np.int32),
    "features": ((-1,), np.float16),
    "weight": ((), np.float32),
    "geometry_weight": ((), np.float32),
    "rgb": ((3,), np.uint8),
    "normals": ((3,), np.float16),
    "first_seen_ns": ((), np.int64),
    "last_seen_ns": ((), np.int64),
}


@dataclass
class VoxelArrays:
    """What is known of each voxel; row i of every array is voxel i. The first ``len(map)`` rows are in use.

    Attributes:
        keys: int64 packed coordinates.
        features: (·, C) float16 running mean.
        weight: float32 behind ``features``.
        geometry_weight: float32 behind ``colour`` and ``normal``.
        colour: (·, 3) float32 running mean, 0..255.
        normal: (·, 3) float16 running mean of unit normals; shorter than 1 where they disagree.
        first_seen_ns, last_seen_ns: int64.
    """

    keys: NDArray[np.int64]
    features: NDArray[np.float16]
    weight: NDArray[np.float32]
    geometry_weight: NDArray[np.float32]
    colour: NDArray[np.float32]
    normal: NDArray[np.float16]
    first_seen_ns: NDArray[np.int64]
    last_seen_ns: NDArray[np.int64]

    @classmethod
    def reserve(cls, capacity: int, feature_dim: int) -> VoxelArrays:
        """Address space for ``capacity`` voxels; memory follows as they come."""
        return cls(
            keys=lazy_zeros((capacity,), np.int64),
            features=lazy_zeros((capacity, feature_dim), np.float16, huge_pages=True),
            weight=lazy_zeros((capacity,), np.float32),
            geometry_weight=lazy_zeros((capacity,), np.float32),
            colour=lazy_zeros((capacity, 3), np.float32),
            normal=lazy_zeros((capacity, 3), np.float16),
            first_seen_ns=lazy_zeros((capacity,), np.int64),
            last_seen_ns=lazy_zeros((capacity,), np.int64),
        )

    def each(self) -> list[NDArray[Any]]:
        """All arrays, in a fixed order."""
        return [getattr(self, item.name) for item in dataclasses.fields(self)]


@dataclass(frozen=True)
class Placement:
    """Where the voxels of one frame live: ``rows`` (U,) int32, -1 for those the budget had no room for."""

    rows: NDArray[np.int32]
    new: int
    evicted: int
    dropped: int


class VoxelMap:
    """Voxels and what was seen in them. Not safe to change and read from two threads: hold a lock, hand out snapshots.

    Args:
        config: Voxel size, byte budget, eviction, hardening.
        feature_dim: C.
        backbone: Fingerprint of the backbone whose features are fused.
        text_fingerprint: The text space those features live in.

    Attributes:
        arrays: The storage, for the fusion kernels.
        capacity: Most voxels the budget allows.
        evicted: Voxels forgotten so far to stay within the budget.
        stamp_ns: Stamp of the newest integrated frame, 0 before the first.
        version: Counts the changes.

    Raises:
        InvalidConfigError: The budget does not hold 256 voxels.
    """

    def __init__(self, config: MapConfig, feature_dim: int, backbone: str, text_fingerprint: str) -> None:
        self.config = config
        self.feature_dim = int(feature_dim)
        self.backbone = backbone
        self.text_fingerprint = text_fingerprint
        self.capacity = budget.capacity_for(config.budget_mb, self.feature_dim)
        self.arrays = VoxelArrays.reserve(self.capacity, self.feature_dim)
        self.evicted = 0
        self.stamp_ns = 0
        self.version = 0
        self._count = 0
        self._committed_rows = 0
        self._index = new_index()
        self._block_version = lazy_zeros((self.capacity // BLOCK_ROWS + 1,), np.int64)
        self._arenas: list[SnapshotArena] = []  # the latest snapshot's, and spares while the budget allows
        self._snapshot: MapSnapshot | None = None

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        """Bytes held now: voxels ever in use at once, the index, the latest snapshot, and a spare if there is one."""
        living = self._committed_rows * (2 * self.feature_dim + budget.LIVING_BYTES) + self._index.nbytes
        snapshot_rows = sum(arena.committed_rows for arena in self._arenas)
        return living + snapshot_rows * (2 * self.feature_dim + budget.SNAPSHOT_BYTES)

    def find(self, coords: NDArray[np.integer]) -> NDArray[np.int32]:
        """(n,) rows of the voxels at (n, 3) coordinates; -1 where there is none."""
        return self._index.find(self.arrays.keys, pack_keys(coords))

    def changed_share(self, since_version: int) -> float:
        """Share of the voxels, 0..1, that share a block of 64 rows with one changed after ``since_version``.

        Costs one look at each block (microseconds); rows are in order of discovery, so blocks lie together in space.
        """
        blocks = self._block_version[: -(-self._count // BLOCK_ROWS)]
        changed = int(np.count_nonzero(blocks > since_version)) * BLOCK_ROWS
        return min(changed, self._count) / max(self._count, 1)

    # -- change ------------------------------------------------------------------------------------------------------

    def place(self, keys: NDArray[np.int64], stamp_ns: int, camera_m: NDArray[np.float64]) -> Placement:
        """Rows for distinct voxel keys, making new ones as needed and forgetting others if there is no room.

        Voxels named in ``keys`` are never forgotten for one another; if they alone exceed the capacity, the new ones
        farthest from the camera stay out. New rows are zero and carry ``stamp_ns``. Call :meth:`commit` afterwards.
        """
        rows = self._index.find(self.arrays.keys, keys)
        missing = np.flatnonzero(rows < 0)
        evicted = 0
        if len(missing) > self.capacity - self._count:
            evicted = self._make_room(rows, len(missing), camera_m)
            rows = self._index.find(self.arrays.keys, keys)
        room = self.capacity - self._count
        dropped = max(0, len(missing) - room)
        if dropped:
            distance = ((key_centers(keys[missing], self.config.voxel_size_m) - camera_m) ** 2).sum(axis=1)
            missing = np.sort(missing[np.argsort(distance, kind="stable")[:room]])
        rows[missing] = self._append(keys[missing], stamp_ns)
        return Placement(rows, len(missing), evicted, dropped)

    def commit(self, rows: NDArray[np.int32], stamp_ns: int) -> None:
        """Declare ``rows`` changed by the frame of ``stamp_ns``."""
        self.version += 1
        self.stamp_ns = max(self.stamp_ns, stamp_ns)
        self._block_version[rows[rows >= 0] // BLOCK_ROWS] = self.version
        self._drop_spare()

    def _append(self, keys: NDArray[np.int64], stamp_ns: int) -> NDArray[np.int32]:
        start, stop = self._count, self._count + len(keys)
        used_before = slice(start, min(stop, self._committed_rows))
        for (
            array
        ) in self.arrays.each():  # rows never used are zero already; writing them would commit their pages early
            array[used_before] = 0
        self.arrays.keys[start:stop] = keys
        self.arrays.first_seen_ns[start:stop] = stamp_ns
        self.arrays.last_seen_ns[start:stop] = stamp_ns
        self._index.append(self.arrays.keys, start, stop)
        self._block_version[start // BLOCK_ROWS : -(-stop // BLOCK_ROWS)] = self.version + 1  # the commit that follows
        self._count = stop
        self._committed_rows = max(self._committed_rows, stop)
        return np.arange(start, stop, dtype=np.int32)

    def _make_room(self, rows: NDArray[np.int32], needed: int, camera_m: NDArray[np.float64]) -> int:
        protected = np.zeros(self._count, dtype=bool)
        protected[rows[rows >= 0]] = True
        victims = budget.pick_victims(
            self.arrays.keys[: self._count],
            self.arrays.last_seen_ns[: self._count],
            protected,
            max(needed - (self.capacity - self._count), int(self.capacity * budget.EVICT_SHARE)),
            policy=self.config.evict,
            voxel_size_m=self.config.voxel_size_m,
            camera_m=camera_m,
        )
        self._remove(victims)
        self.evicted += len(victims)
        log.debug("forgot %d of %d voxels to stay within %d MiB", len(victims), self.capacity, self.config.budget_mb)
        return len(victims)

    def _remove(self, victims: NDArray[np.int64]) -> None:
        """Close the gaps with rows from the end, a few at a time, so that no copy of the map is ever made."""
        kept = self._count - len(victims)
        gaps = victims[victims < kept]
        tail = np.ones(self._count - kept, dtype=bool)
        tail[victims[victims >= kept] - kept] = False
        movers = np.flatnonzero(tail) + kept
        for start in range(0, len(gaps), _MOVE_CHUNK):
            to, source = gaps[start : start + _MOVE_CHUNK], movers[start : start + _MOVE_CHUNK]
            for array in self.arrays.each():
                array[to] = array[source]
        self._block_version[gaps // BLOCK_ROWS] = self.version + 1  # the commit that follows
        self._count = kept
        self._index.rebuild(self.arrays.keys, kept)

    # -- read --------------------------------------------------------------------------------------------------------

    def snapshot(self) -> MapSnapshot:
        """The map as it is now; the same object until the map changes.

        Only what changed is copied, into the memory of an earlier snapshot that nobody reads any more; if there is
        none, everything is copied anew. Up to three such memories are kept while the budget allows it, so that queries
        and purification, which let go of the last snapshot only when they have the next one, cost no full copy either.
        """
        if self._snapshot is not None and self._snapshot.version == self.version:
            return self._snapshot
        self._snapshot = None
        arena = self._free_arena()
        blocks = self._block_version[: -(-self._count // BLOCK_ROWS)]
        self._copy_blocks(np.flatnonzero(blocks > arena.synced_version).astype(np.int64), arena)
        arena.synced_version = self.version
        leased: dict[str, Any] = arena.lease(self._count)
        self._drop_spare()
        self._snapshot = MapSnapshot(
            **leased,
            voxel_size_m=self.config.voxel_size_m,
            frame_id=self.config.frame_id,
            stamp_ns=self.stamp_ns,
            version=self.version,
            backbone=self.backbone,
            text_fingerprint=self.text_fingerprint,
        )
        return self._snapshot

    def _free_arena(self) -> SnapshotArena:
        free = [arena for arena in self._arenas if not arena.in_use]
        if free:
            arena = max(free, key=lambda arena: arena.synced_version)
        else:
            shapes = {**_SNAPSHOT_FIELDS, "features": ((self.feature_dim,), np.float16)}
            arena = SnapshotArena(self.capacity, shapes)
        self._arenas = [arena, *(other for other in self._arenas if other is not arena)][:_MAX_ARENAS]
        return arena

    def _drop_spare(self) -> None:
        while len(self._arenas) > 1 and self.nbytes > self.config.budget_mb << 20:
            del self._arenas[-1]

    def _copy_blocks(self, blocks: NDArray[np.int64], arena: SnapshotArena) -> None:
        mine = self.arrays
        out = [arena.arrays[name] for name in _SNAPSHOT_FIELDS]
        source: list[NDArray[Any]] = [
            mine.keys, mine.features, mine.weight, mine.geometry_weight, mine.colour, mine.normal,
            mine.first_seen_ns, mine.last_seen_ns,
        ]  # fmt: skip
        if HAVE_NUMBA:
            from geopurify_core.mapping.update_kernels import copy_blocks

            bits = [array.view(np.uint16) if array.dtype == np.float16 else array for array in (*source, *out)]
            run_chunks(copy_blocks, len(blocks), blocks, BLOCK_ROWS, self._count, *bits, min_chunk=16)
            return
        for block in blocks:
            part = slice(int(block) * BLOCK_ROWS, min((int(block) + 1) * BLOCK_ROWS, self._count))
            for target, values in zip(out, _snapshot_values(mine, part), strict=True):
                target[part] = values

    @classmethod
    def from_snapshot(cls, snapshot: MapSnapshot, config: MapConfig) -> VoxelMap:
        """A living map that goes on where ``snapshot`` ended.

        Colours and normals restart from the snapshot's rounded values. If the budget is too small for all voxels, the
        newest are kept and the others counted in ``evicted``.

        Raises:
            MapMismatchError: Voxel size or frame differ from ``config``, or the snapshot is purified or holds a voxel
                twice.
            InvalidConfigError: The budget does not hold 256 voxels.
        """
        _check_fit(snapshot, config)
        living = cls(config, snapshot.feature_dim, snapshot.backbone, snapshot.text_fingerprint)
        rows: NDArray[np.int64] | slice = slice(None)
        if len(snapshot) > living.capacity:
            rows = np.sort(np.argsort(-snapshot.last_seen_ns, kind="stable")[: living.capacity])
        living._append(pack_keys(snapshot.coords[rows]), 0)
        count = len(living)
        for mine, saved in (("colour", "rgb"), ("normal", "normals"), *((name, name) for name in _SHARED_ARRAYS)):
            getattr(living.arrays, mine)[:count] = getattr(snapshot, saved)[rows]
        living.evicted = len(snapshot) - count
        living.version, living.stamp_ns = snapshot.version, snapshot.stamp_ns
        living._block_version[: -(-count // BLOCK_ROWS)] = living.version
        return living


def _check_fit(snapshot: MapSnapshot, config: MapConfig) -> None:
    size, frame = config.voxel_size_m, config.frame_id
    if snapshot.purified:
        raise MapMismatchError(
            "map.purified",
            snapshot.purified,
            "Each of its features is a mixture of many voxels', which no frame can be fused into: load the raw map.",
        )
    if abs(snapshot.voxel_size_m - size) > 1e-9 * size:
        raise MapMismatchError("map.voxel_size_m", snapshot.voxel_size_m, f"Set map.voxel_size_m to it (now {size}).")
    if snapshot.frame_id != frame:
        raise MapMismatchError("map.frame_id", snapshot.frame_id, f"Set map.frame_id to it (now {frame!r}).")
    keys = pack_keys(snapshot.coords)
    if len(np.unique(keys)) != len(keys) or (keys < 0).any():
        raise MapMismatchError("map.coords", "a voxel out of reach or held twice", "Save the map again at its source.")


def _snapshot_values(mine: VoxelArrays, part: slice) -> list[NDArray[Any]]:
    normal = mine.normal[part].astype(np.float32)
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    unit = np.divide(normal, length, out=np.zeros_like(normal), where=length > 0)
    return [
        unpack_keys(mine.keys[part]), mine.features[part], mine.weight[part], mine.geometry_weight[part],
        np.clip(np.rint(mine.colour[part]), 0, 255), unit, mine.first_seen_ns[part], mine.last_seen_ns[part],
    ]  # fmt: skip
