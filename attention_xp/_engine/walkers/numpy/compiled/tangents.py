"""Hyperbolic tangents in float32 and in float64, as code for LLVM: of single numbers, and of vectors of them.

They are ``h / (h + 1)``, where h is ``(e^(2x) - 1) / 2``. As in `powers`, the power is split into that of an integer and that
of a rest. The polynomial of the rest leaves 1 out, and x is its own first term: so a small h keeps its digits.
"""

import math
from typing import Any

from llvmlite import ir
from numba.extending import intrinsic

from attention_xp._engine.walkers.numpy.compiled.powers import Lanes, polynomial
from attention_xp._engine.walkers.numpy.compiled.registers import HAS_LONG

__all__ = ["tanh", "tanh_of"]

_UNIT = 0.5 * math.log(2.0)  # twice this number is the logarithm of 2
# Division of long registers takes as long as ten products: there, LLVM makes it of an estimate and a step of Newton's.
_DIVISION = ("arcp",) if HAS_LONG else ()


def tanh_of(x: Lanes) -> Lanes:
    """Return the hyperbolic tangent of x, at most 3 units in the last place from it, and NaN for NaN."""
    one, half, round_by = map(x.like, (1.0, 0.5, x.layout.rounding))
    least, most = (x.like(side * _UNIT * (x.layout.places + 4)) for side in (-1.0, 1.0))  # beyond, it is -1 or 1
    met = x.chosen(">", most, most, x)
    met = met.chosen("<", least, least, met)
    rounded = met * x.like(1.0 / _UNIT) + round_by
    rest = met - (rounded - round_by) * x.like(_UNIT)
    terms = tuple(0.5 * term / _UNIT**k for k, term in enumerate(x.layout.polynomial))
    power, of_rest = rounded.two_to_last_bits(), rest + rest * rest * polynomial(rest, terms[2:])
    above = power * of_rest + (power * half - half)
    return Lanes(x.builder, x.builder.fdiv(above.value, (above + one).value, flags=_DIVISION))


@intrinsic  # type: ignore[untyped-decorator]
def tanh(_typing: Any, x: Any) -> Any:
    """Return `tanh_of` a number."""

    def generate(_context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
        return tanh_of(Lanes(builder, arguments[0])).value

    return x(x), generate
