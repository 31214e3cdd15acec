"""What a structured-light camera makes of a perfect image: noise, steps, holes, and a limited range.

Noise grows with the square of the range (Khoshelham and Elberink, "Accuracy and resolution of Kinect depth data",
Sensors 2012: about 1.4e-3 z² metres for the deviation and 2.8e-3 z² for the step between disparities).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, maximum_filter, minimum_filter

MIN_RANGE_M, MAX_RANGE_M = 0.4, 6.0
_DEVIATION, _STEP = 1.4e-3, 2.8e-3
_GRAZING_COS = 0.12
_EDGE_JUMP = 0.06


def _blobs(rng: np.random.Generator, shape: tuple[int, int], share: float) -> NDArray[np.bool_]:
    """Coherent holes that cover about ``share`` of the image."""
    small = rng.standard_normal((shape[0] // 4 + 1, shape[1] // 4 + 1))
    field = gaussian_filter(small, 2.0)
    big = np.kron(field, np.ones((4, 4)))[: shape[0], : shape[1]]
    return np.asarray(big > np.quantile(big, 1 - share))


def noisy_depth(
    depth_m: NDArray[np.float32], cosine: NDArray[np.float32], glass: NDArray[np.bool_], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Depth (H, W) as a Kinect would give it; 0 where it gives nothing.

    Args:
        depth_m: (H, W) exact depth, metres.
        cosine: (H, W) |cos| between surface normal and viewing ray; grazing surfaces return nothing.
        glass: (H, W) surfaces the pattern passes through; about half of them are holes.
        rng: Source of the noise.
    """
    z = depth_m.astype(np.float64)
    shape = (z.shape[0], z.shape[1])
    correlated = gaussian_filter(rng.standard_normal(shape), 0.7) * 2.2
    noisy = z + correlated * _DEVIATION * z**2
    step = _STEP * np.maximum(noisy, 0.1)
    inverse = np.round(1.0 / np.maximum(noisy, 0.1) / _STEP) * _STEP  # equal steps of disparity, not of depth
    noisy = np.where(step > 0, 1.0 / np.maximum(inverse, 1e-3), 0.0)
    near, far = minimum_filter(z, 3), maximum_filter(z, 3)
    edge = (far - near > _EDGE_JUMP * near) & (rng.uniform(size=shape) < 0.6)
    grazing = cosine < _GRAZING_COS + 0.06 * rng.standard_normal(shape)
    holes = _blobs(rng, shape, 0.01) | (glass & _blobs(rng, shape, 0.5))
    keep = (noisy > MIN_RANGE_M) & (noisy < MAX_RANGE_M) & ~edge & ~grazing & ~holes
    return np.asarray(np.where(keep, noisy, 0.0), dtype=np.float32)


def noisy_colour(linear: NDArray[np.float32], rng: np.random.Generator, noise: bool) -> NDArray[np.uint8]:
    """sRGB image (H, W, 3) uint8 of a linear-light one; with noise also lens softness, vignetting and sensor noise."""
    image = linear
    if noise:
        image = gaussian_filter(image, (0.4, 0.4, 0)) * rng.uniform(0.9, 1.1)
        y, x = np.linspace(-1, 1, image.shape[0])[:, None], np.linspace(-1, 1, image.shape[1])[None]
        image = image * (1 - 0.12 * (x * x + y * y))[..., None].astype(np.float32)
    encoded = 255 * np.clip(image, 0, 1) ** (1 / 2.2)
    if noise:
        encoded = encoded + rng.standard_normal(encoded.shape, dtype=np.float32) * 2.5
    return np.asarray(np.clip(encoded + 0.5, 0, 255), dtype=np.uint8)
