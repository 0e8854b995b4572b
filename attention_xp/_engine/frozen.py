"""Split nested tuples and dataclasses into arrays and a hashable rest.

JAX caches by the rest, and the arrays can be exchanged for those of another library.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

from array_api_compat import is_cupy_array, is_jax_array, is_numpy_array, is_torch_array

from attention_xp._typing import Array, DType
from attention_xp.biases import Bias

__all__ = ["freeze", "holes", "part", "thaw"]


_Numbers = Callable[[Any], Array]


def freeze(thing: Any, dtype: DType | None = None) -> tuple[Any, list[Array]]:
    """Return a hashable template with a hole for each array, and the arrays.

    With a dtype, the fields that a class names in `_numbers` are arrays too: floats of that dtype, and ints of int32.
    What JAX has compiled then serves all numbers.
    """
    arrays: list[Array] = []
    return _freeze(thing, arrays, None if dtype is None else partial(_as_array, dtype)), arrays


def _as_array(dtype: DType, number: Any) -> Any:
    """Return a number as an array of no axes, likewise in a tuple; all else remains."""
    if isinstance(number, tuple):
        return tuple(_as_array(dtype, item) for item in number)
    if not isinstance(number, int | float):
        return number
    import numpy as np  # noqa: PLC0415  # JAX has loaded it

    if isinstance(number, float):
        return np.asarray(number, dtype)
    return np.asarray(min(number, 2**31 - 1), np.int32)  # no length is larger


def _freeze(thing: Any, arrays: list[Array], as_array: _Numbers | None) -> Any:
    if any(is_one(thing) for is_one in (is_jax_array, is_numpy_array, is_cupy_array, is_torch_array)):
        arrays.append(thing)
        return _Hole(len(arrays) - 1)
    if isinstance(thing, tuple):
        return _Shape(tuple, tuple(_freeze(item, arrays, as_array) for item in thing))
    if isinstance(thing, Bias):  # all its arrays are attributes, also those of a class that is not ours
        return _frozen(thing, tuple(vars(thing)), arrays, as_array)
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        return _frozen(thing, tuple(field.name for field in dataclasses.fields(thing)), arrays, as_array)
    return thing


def _frozen(thing: Any, names: tuple[str, ...], arrays: list[Array], as_array: _Numbers | None) -> "_Shape":
    values = {name: getattr(thing, name) for name in names}
    if as_array is not None:
        values |= {name: as_array(values[name]) for name in getattr(type(thing), "_numbers", ()) if name in values}
    return _Shape(type(thing), tuple(_freeze(value, arrays, as_array) for value in values.values()), names)


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
