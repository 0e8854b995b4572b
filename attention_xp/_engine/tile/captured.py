"""A function of the user together with the arrays that it captured, so that these can be differentiated."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from attention_xp._typing import Array

__all__ = ["Captured", "Programs", "exchanged"]


def exchanged(arrays: Iterable[Any], chosen: Sequence[bool], new: Iterable[Any]) -> list[Any]:
    """Return arrays with others in the place of the chosen ones."""
    rest = iter(new)
    return [next(rest) if is_chosen else a for a, is_chosen in zip(arrays, chosen, strict=True)]


class Programs:
    """What a function computes from what it has captured and its arguments, for each shape that it is asked about.

    Programs are equal where what was `told` of them is.
    """

    def __init__(self, of_shapes: dict[tuple[int, ...], Callable[..., Array]], told: Hashable) -> None:
        self.of_shapes, self._told = of_shapes, told

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Programs) and self._told == other._told

    def __hash__(self) -> int:
        return hash(self._told)


@dataclass(frozen=True, eq=False)
class Captured:
    """A function of the user that holds its arrays as values."""

    programs: Programs
    arrays: tuple[Array, ...]
    moving: tuple[bool, ...]  # which of them there are derivatives by

    def at(self, shape: tuple[int, ...], *arguments: Array) -> Array:
        """Return what the function says of a region of a shape."""
        return self.programs.of_shapes[shape](self.arrays, *arguments)

    def __call__(self, score: Array, *places: Array) -> Array:
        """Modify scores."""
        return self.at(tuple(score.shape), score, *places)

    @property
    def operands(self) -> tuple[Array, ...]:
        """The arrays that there are derivatives by."""
        return tuple(a for a, moves in zip(self.arrays, self.moving, strict=True) if moves)

    def holding(self, operands: tuple[Array, ...]) -> Self:
        """Return the function with other arrays in the place of its operands."""
        return replace(self, arrays=tuple(exchanged(self.arrays, self.moving, operands)))

    def as_constant(self) -> Self:
        """Return the function without operands: nobody asks for derivatives by them."""
        return replace(self, moving=(False,) * len(self.moving))
