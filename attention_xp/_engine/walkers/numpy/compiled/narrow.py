"""Numbers of 16 bits as numbers of 32, and back, as bits: numba knows no such numbers.

A loop over vectors of them is bound by memory. It runs on our own threads: those of torch, which converts as fast, go on
waiting for work for some milliseconds, beside threads that have some.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from attention_xp._engine.walkers.numpy.compiled.compiling import compiled
from attention_xp._engine.walkers.numpy.compiled.registers import FEATURES

__all__ = ["LOOPS"]

_HIGH, _LOW, _QUIET = np.uint32(16), np.uint32(0x7FFF), np.uint32(0x40)
_INFINITY, _MAGNITUDE = np.uint32(0x7F800000), np.uint32(0x7FFFFFFF)


@compiled()
def _bfloat16_to_float32(source, target):
    for i in range(len(source)):
        target[i] = np.uint32(source[i]) << _HIGH


@compiled()
def _float32_to_bfloat16(source, target):
    """Round to the nearest number, or the even one of two; NaN stays NaN."""
    for i in range(len(source)):
        bits = source[i]
        rounded = (bits + (_LOW + ((bits >> _HIGH) & np.uint32(1)))) >> _HIGH
        is_nan = (bits & _MAGNITUDE) > _INFINITY
        target[i] = np.uint16((bits >> _HIGH) | _QUIET if is_nan else rounded)


@compiled()
def _float16_to_float32(source, target):
    for i in range(len(source)):
        target[i] = _bits_of_half(source[i])


@compiled()
def _float32_to_float16(source, target):
    for i in range(len(source)):
        target[i] = _half_of_bits(source[i])


@intrinsic  # type: ignore[untyped-decorator]
def _bits_of_half(_typing: Any, bits: Any) -> Any:
    def generate(_context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
        wide = builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())
        return builder.bitcast(wide, ir.IntType(32))

    return types.uint32(bits), generate


@intrinsic  # type: ignore[untyped-decorator]
def _half_of_bits(_typing: Any, bits: Any) -> Any:
    def generate(_context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
        narrow = builder.fptrunc(builder.bitcast(arguments[0], ir.FloatType()), ir.HalfType())
        return builder.bitcast(narrow, ir.IntType(16))

    return types.uint16(bits), generate


LOOPS = {("bfloat16", "float32"): _bfloat16_to_float32, ("float32", "bfloat16"): _float32_to_bfloat16}
if "+f16c" in FEATURES:  # or else a function would be called for each number
    LOOPS |= {("float16", "float32"): _float16_to_float32, ("float32", "float16"): _float32_to_float16}
