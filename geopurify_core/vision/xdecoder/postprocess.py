"""From masks at stride 4 and class scores to pixels of the image: the published evaluation and the released recipe."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

OWN = 0.5


def masks_at_size(
    masks: Tensor,
    image_size: Sequence[int],
    padded_size: Sequence[int],
    output_size: Sequence[int] | None = None,
    crop_padding: bool = True,
) -> Tensor:
    """Mask logits on the pixels of the image (bicubic, antialiased).

    Args:
        masks: (B, Q, h, w) mask logits on the grid of the padded image.
        image_size: (H, W) of the image, pixels.
        padded_size: (H', W') it was padded to, right and bottom.
        output_size: Size wanted; the image's where None.
        crop_padding: Enlarge to the padded size and cut the padding off, as X-Decoder's own evaluation does. False:
            straight to the output size, padding included, as GeoPurify's released code does, which shifts masks by up
            to the padding's width.

    Returns:
        (B, Q, *output_size).
    """
    size = tuple(output_size if output_size is not None else image_size)
    if not crop_padding:
        return _enlarge(masks, size)
    cropped = _enlarge(masks, tuple(padded_size))[..., : image_size[0], : image_size[1]]
    return cropped if tuple(cropped.shape[-2:]) == size else _enlarge(cropped, size)


def class_probabilities(logits: Tensor) -> Tensor:
    """(…, Q, L) softmax over the labels and the background, (…, Q, L + 1), without the background, which is last."""
    return logits.softmax(dim=-1)[..., :-1]


def semantic_inference(logits: Tensor, masks: Tensor, include_class_token: bool = False) -> Tensor:
    """Score of every label at every pixel: Σ_q p_q(label) σ(m_q(pixel)).

    Args:
        logits: (…, Q, L + 1) class logits of all queries, the class token's last; the background's column last.
        masks: (…, Q, H, W) mask logits.
        include_class_token: Sum over all Q rows as the published ``evaluate`` does, not over the object queries alone.

    Returns:
        (…, L, H, W).
    """
    rows = slice(None) if include_class_token else slice(-1)
    probability = class_probabilities(logits[..., rows, :])
    return torch.einsum("...qc,...qhw->...chw", probability, masks[..., rows, :, :].sigmoid())


def assign_queries(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which object query each pixel belongs to, winner takes all (GeoPurify's released code).

    Args:
        logits: (Q, L + 1) class logits, the class token's row last, the background's column last.
        masks: (Q, H, W) mask logits.

    Returns:
        (Q - 1,) scores, each query's best label probability; (H, W) int64 argmax_q score_q σ(m_q); (H, W) bool, true
        where the winner's own mask covers the pixel (σ ≥ 0.5).
    """
    score = class_probabilities(logits[:-1]).amax(dim=-1)
    probability = masks[:-1].sigmoid()
    winner = (score[:, None, None] * probability).argmax(dim=0)
    return score, winner, probability.gather(0, winner[None])[0] >= OWN


def _enlarge(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bicubic", align_corners=False, antialias=True)
