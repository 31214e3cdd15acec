"""Floor plans: two rows of rooms, doors that connect them all, and furniture that collides with nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from geopurify_core.datasets.synthetic import fixtures, furniture
from geopurify_core.datasets.synthetic.furniture import Piece
from geopurify_core.datasets.synthetic.looks import Looks
from geopurify_core.datasets.synthetic.shapes import Material, Part, bounds, box, moved, rod, rotation_z

HEIGHT_M = 2.5
HALF_WALL_M = 0.06
DOOR_WIDTH_M, DOOR_HEIGHT_M = 0.9, 2.03
_NORTH, _EAST, _SOUTH, _WEST = range(4)
_YAW = (0.0, -np.pi / 2, np.pi, np.pi / 2)  # turns a piece's back (+y) towards that side
_FLAT_M = 0.05  # lower pieces (rugs) may lie under others

Builder = Callable[[np.random.Generator, Looks], list[Piece]]


@dataclass(frozen=True)
class Door:
    """A doorway between two rooms: centre on the floor, and whether its wall runs along x."""

    rooms: tuple[int, int]
    center_m: tuple[float, float]
    along_x: bool


@dataclass
class Room:
    """One room: interior rectangle, walkable middle, what stands in it.

    Attributes:
        low, high: (2,) interior corners, metres.
        middle: (2,) point that furniture keeps free; the camera turns round here.
        outer: Which sides (north, east, south, west) face outdoors.
    """

    name: str
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    outer: tuple[bool, bool, bool, bool]
    middle: NDArray[np.float64]
    pieces: list[Piece] = field(default_factory=list)
    occupied: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = field(default_factory=list)
    paths: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = field(default_factory=list)

    @property
    def free_radius_m(self) -> float:
        """Radius around the middle that stays free of furniture."""
        return 0.55 if min(self.high - self.low) < 3.0 else 0.7


def floor_plan(rng: np.random.Generator) -> tuple[list[Room], list[Door]]:
    """Five rooms in two rows and the doors of a random spanning tree between neighbours."""
    living, kitchen = rng.uniform(4.4, 5.2), rng.uniform(3.7, 4.4)
    bath, width = rng.uniform(2.7, 3.1), living + kitchen
    bedroom = (width - bath) * rng.uniform(0.53, 0.58)
    rows = [
        [("living room", living), ("kitchen", kitchen)],
        [("bedroom", bedroom), ("bathroom", bath), ("study", width - bath - bedroom)],
    ]
    for row in rows:
        rng.shuffle(row)
    if rng.uniform() < 0.5:
        rows.reverse()
    depths = [rng.uniform(4.2, 4.8) if len(row) == 2 else rng.uniform(3.4, 3.9) for row in rows]
    rooms, y = [], 0.0
    for r, (row, depth) in enumerate(zip(rows, depths, strict=True)):
        x = 0.0
        for c, (name, w) in enumerate(row):
            low, high = np.array([x, y]) + HALF_WALL_M, np.array([x + w, y + depth]) - HALF_WALL_M
            outer = (r == 1, c == len(row) - 1, r == 0, c == 0)
            middle = (low + high) / 2 + rng.uniform(-0.2, 0.2, 2)
            rooms.append(Room(name, low, high, outer, middle))
            x += w
        y += depth
    return rooms, _doors(rng, rooms)


def _shared_wall(a: Room, b: Room) -> tuple[bool, float, float, float] | None:
    """(wall runs along x, position across, from, to) of the wall two rooms share, if a door fits into it."""
    for axis in (0, 1):
        across = (a.high[axis] + b.low[axis]) / 2
        touches = abs(b.low[axis] - a.high[axis]) < 3 * HALF_WALL_M
        start, end = max(a.low[1 - axis], b.low[1 - axis]), min(a.high[1 - axis], b.high[1 - axis])
        if touches and end - start > DOOR_WIDTH_M + 0.5:
            return axis == 1, float(across), float(start), float(end)
    return None


def _doors(rng: np.random.Generator, rooms: list[Room]) -> list[Door]:
    pairs = [
        (i, j) for i in range(len(rooms)) for j in range(len(rooms)) if i != j and _shared_wall(rooms[i], rooms[j])
    ]
    group, doors = list(range(len(rooms))), []
    for k in rng.permutation(len(pairs)):
        i, j = pairs[k]
        if group[i] == group[j]:
            continue
        group = [group[i] if g == group[j] else g for g in group]
        along_x, across, start, end = _shared_wall(rooms[i], rooms[j])  # type: ignore[misc]
        at = rng.uniform(start + DOOR_WIDTH_M / 2 + 0.2, end - DOOR_WIDTH_M / 2 - 0.2)
        doors.append(Door((i, j), (at, across) if along_x else (across, at), along_x))
    return doors


def _placed(pieces: list[Piece], offset: NDArray[np.float64], yaw: float) -> list[Piece]:
    return [Piece(piece.kind, [moved(part, offset, yaw) for part in piece.parts]) for piece in pieces]


def _distance_to_segment(
    low: NDArray[np.float64], high: NDArray[np.float64], a: NDArray[np.float64], b: NDArray[np.float64]
) -> float:
    samples = a + np.linspace(0, 1, 24)[:, None] * (b - a)
    gap = np.maximum(np.maximum(low - samples, samples - high), 0)
    return float(np.sqrt((gap**2).sum(axis=1)).min())


def _boxes_at(boxes: NDArray[np.float64], offset: NDArray[np.float64], yaw: float) -> NDArray[np.float64]:
    """(n, 2, 3) low and high corners after a turn by a multiple of 90 degrees and a shift."""
    turned = boxes @ rotation_z(yaw).round().T
    return np.sort(turned, axis=1) + offset


def _fits(room: Room, boxes: NDArray[np.float64], margin: float) -> bool:
    low, high = boxes[:, 0], boxes[:, 1]
    if (low[:, :2] < room.low - 0.02).any() or (high[:, :2] > room.high + 0.02).any():
        return False
    tall = high[:, 2] >= _FLAT_M
    low, high = low[tall], high[tall]
    if room.occupied:
        taken = np.array(room.occupied)
        apart = (low[:, None] - margin >= taken[None, :, 1]) | (high[:, None] + margin <= taken[None, :, 0])
        if not apart.any(axis=2).all():
            return False
    for a, b in zip(low[low[:, 2] < 2.0, :2], high[low[:, 2] < 2.0, :2], strict=True):
        if _distance_to_segment(a, b, room.middle, room.middle) < room.free_radius_m:
            return False
        if any(_distance_to_segment(a, b, start, end) < 0.36 for start, end in room.paths):
            return False
    return True


def _keep(room: Room, pieces: list[Piece], boxes: NDArray[np.float64], offset: NDArray[np.float64], yaw: float) -> None:
    room.pieces.extend(_placed(pieces, offset, yaw))
    room.occupied.extend((low, high) for low, high in boxes if high[2] >= _FLAT_M)


def _piece_boxes(pieces: list[Piece]) -> NDArray[np.float64]:
    return np.array([bounds(piece.parts) for piece in pieces])


def against_wall(
    room: Room,
    rng: np.random.Generator,
    pieces: list[Piece],
    height_m: float = 0.0,
    outer: bool = False,
    tries: int = 40,
) -> int | None:
    """Put a group with its back to a random wall (an outer one if asked); the side, or None where it fits nowhere."""
    boxes = _piece_boxes(pieces)
    low, high = boxes[:, 0].min(axis=0), boxes[:, 1].max(axis=0)
    sides = [s for s in range(4) if room.outer[s] or not outer]
    for _ in range(tries if sides else 0):
        side = int(rng.choice(sides))
        along = 0 if side in (_NORTH, _SOUTH) else 1
        sign = 1.0 if side in (_NORTH, _EAST) else -1.0
        half = max(-low[0], high[0]) + 0.03
        if room.high[along] - room.low[along] <= 2 * half:
            continue
        at = np.zeros(3)
        at[along] = rng.uniform(room.low[along] + half, room.high[along] - half)
        edge = room.high if sign > 0 else room.low
        at[1 - along] = edge[1 - along] - sign * (high[1] + 0.004)
        at[2] = height_m
        placed = _boxes_at(boxes, at, _YAW[side])
        if _fits(room, placed, 0.015 if height_m else 0.03):
            _keep(room, pieces, placed, at, _YAW[side])
            return side
    return None


def anywhere(room: Room, rng: np.random.Generator, pieces: list[Piece], margin: float = 0.08, tries: int = 40) -> bool:
    """Put a group somewhere in the room at a right angle; False where it fits nowhere."""
    boxes = _piece_boxes(pieces)
    for _ in range(tries):
        at = np.array([*rng.uniform(room.low + 0.2, room.high - 0.2), 0.0])
        yaw = float(rng.choice(_YAW))
        placed = _boxes_at(boxes, at, yaw)
        if _fits(room, placed, margin):
            _keep(room, pieces, placed, at, yaw)
            return True
    return False


def dining_set(rng: np.random.Generator, looks: Looks) -> list[Piece]:
    """A table with two to four chairs of one design around it."""
    pieces = furniture.table(rng, looks)
    low, high = bounds(pieces[0].parts)
    design = int(rng.integers(1, 1 << 30))
    places = [(0.0, high[1], 0.0), (0.0, low[1], np.pi), (high[0], 0.0, -np.pi / 2), (low[0], 0.0, np.pi / 2)]
    for x, y, yaw in places[: int(rng.integers(2, 5))]:
        seat = furniture.chair(np.random.default_rng(design), Looks(np.random.default_rng(design), looks.wild))
        shift = (
            np.array([x, y, 0.0])
            + 0.14 * np.array([np.sign(x), np.sign(y), 0])
            + np.array([*rng.normal(0, 0.03, 2), 0])
        )
        pieces += _placed(seat, shift, yaw + rng.normal(0, 0.1))
    return pieces


def sofa_set(rng: np.random.Generator, looks: Looks) -> list[Piece]:
    """A sofa with a rug and a low table in front of it."""
    pieces = furniture.sofa(rng, looks)
    front = bounds(pieces[0].parts)[0][1]
    pieces += _placed(furniture.coffee_table(rng, looks), np.array([0, front - 0.62, 0.015]), 0.0)
    return pieces + _placed(furniture.rug(rng, looks), np.array([0, front - 0.6, 0.0]), 0.0)


def desk_set(rng: np.random.Generator, looks: Looks) -> list[Piece]:
    """A desk and the office chair in front of it."""
    pieces = furniture.desk(rng, looks)
    front = bounds(pieces[0].parts)[0][1]
    return pieces + _placed(
        furniture.office_chair(rng, looks), np.array([-0.15, front - 0.2, 0]), np.pi + rng.normal(0, 0.4)
    )


def bed_set(rng: np.random.Generator, looks: Looks) -> list[Piece]:
    """A bed with a nightstand on one side."""
    pieces = furniture.bed(rng, looks)
    _, high = bounds(pieces[0].parts)
    stand = _placed(furniture.nightstand(rng, looks), np.array([high[0] + 0.27, high[1] - 0.22, 0]), 0.0)
    return pieces + stand if rng.uniform() < 0.7 else pieces


# Per room: what it must hold (largest first) and what it may hold.
_MUST: dict[str, tuple[Builder, ...]] = {
    "kitchen": (fixtures.kitchen_row, fixtures.refrigerator),
    "living room": (sofa_set, furniture.sideboard, furniture.bookshelf),
    "bedroom": (bed_set, furniture.wardrobe),
    "bathroom": (fixtures.bathtub, fixtures.washbasin, fixtures.toilet),
    "study": (desk_set, furniture.bookshelf),
}
_MAY: dict[str, tuple[Builder, ...]] = {
    "kitchen": (furniture.trash_bin, furniture.plant),
    "living room": (furniture.armchair, furniture.floor_lamp, furniture.plant, furniture.stool),
    "bedroom": (furniture.dresser, furniture.nightstand, furniture.plant, furniture.chair),
    "bathroom": (fixtures.washing_machine, furniture.trash_bin),
    "study": (furniture.dresser, furniture.trash_bin, furniture.boxes, furniture.armchair, furniture.plant),
}


def furnish(room: Room, rng: np.random.Generator, looks: Looks) -> bool:
    """Fill a room; False if something it must hold found no place (then start again with an empty room)."""
    wet = room.name == "bathroom"
    width = rng.uniform(0.6, 0.8) if wet else rng.uniform(1.0, 1.5)
    glass = fixtures.window(rng, looks, width, 0.6 if wet else rng.uniform(1.0, 1.25), curtains=not wet)
    if against_wall(room, rng, glass, 1.45 if wet else 0.92, outer=True) is None:
        return False
    for build in _MUST[room.name]:
        if against_wall(room, rng, build(rng, looks)) is None:
            return False
    if room.name == "kitchen" and not anywhere(room, rng, dining_set(rng, looks), tries=80):
        return False
    for build in rng.permutation(np.array(_MAY[room.name], dtype=object)):
        if rng.uniform() < 0.65:
            against_wall(room, rng, build(rng, looks))
    if wet:
        against_wall(room, rng, fixtures.towel(rng, looks), 1.35)
    else:
        for _ in range(int(rng.integers(1, 3))):
            against_wall(room, rng, fixtures.picture(rng, looks), rng.uniform(1.45, 1.65))
    return True


def shell(room: Room, doors: list[Door], rng: np.random.Generator, looks: Looks) -> list[Piece]:
    """Floor, ceiling, four walls with doorways cut out and skirting boards, and a ceiling lamp."""
    wet = room.name in ("bathroom", "kitchen")
    low, high, edge = room.low, room.high, HALF_WALL_M
    ground = box((*(low - edge), -0.1), (*(high + edge), 0.0), looks.floor(wet))
    grey = float(rng.uniform(0.86, 0.97))
    roof = box((*(low - edge), HEIGHT_M), (*(high + edge), HEIGHT_M + 0.1), looks.paint((grey, grey, grey)))
    paint, skirting = looks.wall(room.name == "bathroom"), looks.paint((0.9, 0.9, 0.88))
    walls = []
    for side in range(4):
        along = 0 if side in (_NORTH, _SOUTH) else 1
        position = (room.high if side in (_NORTH, _EAST) else room.low)[1 - along]
        start, end = low[along] - edge, high[along] + edge
        ways = [d for d in doors if d.along_x == (along == 0) and abs(d.center_m[1 - along] - position) < 2 * edge]
        gaps = [d.center_m[along] for d in ways if start < d.center_m[along] < end]
        inward = -1.0 if side in (_NORTH, _EAST) else 1.0
        walls.append(Piece("wall", _wall(_WallLine(along, float(position), inward), start, end, gaps, paint, skirting)))
    x, y = room.middle + rng.uniform(-0.4, 0.4, 2)
    glow = Material((1.0, 0.98, 0.92), None, 0, 1.0, 0.0, 1.2)
    lamp = Piece("lamp", [rod((x, y, HEIGHT_M - 0.08), rng.uniform(0.14, 0.22), 0.08, glow)])
    return [Piece("floor", [ground]), Piece("ceiling", [roof]), *walls, lamp]


@dataclass(frozen=True)
class _WallLine:
    """One wall seen from its room: axis it runs along, position across, direction into the room (±1)."""

    along: int
    position_m: float
    inward: float

    def block(self, a: float, b: float, z: tuple[float, float], proud_m: float, material: Material) -> Part:
        """The wall from ``a`` to ``b``, standing ``proud_m`` out into the room."""
        p0, p1 = np.array([a, a, z[0]]), np.array([b, b, z[1]])
        p0[1 - self.along] = self.position_m - self.inward * HALF_WALL_M
        p1[1 - self.along] = self.position_m + self.inward * proud_m
        return box(np.minimum(p0, p1), np.maximum(p0, p1), material)


def _wall(
    line: _WallLine, start: float, end: float, gaps: list[float], paint: Material, skirting: Material
) -> list[Part]:
    parts, cursor = [], start
    for gap in sorted(gaps):
        left, right = gap - DOOR_WIDTH_M / 2, gap + DOOR_WIDTH_M / 2
        parts += _solid(line, cursor, left, paint, skirting)
        parts.append(line.block(left, right, (DOOR_HEIGHT_M, HEIGHT_M), 0.0, paint))
        cursor = right
    return parts + _solid(line, cursor, end, paint, skirting)


def _solid(line: _WallLine, a: float, b: float, paint: Material, skirting: Material) -> list[Part]:
    return [line.block(a, b, (0.0, HEIGHT_M), 0.0, paint), line.block(a, b, (0.0, 0.07), 0.012, skirting)]


def hang_doors(rooms: list[Room], doors: list[Door], rng: np.random.Generator, looks: Looks) -> list[Piece]:
    """Frames and open leaves; also keeps the way from each door to the middle of its two rooms free."""
    pieces = []
    for door in doors:
        center = np.array(door.center_m)
        for index in door.rooms:
            rooms[index].paths.append((center, rooms[index].middle))
        flip = np.pi if rng.uniform() < 0.5 else 0.0
        parts = fixtures.door(rng, looks, DOOR_WIDTH_M, DOOR_HEIGHT_M, 2 * HALF_WALL_M)
        placed = _placed(parts, np.array([*center, 0.0]), flip + (0.0 if door.along_x else np.pi / 2))
        pieces += placed
        for index in door.rooms:
            rooms[index].occupied.append(bounds(placed[0].parts))
    return pieces
