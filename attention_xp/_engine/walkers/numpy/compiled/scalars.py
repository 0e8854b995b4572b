"""Powers and hyperbolic tangents of single numbers in the compiled loops, in float32 and in float64.

A score is split into an integer and a rest between -1/2 and 1/2. Two to the power of the integer is made from bits, two to
the power of the rest is a polynomial: for float32 the one through Chebyshev's points (0.93 units in the last place at
most), for float64 Taylor's series.

The hyperbolic tangent of a small number is Lambert's continued fraction, ``x / (1 + x^2 / (3 + x^2 / (5 + ...)))``, up
to 9 for float32 and 13 for float64, as one quotient. That of others is ``(1 - e^(-2 |x|)) / (1 + e^(-2 |x|))``, which
would lose the digits of a small one.
"""

import math
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

__all__ = ["CONTRACTED", "power", "tanh"]

# Products and sums may become one instruction. Sums keep their order: rounding by a large number depends on it.
CONTRACTED = {"contract", "nsz"}

_ONE, _NOTHING = np.float32(1.0), np.float32(0.0)
_P1, _P2, _P3, _P4, _P5, _P6 = (
    np.float32(c) for c in (0.69314718, 0.24022651, 0.055503272, 0.0096180569, 0.0013400428, 0.00015461445)
)
_Q1, _Q2, _Q3, _Q4, _Q5, _Q6, _Q7, _Q8, _Q9, _Q10, _Q11, _Q12, _Q13 = (
    math.log(2.0) ** k / math.factorial(k) for k in range(1, 14)
)

_A0, _A1, _B1, _B2, _TWO, _SMALL = (np.float32(c) for c in (945.0, 105.0, 420.0, 15.0, 2.0, 0.55))

# Adding such a number rounds to an integer, which the last bits of the sum then hold.
_ROUND_32, _ROUND_64 = np.float32(1.5 * 2**23), np.float64(1.5 * 2**52)
_BITS_32, _BITS_64 = np.int32(_ROUND_32.view(np.int32) - 127), np.int64(_ROUND_64.view(np.int64) - 1023)
_PLACES_32, _PLACES_64 = np.int32(23), np.int64(52)


def power(x: Any, constants: tuple[Any, ...]) -> Any:
    """Return the base of the `Constants` to the power of x: NaN for NaN, and 0 for what would be subnormal."""
    raise NotImplementedError  # the compiled functions below stand for it


@overload(power, jit_options={"fastmath": CONTRACTED})
def _power(x, constants):  # noqa: ARG001
    return _power_32 if x == types.float32 else _power_64


def _power_32(x, constants):
    log2, upper, lower, least, most = constants
    x = min(x, most)
    rounded = np.float32(x * log2 + _ROUND_32)
    n = rounded - _ROUND_32
    f = ((x - n * upper) - n * lower) * log2
    scale = np.int32((rounded.view(np.int32) - _BITS_32) << _PLACES_32).view(np.float32)
    result = scale * (_ONE + f * (_P1 + f * (_P2 + f * (_P3 + f * (_P4 + f * (_P5 + f * _P6))))))
    return _NOTHING if x < least else result


def _power_64(x, constants):
    log2, upper, lower, least, most = constants
    x = min(x, most)
    rounded = np.float64(x * log2 + _ROUND_64)
    n = rounded - _ROUND_64
    f = ((x - n * upper) - n * lower) * log2
    scale = np.int64((rounded.view(np.int64) - _BITS_64) << _PLACES_64).view(np.float64)
    small = _Q8 + f * (_Q9 + f * (_Q10 + f * (_Q11 + f * (_Q12 + f * _Q13))))
    result = scale * (
        1.0 + f * (_Q1 + f * (_Q2 + f * (_Q3 + f * (_Q4 + f * (_Q5 + f * (_Q6 + f * (_Q7 + f * small)))))))
    )
    return 0.0 if x < least else result


def tanh(x: Any, constants: tuple[Any, ...]) -> Any:
    """Return the hyperbolic tangent of x, from the `Constants` of base e."""
    raise NotImplementedError  # likewise


@overload(tanh, jit_options={"fastmath": CONTRACTED})
def _tanh(x, constants):  # noqa: ARG001
    return _tanh_32 if x == types.float32 else _tanh_64


def _tanh_32(x, constants):
    square, gap = x * x, power(-_TWO * abs(x), constants)
    small = x * ((_A0 + square * (_A1 + square)) / (_A0 + square * (_B1 + square * _B2)))
    large = (_ONE - gap) / (_ONE + gap)
    return small if abs(x) < _SMALL else (-large if x < _NOTHING else large)


def _tanh_64(x, constants):
    square, gap = x * x, power(-2.0 * abs(x), constants)
    above = 135135.0 + square * (17325.0 + square * (378.0 + square))
    below = 135135.0 + square * (62370.0 + square * (3150.0 + square * 28.0))
    large = (1.0 - gap) / (1.0 + gap)
    return x * (above / below) if abs(x) < 0.4 else (-large if x < 0.0 else large)
