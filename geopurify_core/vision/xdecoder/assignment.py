"""From the decoder's queries to a feature for every pixel, with and without a list of labels.

X-Decoder has no dense text-aligned feature map: its mask features live in a space of their own, and only the class
embedding of each query is comparable with text (reference: the published decoder's heads). Both assignments therefore
spread class embeddings over the pixels that a query's mask covers:

* ``open``: F(p) = Σ_q w_q(p) ĉ_q / Σ_q w_q(p) with w_q(p) = o_q σ(m_q(p)), o_q how much query q is an object at all.
  No label list; kept at the masks' own stride.
* ``vocabulary``: the released recipe. The query with the largest s_q σ(m_q(p)) wins pixel p, s_q its best probability
  over the given labels, and owns it where σ(m_q(p)) ≥ 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample

from geopurify_core.vision.xdecoder.postprocess import OWN, class_probabilities, masks_at_size

_QUERIES_AT_ONCE = 16
_EPSILON = 1e-6


@dataclass(frozen=True)
class QueryOutputs:
    """What the decoder says of one image, object queries only (the class token is left out).

    Attributes:
        class_embeds: (Q, C) float tensor, class embeddings, not normalised.
        masks: (Q, h, w) float tensor, mask logits on the grid of the padded image (stride 4).
        image_size: (H, W) of the image, pixels.
        padded_size: (H', W') it was padded to, right and bottom.
    """

    class_embeds: Tensor
    masks: Tensor
    image_size: tuple[int, int]
    padded_size: tuple[int, int]


def vocabulary_scores(logits: Tensor) -> Tensor:
    """(Q,) best probability of each query over the labels; ``logits`` (Q, L + 1) ends with the background, which takes
    part in the softmax and is then left out."""
    return class_probabilities(logits.float()).amax(dim=-1)


def background_objectness(logits: Tensor) -> Tensor:
    """(Q,) 1 − p(background) over fixed reference words; ``logits`` (Q, L + 1) ends with the background."""
    return 1.0 - logits.float().softmax(dim=-1)[:, -1]


def mask_objectness(masks: Tensor) -> Tensor:
    """(Q,) mean mask probability inside of each mask (σ ≥ 0.5), 0 where there is none; (Q, h, w) logits."""
    probability = masks.float().sigmoid().flatten(1)
    inside = (probability >= OWN).to(probability)
    return (probability * inside).sum(1) / inside.sum(1).clamp(min=1.0)


def open_weights(outputs: QueryOutputs, objectness: Tensor, padding: str = "crop") -> tuple[Tensor, Tensor]:
    """Weights of the soft mixture, at the masks' own stride.

    Args:
        outputs: The decoder's answer.
        objectness: (Q,) in [0, 1].
        padding: ``crop`` keeps the cells of the image; ``official_code`` keeps those of the padding too, so that the
            grid is stretched over the image as in the released code.

    Returns:
        (h, w, Q) float32 weights that sum to 1 in every cell that any query claims (0 elsewhere), and the (h, w)
        float32 confidence max_q o_q σ(m_q).
    """
    probability = _cells_of_image(outputs, padding).float().sigmoid()
    claimed = (probability * objectness.to(probability)[:, None, None]).permute(1, 2, 0)
    confidence = claimed.amax(dim=-1)
    return claimed / claimed.sum(dim=-1, keepdim=True).clamp(min=_EPSILON), confidence


def _cells_of_image(outputs: QueryOutputs, padding: str) -> Tensor:
    """Mask logits whose grid covers the image exactly."""
    masks = outputs.masks
    if padding == "official_code" or outputs.image_size == outputs.padded_size:
        return masks
    rows, columns = (
        size * cells / padded
        for size, cells, padded in zip(outputs.image_size, masks.shape[1:], outputs.padded_size, strict=True)
    )
    if rows == int(rows) and columns == int(columns):
        return masks[:, : int(rows), : int(columns)]
    return _resample(masks, rows, columns)


def _resample(masks: Tensor, rows: float, columns: float) -> Tensor:
    """The window of ``rows`` x ``columns`` cells, a fraction at its end, on whole cells (bilinear)."""

    def centres(length: float, size: int) -> Tensor:
        count = max(1, round(length))
        steps = torch.arange(count, device=masks.device, dtype=torch.float32)
        return (steps + 0.5) * (length / count) * (2.0 / size) - 1.0

    y, x = torch.meshgrid(centres(rows, masks.shape[1]), centres(columns, masks.shape[2]), indexing="ij")
    grid = torch.stack([x, y], dim=-1)[None]
    return grid_sample(masks[None].float(), grid, padding_mode="border", align_corners=False)[0]


def winners(
    outputs: QueryOutputs, scores: Tensor, padding: str = "crop"
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The released recipe's assignment of pixels to queries.

    Args:
        outputs: The decoder's answer.
        scores: (Q,) of ``vocabulary_scores``.
        padding: ``crop``: masks are enlarged to the padded size and cropped. ``official_code``: they are enlarged
            straight to the image's size, padding included, which shifts them by up to 28 pixels at 484 x 648.

    Returns:
        (H, W) int64 winning query argmax_q s_q σ(m_q), and (H, W) bool: its own mask covers the pixel (σ ≥ 0.5).
    """
    best: Tensor | None = None
    # A few queries at a time: all 200 masks of a 480 x 640 image would be 250 MB in each of three temporaries.
    for first in range(0, len(scores), _QUERIES_AT_ONCE):
        block = slice(first, first + _QUERIES_AT_ONCE)
        masks = outputs.masks[None, block]
        large = masks_at_size(masks, outputs.image_size, outputs.padded_size, crop_padding=padding != "official_code")
        probability = large[0].sigmoid()
        claim, query = (scores[block].to(probability)[:, None, None] * probability).max(dim=0)
        own = probability.gather(0, query[None])[0] >= OWN
        if best is None:
            best, winner, owned = claim, query, own
            continue
        better = claim > best
        best = torch.where(better, claim, best)
        winner = torch.where(better, query + first, winner)
        owned = torch.where(better, own, owned)
    return winner.cpu().numpy(), owned.cpu().numpy()
