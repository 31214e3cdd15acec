"""One tree of frozen dataclasses; each field carries its description, unit and range.

The same schema feeds the YAML files, the ROS parameter descriptors and the table in the docs, so none can drift.
Reading is strict: an unknown key, a wrong type or a value out of range is an error that names it.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from geopurify_core.errors import InvalidConfigError

T = TypeVar("T")


def setting(
    default: Any,
    description: str,
    *,
    unit: str = "",
    ge: float | None = None,
    le: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A dataclass field that documents itself: description, unit, inclusive range or list of choices."""
    metadata = {"description": description, "unit": unit, "ge": ge, "le": le, "choices": choices}
    if isinstance(default, (dict, list)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class DepthConfig:
    """Which depth pixels are trusted."""

    min_range_m: float = setting(0.25, "Nearer measurements are ignored.", unit="m", ge=0.0, le=10.0)
    max_range_m: float = setting(5.0, "Farther measurements are ignored.", unit="m", ge=0.1, le=100.0)
    edge_jump: float = setting(
        0.05,
        "Drop pixels whose depth jumps to a neighbour by more than this share of the depth; 0 keeps all.",
        ge=0.0,
        le=1.0,
    )


@dataclass(frozen=True)
class MapConfig:
    """The voxel map and its byte budget."""

    voxel_size_m: float = setting(0.04, "Edge of a voxel.", unit="m", ge=0.005, le=1.0)
    frame_id: str = setting("map", "Name of the frame the map lives in (REP-105).")
    budget_mb: int = setting(1024, "Most memory for the map and one snapshot of it.", unit="MiB", ge=1, le=1_000_000)
    evict: str = setting("oldest", "What to forget when the budget is full.", choices=("oldest", "farthest"))
    max_weight: float = setting(
        20_000.0, "Observation weight at which a voxel stops hardening, so that it can still change.", ge=1.0, le=1e6
    )


@dataclass(frozen=True)
class FusionConfig:
    """How one observation weighs against the others."""

    range_weight_m: float = setting(
        2.0,
        "Range at which an observation weighs half of one at range 0; 0 turns range weighting off.",
        unit="m",
        ge=0.0,
        le=100.0,
    )
    incidence_weight: bool = setting(True, "Weigh by the cosine between surface normal and viewing ray.")
    min_confidence: float = setting(
        0.0, "Feature cells below this confidence add geometry but no feature.", ge=0.0, le=1.0
    )


@dataclass(frozen=True)
class BackboneConfig:
    """The 2D vision-language network."""

    name: str = setting("nano", "Registry name: nano, segmenter, detector, composite, xdecoder, ….")
    options: dict[str, Any] = setting({}, "Keyword options of that backbone (for example config: my_model.yaml).")


@dataclass(frozen=True)
class QueryConfig:
    """From scores to objects."""

    max_objects: int = setting(10, "Most objects returned for each text.", ge=1, le=10_000)
    min_score: float = setting(0.0, "Objects below this score are left out.", ge=-10.0, le=10.0)
    min_voxels: int = setting(4, "Components smaller than this are noise.", ge=1, le=100_000)
    colour_weight: float = setting(
        1.0, "How much a colour word counts beside the meaning; 0 ignores colours.", ge=0.0, le=10.0
    )
    oriented_boxes: bool = setting(True, "Turn boxes about the vertical to fit tightly; false keeps them axis-aligned.")
    max_text_bytes: int = setting(1024, "Longer query texts are refused.", unit="B", ge=16, le=1_000_000)
    max_texts: int = setting(256, "More texts in one query are refused.", ge=1, le=100_000)


@dataclass(frozen=True)
class SparseConfig:
    """The sparse convolution behind the student network."""

    engine: str = setting(
        "torch", "torch is built in; minkowski needs MinkowskiEngine installed.", choices=("torch", "minkowski")
    )


# What paper and released code make of equations 3 and 4: steps T, and the factor before the cosine.
PRESETS: dict[str, tuple[int, float]] = {
    "paper": (18, 20.0),
    "official_code": (19, 20.0),
    "paper_literal": (18, 0.05),
}


@dataclass(frozen=True)
class PurificationConfig:
    """The Student Affinity Network and Geometry-Guided Pooling."""

    enabled: bool = setting(True, "Purify where a student for the backbone is at hand; false never does.")
    student: str = setting("", "Student checkpoint; empty takes the one shipped for the backbone.")
    device: str = setting(
        "auto", "Where student and pooling run; auto takes CUDA if it is there.", choices=("auto", "cpu", "cuda")
    )
    preset: str = setting(
        "paper",
        "Reading of the disputed constants: T = 18 or 19 steps, factor 20 before the cosine or (literally) 0.05.",
        choices=tuple(PRESETS),
    )
    neighbors: int = setting(96, "K, the nearest voxels that each voxel listens to.", ge=1, le=512)
    steps: int = setting(0, "T, the pooling steps; 0 takes the preset's.", ge=0, le=1000)
    sharpening: float = setting(
        0.0, "Factor before the cosine in the softmax; 0 takes the preset's.", ge=0.0, le=1000.0
    )
    pool: str = setting(
        "features",
        "features pools every channel once and answers as fast as the raw map; scores pools each text's scores, "
        "and keeps no purified features in memory.",
        choices=("features", "scores"),
    )
    period_s: float = setting(
        10.0, "A running mapper purifies at most this often; 0 only when asked to.", unit="s", ge=0.0, le=86_400.0
    )
    dirty_fraction: float = setting(
        0.05, "Share of the voxels that must have changed before a running mapper purifies again.", ge=0.0, le=1.0
    )
    budget_mb: int = setting(
        4096,
        "Most memory for purification beside the map, at its peak; a larger map is not purified.",
        unit="MiB",
        ge=1,
        le=1_000_000,
    )

    @property
    def resolved_steps(self) -> int:
        """T as it applies: ``steps``, or the preset's."""
        return self.steps or PRESETS[self.preset][0]

    @property
    def resolved_sharpening(self) -> float:
        """The factor before the cosine as it applies: ``sharpening``, or the preset's."""
        return self.sharpening or PRESETS[self.preset][1]


@dataclass(frozen=True)
class Config:
    """Everything the core can be told."""

    depth: DepthConfig = field(default_factory=DepthConfig)
    map: MapConfig = field(default_factory=MapConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    query: QueryConfig = field(default_factory=QueryConfig)
    sparse: SparseConfig = field(default_factory=SparseConfig)
    purification: PurificationConfig = field(default_factory=PurificationConfig)

    def __post_init__(self) -> None:
        if self.depth.min_range_m >= self.depth.max_range_m:
            raise InvalidConfigError(
                "depth.min_range_m",
                self.depth.min_range_m,
                f"It must be below depth.max_range_m ({self.depth.max_range_m}).",
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """From nested plain values. Raises InvalidConfigError for anything the schema does not know."""
        return build(cls, values)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Config:
        """From a YAML file; an empty file gives the defaults."""
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InvalidConfigError("config file", str(path), f"It cannot be read as YAML: {error}") from error
        return cls.from_dict(values if values is not None else {})

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values; ``Config.from_dict(config.to_dict()) == config``."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Setting:
    """One leaf of the schema, for ROS descriptors and documentation tables."""

    key: str
    type: type
    default: Any
    description: str
    unit: str
    ge: float | None
    le: float | None
    choices: tuple[str, ...]


def settings(schema: type = Config, prefix: str = "") -> Iterator[Setting]:
    """Every leaf of a config tree, depth first, with its dotted key."""
    hints = typing.get_type_hints(schema)
    for item in dataclasses.fields(schema):
        kind = hints[item.name]
        if dataclasses.is_dataclass(kind):
            yield from settings(typing.cast(type, kind), f"{prefix}{item.name}.")
            continue
        factory = item.default_factory
        default = item.default if factory is dataclasses.MISSING else factory()
        yield Setting(f"{prefix}{item.name}", typing.get_origin(kind) or kind, default, **item.metadata)


def build(schema: type[T], values: Any, prefix: str = "") -> T:
    """An instance of the dataclass tree ``schema`` from nested plain values, strictly checked."""
    if not isinstance(values, Mapping):
        raise InvalidConfigError(prefix.rstrip(".") or "config", values, "Give a mapping of keys to values.")
    known = {item.name: item for item in dataclasses.fields(schema)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(schema)
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise InvalidConfigError(f"{prefix}{key}", value, f"Unknown key; known here: {', '.join(known)}.")
        kind = hints[key]
        if dataclasses.is_dataclass(kind):
            arguments[key] = build(typing.cast(type, kind), value, f"{prefix}{key}.")
        else:
            arguments[key] = check_value(f"{prefix}{key}", value, kind, known[key].metadata)
    return schema(**arguments)


def check_value(key: str, value: Any, kind: Any, rules: Mapping[str, Any]) -> Any:
    """``value`` as ``kind`` (an int is accepted for a float), or InvalidConfigError."""
    expected = typing.get_origin(kind) or kind
    if expected is float and type(value) is int:
        value = float(value)
    if type(value) is not expected:
        raise InvalidConfigError(key, value, f"Expected {expected.__name__}, got {type(value).__name__}.")
    if rules.get("choices") and value not in rules["choices"]:
        raise InvalidConfigError(key, value, f"Choose one of {', '.join(rules['choices'])}.")
    low, high = rules.get("ge"), rules.get("le")
    if expected in (int, float) and not ((low is None or value >= low) and (high is None or value <= high)):
        unit = f" {rules['unit']}" if rules.get("unit") else ""
        raise InvalidConfigError(key, value, f"It must lie in [{low}, {high}]{unit}.")
    return value
