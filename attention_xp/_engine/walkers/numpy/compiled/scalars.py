"""Hyperbolic tangents of single numbers in the compiled loops, in float32 and in float64.

That of a small number is Lambert's continued fraction, ``x / (1 + x^2 / (3 + x^2 / (5 + ...)))``, up to 9 for float32 and 13
for float64, as one quotient. That of others is ``(1 - e^(-2 |x|)) / (1 + e^(-2 |x|))``, which would lose the digits of a
small one.
"""

import math
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from attention_xp._engine.walkers.numpy.compiled.powers import CONTRACTED, power

__all__ = ["tanh"]

_ONE = np.float32(1.0)
_A0, _A1, _B1, _B2, _TWO, _SMALL = (np.float32(c) for c in (945.0, 105.0, 420.0, 15.0, 2.0, 0.55))


def tanh(x: Any, constants: tuple[Any, ...]) -> Any:
    """Return the hyperbolic tangent of x, from the `Constants` of base e."""
    raise NotImplementedError  # the compiled functions below stand for it


@overload(tanh, jit_options={"fastmath": CONTRACTED})
def _tanh(x, constants):  # noqa: ARG001
    return _tanh_32 if x == types.float32 else _tanh_64


def _tanh_32(x, constants):
    square, gap = x * x, power(-_TWO * abs(x), constants)
    is_small = abs(x) < _SMALL
    above = _A0 + square * (_A1 + square) if is_small else _ONE - gap
    below = _A0 + square * (_B1 + square * _B2) if is_small else _ONE + gap
    quotient = above / below  # a single one, for division takes longest
    return x * quotient if is_small else math.copysign(quotient, x)


def _tanh_64(x, constants):
    square, gap = x * x, power(-2.0 * abs(x), constants)
    is_small = abs(x) < 0.4
    above = 135135.0 + square * (17325.0 + square * (378.0 + square)) if is_small else 1.0 - gap
    below = 135135.0 + square * (62370.0 + square * (3150.0 + square * 28.0)) if is_small else 1.0 + gap
    quotient = above / below
    return x * quotient if is_small else math.copysign(quotient, x)
