"""Random views of procedural apartments, rendered once into memory-mapped arrays.

``render_views`` may be stopped and started again: it goes on after the last apartment it finished. Seeds below
``FIRST_TRAINING_SEED`` are refused for training; they belong to the demo, the tests and the reported scores.
"""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geopurify_core.datasets.synthetic import Apartment
from geopurify_core.datasets.synthetic.kinds import kinds
from geopurify_core.datasets.synthetic.sensor import noisy_colour
from geopurify_core.datasets.synthetic.shapes import bounds
from geopurify_core.datasets.synthetic.walk import look_pose

FIRST_TRAINING_SEED = 1000
VALIDATION_SEEDS = range(100, 120)
WIDTH, HEIGHT = 320, 240
NOTHING = 255
_STUFF = ("wall", "floor", "ceiling")


@dataclass(frozen=True)
class Views:
    """Images and the kind of every pixel.

    Attributes:
        rgb: (N, 240, 320, 3) uint8.
        kind: (N, 240, 320) uint8 index into ``kinds()``; 255 where nothing is seen.
    """

    rgb: NDArray[np.uint8]
    kind: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.rgb)


def _free_spot(apartment: Apartment, room: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """An eye position in the room that is not inside, or right in front of, a piece of furniture."""
    place = apartment.rooms[room]
    boxes = np.array(place.occupied)
    for _ in range(50):
        eye = np.array([*rng.uniform(place.low + 0.25, place.high - 0.25), rng.uniform(0.9, 1.75)])
        if not ((eye > boxes[:, 0] - 0.25) & (eye < boxes[:, 1] + 0.25)).all(axis=1).any():
            return eye
    return np.array([*place.middle, 1.4])


def random_view(apartment: Apartment, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One image that looks roughly at a random object, and its (H, W) kinds."""
    room = int(rng.integers(len(apartment.rooms)))
    eye = _free_spot(apartment, room, rng)
    targets = [bounds(piece.parts) for piece in apartment.rooms[room].pieces]
    low, high = targets[rng.integers(len(targets))]
    aim = rng.uniform(low, high) - eye
    yaw = np.arctan2(aim[1], aim[0]) + rng.normal(0, 0.25)
    pitch = np.clip(np.arctan2(aim[2], np.linalg.norm(aim[:2])) + rng.normal(0, 0.15), -1.1, 0.5)
    focal = WIDTH * rng.uniform(0.72, 1.1)
    pose = look_pose(eye, yaw, float(pitch), rng.normal(0, 0.05))
    lens = (focal, focal, WIDTH / 2 - 0.5, HEIGHT / 2 - 0.5)
    linear, _, instance, _ = apartment.caster.render(pose, lens, WIDTH, HEIGHT)
    names = kinds()
    of_instance = np.array([NOTHING] + [names.index(item.kind) for item in apartment.objects], dtype=np.uint8)
    return noisy_colour(linear * rng.uniform(0.8, 1.5), rng, noise=False), of_instance[np.maximum(instance, 0)]


def apartment_views(seed: int, count: int, wild: float) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """``count`` views of the apartment of a seed: (count, H, W, 3) and (count, H, W) uint8."""
    apartment, rng = Apartment.generate(seed, wild), np.random.default_rng([seed, 9])
    views = [random_view(apartment, rng) for _ in range(count)]
    return np.stack([v[0] for v in views]), np.stack([v[1] for v in views])


def render_views(
    folder: Path, first_seed: int, apartments: int, per_apartment: int, wild: float, processes: int = 1
) -> Views:
    """Render what is missing of a set of views into ``folder`` and open it read-only.

    Args:
        folder: Gets ``rgb.npy``, ``kind.npy`` and ``views.json`` (what it holds and how far it got).
        first_seed, apartments: Seeds ``first_seed`` … ``first_seed + apartments - 1``.
        per_apartment: Views of each.
        wild: See ``Apartment.generate``.
        processes: Workers, at most 2.
    """
    from rich.progress import Progress

    plan = {"first_seed": first_seed, "per_apartment": per_apartment, "wild": wild}
    folder.mkdir(parents=True, exist_ok=True)
    state_file, total = folder / "views.json", apartments * per_apartment
    state = json.loads(state_file.read_text()) if state_file.exists() else {}
    done = int(state.get("done", 0)) if {k: state.get(k) for k in plan} == plan else 0
    if done >= apartments:
        return _open(folder, total)
    if done and len(np.load(folder / "kind.npy", mmap_mode="r")) < total:
        done = 0  # the arrays were laid out for fewer
    shape, mode = (total, HEIGHT, WIDTH), "r+" if done else "w+"
    rgb = np.lib.format.open_memmap(folder / "rgb.npy", mode, np.uint8, None if done else (*shape, 3))
    kind = np.lib.format.open_memmap(folder / "kind.npy", mode, np.uint8, None if done else shape)
    with ProcessPoolExecutor(min(processes, 2)) as pool, Progress() as progress:
        bar = progress.add_task("rendering apartments", total=apartments, completed=done)
        seeds = range(first_seed + done, first_seed + apartments)
        count = len(seeds)
        for images, labels in pool.map(apartment_views, seeds, [per_apartment] * count, [wild] * count):
            rows = slice(done * per_apartment, (done + 1) * per_apartment)
            rgb[rows], kind[rows] = images, labels
            done += 1
            state_file.write_text(json.dumps({**plan, "done": done}))
            progress.advance(bar)
    return _open(folder, total)


def _open(folder: Path, total: int) -> Views:
    rgb, kind = (np.load(folder / f"{name}.npy", mmap_mode="r")[:total] for name in ("rgb", "kind"))
    return Views(rgb, kind)
