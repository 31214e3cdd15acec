"""Poses over time and a tree of frames, without ROS: interpolate between what was recorded, never beyond it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation, Slerp

from geopurify_core.camera import invert_pose


class PoseTrack:
    """Time-stamped poses of one moving frame.

    Args:
        samples: (stamp in ns, (4, 4) pose); sorted here, the last one of equal stamps wins.
    """

    def __init__(self, samples: Iterable[tuple[int, NDArray[np.float64]]]) -> None:
        unique = dict(samples)
        self._stamps_ns = sorted(unique)
        self._poses = [unique[stamp] for stamp in self._stamps_ns]

    def __len__(self) -> int:
        return len(self._stamps_ns)

    def at(self, stamp_ns: int, max_gap_ns: int) -> NDArray[np.float64] | None:
        """The pose then: recorded, interpolated where its neighbours are at most ``max_gap_ns`` apart, else None."""
        after = bisect_left(self._stamps_ns, stamp_ns)
        if after < len(self) and self._stamps_ns[after] == stamp_ns:
            return self._poses[after]
        if not 0 < after < len(self) or self._stamps_ns[after] - self._stamps_ns[after - 1] > max_gap_ns:
            return None
        before_ns, after_ns = self._stamps_ns[after - 1], self._stamps_ns[after]
        return interpolate(self._poses[after - 1], self._poses[after], (stamp_ns - before_ns) / (after_ns - before_ns))


def interpolate(T0: NDArray[np.float64], T1: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """The (4, 4) pose ``share`` of the way from ``T0`` to ``T1``: straight line and constant turn (slerp)."""
    T = np.eye(4)
    T[:3, :3] = Slerp([0.0, 1.0], Rotation.from_matrix(np.stack([T0[:3, :3], T1[:3, :3]])))(share).as_matrix()
    T[:3, 3] = (1 - share) * T0[:3, 3] + share * T1[:3, 3]
    return T


class TransformTree:
    """Frames that hang on each other, as tf2 knows them."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}
        self._static: dict[str, NDArray[np.float64]] = {}
        self._samples: dict[str, list[tuple[int, NDArray[np.float64]]]] = {}
        self._tracks: dict[str, PoseTrack] = {}

    def add(self, parent: str, child: str, stamp_ns: int, T_parent_child: NDArray[np.float64], static: bool) -> None:
        """Record one transform; a child that changes its parent forgets what it had under the old one."""
        parent, child = parent.lstrip("/"), child.lstrip("/")
        if self._parent.get(child, parent) != parent:
            self._static.pop(child, None)
            self._samples.pop(child, None)
        self._parent[child] = parent
        self._tracks.pop(child, None)
        if static:
            self._static[child] = T_parent_child
        else:
            self._samples.setdefault(child, []).append((stamp_ns, T_parent_child))

    def frames(self) -> set[str]:
        """Every frame that takes part in a transform."""
        return {*self._parent, *self._parent.values()}

    def root(self, frame: str) -> str:
        """The top of the tree that ``frame`` hangs in."""
        return self._chain(frame)[-1]

    def lookup(self, target: str, source: str, stamp_ns: int, max_gap_ns: int) -> NDArray[np.float64] | None:
        """(4, 4) T_target_source at that time, or None where the tree does not know it."""
        up_source, up_target = self._chain(source), self._chain(target)
        common = next((frame for frame in up_source if frame in up_target), None)
        if common is None:
            return None
        T_common_source = self._climb(up_source[: up_source.index(common)], stamp_ns, max_gap_ns)
        T_common_target = self._climb(up_target[: up_target.index(common)], stamp_ns, max_gap_ns)
        if T_common_source is None or T_common_target is None:
            return None
        return invert_pose(T_common_target) @ T_common_source

    def _chain(self, frame: str) -> list[str]:
        """``frame``, its parent, …, up to the root; a loop in the recording ends the walk."""
        chain = [frame.lstrip("/")]
        while chain[-1] in self._parent and self._parent[chain[-1]] not in chain:
            chain.append(self._parent[chain[-1]])
        return chain

    def _climb(self, children: list[str], stamp_ns: int, max_gap_ns: int) -> NDArray[np.float64] | None:
        T = np.eye(4)
        for child in children:
            step = self._step(child, stamp_ns, max_gap_ns)
            if step is None:
                return None
            T = step @ T
        return T

    def _step(self, child: str, stamp_ns: int, max_gap_ns: int) -> NDArray[np.float64] | None:
        if child in self._static:
            return self._static[child]
        if child not in self._tracks:
            self._tracks[child] = PoseTrack(self._samples[child])
        return self._tracks[child].at(stamp_ns, max_gap_ns)
