"""Pairing by stamps and interpolating poses, against brute force and closed forms."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from geopurify_core.datasets.sync import NearestPairs
from geopurify_core.datasets.transforms import PoseTrack, TransformTree, interpolate


def run(leading, partners, slop, capacity=1000):
    """Feed both streams in order of time (partners first at equal stamps) and collect (leading, partner or None)."""
    sync = NearestPairs(slop, capacity)
    events = sorted([(stamp, 1) for stamp in leading] + [(stamp, 0) for stamp in partners])
    pairs = []
    for stamp, is_first in events:
        pairs += (sync.add_first if is_first else sync.add_second)(stamp, stamp)
    pairs += sync.flush()
    return [(pair.first, pair.second) for pair in pairs]


stamps = st.lists(st.integers(0, 300), max_size=30, unique=True).map(sorted)


@settings(max_examples=300, deadline=None)
@given(stamps, stamps, st.integers(0, 30))
def test_every_leading_message_is_answered_once_and_fairly(leading, partners, slop):
    pairs = run(leading, partners, slop)
    assert [first for first, _ in pairs] == leading
    used = [second for _, second in pairs if second is not None]
    assert used == sorted(set(used))
    free = list(partners)
    for first, second in pairs:  # brute force: nearest of those neither used nor passed over
        best = min(free, key=lambda stamp: (abs(stamp - first), stamp), default=None)
        if best is not None and abs(best - first) <= slop:
            assert second == best
            free = [stamp for stamp in free if stamp > best]
        else:
            assert second is None


def test_waiting_is_bounded():
    sync = NearestPairs(slop_ns=5, capacity=3)
    answered = [pair for stamp in range(0, 100, 10) for pair in sync.add_first(stamp, stamp)]
    assert [pair.stamp_ns for pair in answered] == list(range(0, 70, 10))
    assert all(pair.second is None for pair in answered)
    for stamp in range(1000, 2000):
        list(sync.add_second(stamp, stamp))
    assert len(sync._partners) <= 3


def pose(x, yaw):
    T = np.eye(4)
    T[:3, :3] = Rotation.from_euler("z", yaw).as_matrix()
    T[0, 3] = x
    return T


def test_interpolation_turns_and_moves_evenly():
    for share in (0.0, 0.25, 0.5, 1.0):
        np.testing.assert_allclose(
            interpolate(pose(1, 0.2), pose(3, 1.0), share), pose(1 + 2 * share, 0.2 + 0.8 * share), atol=1e-12
        )


def test_a_track_gives_recorded_poses_exactly_and_nothing_outside():
    track = PoseTrack([(30, pose(3, 0)), (10, pose(1, 0)), (10, pose(1.5, 0))])
    assert track.at(10, 100)[0, 3] == 1.5 and track.at(30, 0)[0, 3] == 3  # the last of equal stamps; exact needs no gap
    np.testing.assert_allclose(track.at(20, 20), pose(2.25, 0), atol=1e-12)
    assert track.at(20, 19) is None and track.at(9, 100) is None and track.at(31, 100) is None
    assert PoseTrack([]).at(0, 1) is None


def test_lookup_goes_up_and_down_the_tree():
    tree = TransformTree()
    tree.add("map", "odom", 0, pose(1, 0.5), static=True)
    tree.add("odom", "base", 0, pose(0, 0), static=False)
    tree.add("/odom", "/base", 100, pose(2, 0.4), static=False)
    tree.add("base", "camera", 0, pose(0.1, 0.3), static=True)
    tree.add("base", "lidar", 0, pose(-0.2, 0), static=True)
    T_map_camera = tree.lookup("map", "camera", 50, 1000)
    np.testing.assert_allclose(T_map_camera, pose(1, 0.5) @ pose(1, 0.2) @ pose(0.1, 0.3), atol=1e-12)
    T_lidar_camera = tree.lookup("lidar", "camera", 50, 1000)
    np.testing.assert_allclose(T_lidar_camera, pose(0.2, 0) @ pose(0.1, 0.3), atol=1e-12)
    np.testing.assert_allclose(tree.lookup("camera", "camera", 10**9, 0), np.eye(4))
    assert tree.lookup("map", "camera", 200, 1000) is None and tree.lookup("map", "elsewhere", 50, 1000) is None
    assert tree.root("camera") == "map" and "lidar" in tree.frames()


def test_a_loop_does_not_hang():
    tree = TransformTree()
    tree.add("a", "b", 0, np.eye(4), static=True)
    tree.add("b", "a", 0, np.eye(4), static=True)
    assert tree.lookup("a", "b", 0, 0) is not None and tree.lookup("c", "b", 0, 0) is None


def test_a_new_parent_forgets_the_old_transforms():
    tree = TransformTree()
    tree.add("odom", "camera", 0, pose(9, 0), static=True)
    tree.add("map", "camera", 5, pose(1, 0), static=False)
    assert tree.lookup("map", "camera", 5, 0)[0, 3] == 1 and tree.lookup("odom", "camera", 5, 0) is None
