"""One image through the network with every intermediate result kept, to be compared with the reference stage by stage.

Labels are worded as GeoPurify words them: "a wall in a scene", and the background last.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from geopurify_core.errors import BackboneError
from geopurify_core.vision.xdecoder import postprocess
from geopurify_core.vision.xdecoder.decoder import Heads
from geopurify_core.vision.xdecoder.language import check_labels, templates
from geopurify_core.vision.xdecoder.tokenizer import ClipTokenizer, attention_mask

if TYPE_CHECKING:
    from geopurify_core.vision.xdecoder.model import XDecoder

PROMPT = "a {} in a scene"
BACKGROUND = "background"


def prompts(labels: Sequence[str]) -> list[str]:
    """ "a X in a scene" for each label and the background last; what is worded so already stays as it is.

    Raises:
        QueryError: No label, or one is empty, oversized or not text.
    """
    checked = check_labels(labels)
    if checked[-1] == BACKGROUND and len(checked) > 1:
        checked = checked[:-1]
    before, after = PROMPT.split("{}")
    worded = [x if x.startswith(before) and x.endswith(after) else PROMPT.replace("{}", x) for x in checked]
    return [*worded, BACKGROUND]


def stages(model: XDecoder, image: Tensor | NDArray[Any], labels: Sequence[str]) -> dict[str, Tensor]:
    """Every intermediate result, under the names of the golden files.

    Args:
        model: The network.
        image: (3, H, W), RGB 0..255.
        labels: Class names, or whole prompts; see ``prompts``. L of them, the background not counted.

    Returns:
        ``tok_ids_template0``, ``tok_attn_template0`` (L + 1, 77), ``lang_last_hidden_template0``,
        ``text_embed_template0_normed`` (L + 1, C): prompts in the first template; ``text_embed`` (L + 1, C): in all.
        ``input_padded``; ``backbone_res2`` … ``5``; ``pix_mask_features``, ``pix_transformer``, ``pix_ms0`` … ``2``.
        ``aux{i}_logits``, ``aux{i}_class_embed``, ``aux{i}_masks``: heads before the first and after each layer but the
        last; ``pred_logits`` (1, Q, L + 1), ``pred_masks`` (1, Q, h, w), ``pred_captions_class_embed`` (1, Q, C): the
        last. ``semantic_inference`` (L, H, W), ``query_score`` (Q - 1,), ``assign_query``, ``assign_own`` (H, W).

    Raises:
        QueryError: No label, or one that is no usable text.
        BackboneError: Not one image of that shape.
    """
    worded = prompts(labels)
    padded = model.prepare(image)
    if len(padded) != 1:
        raise BackboneError("image", tuple(image.shape), "Give one image, (3, H, W).")
    out = _text_stages(model, worded)
    features = model.backbone(padded)
    mask_features, encoded, scales = model.sem_seg_head.pixel_decoder(features)
    out |= {"input_padded": padded, "pix_mask_features": mask_features, "pix_transformer": encoded}
    out |= {f"backbone_{name}": value for name, value in features.items()}
    out |= {f"pix_ms{i}": scale for i, scale in enumerate(scales)}
    *auxiliary, last = model.predictor(scales, mask_features, every_layer=True)
    out |= _auxiliary_stages(model, auxiliary, out["text_embed"])
    logits = model.logits(last.class_embed, out["text_embed"])
    out |= {"pred_logits": logits, "pred_masks": last.masks, "pred_captions_class_embed": last.class_embed}
    height, width = (int(size) for size in image.shape[-2:])
    masks = postprocess.masks_at_size(last.masks, (height, width), padded.shape[-2:])[0]
    out["semantic_inference"] = postprocess.semantic_inference(logits[0], masks)
    out["query_score"], out["assign_query"], out["assign_own"] = postprocess.assign_queries(logits[0], masks)
    return out


def _text_stages(model: XDecoder, worded: list[str]) -> dict[str, Tensor]:
    language = model.language
    ids = ClipTokenizer(language.context_length).rows([templates()[0].replace("{}", text) for text in worded])
    tokens = torch.from_numpy(ids).to(model.device)
    return {
        "tok_ids_template0": tokens,
        "tok_attn_template0": torch.from_numpy(attention_mask(ids)),
        "lang_last_hidden_template0": language.lang_encoder(tokens),
        "text_embed_template0_normed": language(tokens),
        "text_embed": language.embed_labels(worded),
    }


def _auxiliary_stages(model: XDecoder, answers: Iterable[Heads], text: Tensor) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for i, heads in enumerate(answers):
        out[f"aux{i}_logits"] = model.logits(heads.class_embed, text)
        out[f"aux{i}_class_embed"] = heads.class_embed
        out[f"aux{i}_masks"] = heads.masks
    return out
