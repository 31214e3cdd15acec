"""Scenes to train and score students on: ``python -m training.student_scenes --out out/student``.

Each scene is a procedural apartment mapped by the real pipeline (``SemanticMapper``, 4 cm voxels) along a walk of
random length that often ends early, so that maps are as partial and as noisy as a robot's. The apartment's own
instances stand in for a geometric teacher: which voxels belong together is known instead of guessed. Stopped and
started again, the script goes on after the last finished scene; a half-written shard never bears a shard's name.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopurify_core.config import Config
from geopurify_core.datasets.synthetic import SyntheticDataset
from geopurify_core.errors import DatasetError
from geopurify_core.mapping.snapshot import MapSnapshot
from geopurify_core.pipeline import SemanticMapper
from training.nano.views import FIRST_TRAINING_SEED, VALIDATION_SEEDS

log = logging.getLogger("training.student_scenes")

# Below nano's training seeds, so that nano errs on these apartments as on any other, and apart from everything scored.
TRAINING_SEEDS = range(300, 400)
CHOICE_SEEDS = range(200, 210)
EVALUATION_SEEDS = range(10, 30)
_DEMO_SEEDS = range(10)
_FORMAT = 1


@dataclass(frozen=True)
class Scene:
    """A map and what is truly there.

    Attributes:
        snapshot: The raw map.
        instance: (N,) int32 instance of each voxel, 0 where no surface is near.
        category: (N,) uint8 index into ``CLASS_NAMES``, 255 where no surface is near.
        seed, frames: The apartment, and how many frames of which walk went in, as ``used/length``.
    """

    snapshot: MapSnapshot
    instance: NDArray[np.int32]
    category: NDArray[np.uint8]
    seed: int
    frames: str

    def __len__(self) -> int:
        return len(self.snapshot)


def map_apartment(seed: int, length: int, used: int, mapper: SemanticMapper | None = None) -> Scene:
    """Walk ``used`` of ``length`` frames through the apartment of ``seed`` and label the map.

    Args:
        seed: Of the apartment.
        length: Frames of the whole walk.
        used: How many of them are integrated, from the first one on.
        mapper: Is reset and used; by default a new one with the default configuration.
    """
    mapper = mapper or SemanticMapper(Config())
    mapper.reset()
    recording = SyntheticDataset(seed, num_frames=length)
    for frame in recording.frames(stop=used):
        mapper.integrate(frame)
    snapshot = mapper.snapshot()
    instance = recording.ground_truth_instances(snapshot.centers_m).astype(np.int32)
    category = recording.apartment.class_of_instance[instance]
    return Scene(snapshot, instance, category, seed, f"{used}/{length}")


def walk_of(seed: int, walk: int) -> tuple[int, int]:
    """Length and used part of a walk, a function of its numbers: 50 to 130 frames, of which 45 to 100 % are walked."""
    rng = np.random.default_rng([seed, walk, 31])
    length = int(rng.integers(50, 131))
    return length, max(20, round(length * rng.uniform(0.45, 1.0)))


def save_scene(scene: Scene, path: Path) -> None:
    """Write a shard; it bears its name only once it is whole."""
    from safetensors.numpy import save_file

    s = scene.snapshot
    arrays = {
        "coords": s.coords, "features": s.features, "weight": s.weight, "rgb": s.rgb, "normals": s.normals,
        "geometry_weight": s.geometry_weight, "instance": scene.instance, "category": scene.category,
    }  # fmt: skip
    about = {
        "format": _FORMAT, "seed": scene.seed, "frames": scene.frames, "voxel_size_m": s.voxel_size_m,
        "backbone": s.backbone, "text_fingerprint": s.text_fingerprint,
    }  # fmt: skip
    temporary = path.with_suffix(".tmp")
    save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, temporary, {"scene": json.dumps(about)})
    temporary.replace(path)


def load_scene(path: Path) -> Scene:
    """Read a shard. Raises DatasetError where it is damaged or of another format."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {})["scene"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        if about["format"] != _FORMAT:
            raise KeyError(f"format {about['format']}")
        instance, category = arrays.pop("instance"), arrays.pop("category")
        stamps = np.zeros(len(instance), dtype=np.int64)
        snapshot = MapSnapshot(
            **arrays, first_seen_ns=stamps, last_seen_ns=stamps, voxel_size_m=about["voxel_size_m"], frame_id="map",
            stamp_ns=1, version=1, backbone=about["backbone"], text_fingerprint=about["text_fingerprint"],
        )  # fmt: skip
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise DatasetError("scene shard", str(path), f"Delete it and collect it again: {error}") from error
    return Scene(snapshot, instance, category, int(about["seed"]), str(about["frames"]))


def collect(folder: Path, seeds: Sequence[int], walks: int = 1) -> list[Path]:
    """Map what is missing of ``walks`` walks through the apartments of ``seeds``; all shards, in order.

    Raises:
        DatasetError: A seed belongs to nano's training or scores, or to the demo.
    """
    check_seeds(seeds)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{seed:05d}_{walk}.safetensors" for walk in range(walks) for seed in seeds]
    missing = [path for path in paths if not path.exists()]
    mapper = SemanticMapper(Config()) if missing else None
    for path in missing:
        seed, walk = (int(part) for part in path.stem.split("_"))
        started = time.perf_counter()
        scene = map_apartment(seed, *walk_of(seed, walk), mapper)
        save_scene(scene, path)
        log.info("%s: %d voxels, %.0f s", path.name, len(scene), time.perf_counter() - started)
    return paths


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuse apartments on which nano was trained or on which anything is scored or shown."""
    taken = (*_DEMO_SEEDS, *EVALUATION_SEEDS, *VALIDATION_SEEDS)
    for seed in seeds:
        if seed >= FIRST_TRAINING_SEED or seed in taken:
            raise DatasetError("seeds", seed, f"Take seeds below {FIRST_TRAINING_SEED} that nobody scores, as 300.")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/student"))
    parser.add_argument("--apartments", type=int, default=32)
    parser.add_argument("--walks", type=int, default=1)
    parser.add_argument("--validation", type=int, default=3, help="apartments to choose by")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    collect(arguments.out / "choice", CHOICE_SEEDS[: arguments.validation])
    collect(arguments.out / "train", TRAINING_SEEDS[: arguments.apartments], arguments.walks)


if __name__ == "__main__":
    main()
