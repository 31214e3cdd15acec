"""A furnished apartment from a seed: rooms, doors, furniture, lights, and the labels of everything in it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from geopurify_core.datasets.synthetic import layout
from geopurify_core.datasets.synthetic.furniture import Piece
from geopurify_core.datasets.synthetic.kinds import CLASS_NAMES, UNLABELLED, class_id
from geopurify_core.datasets.synthetic.layout import HEIGHT_M, Door, Room
from geopurify_core.datasets.synthetic.looks import Looks
from geopurify_core.datasets.synthetic.raycast import Primitives, RayCaster
from geopurify_core.datasets.synthetic.shapes import Part, bounds
from geopurify_core.errors import DatasetError

_PLAN_TRIES, _ROOM_TRIES = 200, 25
_STUFF = ("wall", "floor", "ceiling")


@dataclass(frozen=True)
class SceneObject:
    """One labelled object of the scene.

    Attributes:
        instance: Its id in the instance images, ≥ 1.
        kind: What it is called (``"office chair"``); class_name: its class (``"chair"``); room: where it stands.
        center_m, size_m: (3,) centre and size of its axis-aligned box in the map frame, metres.
    """

    instance: int
    kind: str
    class_name: str
    room: str
    center_m: tuple[float, float, float]
    size_m: tuple[float, float, float]


@dataclass(frozen=True)
class Apartment:
    """A scene that can be rendered.

    Attributes:
        seed: What it was generated from.
        rooms, doors: The floor plan.
        objects: Every labelled object; ``objects[i].instance == i + 1``.
        primitives: What the ray caster sees.
    """

    seed: int
    rooms: list[Room]
    doors: list[Door]
    objects: list[SceneObject]
    primitives: Primitives

    @classmethod
    def generate(cls, seed: int, wild: float = 0.0) -> Apartment:
        """The apartment of this seed (the same on every machine).

        Args:
            seed: ≥ 0.
            wild: Chance in [0, 1] that a surface gets any colour and pattern at all, for training.

        Raises:
            DatasetError: The seed is negative.
        """
        if seed < 0:
            raise DatasetError("synthetic.seed", seed, "Give a seed ≥ 0.")
        for attempt in range(_PLAN_TRIES):
            rng = np.random.default_rng([seed, attempt])
            looks = Looks(rng, wild)
            rooms, doors = layout.floor_plan(rng)
            hung = layout.hang_doors(rooms, doors, rng, looks)
            if all(_furnish(room, rng, looks) for room in rooms):
                return _assemble(seed, rooms, doors, hung, rng, looks)
        raise DatasetError("synthetic.seed", seed, "No floor plan of this seed holds its furniture; take another seed.")

    @cached_property
    def caster(self) -> RayCaster:
        """The renderer of this scene."""
        return RayCaster(self.primitives)

    @cached_property
    def class_of_instance(self) -> NDArray[np.uint8]:
        """(objects + 1,) class id by instance id; entry 0 is UNLABELLED."""
        ids = [CLASS_NAMES.index(item.class_name) for item in self.objects]
        return np.array([UNLABELLED, *ids], dtype=np.uint8)


def _furnish(room: Room, rng: np.random.Generator, looks: Looks) -> bool:
    doors = list(room.occupied)
    for _ in range(_ROOM_TRIES):
        room.pieces, room.occupied = [], list(doors)
        if layout.furnish(room, rng, looks):
            return True
    return False


def _lights(rooms: list[Room], lamps: list[Piece], rng: np.random.Generator) -> NDArray[np.float64]:
    rows = []
    for _, lamp in zip(rooms, lamps, strict=True):
        warm, power = rng.uniform(0, 0.25), rng.uniform(0.55, 0.9)
        x, y = lamp.parts[0].center_m[:2]
        rows.append(
            [x, y, HEIGHT_M - 0.2, power, power * (1 - 0.35 * warm), power * (1 - warm), rng.uniform(0.28, 0.45)]
        )
    return np.array(rows)


def _assemble(
    seed: int, rooms: list[Room], doors: list[Door], hung: list[Piece], rng: np.random.Generator, looks: Looks
) -> Apartment:
    entries: list[tuple[Piece, int, bool]] = []
    lamps = []
    for index, room in enumerate(rooms):
        shell = layout.shell(room, doors, rng, looks)
        lamps.append(shell[-1])
        entries += [(piece, index, False) for piece in shell] + [(piece, index, True) for piece in room.pieces]
    entries += [(piece, -1, False) for piece in hung]
    parts = [
        (part, i + 1, room if casts else -1) for i, (piece, room, casts) in enumerate(entries) for part in piece.parts
    ]
    boxes = np.array([[*room.low, 0.0, *room.high, HEIGHT_M] for room in rooms])
    objects = [
        _describe(i + 1, piece, rooms[room].name if room >= 0 else "doorway")
        for i, (piece, room, _) in enumerate(entries)
    ]
    return Apartment(seed, rooms, doors, objects, _stack(parts, boxes, _lights(rooms, lamps, rng)))


def _describe(instance: int, piece: Piece, room: str) -> SceneObject:
    low, high = bounds(piece.parts)
    center, size = tuple(map(float, (low + high) / 2)), tuple(map(float, high - low))
    name = CLASS_NAMES[class_id(piece.kind)]
    return SceneObject(instance, piece.kind, name, room, center, size)  # type: ignore[arg-type]


def _stack(parts: list[tuple[Part, int, int]], boxes: NDArray[np.float64], lights: NDArray[np.float64]) -> Primitives:
    return Primitives(
        shape=np.array([p.shape for p, _, _ in parts], dtype=np.int64),
        center_m=np.array([p.center_m for p, _, _ in parts]),
        half_m=np.array([p.half_m for p, _, _ in parts]),
        rotation=np.array([p.rotation for p, _, _ in parts]),
        instance=np.array([i for _, i, _ in parts], dtype=np.int64),
        room=np.array([r for _, _, r in parts], dtype=np.int64),
        materials=np.array([p.material.row() for p, _, _ in parts]),
        rooms_m=boxes,
        lights=lights,
    )
