"""A smooth walk through every room: in each one the camera turns once round the middle and looks across it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from geopurify_core.datasets.synthetic.layout import Door, Room

_SAMPLES = 2000
_TURN_WEIGHT = 7.0  # path units one turn takes; one metre of walking takes one
_LOOK_DOWN_RAD = 0.3


def look_pose(eye_m: NDArray[np.float64], yaw: float, pitch: float, roll: float = 0.0) -> NDArray[np.float64]:
    """(4, 4) T_map_camera of an optical frame at ``eye_m`` that looks along yaw and pitch (radians, pitch up)."""
    forward = np.array([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)])
    right = np.array([np.sin(yaw), -np.cos(yaw), 0.0])
    down = np.cross(forward, right)
    T = np.eye(4)
    c, s = np.cos(roll), np.sin(roll)
    T[:3, 0], T[:3, 1], T[:3, 2] = c * right + s * down, -s * right + c * down, forward
    T[:3, 3] = eye_m
    return T


def _tour(rooms: list[Room], doors: list[Door], start: int) -> list[tuple[str, NDArray[np.float64], int]]:
    """Stations of a depth-first tour: ("turn" | "pass", point, room)."""
    stations: list[tuple[str, NDArray[np.float64], int]] = []

    def visit(room: int, came_from: int) -> None:
        stations.append(("turn", rooms[room].middle, room))
        for door in doors:
            if room in door.rooms:
                other = door.rooms[0] if door.rooms[1] == room else door.rooms[1]
                if other != came_from:
                    stations.append(("pass", np.array(door.center_m), room))
                    visit(other, room)
                    stations.append(("pass", np.array(door.center_m), room))
                    stations.append(("pass", rooms[room].middle, room))

    visit(start, -1)
    while stations[-1][0] == "pass":  # the way back at the very end shows nothing new
        stations.pop()
    return stations


def _turn(room: Room, heading: float) -> list[tuple[float, NDArray[np.float64], float]]:
    """One turn of the camera at the room's middle, each time looking from the far side of the free disc."""
    reach = room.free_radius_m - 0.25
    keys = []
    for angle in np.linspace(0, 2 * np.pi, 17):
        yaw = heading + angle
        keys.append((_TURN_WEIGHT / 16, room.middle - reach * np.array([np.cos(yaw), np.sin(yaw)]), yaw))
    return keys


def _keyframes(rooms: list[Room], doors: list[Door], start: int) -> list[tuple[float, NDArray[np.float64], float]]:
    """(path units since the previous key, position (2,), yaw unwrapped)."""
    stations = _tour(rooms, doors, start)
    keys: list[tuple[float, NDArray[np.float64], float]] = []
    yaw, here = 0.0, stations[0][1]
    for kind, point, room in stations:
        step = point - here
        length = float(np.linalg.norm(step))
        if length > 0.05:
            wanted = float(np.arctan2(step[1], step[0]))
            yaw += (wanted - yaw + np.pi) % (2 * np.pi) - np.pi
            keys.append((0.5, here, yaw))
            keys.append((length, point, yaw))
        if kind == "turn":
            keys += _turn(rooms[room], yaw)
            yaw = keys[-1][2]
        here = point
    return keys


def camera_walk(rooms: list[Room], doors: list[Door], num_frames: int, seed: int) -> NDArray[np.float64]:
    """(num_frames, 4, 4) poses T_map_camera of a walk through all rooms at 1.2 to 1.5 m height."""
    rng = np.random.default_rng([seed, 77])
    keys = _keyframes(rooms, doors, int(rng.integers(len(rooms))))
    when = np.cumsum([key[0] for key in keys])
    times = np.linspace(when[0], when[-1], _SAMPLES)
    spread = _SAMPLES / (when[-1] - when[0])
    xy = np.stack([np.interp(times, when, [key[1][axis] for key in keys]) for axis in (0, 1)], axis=1)
    xy = gaussian_filter1d(xy, 0.22 * spread, axis=0, mode="nearest")
    yaw = gaussian_filter1d(np.interp(times, when, [key[2] for key in keys]), 0.3 * spread, mode="nearest")
    phase = rng.uniform(0, 6.28, 4)
    height = 1.36 + 0.1 * np.sin(times * 0.5 + phase[0]) + 0.015 * np.sin(times * 4 + phase[1])
    pitch = -_LOOK_DOWN_RAD + 0.13 * np.sin(times * 2.4 + phase[2])
    roll = 0.02 * np.sin(times * 1.3 + phase[3])
    picks = np.linspace(0, _SAMPLES - 1, num_frames).round().astype(int)
    return np.stack([look_pose(np.array([*xy[i], height[i]]), yaw[i], pitch[i], roll[i]) for i in picks])
