"""The types of what users hand over and receive; at run time they cost nothing and demand nothing.

`_public_types.pyi` tells type checkers what they are.
"""

from typing import Any, TypeAlias, TypeVar

__all__ = ["Array", "ArrayT", "Generic", "HeldT"]

Array: TypeAlias = Any
ArrayT = TypeVar("ArrayT")
HeldT = TypeVar("HeldT")


class Generic:
    """A base class that is none: named tuples have the one base that PyTorch before 2.6 knows them by."""

    def __class_getitem__(cls, parameter: object) -> "Generic":
        return cls()

    def __mro_entries__(self, bases: tuple[type, ...]) -> tuple[type, ...]:
        return ()
