"""Numbers computed by MinkowskiEngine 0.5.4, reproduced."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from geopurify_core.errors import SparseError
from geopurify_core.sparse import CoordinateMap, SparseTensor, SubmanifoldConv3d
from geopurify_core.sparse.minkunet import MinkUNet18A

Golden = Callable[[str], dict[str, np.ndarray]]
_SMALL_HEADS = {"final": 12, "final_dinov2": 10, "final_sd": 14}


def test_first_convolution_of_the_student(golden: Golden, shared_dir: Path, both_ways: str) -> None:
    from safetensors.torch import load_file

    data = golden("student_small.npz")
    weights = load_file(shared_dir / "golden" / "minkowski" / "student_small_weights.safetensors")
    layer = SubmanifoldConv3d(18, 16)
    layer.load_state_dict({"kernel": weights["input_layer.0.kernel"]})
    out = layer(SparseTensor(torch.from_numpy(data["feats"]), CoordinateMap(data["coords"])))
    assert np.abs(out.features.detach().numpy() - data["conv0"]).max() <= 5e-6  # values up to 6.5


def regenerated(key: str, value: Tensor) -> Tensor:
    """The weight that the reference run had under this key: seeded by the key, scaled by the kind of tensor.

    Found from the file itself: convolutions r / sqrt(6 in), heads and shortcuts r / sqrt(in), variances |1 + 0.1 r|.
    """
    if not value.is_floating_point():
        return value
    seed = zlib.crc32(key.encode()) & 0x7FFFFFFF
    r = torch.randn(value.shape, generator=torch.Generator().manual_seed(seed))
    if key.endswith("running_var"):
        return (1 + 0.1 * r).abs()
    if value.dim() == 1:
        return 1 + 0.1 * r if key.endswith("weight") else 0.1 * r
    return r / math.sqrt(value.shape[0] if value.dim() == 2 else 6 * value.shape[1])


@pytest.fixture
def network() -> MinkUNet18A:
    net = MinkUNet18A(heads=_SMALL_HEADS).eval()
    net.load_state_dict({key: regenerated(key, value) for key, value in net.state_dict().items()})
    return net


def by_coordinate(coords: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both in lexicographic order of the coordinates."""
    order = np.lexsort(coords.T)
    return coords[order], rows[order]


def test_minkunet_block_by_block(golden: Golden, network: MinkUNet18A) -> None:
    data = golden("minkunet18a_small.npz")
    stages: dict[str, SparseTensor] = {}
    names = [key[2:] for key in data if key.startswith("h_")]
    for name in names:
        network.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, out, name=name: stages.__setitem__(name, out)
        )
    coordinates = CoordinateMap(data["coords"])
    with torch.no_grad():
        heads = network(SparseTensor(torch.ones(len(coordinates), 3), coordinates))
    assert set(stages) == set(names)
    for name in names:
        coords, rows = by_coordinate(stages[name].coords.numpy(), stages[name].features.numpy())
        expected_coords, expected = by_coordinate(data[f"hc_{name}"][:, 1:], data[f"h_{name}"])
        assert np.array_equal(coords, expected_coords)
        assert np.abs(rows - expected).max() <= 5e-6 * np.abs(expected).max(), name
    for name, key in (("final", "lseg"), ("final_dinov2", "dino"), ("final_sd", "sd")):
        assert np.abs(heads[name].features.numpy() - data[key]).max() <= 5e-6 * np.abs(data[key]).max()


def test_minkunet_has_the_published_names_and_shapes(shared_dir: Path) -> None:
    path = shared_dir / "reference" / "manifests" / "cua_minkunet18a_manifest.json"
    if not path.is_file():
        pytest.skip(f"no manifest beside the repository ({path.name})")
    manifest = json.loads(path.read_text())
    network = MinkUNet18A()
    state = {key: list(value.shape) for key, value in network.state_dict().items()}
    assert state == {key: entry["shape"] for key, entry in manifest["state_dict"].items()}
    assert sum(parameter.numel() for parameter in network.parameters()) == manifest["info"]["n_params"]


def test_minkunet_learns_and_refuses_coarse_input() -> None:
    torch.manual_seed(0)
    network = MinkUNet18A(heads={"final": 4})
    coords = torch.rand(24, 24, 24).lt(0.2).nonzero()
    x = SparseTensor(torch.ones(len(coords), 3), CoordinateMap(coords))
    network(x)["final"].features.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())
    coarse = SparseTensor(torch.ones(len(x.coordinates.coarser()), 3), x.coordinates.coarser())
    with pytest.raises(SparseError, match="stride"):
        network(coarse)
