"""The ray caster against a straightforward search over all primitives with textbook intersections."""

import numpy as np
import pytest

from geopurify_core.datasets.synthetic.raycast import Primitives, RayCaster
from geopurify_core.datasets.synthetic.shapes import BOX, CYLINDER, ELLIPSOID, Material, rotation_x, rotation_z
from geopurify_core.datasets.synthetic.walk import look_pose


def _scene(seed: int, count: int = 25) -> Primitives:
    rng = np.random.default_rng(seed)
    turns = [rotation_z(a) @ rotation_x(b) for a, b in rng.uniform(0, 6, (count, 2))]
    return Primitives(
        shape=rng.choice([BOX, CYLINDER, ELLIPSOID], count).astype(np.int64),
        center_m=np.column_stack([rng.uniform(1.5, 4, count), rng.uniform(-1.5, 1.5, count), rng.uniform(0, 2, count)]),
        half_m=rng.uniform(0.05, 0.4, (count, 3)),
        rotation=np.array(turns),
        instance=np.arange(1, count + 1),
        room=np.zeros(count, dtype=np.int64),
        materials=np.array([Material((0.5, 0.5, 0.5)).row()] * count),
        rooms_m=np.array([[-1.0, -3, 0, 6, 3, 2.5]]),
        lights=np.array([[2.0, 0, 2.3, 1, 1, 1, 0.3]]),
    )


def _naive_depth(scene: Primitives, origin: np.ndarray, direction: np.ndarray) -> tuple[float, int]:
    """Smallest ray parameter over all primitives, by dense sampling of the inside test and bisection."""
    steps = np.linspace(0.03, 6.0, 6000)
    points = origin + steps[:, None] * direction
    best, which = np.inf, -1
    for p in range(len(scene.shape)):
        q = (points - scene.center_m[p]) @ scene.rotation[p] / scene.half_m[p]
        inside = {
            BOX: np.abs(q).max(axis=1) < 1,
            CYLINDER: (np.hypot(q[:, 0], q[:, 1]) < 1) & (np.abs(q[:, 2]) < 1),
            ELLIPSOID: np.linalg.norm(q, axis=1) < 1,
        }[int(scene.shape[p])]
        if inside.any() and steps[inside.argmax()] < best:
            best, which = float(steps[inside.argmax()]), p
    return best, which


@pytest.mark.parametrize("seed", [0, 1])
def test_depth_and_instance_equal_a_naive_search(seed):
    scene, width, height, lens = _scene(seed), 24, 18, (20.0, 20.0, 11.5, 8.5)
    pose = look_pose(np.array([0.0, 0.1, 1.1]), 0.1, -0.1, 0.05)
    _, depth, instance, cosine = RayCaster(scene).render(pose, lens, width, height)
    mismatches = 0
    for v in range(height):
        for u in range(width):
            ray = pose[:3, :3] @ np.array([(u - lens[2]) / lens[0], (v - lens[3]) / lens[1], 1.0])
            expected, which = _naive_depth(scene, pose[:3, 3], ray)
            if which < 0:  # a ray may graze a primitive between two samples
                mismatches += depth[v, u] != 0
                continue
            near = abs(depth[v, u] - expected) < 3e-3
            mismatches += not (near and instance[v, u] == which + 1)
    assert mismatches <= 0.01 * width * height
    assert (depth > 0).mean() > 0.2
    assert ((cosine >= 0) & (cosine <= 1 + 1e-6)).all()


def test_what_stands_between_lamp_and_floor_throws_a_shadow():
    def floor_colour(with_table: bool) -> float:
        shapes = [(np.array([0.0, 0, -0.05]), np.array([3.0, 3, 0.05]))]
        if with_table:
            shapes.append((np.array([0.0, 0, 1.0]), np.array([0.5, 0.5, 0.02])))
        scene = Primitives(
            shape=np.zeros(len(shapes), dtype=np.int64),
            center_m=np.array([s[0] for s in shapes]),
            half_m=np.array([s[1] for s in shapes]),
            rotation=np.array([np.eye(3)] * len(shapes)),
            instance=np.arange(1, len(shapes) + 1),
            room=np.zeros(len(shapes), dtype=np.int64),
            materials=np.array([Material((0.5, 0.5, 0.5)).row()] * len(shapes)),
            rooms_m=np.array([[-3.0, -3, 0, 3, 3, 2.5]]),
            lights=np.array([[0.0, 0, 2.3, 1, 1, 1, 0.3]]),
        )
        pose = look_pose(np.array([-1.5, 0.0, 0.6]), 0.0, -0.38)
        rgb, _, instance, _ = RayCaster(scene).render(pose, (40.0, 40.0, 19.5, 14.5), 40, 30)
        assert instance[15, 20] == 1
        return float(rgb[15, 20, 0])

    assert floor_colour(True) < 0.6 * floor_colour(False)
