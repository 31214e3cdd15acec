"""The network behind ``nano``: inverted residuals down to stride 32, a light feature pyramid back up to stride 4.

Blocks after Sandler et al., "MobileNetV2" (2018); the decoder adds upsampled coarse features to fine ones as in Lin et
al., "Feature Pyramid Networks" (2017). Everything is written on plain torch layers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STRIDE = 4
_WIDTHS = (32, 64, 128, 192)
_DEPTHS = (2, 3, 4, 2)
_NECK = 96
MEAN, STD = (0.45, 0.43, 0.41), (0.25, 0.25, 0.25)


def _conv(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = True
) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, nn.Hardswish()) if act else nn.Sequential(*layers)


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow; add the input where the shape allows."""

    def __init__(self, inputs: int, outputs: int, stride: int, kernel: int, expand: int = 3) -> None:
        super().__init__()
        hidden = inputs * expand
        self.body = nn.Sequential(
            _conv(inputs, hidden),
            _conv(hidden, hidden, kernel, stride, groups=hidden),
            _conv(hidden, outputs, act=False),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) → (B, outputs, H / stride, W / stride)."""
        y: Tensor = self.body(x)
        return x + y if self.residual else y


class Separable(nn.Module):
    """A 5x5 filter for each channel followed by mixing, with a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(width, width, 5, groups=width), _conv(width, width, act=False))

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W), the same shape out."""
        y: Tensor = F.hardswish(x + self.body(x))
        return y


class NanoNet(nn.Module):
    """Images to text-aligned features.

    Args:
        dim: Width of the text space.
    """

    def __init__(self, dim: int = 384) -> None:
        super().__init__()
        self.stem = _conv(3, 24, 3, 2)
        stages, inputs = [], 24
        for level, (width, depth) in enumerate(zip(_WIDTHS, _DEPTHS, strict=True)):
            kernel = 3 if level < 2 else 5
            blocks = [InvertedResidual(inputs, width, 2, kernel)]
            blocks += [InvertedResidual(width, width, 1, kernel) for _ in range(depth - 1)]
            stages.append(nn.Sequential(*blocks))
            inputs = width
        self.stages = nn.ModuleList(stages)
        self.scene = nn.Sequential(nn.Linear(_WIDTHS[-1], _NECK), nn.Hardswish(), nn.Linear(_NECK, _NECK))
        self.lateral = nn.ModuleList(_conv(width, _NECK, act=False) for width in _WIDTHS)
        self.smooth = nn.ModuleList(Separable(_NECK) for _ in _WIDTHS)
        self.project = nn.Linear(_NECK, dim, bias=False)
        self.trust = nn.Conv2d(_NECK, 1, 1)

    def neck(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images → (B, 96, H / 4, W / 4)."""
        x, levels = self.stem(images), []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        scene = self.scene(levels[-1].mean(dim=(2, 3)))[:, :, None, None]
        y: Tensor = self.smooth[-1](self.lateral[-1](levels[-1]) + scene)
        for i in range(len(levels) - 2, -1, -1):
            up = F.interpolate(y, size=levels[i].shape[2:], mode="bilinear", align_corners=False)
            y = self.smooth[i](self.lateral[i](levels[i]) + up)
        return y

    def cosines(self, x: Tensor, texts: Tensor) -> Tensor:
        """Cosine between each pixel's feature and each text without forming the features.

        With x the neck and W the projection, ``cos(Wx, t) = x·(Wᵀt) / sqrt(xᵀ(WᵀW)x)``.

        Args:
            x: (..., 96), channels last, float32.
            texts: (K, dim), unit norm.

        Returns:
            (..., K).
        """
        W: Tensor = self.project.weight
        length: Tensor = torch.sqrt(((x @ (W.t() @ W)) * x).sum(-1, keepdim=True).clamp_min(1e-8))
        cosines: Tensor = (x @ (W.t() @ texts.t())) / length
        return cosines

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) normalised images → unit features (B, h, w, dim) and confidence (B, h, w) in [0, 1]."""
        neck = self.neck(images)
        features = F.normalize(self.project(neck.permute(0, 2, 3, 1)), dim=-1)
        return features, torch.sigmoid(self.trust(neck))[:, 0]


def count_parameters(net: nn.Module) -> int:
    """Trainable numbers in the network."""
    return sum(p.numel() for p in net.parameters())


def deployable(net: NanoNet) -> NanoNet:
    """The same function with every batch normalisation folded into the convolution before it (in place, eval mode)."""
    net.eval()
    for module in net.modules():
        if isinstance(module, nn.Sequential) and len(module) >= 2 and isinstance(module[1], nn.BatchNorm2d):
            convolution = module[0]
            assert isinstance(convolution, nn.Conv2d)
            module[0] = torch.nn.utils.fusion.fuse_conv_bn_eval(convolution, module[1])
            module[1] = nn.Identity()
    return net
