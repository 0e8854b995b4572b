"""Split nested tuples and dataclasses into arrays and a hashable rest.

JAX caches by the rest, and the arrays can be exchanged for those of another library.
"""

import dataclasses
from typing import Any

from array_api_compat import is_cupy_array, is_jax_array, is_numpy_array, is_torch_array

from attention_xp._engine.identity import identity, of_class
from attention_xp._rule import Rule, attributes
from attention_xp._typing import Array

__all__ = ["contains", "freeze", "holes", "part", "thaw"]


def freeze(thing: Any) -> tuple[Any, list[Array]]:
    """Return a hashable template with a hole for each array, and the arrays."""
    arrays: list[Array] = []
    return _freeze(thing, arrays), arrays


def _freeze(thing: Any, arrays: list[Array]) -> Any:
    if _is_array(thing):
        arrays.append(thing)
        return _Hole(len(arrays) - 1)
    if isinstance(thing, tuple):
        return _Shape(tuple, tuple(_freeze(item, arrays) for item in thing))
    if isinstance(thing, Rule):
        return _frozen_rule(thing, arrays)
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        names = tuple(field.name for field in dataclasses.fields(thing))
        return _Shape(type(thing), tuple(_freeze(getattr(thing, name), arrays) for name in names), names)
    return thing


def _is_array(thing: Any) -> bool:
    return any(is_one(thing) for is_one in (is_jax_array, is_numpy_array, is_cupy_array, is_torch_array)) or hasattr(
        type(thing), "__array_namespace__"
    )


def _frozen_rule(rule: Rule, arrays: list[Array]) -> "_Shape":
    """All arrays of a rule are attributes, also those of a class of the user, who may hold anything else beside them."""
    given = attributes(rule)
    items = tuple(_frozen_value(value, arrays) for value in given.values())
    return _Shape(type(rule), items, tuple(given), tuple(of_class(type(rule))))


def _frozen_value(value: Any, arrays: list[Array]) -> Any:
    if isinstance(value, Rule) or _is_array(value):
        return _freeze(value, arrays)
    if isinstance(value, tuple | list):
        return _Shape(type(value), tuple(_frozen_value(item, arrays) for item in value))
    if isinstance(value, dict):
        return _Shape(type(value), tuple(_frozen_value(pair, arrays) for pair in value.items()))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _freeze(value, arrays)
    return _Value(value)


@dataclasses.dataclass(frozen=True)
class _Hole:
    index: int


@dataclasses.dataclass(frozen=True)
class _Shape:
    kind: type
    items: tuple[Any, ...]
    names: tuple[str, ...] = ()  # of the items; those of a collection have none
    of_class: tuple[Any, ...] = ()  # what the class itself says, where it may be changed


class _Value:
    """What a rule says without an array: told from others as rules are."""

    __slots__ = ("_identity", "value")

    def __init__(self, value: Any) -> None:
        self.value = value
        self._identity: Any = None

    @property
    def told(self) -> Any:
        """What it is, found out when it is first asked for: torch's compiler never asks."""
        if self._identity is None:
            self._identity = (identity(self.value),)
        return self._identity

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Value) and self.told == other.told

    def __hash__(self) -> int:
        return hash(self.told)


def part(template: Any, name: str) -> Any:
    """Return the template of an attribute."""
    return template.items[template.names.index(name)]


def holes(template: Any) -> list[int]:
    """Return the numbers of the arrays of a template, in their order."""
    if isinstance(template, _Hole):
        return [template.index]
    return [i for item in template.items for i in holes(item)] if isinstance(template, _Shape) else []


def contains(template: Any, kind: type) -> bool:
    """Whether anything in a template, but for what rules hold, is of a class."""
    items = template.items if isinstance(template, _Shape) else ()
    return isinstance(template, kind) or any(contains(item, kind) for item in items)


def thaw(template: Any, arrays: list[Array]) -> Any:
    """Fill the holes; nothing is checked a second time."""
    if isinstance(template, _Hole):
        return arrays[template.index]
    if not isinstance(template, _Shape):
        return template.value if isinstance(template, _Value) else template
    items = [thaw(item, arrays) for item in template.items]
    if issubclass(template.kind, tuple):
        return template.kind(items) if template.kind is tuple else template.kind._make(items)  # type: ignore[attr-defined]
    if issubclass(template.kind, list | dict):
        return template.kind(items)
    thing: Any = object.__new__(template.kind)
    for name, item in zip(template.names, items, strict=True):
        object.__setattr__(thing, name, item)
    return thing
