"""A function of the user with the arrays that it closes over as operands, so that these can be differentiated."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from attention_xp._typing import Array

__all__ = ["Captured", "Programs", "exchanged"]


def exchanged(arrays: Iterable[Any], chosen: Sequence[bool], new: Iterable[Any]) -> list[Any]:
    """Return arrays in which the chosen ones are replaced."""
    rest = iter(new)
    return [next(rest) if is_chosen else a for a, is_chosen in zip(arrays, chosen, strict=True)]


class Programs:
    """What a function computes from the arrays that it captured and its arguments, for each shape of a region.

    Programs are equal where their descriptions are.
    """

    def __init__(self, of_shapes: dict[tuple[int, ...], Callable[..., Array]], description: Hashable) -> None:
        self.of_shapes, self._description = of_shapes, description

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Programs) and self._description == other._description

    def __hash__(self) -> int:
        return hash(self._description)


@dataclass(frozen=True, eq=False)
class Captured:
    """A function of the user and the arrays that it captured."""

    programs: Programs
    arrays: tuple[Array, ...]
    moving: tuple[bool, ...]  # which of them it is differentiated by

    def at(self, shape: tuple[int, ...], *arguments: Array) -> Array:
        """Return the values of the function for a region of a shape."""
        return self.programs.of_shapes[shape](self.arrays, *arguments)

    def __call__(self, score: Array, *places: Array) -> Array:
        """Modify scores."""
        return self.at(tuple(score.shape), score, *places)

    @property
    def operands(self) -> tuple[Array, ...]:
        """The arrays that the function is differentiated by."""
        return tuple(a for a, moves in zip(self.arrays, self.moving, strict=True) if moves)

    def holding(self, operands: tuple[Array, ...]) -> Self:
        """Return the function with other arrays as operands."""
        return replace(self, arrays=tuple(exchanged(self.arrays, self.moving, operands)))

    def as_constant(self) -> Self:
        """Return the function without operands, where no derivatives by them are wanted."""
        return replace(self, moving=(False,) * len(self.moving))
