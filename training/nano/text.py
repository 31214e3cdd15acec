"""Text anchors: the words of each kind of object, embedded, and which kinds share a class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geopurify_core.datasets.synthetic.kinds import CLASS_NAMES, SCANNET20, class_id, kinds
from geopurify_core.labels import load_label_set
from geopurify_core.vision.text import SentenceEncoder


@dataclass(frozen=True)
class Anchors:
    """What the network is taught to point at.

    Attributes:
        words: For each kind, its words; the first one is its own name.
        vectors: For each kind, (words, 384) float32 unit rows.
        class_of_kind: (K,) index into CLASS_NAMES.
    """

    words: tuple[tuple[str, ...], ...]
    vectors: tuple[NDArray[np.float32], ...]
    class_of_kind: NDArray[np.int64]

    def pick(self, rng: np.random.Generator | None) -> NDArray[np.float32]:
        """(K, 384) one word's vector for each kind: a random one, or the kind's own name without ``rng``."""
        return np.stack([v[rng.integers(len(v)) if rng is not None else 0] for v in self.vectors])


def words_of_kind(kind: str) -> tuple[str, ...]:
    """The words of a kind, own name first."""
    scannet, household = load_label_set("scannet20"), load_label_set("household")
    return scannet.words_of(kind) if kind in scannet.names else household.words_of(kind)


def class_prompts() -> list[str]:
    """The 20 class names as one would say them, for scoring."""
    return [("other furniture" if name == "otherfurniture" else name) for name in SCANNET20]


def load_anchors(encoder: SentenceEncoder | None = None) -> Anchors:
    """Embed the words of every kind."""
    encoder = encoder or SentenceEncoder()
    words = tuple(words_of_kind(kind) for kind in kinds())
    vectors = tuple(encoder.encode_text(list(group)) for group in words)
    return Anchors(words, vectors, np.array([class_id(kind) for kind in kinds()], dtype=np.int64))


__all__ = ["CLASS_NAMES", "Anchors", "class_prompts", "load_anchors", "words_of_kind"]
