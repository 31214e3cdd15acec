"""Labels to unit vectors: X-Decoder's text transformer (CLIP's, post-trained) and its 81 prompt templates.

State-dict keys below ``sem_seg_head.predictor.lang_encoder``: ``lang_proj``, ``logit_scale``, ``lang_encoder.*``.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from geopurify_core.errors import QueryError
from geopurify_core.vision.text import check_texts
from geopurify_core.vision.xdecoder.layers import MultiHeadAttention
from geopurify_core.vision.xdecoder.section import Section
from geopurify_core.vision.xdecoder.tokenizer import VOCABULARY, ClipTokenizer, lengths

LAYER_NORM_EPS = 1e-12  # the reference builds its norms TensorFlow's way
NORM_EPS = 1e-7
# Bounds the activations: 4096 tokens through a 512-wide layer that widens to 2048 are about 100 MB in float32.
CHUNK_TOKENS = 4096


@cache
def templates() -> tuple[str, ...]:
    """The 81 prompt templates: the bare name with a full stop, then CLIP's 80 for ImageNet."""
    text = resources.files(__package__).joinpath("templates.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line)


def unit(x: Tensor) -> Tensor:
    """Rows divided by their length; 1e-7 is added to the length, as the reference does."""
    length: Tensor = x.norm(dim=-1, keepdim=True)
    return x / (length + NORM_EPS)


def uniform(*shape: int) -> Tensor:
    """Small random numbers. Not normal ones: to plan those without memory, torch first loads its compiler, 3 s."""
    return torch.empty(*shape).uniform_(-0.05, 0.05)


def table(rows: int, width: int) -> nn.Embedding:
    """An embedding of small random vectors, for the same reason."""
    embedding: nn.Embedding = nn.Embedding.from_pretrained(uniform(rows, width))  # type: ignore[no-untyped-call]
    return embedding


class QuickGELU(nn.Module):
    """x · sigmoid(1.702 x), CLIP's approximation of GELU."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class TextBlock(nn.Module):
    """Pre-norm transformer block: x + attention(ln_1(x)), then x + mlp(ln_2(x))."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = MultiHeadAttention(width, heads)
        self.ln_1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=nn.Linear(width, 4 * width),
                gelu=QuickGELU(),
                c_proj=nn.Linear(4 * width, width),
            )
        )
        self.ln_2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        """(n, L, width), the same shape out; ``allowed`` (L, L) is true where a token may look."""
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, allowed)
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class TextTransformer(nn.Module):
    """Token ids to a hidden state per token; every token sees itself and what stands before it."""

    def __init__(self, width: int, heads: int, layers: int, context_length: int) -> None:
        super().__init__()
        self.token_embedding = table(VOCABULARY, width)
        self.positional_embedding = nn.Parameter(uniform(context_length, width))
        self.resblocks = nn.ModuleList(TextBlock(width, heads) for _ in range(layers))
        self.ln_final = nn.LayerNorm(width, eps=LAYER_NORM_EPS)

    def forward(self, ids: Tensor) -> Tensor:
        """(n, L) int64 → (n, L, width), L ≤ context length."""
        length = ids.shape[1]
        x = self.token_embedding(ids) + self.positional_embedding[:length]
        allowed = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        for block in self.resblocks:
            x = block(x, allowed)
        y: Tensor = self.ln_final(x)
        return y


class LanguageEncoder(nn.Module):
    """Prompts and labels to unit vectors in the space of the class embeddings.

    Args:
        text: ``MODEL.TEXT`` of the configuration.
        dim: ``MODEL.DIM_PROJ``, the width of the shared space.

    Raises:
        InvalidConfigError: A value is missing, or a kind of encoder is asked for that no released model uses.
    """

    def __init__(self, text: Section, dim: int) -> None:
        super().__init__()
        width, heads = text.integer("WIDTH"), text.integer("HEADS")
        if width % heads:
            raise text.error("HEADS", f"It must divide WIDTH, {width}.")
        if not text.flag("AUTOGRESSIVE", True):
            raise text.error("AUTOGRESSIVE", "Only causal text encoders are built here: set it to true.")
        self.context_length = text.integer("CONTEXT_LENGTH", 77)
        if self.context_length < 3:
            raise text.error("CONTEXT_LENGTH", "Leave room for start, text and end: 3 or more.")
        self.lang_encoder = TextTransformer(width, heads, text.integer("LAYERS"), self.context_length)
        self.lang_proj = nn.Parameter(uniform(width, dim))
        self.logit_scale = nn.Parameter(torch.tensor(float(np.log(1 / 0.07))))

    @property
    def dim(self) -> int:
        """Width of the shared space."""
        return int(self.lang_proj.shape[1])

    def forward(self, ids: Tensor) -> Tensor:
        """(n, L) int64 token ids → (n, dim) unit vectors, read off at the first end token."""
        hidden = self.lang_encoder(ids)
        at_end = hidden[torch.arange(len(ids), device=ids.device), ids.argmax(dim=1)]
        return unit(at_end @ self.lang_proj)

    def embed_prompts(self, prompts: Sequence[str], chunk_tokens: int = CHUNK_TOKENS) -> Tensor:
        """(n, dim) unit vectors of whole prompts, in the order given.

        No token sees what follows it, so padding is cut off: prompts of like length go together, each run no longer
        than its longest prompt and of at most ``chunk_tokens`` tokens. Equal prompts are computed once.
        """
        distinct = list(dict.fromkeys(prompts))
        ids = ClipTokenizer(self.context_length).rows(distinct)
        length = lengths(ids)
        device = self.lang_proj.device
        out = self.lang_proj.new_empty(len(distinct), self.dim)
        for rows in _runs(length, chunk_tokens):
            chunk = torch.from_numpy(ids[rows, : length[rows[-1]]]).to(device)
            out[torch.from_numpy(rows).to(device)] = self(chunk)
        place = {prompt: i for i, prompt in enumerate(distinct)}
        return out[torch.tensor([place[prompt] for prompt in prompts], device=device)]

    def embed_labels(self, labels: Sequence[str], wordings: Sequence[str] | None = None) -> Tensor:
        """(n, dim) unit vectors: the mean over the templates of each prompt's unit vector, normalised.

        Args:
            labels: What goes into the templates' braces. COCO's ``-other``, ``-merged``, ``-stuff`` are taken off.
            wordings: Other templates than the 81.

        Raises:
            QueryError: No label, or one is empty, oversized or not text.
        """
        checked = check_labels(labels)
        patterns = templates() if wordings is None else tuple(wordings)
        if not patterns:
            raise QueryError("templates", [], "Give at least one prompt template.")
        prompts = [pattern.replace("{}", name) for name in map(_bare, checked) for pattern in patterns]
        mean = self.embed_prompts(prompts).reshape(len(checked), len(patterns), self.dim).mean(dim=1)
        return F.normalize(mean, dim=-1)

    def logits(self, class_embed: Tensor, text: Tensor) -> Tensor:
        """exp(logit_scale) · cos(class embedding, text): (…, dim) and (n, dim) → (…, n)."""
        return self.logit_scale.exp() * (unit(class_embed) @ text.T)

    def fingerprint(self) -> str:
        """sha256 over every tensor of the encoder and the templates: equal fingerprints, equal vectors."""
        digest = hashlib.sha256("\n".join(templates()).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def _runs(length: NDArray[np.int64], tokens: int) -> Iterator[NDArray[np.int64]]:
    """Row numbers by growing length, in runs whose count times longest is at most ``tokens`` (one row at least)."""
    order = np.argsort(length, kind="stable")
    start = 0
    for stop in range(1, len(order) + 1):
        if stop == len(order) or (stop + 1 - start) * length[order[stop]] > tokens:
            yield order[start:stop]
            start = stop


def check_labels(labels: Sequence[str]) -> list[str]:
    """The labels, stripped. Raises QueryError where there is none, or one is no usable text."""
    checked = check_texts(labels)
    if not checked:
        raise QueryError("labels", list(labels), "Name at least one class to look for.")
    return checked


def _bare(label: str) -> str:
    for ending in ("-other", "-merged", "-stuff"):
        label = label.replace(ending, "")
    return label
