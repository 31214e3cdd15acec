"""The encoder: the published keys, golden numbers, determinism, row orders, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from geopurify_core.errors import DatasetError, InvalidConfigError, SparseError
from geopurify_core.sparse.coordinates import CoordinateMap
from training.teachers.sonata import Sonata, SonataConfig
from training.teachers.sonata.layers import Points, SubmanifoldConvolution
from training.teachers.sonata.serialization import serialize

from ._sonata import CONFIG, golden, network_input, small

EXACT = ("code0", "order0", "depth0", *(f"enc{i}_{part}" for i in range(5) for part in ("grid", "code")))
IDENTITY = torch.arange(4).repeat(5, 1)


def test_keys_and_shapes_are_the_published_ones(shared_dir: Path) -> None:
    manifest = json.loads((shared_dir / "reference" / "manifests" / "sonata_manifest.json").read_text())
    with torch.device("meta"):
        model = Sonata.from_config(manifest["info"]["config"])
    own = {key: {"shape": list(v.shape), "dtype": "float32"} for key, v in model.state_dict().items()}
    assert own == manifest["state_dict"] and len(own) == 453
    assert sum(value.numel() for value in model.parameters()) == manifest["info"]["n_params"]
    assert model.config == SonataConfig() and model.config.width == 1088 and not model.training


def test_golden_curves_cells_and_entrance(shared_dir: Path) -> None:
    model, numbers = golden(shared_dir)
    ours = model.stages(numbers["coord"], numbers["grid_coord"], numbers["feat_in"])
    for name in (*EXACT, *(f"enc{i}_pooling_inverse" for i in range(1, 5))):
        assert np.array_equal(ours[name].numpy(), numbers[name]), name
    for name in ("emb", *(f"enc{i}_coord" for i in range(5))):
        assert np.abs(ours[name].numpy() - numbers[name]).max() <= 1e-6, name
    for name in ("upcast2", "upcast_grid", *(f"enc{i}_feat" for i in range(5))):
        assert ours[name].numpy().shape == numbers[name].shape and ours[name].dtype == torch.float32


def from_golden(model: Sonata, numbers: dict[str, Any], stage: int) -> tuple[torch.Tensor, Points]:
    """Our features of a stage made from the golden ones of the stage before, and the points that went into it."""
    before = f"enc{stage - 1}" if stage else "enc0"
    grid, coord = torch.from_numpy(numbers[f"{before}_grid"]), torch.from_numpy(numbers[f"{before}_coord"])
    features = torch.from_numpy(numbers[f"{before}_feat"] if stage else numbers["emb"])
    given = points = Points(features, coord, CoordinateMap(grid), serialize(grid))
    for module in model.enc[f"enc{stage}"].children():
        points = module(points)
    return points.features, given


def test_golden_features_where_the_reference_is_reproducible(shared_dir: Path) -> None:
    """The golden run's spconv 2.3.8 summed with racing threads (``docs/sonata.md``): some rows of stages 0, 1, 2 and 4
    got what belongs to another. Stage 3 was spared: every row is held to 1e-5. In stage 0, of one
    block, patches without such a point were spared: seven of seventy, to 1e-5, and no other patch has one right row.
    """
    model, numbers = golden(shared_dir)
    third, _ = from_golden(model, numbers, 3)
    assert np.abs(third.numpy() - numbers["enc3_feat"]).max() <= 1e-5
    first, given = from_golden(model, numbers, 0)
    error = np.abs(first.numpy() - numbers["enc0_feat"]).max(axis=1)
    patches = np.array_split(error[given.curves.order[0].numpy()], np.arange(64, len(error), 64))
    spared = [patch for patch in patches if patch.max() <= 1e-5]
    assert len(spared) == 7
    assert all(patch.min() > 1e-3 for patch in patches if patch.max() > 1e-5)
    assert np.median(error) < 0.05  # one stranger is felt by all of its patch, but little


def test_golden_coarsest_stage_but_for_one_pair_of_neighbours(
    shared_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stage 4 of the golden run took row 23 for row 36's neighbour at (1, 1, 0), which is row 44; row 23 is that of
    row 12: two threads' sums, mixed up. With this one exchanged as it was there, all 46 rows agree to 1e-5; without,
    none to 5e-3.
    """
    model, numbers = golden(shared_dir)
    right, _ = from_golden(model, numbers, 4)
    grid = torch.from_numpy(numbers["enc4_grid"])
    offset = torch.tensor([1, 1, 0])
    assert torch.equal(grid[36] + offset, grid[44]) and torch.equal(grid[12] + offset, grid[23])
    plain = SubmanifoldConvolution.forward

    def with_the_stranger(layer: SubmanifoldConvolution, features: torch.Tensor, map_: CoordinateMap) -> torch.Tensor:
        out = plain(layer, features, map_)
        out[36] += layer.weight[:, 2, 2, 1] @ (features[23] - features[44])
        return out

    monkeypatch.setattr(SubmanifoldConvolution, "forward", with_the_stranger)
    as_there, _ = from_golden(model, numbers, 4)
    assert np.abs(as_there.numpy() - numbers["enc4_feat"]).max() <= 1e-5
    assert np.abs(right.numpy() - numbers["enc4_feat"]).max(axis=1).min() > 5e-3


def test_golden_upcasts(shared_dir: Path) -> None:
    """From the golden stages themselves."""
    from training.teachers.sonata.upcast import trace, upcast

    _, numbers = golden(shared_dir)
    features = [torch.from_numpy(numbers[f"enc{i}_feat"]) for i in range(5)]
    inverses = [torch.from_numpy(numbers[f"enc{i}_pooling_inverse"]) for i in range(1, 5)]
    rows = upcast(features, inverses)
    assert np.array_equal(rows.numpy(), numbers["upcast2"])
    on_grid = rows[trace(inverses[:2])].numpy()
    assert np.array_equal(on_grid, numbers["upcast_grid"])
    assert np.array_equal(on_grid[numbers["inverse"]], numbers["point_feat"])


def test_arrays_and_tensors_the_same_bits_twice_and_identity_is_none() -> None:
    model, given = small(), network_input(500)
    first, again = model.stages(*given), model.stages(*(t.numpy() for t in given), IDENTITY.numpy())
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_features_follow_their_points_whatever_the_row_order() -> None:
    model, (coord, grid, feat) = small(), network_input(500)
    rows = torch.randperm(500, generator=torch.Generator().manual_seed(5))
    one, other = model.stages(coord, grid, feat), model.stages(coord[rows], grid[rows], feat[rows])
    assert torch.allclose(one["enc0_feat"][rows], other["enc0_feat"], atol=1e-5)
    assert torch.allclose(one["upcast2"], other["upcast2"], atol=1e-5)
    assert torch.allclose(one["upcast_grid"][rows], other["upcast_grid"], atol=1e-5)


def test_a_permutation_acts_on_its_own_stage_and_those_after_it() -> None:
    model, given = small(), network_input(600)
    plain = model.stages(*given)
    for stage in range(4):
        permutations = IDENTITY.clone()
        permutations[stage] = torch.tensor([3, 2, 0, 1])
        shuffled = model.stages(*given, permutations)
        for i in range(5):
            assert torch.equal(shuffled[f"enc{i}_feat"], plain[f"enc{i}_feat"]) == (i < stage)
            rows = permutations[i]
            assert torch.equal(shuffled[f"enc{i}_code"], plain[f"enc{i}_code"][rows])
            assert torch.equal(shuffled[f"enc{i}_order"], plain[f"enc{i}_order"][rows])


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 16, 17])
def test_few_points(count: int) -> None:
    stages = small().stages(*network_input(count))
    assert stages["upcast_grid"].shape == (count, 16 + 24 + 32)
    assert all(bool(torch.isfinite(value).all()) for value in stages.values())


def test_ten_metres_at_two_centimetres() -> None:
    coord, grid, feat = network_input(400)
    stages = small().stages(coord, torch.cat([grid[:399], torch.tensor([[499, 499, 499]])]), feat)
    assert [int(stages[f"enc{i}_depth"]) for i in range(5)] == [9, 8, 7, 6, 6]  # 499 // 16 + 1 = 32
    assert stages["depth0"] == 9


def test_other_architectures() -> None:
    given = network_input(200)
    for changes in (
        {"order": ["z", "hilbert"]}, {"order": "z"}, {"qkv_bias": False}, {"pre_norm": False}, {"layer_scale": 1e-2},
        {"qk_scale": 0.3}, {"mask_token": False}, {"stride": [2, 4, 2, 2]}, {"enc_depths": [1, 0, 1, 1, 1]},
    ):  # fmt: skip
        stages = small(**changes).stages(*given)
        assert bool(torch.isfinite(stages["upcast_grid"]).all()), changes
    keys = small(layer_scale=0.1, mask_token=False).state_dict()
    assert "enc.enc0.block0.ls1.0.gamma" in keys and "embedding.mask_token" not in keys


def test_two_stages_are_upcast_as_far_as_they_go() -> None:
    two = {key: CONFIG[key][:2] for key in CONFIG if key.startswith("enc_") and key != "enc_mode"}
    stages = small(**two, stride=[2]).stages(*network_input(100))
    assert stages["upcast2"].shape == stages["upcast_grid"].shape == (100, 8 + 12)


def test_wide_layers_give_the_same_with_and_without_gradients() -> None:
    """Without gradients layers of 48 channels and more may go through another library."""
    channels = {"enc_channels": [48, 48, 64, 64, 96], "enc_num_head": [3, 3, 4, 4, 6], "mlp_ratio": 4}
    model, given = small(**channels), network_input(150)
    with torch.enable_grad():
        assert torch.allclose(model(*given), model.stages(*given)["upcast2"], atol=1e-4)


def test_gradients_reach_every_parameter_when_asked() -> None:
    model = small().requires_grad_(True)
    model(*network_input(120)).square().sum().backward()
    without = [name for name, value in model.named_parameters() if value.grad is None]
    assert without == ["embedding.mask_token"]
    assert not model.stages(*network_input(50))["upcast2"].requires_grad


BAD = {
    "enc_mode": False, "enable_rpe": True, "pdnorm": ["ScanNet"], "enc_num_head": [3, 3, 2, 4, 4], "stride": [2, 2],
    "order": ["z", "peano"], "enc_channels": 48, "in_channels": 0, "qkv_bias": 1, "mlp_ratio": "4",
    "enc_patch_size": [0] * 5, "enc_depths": [1.5] * 5, "type": "PT-v3m1",
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), BAD.items())
def test_configurations_of_something_else_are_refused(key: str, value: Any) -> None:
    with pytest.raises(InvalidConfigError, match=key):
        Sonata.from_config({**CONFIG, key: value})


def test_a_configuration_as_the_training_code_writes_it() -> None:
    extra = {"type": "PT-v3m2", "order": tuple(CONFIG["order"]), "freeze_encoder": True}
    published = SonataConfig.from_dict({**CONFIG, **extra})
    assert published == SonataConfig.from_dict(CONFIG)
    with pytest.raises(InvalidConfigError, match="config"):
        SonataConfig.from_dict([CONFIG])  # type: ignore[arg-type]


def test_weights_may_be_arrays_and_cells_any_integers() -> None:
    model, (coord, grid, feat) = small(), network_input(60)
    again = Sonata.from_config(CONFIG, {key: value.numpy() for key, value in model.state_dict().items()})
    answer = model.stages(coord, grid, feat)["upcast2"]
    for cells_ in (grid.int(), grid.numpy().astype(np.uint16), grid.to(torch.int16)):
        assert torch.equal(again.stages(coord, cells_, feat)["upcast2"], answer)
    with pytest.raises(DatasetError, match="grid_coord"):
        model.stages(coord, grid + 0.5, feat)


def test_unknown_options_that_are_off_are_only_mentioned(caplog: pytest.LogCaptureFixture) -> None:
    SonataConfig.from_dict({**CONFIG, "cls_mode": False, "dec_depths": [1, 1, 1, 1], "enable_flash": True})
    assert "cls_mode" in caplog.text and "dec_depths" not in caplog.text


def test_bad_input_is_refused_by_name() -> None:
    model, (coord, grid, feat) = small(), network_input(20)
    nan = feat.clone()
    nan[3, 4] = torch.nan
    for given, name in (
        ((coord[:0], grid[:0], feat[:0]), "coord"), ((coord, grid[:9], feat), "coord"),
        ((coord, grid, feat[:, :6]), "feat"),
        ((coord, grid, nan), "feat"), ((coord * torch.inf, grid, feat), "coord"), ((coord, grid - 20, feat), "grid"),
        ((coord, grid * 70000, feat), "grid"),
    ):  # fmt: skip
        with pytest.raises(DatasetError, match=name):
            model.stages(*given)
    with pytest.raises(SparseError, match="same voxel"):
        model.stages(coord, torch.cat([grid[:19], grid[:1]]), feat)
    for bad in (IDENTITY[:4], IDENTITY[:, :3], torch.zeros(5, 4, dtype=torch.long), IDENTITY + 1, IDENTITY.float()):
        with pytest.raises(InvalidConfigError, match="order_permutations"):
            model.stages(coord, grid, feat, bad)
