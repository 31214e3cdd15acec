"""numpy in, numpy out; torch in, torch out. torch is imported only where a caller brought a tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def is_tensor(array: Any) -> bool:
    """Whether this is a torch tensor; asking does not import torch."""
    return type(array).__module__.partition(".")[0] == "torch"


def to_numpy(array: Any) -> NDArray[Any]:
    """The same values as a numpy array: without a copy, except from another device and from bfloat16 (→ float32)."""
    if not is_tensor(array):
        return np.asarray(array)
    tensor = array.detach().cpu()
    result: NDArray[Any] = (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
    return result


def like(result: NDArray[Any], given: Any) -> Any:
    """``result`` as the kind that ``given`` is, on its device; the dtype stays that of ``result``."""
    if not is_tensor(given):
        return result
    import torch

    return torch.from_numpy(result).to(given.device)
