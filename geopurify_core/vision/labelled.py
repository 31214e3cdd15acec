"""What segmenters and detectors share: a model file, its labels in a strict YAML, and the labels' text vectors."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import yaml
from numpy.typing import NDArray

from geopurify_core.config import build, setting
from geopurify_core.errors import BackboneError, InvalidConfigError
from geopurify_core.vision.base import FeatureMap
from geopurify_core.vision.imageinput import ImageInput, InputSpec
from geopurify_core.vision.mixture import VectorMixture
from geopurify_core.vision.runtime import open_model
from geopurify_core.vision.text import TEXT_DIM, SentenceEncoder, shared_encoder

WEIGHTS_VARIABLE = "GEOPURIFY_WEIGHTS"
S = TypeVar("S", bound="LabelledSpec")


@dataclass(frozen=True)
class LabelledSpec:
    """Keys of a model's YAML that do not depend on the kind of network."""

    name: str = setting("", "Short name of the network.")
    licence: str = setting("unknown", "SPDX identifier of the weights.")
    model: str = setting("", "Model file, .onnx or .tflite.")
    labels_file: str = setting("", "Text file with one label a line (or all on one, between commas), in channel order.")
    labels: list[str] = setting([], "The labels themselves, instead of labels_file.")
    ignore: list[str] = setting([], "Labels that mean 'none of these': their probability lowers the confidence.")
    exclude: list[str] = setting(
        [], "Labels that cannot occur where the robot drives: removed before probabilities are formed."
    )
    aliases: dict[str, Any] = setting({}, "label: word or [words]; the words whose mean vector stands for the label.")
    grid: list[int] = setting(
        [], "Rows and columns of the feature map; left out, the network's own resolution is kept."
    )
    providers: list[str] = setting([], "ONNX Runtime execution providers; the CPU when left out.")
    input: InputSpec = field(default_factory=InputSpec)

    def __post_init__(self) -> None:
        if self.grid and (len(self.grid) != 2 or not all(type(n) is int and 1 <= n <= 2048 for n in self.grid)):
            raise InvalidConfigError("grid", self.grid, "Give [rows, columns], whole numbers from 1 to 2048.")
        for name in ("labels", "ignore", "exclude", "providers"):
            if not all(isinstance(item, str) and item.strip() for item in getattr(self, name)):
                raise InvalidConfigError(name, getattr(self, name), "Give a list of non-empty strings.")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises InvalidConfigError."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidConfigError("config", str(path), f"It cannot be read as YAML: {error}") from error
    if not isinstance(values, dict):
        raise InvalidConfigError("config", str(path), "The file must hold a mapping of keys to values.")
    return values


def read_spec(
    schema: type[S],
    config: str | Path,
    overrides: Mapping[str, Any],
    nested: Mapping[str, Mapping[str, Any]] | None = None,
) -> S:
    """A model's YAML with some keys replaced: those whose value is not None, also inside blocks (``nested``).

    Raises:
        InvalidConfigError: The YAML cannot be read, or a key is unknown or has a bad value; the message names it.
    """
    values = read_yaml(Path(config)) if config else {}
    values.update(_given(overrides))
    for block, changes in (nested or {}).items():
        inner = values.get(block)
        if _given(changes):
            values[block] = {**(inner if isinstance(inner, Mapping) else {}), **_given(changes)}
    return build(schema, values)


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def find_file(key: str, name: str, config: str | Path, weights_dir: str | Path | None) -> Path:
    """The file ``name``: as it stands, beside the YAML, or below ``weights_dir`` (default: $GEOPURIFY_WEIGHTS).

    Raises:
        BackboneError: It is in none of these places; the message lists them and what to set.
    """
    if not name:
        raise BackboneError(key, name, f"Name the file: {key}: path/to/file (in the YAML or as an option).")
    root = weights_dir or os.environ.get(WEIGHTS_VARIABLE)
    tried = [Path(name)] if not config or Path(name).is_absolute() else [Path(config).parent / name]
    if root:
        tried.append(Path(root) / name)
    for path in tried:
        if path.is_file():
            return path
    places = ", ".join(str(path) for path in tried)
    remedy = f"Put it there, or set the option {key} or weights_dir, or ${WEIGHTS_VARIABLE} (now {root or 'unset'})."
    raise BackboneError(key, name, f"No such file at {places}. {remedy}")


def read_labels(spec: LabelledSpec, config: str | Path, weights_dir: str | Path | None) -> list[str]:
    """The label names, in channel order. Raises BackboneError when there are none or two sources of them."""
    if spec.labels and not spec.labels_file:
        return list(spec.labels)
    if spec.labels:
        raise BackboneError("labels", spec.labels, "Give labels or labels_file, not both.")
    path = find_file("labels_file", spec.labels_file, config, weights_dir)
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise BackboneError("labels_file", str(path), f"It cannot be read as text: {error}") from error
    if len(lines) == 1:
        lines = [label.strip() for label in lines[0].split(",")]
    if not lines or not all(lines):
        raise BackboneError("labels_file", str(path), "Write one label a line, or all on one line between commas.")
    return lines


@dataclass(frozen=True)
class LabelSpace:
    """Labels of one network as vectors.

    Attributes:
        names: L label names, in channel order.
        vectors: (L, C) float32 unit-norm text vectors; zero rows for ignored and excluded labels.
        ignored, excluded: (L,) bool.
    """

    names: tuple[str, ...]
    vectors: NDArray[np.float32]
    ignored: NDArray[np.bool_]
    excluded: NDArray[np.bool_]

    @classmethod
    def build(cls, spec: LabelledSpec, names: Sequence[str], encoder: SentenceEncoder) -> LabelSpace:
        """Encode the labels. Raises BackboneError where ignore, exclude or aliases name an unknown label."""
        known = set(names)
        for key in ("ignore", "exclude", "aliases"):
            for label in getattr(spec, key):
                if label not in known:
                    raise BackboneError(f"{key}: {label}", label, f"Known labels: {', '.join(names)}.")
        ignored = np.array([name in set(spec.ignore) for name in names])
        excluded = np.array([name in set(spec.exclude) for name in names])
        vectors = np.zeros((len(names), encoder.dim), dtype=np.float32)
        for row, name in enumerate(names):
            if ignored[row] or excluded[row]:
                continue
            mean = encoder.encode_text(_words(name, spec.aliases)).mean(axis=0)
            vectors[row] = mean / np.linalg.norm(mean)
        return cls(tuple(names), vectors, ignored, excluded)


def _words(label: str, aliases: Mapping[str, Any]) -> list[str]:
    words = aliases.get(label, label)
    words = [words] if isinstance(words, str) else words
    if not isinstance(words, list) or not words or not all(isinstance(word, str) and word.strip() for word in words):
        raise BackboneError(f"aliases: {label}", words, "Give a word or a list of words.")
    return words


def fingerprint(kind: str, spec: LabelledSpec, names: Sequence[str], model_digest: str, text_fingerprint: str) -> str:
    """Identity of weights, labels and every setting that changes features (not of where the files lie)."""
    values = dataclasses.asdict(spec) | {
        "model": model_digest,
        "labels_file": "",
        "labels": list(names),
        "providers": [],
    }
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
    return f"{kind}:{spec.name or 'model'}:{digest}|{text_fingerprint}"


class LabelledBackbone(ABC, Generic[S]):
    """A network that answers with its own labels, whose text vectors make its pixels' features.

    Args:
        spec: The model's YAML, with options applied.
        config: Path of that YAML, beside which its files are looked up.
        weights_dir: Where else they are looked up (default: $GEOPURIFY_WEIGHTS).
        num_threads: 0 takes the machine's cores, four at most.

    Attributes:
        labels: The labels and their text vectors.

    Raises:
        BackboneError: A file or library is missing, or labels and network do not fit.
    """

    name: str
    feature_dim = TEXT_DIM

    def __init__(self, spec: S, config: str | Path, weights_dir: str | Path | None, num_threads: int) -> None:
        names = read_labels(spec, config, weights_dir)
        self._spec = spec
        self._encoder = shared_encoder()
        self._runtime = open_model(find_file("model", spec.model, config, weights_dir), num_threads, spec.providers)
        self._input = ImageInput(spec.input, self._runtime.input)
        self._check_outputs(len(names))
        self.labels = LabelSpace.build(spec, names, self._encoder)
        self.licence = spec.licence
        self.text_fingerprint = self._encoder.text_fingerprint
        self.fingerprint = fingerprint(self.name, spec, names, self._runtime.digest, self.text_fingerprint)

    @abstractmethod
    def _check_outputs(self, labels: int) -> None:
        """Raise BackboneError unless the network's outputs fit the specification and that many labels."""

    @abstractmethod
    def mixture(self, rgb: NDArray[np.uint8], depth_m: NDArray[np.float32] | None = None) -> VectorMixture:
        """The features of an (H, W, 3) RGB image as two factors: weights of every cell, and vectors."""

    def encode_image(self, rgb: NDArray[np.uint8], depth_m: NDArray[np.float32] | None = None) -> FeatureMap:
        """Features of an (H, W, 3) RGB image. Raises BackboneError where the network fails."""
        return self.mixture(rgb, depth_m).feature_map()

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, C) unit-norm sentence embeddings."""
        return self._encoder.encode_text(texts)
