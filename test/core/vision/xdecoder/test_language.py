"""The language encoder against the reference's hidden states and vectors, and against one prompt at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from geopurify_core.errors import InvalidConfigError, QueryError

torch = pytest.importorskip("torch")
pytest.importorskip("instant_clip_tokenizer")

from geopurify_core.vision.xdecoder.language import LanguageEncoder, templates, unit  # noqa: E402
from geopurify_core.vision.xdecoder.section import Section  # noqa: E402
from geopurify_core.vision.xdecoder.tokenizer import ClipTokenizer  # noqa: E402
from geopurify_core.vision.xdecoder.trace import prompts  # noqa: E402

LABELS = ["wall", "floor", "chair", "table", "shower curtain"]
TEXT = {"WIDTH": 16, "HEADS": 2, "LAYERS": 2, "CONTEXT_LENGTH": 77, "AUTOGRESSIVE": True}


@pytest.fixture(scope="module")
def tiny() -> LanguageEncoder:
    torch.manual_seed(0)
    encoder = LanguageEncoder(Section(TEXT), 8).double().requires_grad_(False)
    for parameter in encoder.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=0.5)
    return encoder


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 2e-5)])
def test_hidden_states_and_vectors_are_the_references(
    reference: Callable[[str], Any], network: Callable[..., Any], dtype: torch.dtype, tolerance: float
) -> None:
    stages, encoder = reference("focall").stages, network("focall", dtype).language
    ids = torch.from_numpy(stages["tok_ids_template0"])
    with torch.inference_mode():
        hidden, vectors, mean = encoder.lang_encoder(ids), encoder(ids), encoder.embed_labels(prompts(LABELS))
    assert np.abs(hidden.numpy() - stages["lang_last_hidden_template0"]).max() <= tolerance  # values up to 3.5
    assert np.abs(vectors.numpy() - stages["text_embed_template0_normed"]).max() <= tolerance
    assert np.abs(mean.numpy() - stages["text_embed"]).max() <= tolerance


def test_there_are_81_templates() -> None:
    assert len(set(templates())) == 81
    assert templates()[0] == "{}."
    assert all(template.count("{}") == 1 and template == template.strip() for template in templates())


@pytest.mark.parametrize("chunk_tokens", [1, 40, 4096])
def test_cutting_and_grouping_change_nothing(tiny: LanguageEncoder, chunk_tokens: int) -> None:
    texts = ["a chair", "x", "a photo of the very large wooden table in the kitchen", "x", "lamp", "word " * 100]
    alone = torch.cat([tiny(torch.from_numpy(ClipTokenizer().rows([text]))) for text in texts])
    together = tiny.embed_prompts(texts, chunk_tokens)
    assert torch.allclose(together, alone, rtol=0, atol=1e-12)  # float64; only the rounding differs


def test_a_label_is_the_mean_of_its_prompts(tiny: LanguageEncoder) -> None:
    (vector,) = tiny.embed_labels(["office chair"])
    rows = ClipTokenizer().rows([template.format("office chair") for template in templates()])
    mean = sum(tiny(torch.from_numpy(row[None]))[0] for row in rows) / 81
    assert torch.allclose(vector, mean / mean.norm(), rtol=0, atol=1e-12)
    assert vector.norm().item() == pytest.approx(1.0)


def test_braces_in_a_label_are_plain_characters(tiny: LanguageEncoder) -> None:
    assert torch.isfinite(tiny.embed_labels(["{} {0} {x!r}"])).all()


def test_coco_endings_are_taken_off(tiny: LanguageEncoder) -> None:
    plain, coco = tiny.embed_labels(["wall", "wall-other-merged"])
    assert torch.equal(plain, coco)


def test_two_hundred_labels_go_through_in_small_pieces(tiny: LanguageEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    # 4096 tokens at a time: the widest activation of the released encoder is then 4096 x 2048 float32, 33 MB.
    sizes: list[int] = []

    def spy(ids: torch.Tensor) -> torch.Tensor:
        sizes.append(ids.numel())
        return torch.ones(len(ids), tiny.dim, dtype=torch.float64)

    monkeypatch.setattr(tiny, "forward", spy)
    assert tiny.embed_labels([f"thing {i}" for i in range(200)]).shape == (200, 8)
    assert max(sizes) <= 4096 and len(sizes) <= 1.2 * sum(sizes) / 4096 + 20


@pytest.mark.parametrize(
    "labels", [[], [""], ["chair", "  "], "chair", ["chair", 3], ["a\0b"], ["x" * 5000], ["\ud800"]], ids=ascii
)
def test_labels_that_cannot_be_read_are_refused(tiny: LanguageEncoder, labels: Any) -> None:
    with pytest.raises(QueryError):
        tiny.embed_labels(labels)


def test_the_fingerprint_follows_the_weights(tiny: LanguageEncoder) -> None:
    before = tiny.fingerprint()
    assert before == tiny.fingerprint()
    tiny.logit_scale.add_(0.1)
    assert tiny.fingerprint() != before


def test_logits_are_scaled_cosines(tiny: LanguageEncoder) -> None:
    a, t = torch.randn(3, 8).double(), unit(torch.randn(2, 8).double())
    expected = [[tiny.logit_scale.exp() * (x @ y) / (x.norm() + 1e-7) for y in t] for x in a]
    assert torch.allclose(tiny.logits(a, t), torch.tensor(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "field"),
    [({"HEADS": 3}, "HEADS"), ({"AUTOGRESSIVE": False}, "AUTOGRESSIVE"), ({"CONTEXT_LENGTH": 2}, "CONTEXT_LENGTH")],
)
def test_a_configuration_that_cannot_be_built_names_the_key(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidConfigError, match=field):
        LanguageEncoder(Section({**TEXT, **change}), 8)
