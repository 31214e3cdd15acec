"""Photometric and geometric augmentation that carries rendered rooms a little way towards real pictures."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

STRIDE = 4


def _crop_box(height: int, width: int, least: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    share = rng.uniform(least, 1.0)
    w = int(width * min(1.0, share * rng.uniform(0.9, 1.1)))
    h = int(height * min(1.0, share * rng.uniform(0.9, 1.1)))
    x, y = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
    return x, y, x + w, y + h


def _tint_regions(image: NDArray[np.float32], kind: NDArray[np.uint8], rng: np.random.Generator) -> None:
    """Give one or two of the surfaces another colour, in place: shape must count for more than paint."""
    present = np.unique(kind)
    for chosen in rng.choice(present, size=min(2, len(present)), replace=False):
        mask = kind == chosen
        grey = image[mask].mean(axis=1, keepdims=True)
        image[mask] = np.clip(grey * rng.uniform(0.4, 1.6, 3) + rng.uniform(-30, 30), 0, 255)


def _photometric(image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    image = image * rng.uniform(0.82, 1.22, 3).astype(np.float32) * rng.uniform(0.6, 1.45)  # white balance, exposure
    grey = image.mean(axis=2, keepdims=True)
    image = grey + (image - grey) * rng.uniform(0.1 if rng.uniform() < 0.2 else 0.5, 1.3)
    image = (image - image.mean()) * rng.uniform(0.7, 1.3) + image.mean()
    encoded = 255 * (np.clip(image, 0, 255) / 255) ** rng.uniform(0.65, 1.5)
    if rng.uniform() < 0.4:  # a lamp or window that lights one side more
        slope = np.linspace(*rng.uniform(0.6, 1.35, 2), image.shape[1])
        encoded = encoded * slope[None, :, None]
    noise = rng.standard_normal(image.shape[:2])[..., None] * 0.5 + rng.standard_normal(image.shape) * 0.7
    return np.asarray(encoded + noise * rng.uniform(0, 12), dtype=np.float32)


def _degrade(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    if rng.uniform() < 0.5:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.4)))
    if rng.uniform() < 0.4:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=int(rng.integers(25, 90)))
        picture = Image.open(buffer).convert("RGB")
    return picture


def augment(
    rgb: NDArray[np.uint8], kind: NDArray[np.uint8], rng: np.random.Generator, width: int = 192, least: float = 0.42
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A random crop at a random scale with other light, colours and sensor.

    Args:
        rgb: (H, W, 3); kind: (H, W) labels.
        rng: Source of all choices.
        width: Of the result, a multiple of 16; its height is three quarters of it.
        least: Smallest share of the picture's width and height that a crop keeps.

    Returns:
        (3/4 width, width, 3) uint8 image and labels at a quarter of that size, one for each output cell.
    """
    x0, y0, x1, y1 = _crop_box(kind.shape[0], kind.shape[1], least, rng)
    size, cut = (width, width * 3 // 4), (slice(y0, y1), slice(x0, x1))
    picture = Image.fromarray(np.ascontiguousarray(rgb[cut])).resize(size, Image.Resampling.BILINEAR)
    labels = np.asarray(Image.fromarray(np.ascontiguousarray(kind[cut])).resize(size, Image.Resampling.NEAREST))
    image = np.asarray(picture, dtype=np.float32).copy()
    if rng.uniform() < 0.5:
        image, labels = image[:, ::-1].copy(), labels[:, ::-1]
    if rng.uniform() < 0.35:
        _tint_regions(image, labels, rng)
    encoded = np.clip(_photometric(image, rng), 0, 255).astype(np.uint8)
    half = STRIDE // 2
    return np.asarray(_degrade(Image.fromarray(encoded), rng)), np.ascontiguousarray(labels[half::STRIDE, half::STRIDE])
