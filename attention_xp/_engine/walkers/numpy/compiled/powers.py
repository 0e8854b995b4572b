"""Powers in float32 and in float64, as code for LLVM: of single numbers, and of vectors of them.

A score is split into an integer and a rest between -1/2 and 1/2. Two to the power of the integer is made from bits, two to
the power of the rest is a polynomial: for float32 the one through Chebyshev's points (0.97 units in the last place at
most), for float64 Taylor's series.
"""

import math
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

__all__ = ["CONTRACTED", "Lanes", "polynomial", "power", "power_of", "power_of_two", "spread", "two_to"]

# Products and sums may become one instruction. Sums keep their order: rounding by a large number depends on it.
CONTRACTED = {"contract", "nsz"}

_POLYNOMIAL_32 = 1.0, 0.69314718, 0.24022651, 0.055503272, 0.0096180569, 0.0013400428, 0.00015461445
_POLYNOMIAL_64 = tuple(math.log(2.0) ** k / math.factorial(k) for k in range(14))


class _Format(NamedTuple):
    """How numbers are made of bits."""

    bits: int
    places: int  # of the fraction
    bias: int  # of the exponent
    polynomial: tuple[float, ...]

    @classmethod
    def of(cls, number: Any) -> "_Format":
        """Return that of a type of LLVM."""
        is_single = isinstance(number, ir.FloatType)
        return cls(32, 23, 127, _POLYNOMIAL_32) if is_single else cls(64, 52, 1023, _POLYNOMIAL_64)

    def limit(self, of_single: int) -> int:
        """Return the limit of `two_to` for such numbers: as given for float32, else that of normal numbers."""
        return of_single if self.bits == 32 else self.bias - 1

    @property
    def rounding(self) -> float:
        """Adding this number rounds to an integer, which the last bits of the sum then hold."""
        return 1.5 * 2.0**self.places


class Lanes:
    """A number, or a vector of numbers, to which operations append instructions."""

    def __init__(self, builder: ir.IRBuilder, value: Any) -> None:
        self.builder, self.value = builder, value
        self.layout = _Format.of(getattr(value.type, "element", value.type))

    def __add__(self, other: "Lanes") -> "Lanes":
        return Lanes(self.builder, self.builder.fadd(self.value, other.value, flags=tuple(CONTRACTED)))

    def __sub__(self, other: "Lanes") -> "Lanes":
        return Lanes(self.builder, self.builder.fsub(self.value, other.value, flags=tuple(CONTRACTED)))

    def __mul__(self, other: "Lanes") -> "Lanes":
        return Lanes(self.builder, self.builder.fmul(self.value, other.value, flags=tuple(CONTRACTED)))

    def like(self, number: Any) -> "Lanes":
        """Return a number, of Python or of LLVM, in all places."""
        kind = self.value.type
        element = kind.element if isinstance(kind, ir.VectorType) else kind
        if isinstance(number, float):
            number = ir.Constant(element, number)
        return Lanes(self.builder, number if element is kind else spread(self.builder, number, kind))

    def chosen(self, comparison: str, bound: "Lanes", one: "Lanes", other: "Lanes") -> "Lanes":
        """Return one thing where a comparison with a bound holds, and another where not, as for NaN."""
        holds = self.builder.fcmp_ordered(comparison, self.value, bound.value)
        return Lanes(self.builder, self.builder.select(holds, one.value, other.value))

    def two_to_last_bits(self, bias: int | None = None) -> "Lanes":
        """Return 2 to the power of the integer that the last bits hold, after it was rounded by adding a large number.

        With a smaller bias than that of the exponent, all results are smaller by as many powers of two.
        """
        builder, kind, layout = self.builder, self.value.type, self.layout
        numbers = layout.bias if bias is None else bias, layout.places
        integer = ir.IntType(layout.bits)
        added, places = (ir.Constant(integer, number) for number in numbers)
        if isinstance(kind, ir.VectorType):
            integer = ir.VectorType(integer, kind.count)
            added, places = (ir.Constant(integer, [number] * kind.count) for number in numbers)
        bits = builder.add(builder.bitcast(self.value, integer), added)
        return Lanes(builder, builder.bitcast(builder.shl(bits, places), kind))


def spread(builder: ir.IRBuilder, number: Any, kind: ir.VectorType) -> Any:
    """Return a vector of which each element is one number."""
    nothing, index = ir.Constant(kind, ir.Undefined), ir.IntType(32)
    first = builder.insert_element(nothing, number, index(0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(index, kind.count), [0] * kind.count))


def power_of(x: Lanes, constants: list[Lanes]) -> Lanes:
    """Return the base of the `Constants` to the power of x: NaN for NaN, and 0 for what would be subnormal."""
    log2, upper, lower, least, most = constants
    round_by = x.like(x.layout.rounding)
    met = x.chosen(">", most, most, x)
    rounded = met * log2 + round_by
    n = rounded - round_by
    rest = ((met - n * upper) - n * lower) * log2
    result = rounded.two_to_last_bits() * polynomial(rest, x.layout.polynomial)
    return x.chosen("<", least, x.like(0.0), result)


def two_to(x: Lanes, limit: int) -> Lanes:
    """Return 2 to the power of x: NaN for NaN, and 0 for less than ``0.5 - limit``.

    The limit is that of float32; for float64 it is that of normal numbers. x must be no larger than 128 in float32, and 1024 in
    float64, of which the power is infinity.

    The exponent of the power of the integer part has a smaller bias, with which the bits of the power of ``-limit``, the least
    one, are those of 0: so a result of 0 needs no comparison. The polynomial of the rest has the factor that is then missing.
    """
    limit = x.layout.limit(limit)
    round_by, least, missing = x.like(x.layout.rounding), x.like(-float(limit)), x.layout.bias - limit
    met = x.chosen("<", least, least, x)
    rounded = met + round_by
    rest = met - (rounded - round_by)
    return rounded.two_to_last_bits(limit) * polynomial(
        rest, tuple(2.0**missing * term for term in x.layout.polynomial)
    )


def polynomial(x: Lanes, terms: tuple[float, ...]) -> Lanes:
    """Return the sum of terms times 1, x, x^2, and so on."""
    *others, result = map(x.like, terms)
    for term in reversed(others):
        result = term + x * result
    return result


@intrinsic  # type: ignore[untyped-decorator]
def power_of_two(_typing: Any, x: Any, limit: Any) -> Any:
    """Return `two_to` the power of a number."""
    if not isinstance(limit, types.IntegerLiteral):  # numba then asks again, with the number as it is written
        return None

    def generate(_context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
        return two_to(Lanes(builder, arguments[0]), limit.literal_value).value

    return x(x, limit), generate


@intrinsic  # type: ignore[untyped-decorator]
def power(_typing: Any, x: Any, constants: Any) -> Any:
    """Return `power_of` a number."""

    def generate(_context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
        number, numbers = arguments
        parts = [Lanes(builder, builder.extract_value(numbers, i)) for i in range(5)]
        return power_of(Lanes(builder, number), parts).value

    return x(x, constants), generate
