"""The released recipe's way from views to points: a feature for each visible point of a view, then the best views.

This is the offline, label-dependent fusion (DESIGN: kept for parity). The running map does without it: there every
frame is added once and forgotten. Golden data: the published fusion, run on seven views.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geopurify_core.errors import BackboneError

Array = NDArray[np.float32]
KEPT_VIEWS = 3


@dataclass(frozen=True)
class ViewFeatures:
    """What one view says of the points that it sees.

    Attributes:
        points: (n,) integer, which points of the scene.
        features: (n, C) float32, unit length.
        logits: (n, L) float32, logit scale · cosine to each label.
    """

    points: NDArray[np.integer]
    features: Array
    logits: Array


def view_features(
    points: NDArray[np.integer],
    xyz: NDArray[np.floating],
    query: NDArray[np.integer],
    own: NDArray[np.bool_],
    class_embeds: Array,
    text: Array,
    logit_scale: float,
) -> ViewFeatures:
    """Features of the points of one view, from the queries at their pixels.

    A point takes the class embedding of the query that owns its pixel; without one, that of the nearest point in 3D of
    the same view that has one.

    Args:
        points: (n,) which points of the scene.
        xyz: (n, 3) where they are, metres.
        query: (n,) winning query at their pixels (``winners``, read at the nearest pixel).
        own: (n,) whether it owns the pixel.
        class_embeds: (Q, C) class embeddings.
        text: (L, C) unit text vectors of the labels, without the background.
        logit_scale: exp of the model's parameter.

    Raises:
        BackboneError: No pixel is owned: the view says nothing (the released code stops there too).
    """
    query = np.asarray(query)
    if not np.any(own):
        raise BackboneError("view", f"{len(points)} points", "No mask covers any of them; leave this view out.")
    rows = query[nearest_known(xyz, own)]
    unit = class_embeds / np.maximum(np.linalg.norm(class_embeds, axis=1, keepdims=True), 1e-12)
    logits = logit_scale * unit @ text.T
    return ViewFeatures(np.asarray(points), unit[rows], logits[rows].astype(np.float32))


def nearest_known(xyz: NDArray[np.floating], known: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(n,) for each of (n, 3) positions its own index where ``known``, else that of the nearest known one.

    Raises:
        BackboneError: Nothing is known.
    """
    from scipy.spatial import cKDTree

    index = np.arange(len(known))
    sources = np.flatnonzero(known)
    missing = np.flatnonzero(~np.asarray(known))
    if len(missing) == 0:
        return index
    if len(sources) == 0:
        raise BackboneError("known", 0, "Nothing to copy from: no position has a feature.")
    index[missing] = sources[cKDTree(xyz[sources]).query(xyz[missing])[1]]
    return index


def fuse_views(xyz: NDArray[np.floating], views: Sequence[ViewFeatures]) -> tuple[Array, NDArray[np.int32]]:
    """Consensus-weighted mean of each point's best views.

    For each point: mean logits over its views; the label with the largest is the consensus; the views with the three
    largest logits for that label are kept and weighed by the softmax of those logits. The sum of their unit features is
    not normalised again. A point that no view saw copies the nearest seen point.

    Views are read three times and never joined, so that memory stays at (N, C + L) beside the views themselves.

    Args:
        xyz: (N, 3) positions of the scene's points, metres.
        views: What each view saw; a view names a point at most once.

    Returns:
        (N, C) float32 features, and (N,) int32 number of views of each point.

    Raises:
        BackboneError: There is no view, or a view's arrays or points do not fit.
    """
    _check(len(xyz), views)
    counter = np.zeros(len(xyz), np.int32)
    mean = np.zeros((len(xyz), views[0].logits.shape[1]), np.float32)
    for view in views:
        counter[view.points] += 1
        mean[view.points] += view.logits
    mean /= np.maximum(counter, 1)[:, None]
    consensus = mean.argmax(axis=1)
    fused = _weighted_sum(views, consensus, _best_views(views, consensus))
    if counter.all():
        return fused, counter
    return fused[nearest_known(xyz, counter > 0)], counter


def _best_views(views: Sequence[ViewFeatures], consensus: NDArray[np.intp]) -> Array:
    """(N, 3) agreement of each point's kept views, descending, -inf where there are fewer."""
    best = np.full((len(consensus), KEPT_VIEWS), -np.inf, np.float32)
    for view in views:
        agreement = _agreement(view, consensus)
        candidates = np.concatenate([best[view.points], agreement[:, None]], axis=1)
        best[view.points] = -np.sort(-candidates, axis=1)[:, :KEPT_VIEWS]
    return best


def _agreement(view: ViewFeatures, consensus: NDArray[np.intp]) -> Array:
    return np.asarray(view.logits[np.arange(len(view.points)), consensus[view.points]])


def _weighted_sum(views: Sequence[ViewFeatures], consensus: NDArray[np.intp], best: Array) -> Array:
    """(N, C) Σ softmax(agreement) · feature over the kept views; of equal ones the first are kept."""
    top, least = best[:, 0], best[:, -1]
    total = np.exp(best - np.where(np.isfinite(top), top, 0.0)[:, None]).sum(axis=1)
    free = (best == least[:, None]).sum(axis=1)  # how many views may still come in with the least agreement kept
    fused = np.zeros((len(best), views[0].features.shape[1]), np.float32)
    for view in views:
        points, agreement = view.points, _agreement(view, consensus)
        equal = agreement == least[points]
        kept = (agreement > least[points]) | (equal & (free[points] > 0))
        free[points] -= equal
        rows = points[kept]
        weight = np.exp(agreement[kept] - top[rows]) / total[rows]
        fused[rows] += weight[:, None] * view.features[kept]
    return fused


def _check(count: int, views: Sequence[ViewFeatures]) -> None:
    if not views:
        raise BackboneError("views", 0, "Give at least one view.")
    width, labels = views[0].features.shape[1], views[0].logits.shape[1]
    for number, view in enumerate(views):
        shape = (len(view.points), width), (len(view.points), labels)
        if (view.features.shape, view.logits.shape) != shape or labels == 0:
            shown = f"{view.features.shape} and {view.logits.shape}"
            raise BackboneError(f"views[{number}]", shown, f"Expected {shape[0]} features and {shape[1]} logits.")
        if len(view.points) and not 0 <= view.points.min() <= view.points.max() < count:
            raise BackboneError(f"views[{number}].points", int(view.points.max()), f"There are {count} points.")
        if len(np.unique(view.points)) != len(view.points):
            raise BackboneError(f"views[{number}].points", "repeated", "A view names a point at most once.")
