"""float16 inside compiled loops, where numba has no such type: bit patterns in uint16 arrays, converted in registers.

Where the processor has the instructions, LLVM vectorises ``widen`` and ``narrow``; elsewhere integer arithmetic does
the same, with the same rounding. Importable only where numba is.
"""
# mypy: ignore-errors

from __future__ import annotations

import platform

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from geopurify_core.jit import compiled

_KNOWN_HARDWARE = platform.machine() in ("aarch64", "arm64") or bool(
    llvmlite.binding.get_host_cpu_features().get("f16c")
)


@intrinsic
def _hardware_widen(typing_context, bits):
    def codegen(context, builder, signature, args):
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), codegen


@intrinsic
def _hardware_narrow(typing_context, value):
    def codegen(context, builder, signature, args):
        return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), codegen


@intrinsic
def _float_of_bits(typing_context, bits):
    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.uint32), codegen


@intrinsic
def _bits_of_float(typing_context, value):
    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(types.float32), codegen


@compiled()
def _portable_widen(bits):
    """float32 of finite float16 bits: shift the fields into place, then scale the exponent (exact, subnormals too)."""
    magnitude = _float_of_bits(np.uint32(bits & np.uint16(0x7FFF)) << np.uint32(13)) * np.float32(2.0**112)
    return -magnitude if bits & np.uint16(0x8000) else magnitude


@compiled()
def _portable_narrow(value):
    """float16 bits of a float32 within ±65504, rounded to nearest even."""
    bits = _bits_of_float(np.float32(value))
    sign = (bits >> np.uint32(16)) & np.uint32(0x8000)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    if magnitude < np.uint32(0x38800000):  # below 2^-14: let an addition to 0.5 do the rounding
        half = _bits_of_float(_float_of_bits(magnitude) + np.float32(0.5)) - np.uint32(0x3F000000)
    else:
        half = (
            (magnitude + np.uint32(0xFFF) + ((magnitude >> np.uint32(13)) & np.uint32(1))) >> np.uint32(13)
        ) - np.uint32(0x1C000)
    return np.uint16(sign | half)


def widen(value):
    """float32 of a feature value: uint16 holds float16 bits, float32 is itself."""


@overload(widen, inline="always")
def _widen_overload(value):
    if isinstance(value, types.Float):
        return lambda value: value
    if _KNOWN_HARDWARE:
        return lambda value: _hardware_widen(value)
    return lambda value: _portable_widen(value)


def narrow(value):
    """float16 bits (uint16) of a float32 within ±65504."""


@overload(narrow, inline="always")
def _narrow_overload(value):
    if _KNOWN_HARDWARE:
        return lambda value: _hardware_narrow(value)
    return lambda value: _portable_narrow(value)
