"""The procedural apartment as a recording: RGB-D frames along a walk, with the truth about every pixel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from geopurify_core.camera import PinholeCamera
from geopurify_core.datasets.base import check_range
from geopurify_core.datasets.synthetic.apartment import Apartment, SceneObject
from geopurify_core.datasets.synthetic.kinds import CLASS_NAMES, UNLABELLED
from geopurify_core.datasets.synthetic.sensor import noisy_colour, noisy_depth
from geopurify_core.datasets.synthetic.truth import SurfaceLabels
from geopurify_core.datasets.synthetic.walk import camera_walk
from geopurify_core.errors import DatasetError
from geopurify_core.frame import RGBDFrame

EPOCH_NS = 1_700_000_000_000_000_000
PERIOD_NS = 100_000_000
_FOCAL_PER_WIDTH = 0.82  # a Kinect's 63 degrees across
_WINDOW = CLASS_NAMES.index("window")


class SyntheticDataset:
    """Frames of a walk through the apartment of a seed, rendered when they are asked for.

    Args:
        seed: Of the apartment, the walk and the noise, ≥ 0.
        num_frames: Length of the walk.
        width, height: Image size, pixels.
        noise: Sensor noise and holes; False gives the exact images.

    Raises:
        DatasetError: A size or count is not positive, or the seed is negative.
    """

    def __init__(
        self, seed: int = 0, num_frames: int = 120, width: int = 320, height: int = 240, noise: bool = True
    ) -> None:
        for name, value, least in (("num_frames", num_frames, 1), ("width", width, 16), ("height", height, 16)):
            if value < least:
                raise DatasetError(f"synthetic.{name}", value, f"It must be at least {least}.")
        self.name = f"synthetic:{seed}"
        self.skipped: Counter[str] = Counter()
        self.seed, self.noise = seed, noise
        self.apartment = Apartment.generate(seed)
        focal = _FOCAL_PER_WIDTH * width
        self.camera = PinholeCamera(focal, focal, (width - 1) / 2, (height - 1) / 2, width, height)
        self.poses = camera_walk(self.apartment.rooms, self.apartment.doors, num_frames, seed)
        self._render = lru_cache(maxsize=2)(self._render_uncached)

    def __len__(self) -> int:
        return len(self.poses)

    def __iter__(self) -> Iterator[RGBDFrame]:
        return self.frames()

    def frames(self, stride: int = 1, start: int = 0, stop: int | None = None) -> Iterator[RGBDFrame]:
        """Frames ``start``, ``start + stride``, … below ``stop``."""
        check_range(stride, start, stop)
        return (self[i] for i in range(len(self))[start:stop:stride])

    def __getitem__(self, i: int) -> RGBDFrame:
        """Frame ``i``. Raises IndexError outside the walk."""
        index = range(len(self))[i]
        linear, depth, instance, cosine = self._render(index)
        rng = np.random.default_rng([self.seed, index, 5])
        if self.noise:
            glass = self.apartment.class_of_instance[instance] == _WINDOW
            depth = noisy_depth(depth, cosine, glass, rng)
        rgb = noisy_colour(linear, rng, self.noise)
        return RGBDFrame(rgb, depth.copy(), self.camera, self.poses[index].copy(), EPOCH_NS + index * PERIOD_NS)

    def labels(self, i: int) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
        """Class index into ``class_names`` (255: nothing) and instance id (0: nothing), (H, W) each, of frame ``i``."""
        instance = self._render(range(len(self))[i])[2]
        return self.apartment.class_of_instance[instance], instance.astype(np.uint16)

    def exact_depth_m(self, i: int) -> NDArray[np.float32]:
        """(H, W) depth of frame ``i`` without sensor noise, metres."""
        return np.array(self._render(range(len(self))[i])[1])

    @property
    def class_names(self) -> tuple[str, ...]:
        """ScanNet's 20 classes in their order, then what else stands in the apartment."""
        return CLASS_NAMES

    @property
    def objects(self) -> list[SceneObject]:
        """Every labelled object with its box; walls, floors and ceilings included."""
        return self.apartment.objects

    @cached_property
    def _surfaces(self) -> SurfaceLabels:
        return SurfaceLabels(self.apartment.primitives)

    def ground_truth(self, points_m: NDArray[np.floating], max_distance_m: float = 0.1) -> NDArray[np.uint8]:
        """Class of the nearest surface of each map-frame point (N, 3), metres; 255 where none is within reach."""
        instance = self._surfaces.instance(points_m, max_distance_m)
        return np.where(instance > 0, self.apartment.class_of_instance[instance], UNLABELLED).astype(np.uint8)

    def ground_truth_instances(self, points_m: NDArray[np.floating], max_distance_m: float = 0.1) -> NDArray[np.uint16]:
        """Instance of the nearest surface of each map-frame point (N, 3), metres; 0 where none is within reach."""
        return self._surfaces.instance(points_m, max_distance_m).astype(np.uint16)

    def _render_uncached(
        self, index: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
        c = self.camera
        rgb, depth, instance, cosine = self.apartment.caster.render(
            self.poses[index], (c.fx, c.fy, c.cx, c.cy), c.width, c.height
        )
        return rgb, depth, np.maximum(instance, 0), cosine
