"""Split nested tuples and dataclasses into arrays and a hashable rest.

JAX caches by the rest, and the arrays can be exchanged for those of another library.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

from attention_xp._backend.libraries import is_array
from attention_xp._scores.attributes import Attributed, attributes, more_of
from attention_xp._scores.identity import identity, of_class
from attention_xp._typing import Array, DType

__all__ = ["freeze", "holds", "holes", "numbers", "part", "thaw"]


_Numbers = Callable[[Any], Array]


def freeze(thing: Any, dtype: DType | None = None) -> tuple[Any, list[Array]]:
    """Return a hashable template with a hole for each array, and the arrays.

    With a dtype, numbers in the fields that a class names in `_numbers` become arrays as well: floats of that dtype, and
    ints of int32. One compiled program of JAX then serves all their values.
    """
    arrays: list[Array] = []
    return _freeze(thing, arrays, None if dtype is None else partial(_as_array, dtype)), arrays


def _as_array(dtype: DType, number: Any) -> Any:
    """Return a number as an array (), also in a tuple; anything else as it is."""
    if isinstance(number, tuple):
        return tuple(_as_array(dtype, item) for item in number)
    if not isinstance(number, int | float):
        return number
    import numpy as np  # noqa: PLC0415  # JAX has loaded it

    if isinstance(number, float):
        return np.asarray(number, dtype)
    return np.asarray(min(number, 2**31 - 1), np.int32)  # no length is larger


def _freeze(thing: Any, arrays: list[Array], as_array: _Numbers | None) -> Any:
    if _is_array(thing):
        arrays.append(thing)
        return _Hole(len(arrays) - 1)
    if isinstance(thing, tuple):
        return _Shape(tuple, tuple(_freeze(item, arrays, as_array) for item in thing))
    if isinstance(thing, Attributed):
        return _frozen_rule(thing, arrays, as_array)
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        names = tuple(field.name for field in dataclasses.fields(thing))
        values = _with_numbers(thing, {name: getattr(thing, name) for name in names}, as_array).values()
        return _Shape(type(thing), tuple(_freeze(value, arrays, as_array) for value in values), names)
    return thing


def _is_array(thing: Any) -> bool:
    return is_array(thing) or hasattr(type(thing), "__array_namespace__")


def _with_numbers(thing: Any, values: dict[str, Any], as_array: _Numbers | None) -> dict[str, Any]:
    """Return values in which the numbers named in `_numbers` are arrays."""
    if as_array is None:
        return values
    return values | {name: as_array(values[name]) for name in getattr(type(thing), "_numbers", ()) if name in values}


def _frozen_rule(rule: Attributed, arrays: list[Array], as_array: _Numbers | None) -> "_Shape":
    """Freeze a rule: its arrays are attributes, or in collections; a class of the user may hold other things as well."""
    given = _with_numbers(rule, attributes(rule), as_array)
    items = tuple(_frozen_value(value, arrays, as_array) for value in given.values())
    return _Shape(type(rule), items, tuple(given), tuple(of_class(type(rule))))


def _frozen_value(value: Any, arrays: list[Array], as_array: _Numbers | None) -> Any:
    if isinstance(value, Attributed) or _is_array(value):
        return _freeze(value, arrays, as_array)
    if isinstance(value, tuple | list | dict):
        items, more = value.items() if isinstance(value, dict) else value, more_of(value)
        given = (_frozen_value(item, arrays, as_array) for item in (*items, *more.values()))
        return _Shape(type(value), tuple(given), tuple(more))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _freeze(value, arrays, as_array)
    return _Value(value)


@dataclasses.dataclass(frozen=True)
class _Hole:
    index: int


@dataclasses.dataclass(frozen=True)
class _Shape:
    kind: type
    items: tuple[Any, ...]
    # Of the items; a collection has names only for the attributes that it may have, which come last.
    names: tuple[str, ...] = ()
    of_class: tuple[Any, ...] = ()  # the attributes of the class itself, which a user may change


class _Value:
    """An attribute that holds no array, compared by its identity (see `identity`)."""

    __slots__ = ("_identity", "value")

    def __init__(self, value: Any) -> None:
        self.value = value
        self._identity: Any = None

    @property
    def compared(self) -> Any:
        """The identity, computed when it is first needed: torch's compiler never does."""
        if self._identity is None:
            self._identity = (identity(self.value),)
        return self._identity

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Value) and self.compared == other.compared

    def __hash__(self) -> int:
        return hash(self.compared)


def part(template: Any, name: str) -> Any:
    """Return the template of an attribute."""
    return template.items[template.names.index(name)]


def holes(template: Any) -> list[int]:
    """Return the numbers of the arrays of a template, in their order."""
    if isinstance(template, _Hole):
        return [template.index]
    return [i for item in template.items for i in holes(item)] if isinstance(template, _Shape) else []


def holds(template: Any, kind: type) -> bool:
    """Whether there is an object of a kind in a template."""
    if not isinstance(template, _Shape):
        return False
    return issubclass(template.kind, kind) or any(holds(item, kind) for item in template.items)


def numbers(template: Any) -> set[int]:
    """Return which arrays of a template are, or stand for, numbers of fields that a class names in `_numbers`."""
    if not isinstance(template, _Shape):
        return set()
    named = getattr(template.kind, "_numbers", ())
    own = (i for name, item in zip(template.names, template.items, strict=False) if name in named for i in holes(item))
    return set(own).union(*map(numbers, template.items))


def thaw(template: Any, arrays: list[Array]) -> Any:
    """Return what a template was made of, with these arrays in the holes; nothing is checked again."""
    if isinstance(template, _Hole):
        return arrays[template.index]
    if not isinstance(template, _Shape):
        return template.value if isinstance(template, _Value) else template
    items = [thaw(item, arrays) for item in template.items]
    if issubclass(template.kind, tuple | list | dict):
        count = len(items) - len(template.names)
        return _collected(template.kind, items[:count], dict(zip(template.names, items[count:], strict=True)))
    thing: Any = object.__new__(template.kind)
    for name, item in zip(template.names, items, strict=True):
        object.__setattr__(thing, name, item)
    return thing


def _collected(kind: Any, items: list[Any], more: dict[str, Any]) -> Any:
    """Return a collection of a kind, whose constructor may take other arguments than the items."""
    if kind in (tuple, list, dict):
        return kind(items)
    if hasattr(kind, "_make"):
        return kind._make(items)
    if issubclass(kind, tuple):
        thing = tuple.__new__(kind, items)
    else:
        thing = kind.__new__(kind)
        if issubclass(kind, list):
            list.extend(thing, items)
        else:
            for name, item in items:
                thing[name] = item
    for name, item in more.items():
        setattr(thing, name, item)
    return thing
