"""Student checkpoints: what is written comes back, the released layout loads, everything else is refused by name."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from geopurify_core.errors import NotAvailableError, StudentError
from geopurify_core.mapping.snapshot import MapSnapshot
from geopurify_core.purification.student import checkpoint
from geopurify_core.purification.student.checkpoint import (
    StudentInfo,
    find_student,
    load_student,
    save_student,
    shipped_student,
)
from geopurify_core.purification.student.network import StudentAffinityNetwork

BACKBONE = "words:1"
INFO = StudentInfo(BACKBONE, 3, 8, 4, 2, "words:1", 0.04, "test rooms", "Apache-2.0", {"epochs": 7})


def network(in_channels: int = 9, blocks: int = 2) -> StudentAffinityNetwork:
    torch.manual_seed(in_channels + blocks)
    return StudentAffinityNetwork(in_channels, 8, 4, blocks)


def snapshot(channels: int = 3, backbone: str = BACKBONE, voxel_size_m: float = 0.04) -> MapSnapshot:
    n = 5
    return MapSnapshot(
        coords=np.stack([np.arange(n)] * 3, axis=1).astype(np.int32), features=np.ones((n, channels), np.float16),
        weight=np.ones(n, np.float32), rgb=np.zeros((n, 3), np.uint8), normals=np.zeros((n, 3), np.float16),
        first_seen_ns=np.zeros(n, np.int64), last_seen_ns=np.zeros(n, np.int64), voxel_size_m=voxel_size_m,
        frame_id="map", stamp_ns=0, version=1, backbone=backbone, text_fingerprint="words:1",
    )  # fmt: skip


def same_weights(a: StudentAffinityNetwork, b: StudentAffinityNetwork, half: bool = False) -> bool:
    rounded = {k: v.half().float() if half and k.endswith("kernel") else v for k, v in a.state_dict().items()}
    return all(torch.equal(value, rounded[name]) for name, value in b.state_dict().items())


# -- ours ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [True, False])
def test_what_is_saved_comes_back(tmp_path: Path, half: bool) -> None:
    net, path = network(), tmp_path / "student.safetensors"
    save_student(path, net, INFO, half=half)
    student = load_student(path, device="cpu")
    assert student.info == INFO
    assert same_weights(net, student.network, half)
    assert not student.network.training and not any(p.requires_grad for p in student.network.parameters())
    assert all(p.dtype == torch.float32 for p in student.network.parameters())
    assert (student.backbone, student.feature_dim, student.voxel_size_m) == (BACKBONE, 3, 0.04)


def test_the_same_student_is_the_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_student(tmp_path / name, network(), INFO)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_the_fingerprint_is_of_the_weights_alone(tmp_path: Path) -> None:
    net = network()
    save_student(tmp_path / "half", net, INFO)
    half = load_student(tmp_path / "half")
    save_student(tmp_path / "full", half.network, replace(INFO, trained_on="elsewhere"), half=False)
    assert load_student(tmp_path / "full").fingerprint == half.fingerprint
    with torch.no_grad():
        net.output_layer.kernel[0, 0] += 1
    save_student(tmp_path / "other", net, INFO)
    assert load_student(tmp_path / "other").fingerprint != half.fingerprint
    assert half.fingerprint.startswith("student:") and len(half.fingerprint) == 24


def test_a_loaded_student_does_not_need_its_file(tmp_path: Path) -> None:
    path = tmp_path / "released.pt"
    torch.save({"model_state_dict": network().state_dict()}, path)
    student = load_student(path)
    path.write_bytes(b"\0" * path.stat().st_size)
    assert same_weights(network(), student.network)


def test_saving_refuses_what_it_cannot_keep(tmp_path: Path) -> None:
    net, path = network(), tmp_path / "s.safetensors"
    with pytest.raises(StudentError, match="Its weights have 8"):
        save_student(path, net, replace(INFO, hidden=16))
    with torch.no_grad():
        net.output_layer.kernel[0, 0] = 1e5
    with pytest.raises(StudentError, match="half=False"):
        save_student(path, net, INFO)
    save_student(path, net, INFO, half=False)
    before = path.read_bytes()
    with torch.no_grad():
        net.output_layer.kernel[0, 0] = float("nan")
    with pytest.raises(StudentError, match="NaN"):
        save_student(path, net, INFO, half=False)
    assert path.read_bytes() == before
    with pytest.raises(StudentError, match="cannot be written"):
        save_student(tmp_path / "nowhere" / "s.safetensors", network(), INFO)


# -- released --------------------------------------------------------------------------------------------------------


def released(net: StudentAffinityNetwork, prefix: str = "") -> dict[str, Any]:
    optimiser = torch.optim.AdamW(net.parameters())
    net(np.arange(30).reshape(10, 3), torch.zeros(10, net.in_channels)).sum().backward()
    optimiser.step()
    return {
        "epoch": 100,
        "model_state_dict": {prefix + name: value for name, value in net.state_dict().items()},
        "optimizer_state_dict": optimiser.state_dict(),
        "tensorboard_scalars": {"loss": [np.float64(1.5), np.float32(2)], "lr": [1e-4]},
    }


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("zipped", [True, False])
def test_the_released_layout_loads(tmp_path: Path, prefix: str, zipped: bool) -> None:
    net, path = network(), tmp_path / "checkpoint.pth"
    torch.save(released(net, prefix), path, _use_new_zipfile_serialization=zipped)
    student = load_student(path)
    assert same_weights(net, student.network)
    assert (student.feature_dim, student.info.hidden, student.info.out, student.info.blocks) == (3, 8, 4, 2)
    assert student.backbone == ""
    assert load_student(path, backbone="xdecoder:1").backbone == "xdecoder:1"


def test_a_bare_state_dict_and_a_file_without_description_load(tmp_path: Path, shared_dir: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "bare.pt")
    assert same_weights(network(), load_student(tmp_path / "bare.pt").network)
    golden = shared_dir / "golden" / "minkowski" / "student_small_weights.safetensors"
    student = load_student(golden)
    assert (student.feature_dim, student.info.hidden, student.info.out, student.info.blocks) == (12, 16, 8, 4)


def test_a_file_that_would_run_a_program_is_not_opened(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Program:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[Path]]:
            return Path.touch, (marker,)

    torch.save({"model_state_dict": network().state_dict(), "epoch": Program()}, tmp_path / "evil.pt")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Program(), protocol=2))
    for name in ("evil.pt", "evil.pkl"):
        with pytest.raises(StudentError, match=r"not opened|no whole"):
            load_student(tmp_path / name)
    assert not marker.exists()


# -- refused ---------------------------------------------------------------------------------------------------------


def test_no_file_a_folder_and_other_files(tmp_path: Path) -> None:
    for bad in (tmp_path / "none", tmp_path):
        with pytest.raises(StudentError, match="no such file"):
            load_student(bad)
    for content in (b"", b"hello, this is text", b"PK\x03\x04 no zip", b"\x80\x02 no pickle", b"\xff" * 100):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(StudentError):
            load_student(tmp_path / "bad")


def test_truncated_files(tmp_path: Path) -> None:
    save_student(tmp_path / "a.safetensors", network(), INFO)
    torch.save(released(network()), tmp_path / "b.pth")
    for name in ("a.safetensors", "b.pth"):
        whole = (tmp_path / name).read_bytes()
        for share in (0.0, 0.001, 0.1, 0.5, 0.99):
            (tmp_path / "cut").write_bytes(whole[: int(share * len(whole))])
            with pytest.raises(StudentError):
                load_student(tmp_path / "cut")


def test_damaged_files_load_or_are_refused(tmp_path: Path) -> None:
    save_student(tmp_path / "a.safetensors", network(), INFO)
    torch.save(released(network()), tmp_path / "b.pth")
    rng = np.random.default_rng(0)
    refused = 0
    for name in ("a.safetensors", "b.pth"):
        whole = np.frombuffer((tmp_path / name).read_bytes(), dtype=np.uint8)
        for _ in range(60):
            damaged = whole.copy()
            damaged[rng.integers(0, min(len(whole), 5000), 4)] = rng.integers(0, 256, 4)
            (tmp_path / "bad").write_bytes(damaged.tobytes())
            try:
                load_student(tmp_path / "bad")
            except StudentError:
                refused += 1
    assert refused > 60


def test_foreign_weights_are_listed(tmp_path: Path) -> None:
    save_file({"backbone.conv.weight": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    with pytest.raises(StudentError, match=r"2 \(input_layer.0.kernel, output_layer.kernel\).*1 \(backbone.conv"):
        load_student(tmp_path / "foreign.safetensors")
    state = network().state_dict()
    del state["res_blocks.1.norm2.bn.bias"]
    state["extra.weight"] = torch.zeros(2)
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(StudentError, match=r"1 \(res_blocks.1.norm2.bn.bias\) are missing and 1 \(extra.weight\)"):
        load_student(tmp_path / "part.safetensors")
    torch.save({"model_state_dict": [1, 2]}, tmp_path / "list.pt")
    with pytest.raises(StudentError, match="no model_state_dict"):
        load_student(tmp_path / "list.pt")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("res_blocks.0.conv1.kernel", torch.zeros(27, 8, 9), "ask for"),
        ("input_layer.0.kernel", torch.zeros(27, 6, 8), "features"),
        ("input_layer.0.kernel", torch.zeros(125, 9, 8), "ask for"),
        ("input_layer.1.bn.weight", torch.full((8,), torch.nan), "NaN"),
        ("output_layer.kernel", torch.full((8, 4), torch.inf), "NaN or infinite"),
        ("input_layer.1.bn.running_var", torch.full((8,), -1.0), "negative"),
    ],
)
def test_weights_that_cannot_be(tmp_path: Path, name: str, value: torch.Tensor, says: str) -> None:
    save_file({**network().state_dict(), name: value}, tmp_path / "bad.safetensors")
    with pytest.raises(StudentError, match=says):
        load_student(tmp_path / "bad.safetensors")


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({"student": '{"version": 2}'}, "newer"),
        ({"student": "{}"}, "lacks"),
        ({"student": "[]"}, "JSON object"),
        ({"student": "{"}, "no whole"),
        ({"student": json.dumps({"backbone": 3})}, "Expected str"),
        ({"student": json.dumps({"backbone": "b", "feature_dim": 3, "hidden": 8, "out": 4, "blocks": 1})}, "have 2"),
        ({"student": json.dumps({"backbone": "b", "feature_dim": 3, "hidden": True, "out": 4, "blocks": 2})}, "int"),
    ],
)
def test_descriptions_that_cannot_be(tmp_path: Path, metadata: dict[str, str], says: str) -> None:
    save_file(network().state_dict(), tmp_path / "bad.safetensors", metadata=metadata)
    with pytest.raises(StudentError, match=says):
        load_student(tmp_path / "bad.safetensors")


def test_cuda_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    save_student(tmp_path / "s", network(), INFO)
    assert load_student(tmp_path / "s", device="auto").device.type == "cpu"
    with pytest.raises(NotAvailableError, match="set auto or cpu"):
        load_student(tmp_path / "s", device="cuda")


# -- which map, which student ----------------------------------------------------------------------------------------


def test_a_student_says_which_maps_it_fits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_student(tmp_path / "s", network(), INFO)
    student = load_student(tmp_path / "s")
    with caplog.at_level(logging.WARNING):
        student.check_fits(snapshot())
        assert not caplog.records
        for _ in range(3):
            student.check_fits(snapshot(voxel_size_m=0.02))
    assert "0.02" in caplog.text and len(caplog.records) == 1
    with pytest.raises(StudentError, match=r"5 channels; this one takes 3 \(9 with"):
        student.check_fits(snapshot(channels=5))
    with pytest.raises(StudentError, match=r"made by other:2: set purification\.student"):
        student.check_fits(snapshot(backbone="other:2"))
    with pytest.raises(StudentError, match="not trained for other:2"):
        load_student(tmp_path / "s", backbone="other:2")


def test_the_shipped_student_is_found_by_its_backbone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(checkpoint, "SHIPPED_FOLDER", tmp_path)
    assert shipped_student(BACKBONE) is None
    assert find_student("", BACKBONE, device="cpu") is None
    (tmp_path / "0_broken.safetensors").write_bytes(b"nothing")
    save_file(network().state_dict(), tmp_path / "1_silent.safetensors")
    save_student(tmp_path / "2_other.safetensors", network(), replace(INFO, backbone="other:2"))
    save_student(tmp_path / "3_mine.safetensors", network(), INFO)
    with caplog.at_level(logging.WARNING):
        assert shipped_student(BACKBONE) == tmp_path / "3_mine.safetensors"
    assert "0_broken" in caplog.text
    found = find_student("", BACKBONE, device="cpu")
    assert found is not None and found.info == INFO


def test_a_named_student_is_taken_at_its_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_student(tmp_path / "mine.safetensors", network(), INFO)
    with pytest.raises(StudentError, match=r"student\.backbone"):
        find_student(tmp_path / "mine.safetensors", "other:2", device="cpu")
    with pytest.raises(StudentError, match="no such file"):
        find_student(tmp_path / "absent", BACKBONE, device="cpu")
    torch.save(released(network()), tmp_path / "released.pth")
    with caplog.at_level(logging.WARNING):
        student = find_student(str(tmp_path / "released.pth"), BACKBONE, device="cpu")
    assert student is not None and "does not say" in caplog.text
    student.check_fits(snapshot())


def test_shipped_files_are_whole(repository: Path) -> None:
    """Whatever this package ships loads, and says what it is."""
    paths = sorted((repository / "geopurify_core/purification/student/weights").glob("*.safetensors"))
    if not paths:
        pytest.skip("no student is shipped")
    for path in paths:
        student = load_student(path)
        assert student.backbone and student.info.licence and student.info.trained_on and student.voxel_size_m > 0
        assert shipped_student(student.backbone) is not None
        assert load_file(str(path))["input_layer.0.kernel"].dtype == torch.float16
