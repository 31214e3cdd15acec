"""From an RGB image of any size to the tensor one network wants, remembering where the image lies in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopurify_core.config import setting
from geopurify_core.errors import BackboneError, InvalidConfigError
from geopurify_core.vision.runtime import TensorInfo, quantise


@dataclass(frozen=True)
class InputSpec:
    """How the network was trained to see (the ``input:`` block of a model's YAML)."""

    size: list[int] = setting([], "Height and width, pixels; left out, the model file says.")
    layout: str = setting("nchw", "Order of the input tensor's axes.", choices=("nchw", "nhwc"))
    dtype: str = setting(
        "float32", "uint8 feeds bytes 0..255 as they are; float32 applies mean and std.", choices=("float32", "uint8")
    )
    mean: list[float] = setting([], "Subtracted from each channel, on the scale 0..255, in the network's colour order.")
    std: list[float] = setting([], "Each channel is divided by it afterwards, on the scale 0..255.")
    colour: str = setting("rgb", "Channel order.", choices=("rgb", "bgr"))
    fit: str = setting(
        "stretch",
        "stretch distorts to the input size; letterbox keeps the aspect, centred; letterbox_top_left in the corner.",
        choices=("stretch", "letterbox", "letterbox_top_left"),
    )
    pad: int = setting(114, "Grey value of the letterbox's bars.", ge=0, le=255)

    def __post_init__(self) -> None:
        for name, length in (("size", 2), ("mean", 3), ("std", 3)):
            values = getattr(self, name)
            if values and (len(values) != length or not all(type(v) in (int, float) for v in values)):
                raise InvalidConfigError(f"input.{name}", values, f"Give {length} numbers.")
        if any(value <= 0 for value in (*self.size, *self.std)):
            raise InvalidConfigError("input.size, input.std", [*self.size, *self.std], "Values must be positive.")


@dataclass(frozen=True)
class Placement:
    """Where the image lies in the network's input, pixels: rows [top, top+height), columns [left, left+width)."""

    top: int
    left: int
    height: int
    width: int


class ImageInput:
    """Prepares images for one network; buffers are reused, so a tensor is valid until the next call.

    Raises:
        BackboneError: The model's input does not look like an image of the configured layout and size.
    """

    def __init__(self, spec: InputSpec, tensor: TensorInfo) -> None:
        self._spec = spec
        self._tensor = tensor
        self.height, self.width = _input_size(spec, tensor)
        self._canvas = np.full((self.height, self.width, 3), spec.pad, dtype=np.uint8)
        self._placement: Placement | None = None
        mean = np.array(spec.mean or [0, 0, 0], dtype=np.float32)
        std = np.array(spec.std or [1, 1, 1], dtype=np.float32)
        self._scale, self._shift = 1 / std, -mean / std

    def place(self, height: int, width: int) -> Placement:
        """Where an image of that size goes."""
        if self._spec.fit == "stretch":
            return Placement(0, 0, self.height, self.width)
        ratio = min(self.height / height, self.width / width)
        placed_height, placed_width = max(1, int(height * ratio)), max(1, int(width * ratio))
        if self._spec.fit == "letterbox_top_left":
            return Placement(0, 0, placed_height, placed_width)
        return Placement(
            (self.height - placed_height) // 2, (self.width - placed_width) // 2, placed_height, placed_width
        )

    def prepare(self, rgb: NDArray[np.uint8]) -> tuple[NDArray[Any], Placement]:
        """The input tensor (1, …) for an (H, W, 3) RGB image, and where the image lies in it."""
        from PIL import Image

        placement = self.place(*rgb.shape[:2])
        if placement != self._placement:
            self._canvas[...] = self._spec.pad
            self._placement = placement
        resized = Image.fromarray(np.ascontiguousarray(rgb)).resize(
            (placement.width, placement.height), Image.Resampling.BILINEAR, reducing_gap=3.0
        )
        rows = slice(placement.top, placement.top + placement.height)
        self._canvas[rows, placement.left : placement.left + placement.width] = np.asarray(resized)
        image = self._canvas[..., ::-1] if self._spec.colour == "bgr" else self._canvas
        return self._as_tensor(image), placement

    def _as_tensor(self, image: NDArray[np.uint8]) -> NDArray[Any]:
        batch: NDArray[Any]
        if self._spec.dtype == "uint8":
            batch = image
        else:
            batch = image * self._scale + self._shift
            if self._tensor.dtype.kind in "iu":
                batch = quantise(batch, self._tensor)
        if self._spec.layout == "nchw":
            batch = batch.transpose(2, 0, 1)
        return np.ascontiguousarray(batch[None], dtype=self._tensor.dtype)


def _input_size(spec: InputSpec, tensor: TensorInfo) -> tuple[int, int]:
    if len(tensor.shape) != 4:
        raise BackboneError("model.input", tensor.shape, "The network must take a batch of images (4 axes).")
    _, *axes = tensor.shape
    channels, height, width = axes if spec.layout == "nchw" else (axes[2], axes[0], axes[1])
    if channels not in (3, -1):
        raise BackboneError(
            "input.layout", spec.layout, f"The model's input is {tensor.shape}; is it the other layout?"
        )
    wanted = [int(value) for value in spec.size] or [height, width]
    for name, value, fixed in zip(("height", "width"), wanted, (height, width), strict=True):
        if value <= 0:
            raise BackboneError(
                "input.size", spec.size, f"The model leaves its {name} open: set input.size to [height, width]."
            )
        if fixed not in (-1, value):
            raise BackboneError("input.size", spec.size, f"The model's {name} is fixed to {fixed}.")
    return wanted[0], wanted[1]
