"""Weighted means of feature maps, and feature maps that are still written as mixtures of a few vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from geopurify_core.vision.base import FeatureMap
from geopurify_core.vision.resample import crop_resize

Array = NDArray[np.float32]


@dataclass(frozen=True)
class VectorMixture:
    """Features F = W V as their two factors: far cheaper to mix than the features themselves.

    Attributes:
        weights: (h, w, K) float32, how much of each vector a cell holds.
        vectors: (K, C) float32.
        confidence: (h, w) float32 in [0, 1].
    """

    weights: Array
    vectors: Array
    confidence: Array

    def feature_map(self) -> FeatureMap:
        """The product of the factors."""
        height, width, count = self.weights.shape
        rows = self.weights.reshape(height * width, count) @ self.vectors
        return FeatureMap.from_rows(rows.reshape(height, width, -1), self.confidence)


@runtime_checkable
class MixtureBackbone(Protocol):
    """A backbone that can stop before the last product."""

    def mixture(self, rgb: NDArray[np.uint8], depth_m: NDArray[np.float32] | None = None) -> VectorMixture:
        """What ``encode_image`` multiplies out."""
        ...


def shares(
    confidences: Sequence[Array], weights: Sequence[float], powers: Sequence[float]
) -> tuple[list[Array], Array]:
    """Each map's share w_i c_i^p_i / Σ_j w_j c_j^p_j of every cell (0 where nobody knows anything), and the mixture's
    confidence Σ w_i c_i^p_i / Σ w_i; all (h, w)."""
    evidence = [
        np.where(c > 0, w * np.power(c, p), 0.0).astype(np.float32)
        for c, w, p in zip(confidences, weights, powers, strict=True)
    ]
    total = np.sum(evidence, axis=0)
    divided = [np.divide(e, total, out=np.zeros_like(total), where=total > 0) for e in evidence]
    return divided, np.clip(total / np.float32(sum(weights)), 0.0, 1.0)


def mix_vectors(mixtures: Sequence[VectorMixture], weights: Sequence[float], powers: Sequence[float]) -> FeatureMap:
    """The weighted mean of mixtures on one grid, multiplied out once."""
    parts, confidence = shares([m.confidence for m in mixtures], weights, powers)
    joint = np.concatenate([m.weights * part[..., None] for m, part in zip(mixtures, parts, strict=True)], axis=2)
    return VectorMixture(joint, np.concatenate([m.vectors for m in mixtures]), confidence).feature_map()


def mix_maps(maps: Sequence[FeatureMap], weights: Sequence[float], powers: Sequence[float]) -> FeatureMap:
    """The weighted mean of feature maps on one grid."""
    parts, confidence = shares([m.confidence for m in maps], weights, powers)
    rows = maps[0].rows.astype(np.float32)  # a copy, right already wherever nobody else has a say
    contested = np.flatnonzero(parts[0].ravel() < 1.0)
    rows[contested] *= parts[0].ravel()[contested, None]
    for feature_map, part in zip(maps[1:], parts[1:], strict=True):
        seen = np.flatnonzero(part)
        rows[seen] += part.ravel()[seen, None] * feature_map.rows[seen]
    return FeatureMap.from_rows(rows.reshape(*confidence.shape, -1), confidence)


def on_grid(feature_map: FeatureMap, grid: tuple[int, int]) -> FeatureMap:
    """The feature map resampled to ``grid`` (h, w); itself when it has that grid already.

    Features travel multiplied by their confidence, so that a cell without any does not dilute its neighbours.
    """
    height, width = feature_map.confidence.shape
    if (height, width) == grid:
        return feature_map
    weight = feature_map.confidence[..., None]
    rows = feature_map.rows.reshape(height, width, -1).astype(np.float32) * weight
    window = (0.0, 0.0, float(height), float(width))
    confidence = crop_resize(weight, *window, grid)
    rows = crop_resize(rows, *window, grid)
    np.divide(rows, confidence, out=rows, where=confidence > 0)
    return FeatureMap.from_rows(rows, confidence[..., 0])
