"""Split nested tuples and dataclasses into arrays and a hashable rest.

JAX caches by the rest, and the arrays can be exchanged for those of another library.
"""

import dataclasses
from typing import Any

from attention_xp._backend.libraries import is_array
from attention_xp._typing import Array
from attention_xp.biases import Bias

__all__ = ["contains", "freeze", "holes", "part", "thaw"]


def freeze(thing: Any) -> tuple[Any, list[Array]]:
    """Return a hashable template with a hole for each array, and the arrays."""
    arrays: list[Array] = []
    return _freeze(thing, arrays), arrays


def _freeze(thing: Any, arrays: list[Array]) -> Any:
    if is_array(thing):
        arrays.append(thing)
        return _Hole(len(arrays) - 1)
    if isinstance(thing, tuple):
        return _Shape(tuple, tuple(_freeze(item, arrays) for item in thing))
    if isinstance(thing, Bias):  # all its arrays are attributes, also those of a class that is not ours
        return _frozen(thing, tuple(vars(thing)), arrays)
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        return _frozen(thing, tuple(field.name for field in dataclasses.fields(thing)), arrays)
    return thing


def _frozen(thing: Any, names: tuple[str, ...], arrays: list[Array]) -> "_Shape":
    return _Shape(type(thing), tuple(_freeze(getattr(thing, name), arrays) for name in names), names)


@dataclasses.dataclass(frozen=True)
class _Hole:
    index: int


@dataclasses.dataclass(frozen=True)
class _Shape:
    kind: type
    items: tuple[Any, ...]
    names: tuple[str, ...] = ()  # of the items; those of a tuple have none


def part(template: Any, name: str) -> Any:
    """Return the template of an attribute."""
    return template.items[template.names.index(name)]


def holes(template: Any) -> list[int]:
    """Return the numbers of the arrays of a template, in their order."""
    if isinstance(template, _Hole):
        return [template.index]
    return [i for item in template.items for i in holes(item)] if isinstance(template, _Shape) else []


def contains(template: Any, kind: type) -> bool:
    """Whether anything in a template is of a class."""
    items = template.items if isinstance(template, _Shape) else ()
    return isinstance(template, kind) or any(contains(item, kind) for item in items)


def thaw(template: Any, arrays: list[Array]) -> Any:
    """Fill the holes; nothing is checked a second time."""
    if isinstance(template, _Hole):
        return arrays[template.index]
    if not isinstance(template, _Shape):
        return template
    items = [thaw(item, arrays) for item in template.items]
    if template.kind is tuple:
        return tuple(items)
    thing: Any = object.__new__(template.kind)
    for name, item in zip(template.names, items, strict=True):
        object.__setattr__(thing, name, item)
    return thing
