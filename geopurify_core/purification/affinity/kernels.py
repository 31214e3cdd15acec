"""Softmax over neighbours in one pass over the embeddings. Compiled."""
# mypy: ignore-errors

from __future__ import annotations

import numpy as np

from geopurify_core.jit import compiled


@compiled()
def unit_rows(start, stop, embeddings, out):
    """out[i] = embeddings[i] / |embeddings[i]|, zeros where that is zero; lengths in float64, so nothing overflows."""
    for i in range(start, stop):
        square = 0.0
        for d in range(embeddings.shape[1]):
            square += np.float64(embeddings[i, d]) * np.float64(embeddings[i, d])
        scale = 1.0 / np.sqrt(square) if square > 0.0 else 0.0
        for d in range(embeddings.shape[1]):
            out[i, d] = np.float32(embeddings[i, d] * scale)


@compiled(reassociate=True)
def softmax_of_cosines(start, stop, visit, own, neighbors, unit, sharpening, weights):
    """weights[i, j] = softmax over j of sharpening · (unit[own[i]] · unit[neighbors[i, j]]) for i in visit."""
    k = neighbors.shape[1]
    for v in range(start, stop):
        i = visit[v]
        mine, row = unit[own[i]], weights[i]
        largest = np.float32(-np.inf)
        for j in range(k):
            other, cosine = unit[neighbors[i, j]], np.float32(0.0)
            for d in range(len(mine)):
                cosine += mine[d] * other[d]
            row[j] = sharpening * cosine
            largest = max(largest, row[j])
        total = np.float32(0.0)
        for j in range(k):
            row[j] = np.exp(row[j] - largest)
            total += row[j]
        for j in range(k):
            row[j] /= total
