"""MinkUNet18A, the sparse U-Net of the open-vocabulary distillation literature, on the layers of this folder.

Facts: Choy et al. 2019 (MinkUNet), CUA-O3D's network with three linear heads; parameter names are those of its
checkpoints. Four halvings of the resolution, four doublings with skip connections, basic residual blocks in pairs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from geopurify_core.errors import SparseError
from geopurify_core.sparse.engine import Engine, load_engine

PLANES = (32, 64, 128, 256, 128, 128, 96, 96)
_STEM = 32
# Head → output channels: LSeg, DINOv2 ViT-L and Stable Diffusion 1.5 features.
HEADS = {"final": 512, "final_dinov2": 1024, "final_sd": 3200}


class BasicBlock(nn.Module):
    """relu(BN(conv(relu(BN(conv(x))))) + shortcut(x)); the shortcut is linear where the width changes."""

    def __init__(self, in_channels: int, channels: int, engine: Engine) -> None:
        super().__init__()
        self.conv1 = engine.SubmanifoldConv3d(in_channels, channels, 3)
        self.norm1 = engine.SparseBatchNorm(channels)
        self.conv2 = engine.SubmanifoldConv3d(channels, channels, 3)
        self.norm2 = engine.SparseBatchNorm(channels)
        self.relu = engine.SparseReLU(inplace=True)
        self.downsample: nn.Sequential | None = None
        if in_channels != channels:
            self.downsample = nn.Sequential(
                engine.SubmanifoldConv3d(in_channels, channels, 1), engine.SparseBatchNorm(channels)
            )

    def forward(self, x: Any) -> Any:
        """(V, in) to (V, channels) on the same voxels."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        return self.relu(out.replace(out.features + shortcut.features))


class MinkUNet18A(nn.Module):
    """Point features of several teachers from one sparse tensor.

    Args:
        in_channels: Channels of the input (3: ones, or colours).
        heads: Parameter name → output channels of each linear head on the last 96 channels.
        engine: Whose layers to use; default the built-in ones.
    """

    def __init__(self, in_channels: int = 3, heads: dict[str, int] | None = None, engine: Engine | None = None) -> None:
        super().__init__()
        engine = engine or load_engine()
        self.heads = tuple(heads or HEADS)
        self.conv0p1s1 = engine.SubmanifoldConv3d(in_channels, _STEM, 5)
        self.bn0 = engine.SparseBatchNorm(_STEM)
        self.relu = engine.SparseReLU(inplace=True)
        skips, width = [], _STEM
        for level in range(1, 5):
            self.add_module(f"conv{level}p{2 ** (level - 1)}s2", engine.SparseConv3d(width, width))
            self.add_module(f"bn{level}", engine.SparseBatchNorm(width))
            skips.append(width)
            self._add_blocks(level, width, PLANES[level - 1], engine)
            width = PLANES[level - 1]
        for level in range(4, 8):
            planes = PLANES[level]
            self.add_module(f"convtr{level}p{2 ** (8 - level)}s2", engine.SparseConvTranspose3d(width, planes))
            self.add_module(f"bntr{level}", engine.SparseBatchNorm(planes))
            self._add_blocks(level + 1, planes + skips.pop(), planes, engine)
            width = planes
        for name, channels in (heads or HEADS).items():
            self.add_module(name, engine.SubmanifoldConv3d(width, channels, 1))

    def _add_blocks(self, number: int, in_channels: int, channels: int, engine: Engine) -> None:
        blocks = nn.Sequential(BasicBlock(in_channels, channels, engine), BasicBlock(channels, channels, engine))
        self.add_module(f"block{number}", blocks)

    def forward(self, x: Any) -> dict[str, Any]:
        """(V, in) on stride-1 voxels to one tensor (V, channels) for each head, by the head's name."""
        if x.stride != 1:
            raise SparseError("stride", x.stride, "The network starts on the finest voxels.")
        x = self.relu(self.bn0(self.conv0p1s1(x)))
        skips = []
        for level in range(1, 5):
            skips.append(x)
            x = self._step(f"conv{level}p{2 ** (level - 1)}s2", f"bn{level}", x)
            x = self.get_submodule(f"block{level}")(x)
        for level in range(4, 8):
            x = self._step(f"convtr{level}p{2 ** (8 - level)}s2", f"bntr{level}", x)
            x = x.replace(torch.cat([x.features, skips.pop().features], dim=1))
            x = self.get_submodule(f"block{level + 1}")(x)
        return {name: self.get_submodule(name)(x) for name in self.heads}

    def _step(self, convolution: str, norm: str, x: Any) -> Any:
        return self.relu(self.get_submodule(norm)(self.get_submodule(convolution)(x)))
