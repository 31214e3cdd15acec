"""The plain matrix product, by whichever of torch's two libraries is faster on this processor.

torch.mm calls MKL, which keeps to AVX2 on AMD processors; oneDNN, also inside torch, takes AVX-512 there: 210-235
against 105 GFLOP/s on one core of a Zen 5. Torch reaches it for single precision by this operator only.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_LEAST_WIDTH = 48  # below it the call costs more than it saves


def multiply(rows: Tensor, weights: Tensor, buffer: Tensor) -> Tensor:
    """(n, in) @ (in, out), in ``buffer`` (n, out) or a new tensor; without autograd."""
    single = rows.dtype == torch.float32 and rows.device.type == "cpu"
    if single and min(weights.shape) >= _LEAST_WIDTH and onednn_is_faster():
        product: Tensor = _onednn()(rows, weights.t(), None, "none", [], "")
        return product
    return torch.mm(rows, weights, out=buffer)


def affine(rows: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> Tensor:
    """(n, in) to (n, out): rows @ weightᵀ + bias, with exact GELU on top if asked for; weight (out, in).

    With autograd, on other devices and for narrow layers by torch's usual way.
    """
    single = rows.dtype == torch.float32 and rows.device.type == "cpu" and not torch.is_grad_enabled()
    if single and min(weight.shape) >= _LEAST_WIDTH and onednn_is_faster():
        product: Tensor = _onednn()(rows, weight, bias, "gelu" if gelu else "none", [], "none" if gelu else "")
        return product
    out = functional.linear(rows, weight, bias)
    return functional.gelu(out) if gelu else out


@lru_cache(maxsize=1)
def onednn_is_faster() -> bool:
    """AVX-512 on a processor that MKL does not use it on, and torch offers the operator."""
    if _onednn() is None or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


@lru_cache(maxsize=1)
def _onednn() -> Any:
    """torch's operator, or None in builds without oneDNN."""
    try:
        has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        return torch.ops.mkldnn._linear_pointwise if has_onednn else None
    except AttributeError:
        return None
