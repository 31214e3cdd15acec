"""Sonata's architecture as its checkpoints describe it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from geopurify_core.errors import InvalidConfigError
from training.teachers.sonata.serialization import ORDERS

log = logging.getLogger(__name__)

# Of the decoder and of training: known, and without meaning for a frozen encoder in single precision.
_WITHOUT_EFFECT = frozenset({
    "dec_depths", "dec_channels", "dec_num_head", "dec_patch_size", "drop_path", "attn_drop", "proj_drop",
    "shuffle_orders", "enable_flash", "upcast_attention", "upcast_softmax", "traceable", "freeze_encoder",
})  # fmt: skip
# Built one way only.
_FIXED = {"enc_mode": True, "enable_rpe": False}
_TYPE = "PT-v3m2"  # what Pointcept's configurations call the network


@dataclass(frozen=True)
class SonataConfig:
    """The encoder; defaults are the published one (108.46 M parameters).

    Attributes:
        in_channels: Of the input features: position, colour, normal.
        order: Curves (see ``serialization.py``); block i of a stage uses row i modulo their number.
        stride: How many cells a side each pooling joins.
        enc_depths, enc_channels, enc_num_head: Blocks, channels and attention heads of each stage.
        enc_patch_size: Points that attend to each other, for each stage.
        mlp_ratio: Hidden channels of the feed-forward layers, as a multiple.
        qkv_bias: Whether queries, keys and values have a bias.
        qk_scale: Factor of the attention's logits; None or 0: one over the root of the channels of a head.
        layer_scale: Initial factor on both branches of a block; None: no such parameters.
        pre_norm: Normalise before each branch, instead of after it.
        mask_token: Whether there is the parameter of pre-training's masks (never used here).
    """

    in_channels: int = 9
    order: tuple[str, ...] = ORDERS
    stride: tuple[int, ...] = (2, 2, 2, 2)
    enc_depths: tuple[int, ...] = (3, 3, 3, 12, 3)
    enc_channels: tuple[int, ...] = (48, 96, 192, 384, 512)
    enc_num_head: tuple[int, ...] = (3, 6, 12, 24, 32)
    enc_patch_size: tuple[int, ...] = (1024, 1024, 1024, 1024, 1024)
    mlp_ratio: float = 4
    qkv_bias: bool = True
    qk_scale: float | None = None
    layer_scale: float | None = None
    pre_norm: bool = True
    mask_token: bool = True

    def __post_init__(self) -> None:
        for name in ("stride", "enc_depths", "enc_channels", "enc_num_head", "enc_patch_size"):
            _check_numbers(name, getattr(self, name), 0 if name == "enc_depths" else 1)
        _check_numbers("in_channels", (self.in_channels,), 1)
        for name, wanted in (("stride", len(self) - 1), *((f"enc_{part}", len(self)) for part in _PER_STAGE)):
            if len(getattr(self, name)) != wanted:
                raise InvalidConfigError(name, getattr(self, name), f"{len(self)} stages need {wanted} numbers here.")
        for channels, heads in zip(self.enc_channels, self.enc_num_head, strict=True):
            if channels % heads:
                raise InvalidConfigError("enc_num_head", heads, f"It must divide the {channels} channels of its stage.")
        if not self.order or not set(self.order) <= set(ORDERS):
            raise InvalidConfigError("order", self.order, f"Choose from {', '.join(ORDERS)}.")

    def __len__(self) -> int:
        """Stages."""
        return len(self.enc_channels)

    @property
    def width(self) -> int:
        """Channels after two concatenating upcasts: 1088 for the published encoder."""
        return sum(self.enc_channels[-3:])

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> SonataConfig:
        """The ``config`` of a checkpoint. What is left out is the reference's default.

        Accepted and without effect: everything of the decoder and of training; ``shuffle_orders`` (shuffling is asked
        for in each call); ``type``, where it is ``PT-v3m2``; ``enable_flash`` and the ``upcast_*`` flags (attention is
        computed plainly, in the precision of the network: exactly what is published without flash, and what flash
        approximates in half precision).

        Raises:
            InvalidConfigError: A key that is not known and set to something, a wrong type, sizes that contradict each
                other, or an architecture that is not built here (``enc_mode`` false, ``enable_rpe`` true).
        """
        if not isinstance(config, Mapping):
            raise InvalidConfigError("config", type(config).__name__, "Give the checkpoint's dictionary `config`.")
        if isinstance(config.get("config"), Mapping):
            config = config["config"]
        known = {field.name for field in fields(cls)}
        values: dict[str, Any] = {}
        for key, value in config.items():
            if key in known:
                values[key] = _typed(key, value)
            elif key in _FIXED:
                _check_fixed(key, value)
            elif key == "type":
                _check_type(value)
            elif key not in _WITHOUT_EFFECT:
                _refuse_unless_off(key, value)
        # The reference's own defaults, where they are not those of the published configuration.
        return cls(**{"in_channels": 6, "order": ("z", "z-trans"), "mask_token": False, **values})


_PER_STAGE = ("depths", "num_head", "patch_size")
_SEQUENCES = ("order", "stride", "enc_depths", "enc_channels", "enc_num_head", "enc_patch_size")
_FLAGS = ("qkv_bias", "pre_norm", "mask_token")


def _typed(key: str, value: Any) -> Any:
    if key == "order" and isinstance(value, str):
        return (value,)
    if key in _SEQUENCES:
        if not isinstance(value, list | tuple):
            raise InvalidConfigError(key, value, "Give a list.")
        return tuple(value)
    if key in _FLAGS:
        if not isinstance(value, bool):
            raise InvalidConfigError(key, value, "Give true or false.")
        return value
    optional = key in ("qk_scale", "layer_scale") and value is None
    if not optional and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise InvalidConfigError(key, value, "Give a number.")
    return value


def _check_numbers(name: str, values: tuple[Any, ...], least: int) -> None:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InvalidConfigError(name, values, f"Whole numbers from {least} on are expected.")


def _check_fixed(key: str, value: Any) -> None:
    if value is not _FIXED[key]:
        remedy = f"Only encoders with {key} = {_FIXED[key]} are built here; the published Sonata is one."
        raise InvalidConfigError(key, value, remedy)


def _check_type(value: Any) -> None:
    if value != _TYPE:
        raise InvalidConfigError("type", value, f"Sonata is a {_TYPE}; other networks are not built here.")


def _refuse_unless_off(key: str, value: Any) -> None:
    """An option nobody knows changes nothing where it is off; where it is on, the result would be another one."""
    if value not in (None, False):
        known = ", ".join(sorted(field.name for field in fields(SonataConfig)))
        raise InvalidConfigError(key, value, f"Unknown key. Known: {known}.")
    log.warning("Sonata's configuration has an unknown key %s, which is off and ignored", key)
