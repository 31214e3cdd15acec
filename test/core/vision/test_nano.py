"""The built-in backbone: shapes, norms, size, integrity, and a floor under what it can do."""

import json
import shutil
import threading

import numpy as np
import pytest

from geopurify_core.errors import BackboneError, InvalidFrameError, QueryError
from geopurify_core.vision import SemanticBackbone, load_backbone
from geopurify_core.vision.nano import WEIGHTS, NanoBackbone, working_size
from geopurify_core.vision.nano_net import count_parameters
from training.nano.eval import confusion, held_out_room, summary


@pytest.fixture(scope="module")
def nano():
    return load_backbone("nano")


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)


def test_it_is_a_backbone_with_a_name_and_a_licence(nano):
    assert isinstance(nano, SemanticBackbone)
    assert (nano.name, nano.feature_dim, nano.licence) == ("nano", 384, "Apache-2.0")


def test_features_are_unit_rows_on_a_stride_4_grid_with_confidence(nano, picture):
    result = nano.encode_image(picture)
    assert result.features.shape == (384, 60, 80) and result.features.dtype == np.float32
    assert result.features.transpose(1, 2, 0).flags.c_contiguous
    np.testing.assert_allclose(np.linalg.norm(result.features, axis=0), 1.0, atol=1e-4)
    assert result.confidence.shape == (60, 80)
    assert (result.confidence >= 0).all() and (result.confidence <= 1).all()


@pytest.mark.parametrize(
    ("shape", "grid"), [((480, 640), (60, 80)), ((968, 1296), (60, 80)), ((720, 1280), (52, 92)), ((32, 32), (68, 68))]
)
def test_any_size_keeps_its_proportions(nano, shape, grid):
    assert nano.encode_image(np.zeros((*shape, 3), np.uint8)).features.shape[1:] == grid
    assert working_size(*shape) == (4 * grid[0], 4 * grid[1])


def test_the_same_picture_gives_the_same_features(nano, picture):
    first, second = nano.encode_image(picture), nano.encode_image(picture, depth_m=np.ones((240, 320), np.float32))
    np.testing.assert_array_equal(first.features, second.features)


def test_read_only_and_strided_pictures_are_taken_as_they_are(nano, picture):
    expected = nano.encode_image(picture).features
    picture.flags.writeable = False
    np.testing.assert_array_equal(nano.encode_image(picture).features, expected)
    wide = np.concatenate([picture, picture], axis=1)[:, :320]
    np.testing.assert_array_equal(nano.encode_image(wide).features, expected)


def test_it_answers_from_a_worker_thread(nano, picture):
    answers = []
    worker = threading.Thread(target=lambda: answers.append(nano.encode_image(picture)))
    worker.start()
    worker.join(timeout=60)
    np.testing.assert_allclose(answers[0].features, nano.encode_image(picture).features, atol=1e-5)


def test_it_limits_its_own_threads_and_leaves_those_of_others_alone(nano, picture, monkeypatch):
    torch = pytest.importorskip("torch")
    pytest.importorskip("threadpoolctl")
    before, inside = torch.get_num_threads(), []
    forward = nano._net.forward
    monkeypatch.setattr(nano._net, "forward", lambda x: inside.append(torch.get_num_threads()) or forward(x))
    nano.encode_image(picture)
    assert inside == [1] and torch.get_num_threads() == before
    with pytest.raises(BackboneError, match="threads"):
        NanoBackbone(threads=-1)


def test_texts_are_unit_rows_and_empty_ones_are_refused(nano):
    np.testing.assert_allclose(np.linalg.norm(nano.encode_text(["chair", "a red sofa"]), axis=1), 1.0, atol=1e-5)
    with pytest.raises(QueryError):
        nano.encode_text([" "])


@pytest.mark.parametrize("bad", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_what_is_no_picture_is_refused(nano, bad):
    with pytest.raises(InvalidFrameError, match="rgb"):
        nano.encode_image(bad)


def test_it_stays_within_its_size(nano):
    assert WEIGHTS.stat().st_size <= 5 * 2**20
    assert nano.metadata["parameters"] == count_parameters(nano._net) <= 2_000_000


def test_the_fingerprint_names_these_weights_and_this_text_space(nano):
    assert nano.metadata["sha256"][:16] in nano.fingerprint
    assert nano.fingerprint.endswith(nano.text_fingerprint)
    assert nano.metadata["text_fingerprint"] == nano.text_fingerprint


def test_damaged_missing_and_foreign_weights_are_refused(tmp_path):
    with pytest.raises(BackboneError, match="nano weights"):
        NanoBackbone(tmp_path / "none.safetensors")
    copy = tmp_path / "nano.safetensors"
    data = WEIGHTS.read_bytes()
    copy.write_bytes(data[:-100])
    shutil.copyfile(WEIGHTS.with_suffix(".json"), copy.with_suffix(".json"))
    with pytest.raises(BackboneError, match="differs"):
        NanoBackbone(copy)
    _describe_truthfully(copy)
    with pytest.raises(BackboneError, match="do not fit"):
        NanoBackbone(copy)


def _describe_truthfully(weights):
    import hashlib

    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    weights.with_suffix(".json").write_text(json.dumps({"sha256": digest}))


def test_it_recognises_a_room_it_was_not_trained_on(nano):
    # docs/nano.md has the scores over 20 apartments; one small sample only has to stay well above chance and ruin.
    result = summary(confusion(nano, held_out_room(105, 12)))
    recorded = nano.metadata["scores"]["procedural_heldout"]
    assert result["mIoU"] > 0.6 * recorded["mIoU"]
    assert result["pixel_acc"] > 0.6 * recorded["pixel_acc"]
