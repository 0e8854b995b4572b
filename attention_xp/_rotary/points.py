"""Positions, and their products with frequencies: angles that keep their digits however far the position."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from attention_xp._backend.libraries import device as device_of
from attention_xp._backend.shapes import filled_up
from attention_xp._typing import Array, DType, Namespace

__all__ = ["Points", "in_turns"]

_BITS = 12
_DIGIT = 1 << _BITS


class Points(NamedTuple):
    """Positions ``(..., S, 1)``, or ``(..., S, rotary_dim // 2)`` where frequencies have positions of their own.

    `length` is known where positions are implied, 0 to `length` - 1; it is None where they were given, as an array
    whose values must not be asked for.
    """

    xp: Namespace
    positions: Array  # int32
    dtype: DType  # of the angles
    length: int | None

    def reach(self) -> Array:
        """Return one more than the largest position, as a floating array without axes."""
        return self.xp.astype(self.xp.max(self.positions), self.dtype) + 1.0

    def row(self, numbers: Sequence[float]) -> Array:
        """Return numbers as an array that broadcasts against the positions."""
        line = self.xp.asarray(list(numbers), dtype=self.dtype, device=device_of(self.positions))
        return filled_up(self.xp, line, self.positions.ndim)

    def turns_by_array(self, frequencies: Array) -> Array:
        """Return positions times frequencies that are an array, in turns, at the precision of the dtype."""
        return self.xp.astype(self.positions, self.dtype) * in_turns(frequencies)

    def turns(self, frequencies: Sequence[float]) -> Array:
        r"""Return positions times frequencies in turns, of which whole ones are left out.

        In float32 a product such as :math:`10^5 \theta` has lost all but two digits of its angle. So positions are
        taken apart into digits of 12 bits, :math:`p = \sum_j p_j 2^{12 j}`, and the turns that a digit makes,
        :math:`f_j = 2^{12 j} \theta / 2 \pi` without whole ones, into a part of 12 bits and a rest. Digit times part
        is exact, digit times rest is less than a turn.
        """
        total = None
        for j, digit in enumerate(self._digits()):
            parts = [_split(in_turns(f) * float(_DIGIT**j)) for f in frequencies]
            coarse = digit * self.row([part for part, _ in parts])
            fine = digit * self.row([rest for _, rest in parts])
            turns = coarse - self.xp.round(coarse) + fine
            total = turns if total is None else total + turns
        return total - self.xp.round(total)

    def _digits(self) -> list[Array]:
        """Return the digits of all positions, the last with the sign, as floating arrays."""
        reach = _DIGIT**3 if self.length is None else self.length
        count = 1 if reach <= _DIGIT else 2 if reach <= _DIGIT**2 else 3
        shifted = [self.positions >> (_BITS * j) if j else self.positions for j in range(count)]
        digits = [*(p & (_DIGIT - 1) for p in shifted[:-1]), shifted[-1]]
        return [self.xp.astype(d, self.dtype) for d in digits]


def in_turns(radians: Any) -> Any:
    """Return angles in turns, divided by two pi: a number without a name, which Dynamo does not take for one that may change."""
    return radians * 0.15915494309189535


def _split(turns: float) -> tuple[float, float]:
    """Return turns without whole ones as a multiple of ``1 / 4096`` and a rest."""
    turns -= round(turns)
    part = round(turns * _DIGIT) / _DIGIT
    return part, turns - part
