"""The geometric teacher: from a cloud to descriptors, step by step."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopurify_core.errors import InvalidConfigError
from training.teachers.base import PointCloud, TeacherFeatures
from training.teachers.geometric.cells import Cells, cells_of
from training.teachers.geometric.descriptor import descriptors, looks
from training.teachers.geometric.graph import Geometry, geometry_of
from training.teachers.geometric.merging import MergeCosts, merge
from training.teachers.geometric.patches import edge_cost, patches_of
from training.teachers.geometric.segments import segments_of
from training.teachers.geometric.structure import THING, Structure, kinds_of

_VERSION = 2
_DOUBLINGS = 3
_SURFACE_TOUCHES = 7.5  # neighbours of a cell: 8 in a flat sheet without gaps, about 15 in a map
# What keeps patches of one face apart: ridges as well as hollows.
_SURFACE = MergeCosts(
    colour=1.0, step=0.5, bend=1.5, concave=1.0, convex=0.0, share=0.3, alone=0.0, small=0.2, small_cells=20.0, tint=0.1
)


@dataclass(frozen=True)
class Settings:
    """Everything that changes what the teacher says.

    Attributes:
        cell_m: Edge of the cells, metres.
        scales_m: Radii of the eigenvalue features, metres, ascending.
        smoothing: Steps of the bilateral filter over normals and colours.
        colour_weight, normal_weight: Of differences between touching cells.
        patch_scale, patch_cells: Of the first patches: the larger, the larger; fewer cells are no patch.
        surface, surface_limit: How patches of one face of a thing merge.
        thing, thing_limits: How faces merge to things; one level of the hierarchy for each limit, ascending.
        structure: What is floor, ceiling and wall; None to take them as things.
        level_weights: Share in the cosine of surfaces and of each level of things.
        look_weight: Share of colour and shape.
        width: Dimensions of each level's code.
    """

    cell_m: float = 0.04
    scales_m: tuple[float, ...] = (0.08, 0.16, 0.32)
    smoothing: int = 1
    colour_weight: float = 100.0
    normal_weight: float = 1.0
    patch_scale: float = 1.0
    patch_cells: int = 5
    surface: MergeCosts = field(default_factory=lambda: _SURFACE)
    surface_limit: float = 0.2
    thing: MergeCosts = field(default_factory=MergeCosts)
    thing_limits: tuple[float, ...] = (0.6, 0.7)
    structure: Structure | None = field(default_factory=Structure)
    level_weights: tuple[float, ...] = (0.05, 0.45, 0.4)
    look_weight: float = 0.1
    width: int = 48


@dataclass(frozen=True)
class Hierarchy:
    """How the cells of a cloud belong together.

    Attributes:
        patches: (C,) int32, the finest segments.
        surfaces: (C,) int64, faces of things.
        levels: One (C,) int64 for each limit: things, from finely to coarsely cut; negative are floor, ceiling, wall.
    """

    patches: NDArray[np.int32]
    surfaces: NDArray[np.int64]
    levels: list[NDArray[np.int64]]


class GeometricTeacher:
    """Descriptors from points, colours and normals alone.

    Args:
        settings: Fields of :class:`Settings` that differ from the default.

    Raises:
        InvalidConfigError: A setting out of range.
    """

    name = "geometric"
    licence = "none: there are no weights"
    SAME = 0.5  # cosine from which on two points belong to the same thing

    def __init__(self, **settings: Any) -> None:
        self.settings = _settings(settings)
        content = repr(sorted(asdict(self.settings).items()))
        self.fingerprint = f"geometric:{_VERSION}:{hashlib.sha256(content.encode()).hexdigest()[:16]}"

    def describe(self, cloud: PointCloud) -> TeacherFeatures:
        """One row for each surface (face of a thing) of the cloud.

        Raises:
            DatasetError: No points, positions that are not finite, arrays of different lengths.
        """
        cells = self.cells(cloud)
        geometry = geometry_of(cells, self.settings.scales_m, self.settings.smoothing)
        hierarchy = self.hierarchy(cells, geometry)
        return TeacherFeatures(self._rows(cells, geometry, hierarchy), hierarchy.surfaces[cells.index].astype(np.int32))

    def cells(self, cloud: PointCloud) -> Cells:
        """The cells of a cloud; of a sparse scan such that touch across gaps, or are up to eight times as large."""
        cells = cells_of(cloud, self.settings.cell_m)
        for _ in range(_DOUBLINGS):
            if _touching(cells) >= _SURFACE_TOUCHES:
                return cells
            across = cells_of(cloud, cells.size_m, reach=2)
            if _touching(across) >= _SURFACE_TOUCHES:
                return across
            cells = cells_of(cloud, 2 * cells.size_m)
        return cells

    def hierarchy(self, cells: Cells, geometry: Geometry) -> Hierarchy:
        """Patches, surfaces and things."""
        own = self.settings
        cost = edge_cost(cells.edges, geometry.normals, geometry.colour, own.colour_weight, own.normal_weight)
        patches = patches_of(cost, cells.edges, len(cells), own.patch_scale, own.patch_cells)
        segments, label = merge(segments_of(patches, cells, geometry), own.surface, own.surface_limit)
        surfaces = label[patches]
        kind = (
            np.full(len(segments), THING) if own.structure is None else kinds_of(segments, cells.size_m, own.structure)
        )
        label, levels, of_surface = np.arange(len(segments)), [], kind
        for limit in own.thing_limits:
            segments, step = merge(segments, own.thing, limit, kind)
            merged_kind = np.zeros(len(segments), dtype=np.int64)
            merged_kind[step] = kind
            label, kind = step[label], merged_kind
            levels.append(np.where(of_surface == THING, label, -of_surface)[surfaces])
        return Hierarchy(patches, surfaces, levels)

    def _rows(self, cells: Cells, geometry: Geometry, hierarchy: Hierarchy) -> NDArray[np.float16]:
        surfaces, own = hierarchy.surfaces, self.settings
        segments = segments_of(surfaces.astype(np.int32), cells, geometry)
        first = np.unique(surfaces, return_index=True)[1]
        levels = [np.arange(len(segments)), *(level[first] for level in hierarchy.levels)]
        shape = np.stack([np.bincount(surfaces, weights=c) for c in geometry.shape.T.astype(np.float64)], axis=1)
        look = looks(segments, shape / segments.size[:, None])
        return descriptors(levels, own.level_weights, look, own.look_weight, own.width).astype(np.float16)


def _touching(cells: Cells) -> float:
    """Neighbours of a cell, mean."""
    return 2 * len(cells.edges) / len(cells)


def _settings(options: dict[str, Any]) -> Settings:
    """Settings from options as a command line gives them: lists for tuples, mappings for groups."""
    made: dict[str, Any] = {}
    for name, value in options.items():
        group = {"surface": MergeCosts, "thing": MergeCosts, "structure": Structure}.get(name)
        base = _SURFACE if name == "surface" else None
        if isinstance(value, Mapping) and group is not None:
            value = replace(base, **value) if base else group(**value)
        if group is not None and not isinstance(value, group) and not (name == "structure" and value is None):
            raise InvalidConfigError(name, value, f"Give a mapping of fields of {group.__name__}.")
        made[name] = tuple(value) if isinstance(value, list) else value
    settings = Settings(**made)
    try:
        _check(settings)
    except TypeError as error:
        raise InvalidConfigError("teacher options", options, f"Numbers are needed: {error}") from error
    return settings


def _check(settings: Settings) -> None:
    if not settings.cell_m > 0:
        raise InvalidConfigError("cell_m", settings.cell_m, "Give the edge of a cell in metres, above 0.")
    if not settings.scales_m or min(settings.scales_m) <= 0 or list(settings.scales_m) != sorted(settings.scales_m):
        raise InvalidConfigError("scales_m", settings.scales_m, "Give radii in metres, ascending.")
    if not settings.thing_limits or list(settings.thing_limits) != sorted(settings.thing_limits):
        raise InvalidConfigError("thing_limits", settings.thing_limits, "Give costs, ascending.")
    if len(settings.level_weights) != 1 + len(settings.thing_limits) or min(settings.level_weights) < 0:
        raise InvalidConfigError("level_weights", settings.level_weights, "Give one for surfaces and one a limit.")
    if not 0 <= settings.look_weight < 1 or settings.width < 1 or settings.patch_cells < 1:
        raise InvalidConfigError("settings", settings, "Weights lie in [0, 1); width and patch_cells are at least 1.")
