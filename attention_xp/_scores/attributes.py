"""Values that are defined by their attributes: how these are read, and replaced."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

__all__ = ["KEPT", "Attributed", "attributes", "leaves_of", "more_of", "parts_of_kind", "with_parts"]

T = TypeVar("T")

_COLLECTIONS = tuple, list, dict

KEPT = "_kept"  # the attribute for what was computed from the others, such as summaries; it is not part of the value


class Attributed:
    """A value that is defined by its attributes; it is copied and pickled without what was computed from them."""

    _slots: tuple[str, ...] = ()
    _is_ours = True  # whether it is a class of the library, whose answers depend on its attributes alone

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls._slots = tuple(dict.fromkeys(name for kind in reversed(cls.__mro__) for name in _slots_of(kind)))
        cls._is_ours = cls.__module__.startswith("attention_xp.")

    def __getstate__(self) -> Any:
        state = super().__getstate__()  # the attributes; with slots, a pair of these and what the slots hold
        own, *slots = state if isinstance(state, tuple) else (state,)
        own = None if own is None else {name: value for name, value in own.items() if name != KEPT}
        return (own, *slots) if slots else own


def _slots_of(kind: type) -> list[str]:
    """Return the attributes that a class has slots for; private names as Python mangles them."""
    names = vars(kind).get("__slots__", ())
    names = (names,) if isinstance(names, str) else names
    private = f"_{kind.__name__.lstrip('_')}"
    return [
        f"{private}{name}" if name.startswith("__") and not name.endswith("__") else name
        for name in names
        if name not in ("__dict__", "__weakref__")
    ]


def attributes(rule: Attributed) -> dict[str, Any]:
    """Return the attributes of a rule by name, without what was computed from them."""
    given = {name: getattr(rule, name) for name in rule._slots if hasattr(rule, name)}
    given.update(vars(rule))
    given.pop(KEPT, None)
    return given


def leaves_of(rule: Attributed) -> list[tuple[str, Any]]:
    """Return the attributes of a rule by name; in place of tuples, lists and dicts the items in them."""
    found: list[tuple[str, Any]] = []
    for name, value in (attributes(rule) if rule._slots else vars(rule)).items():
        if name == KEPT:
            continue
        if isinstance(value, _COLLECTIONS):
            found += _leaves(name, value)
        else:
            found.append((name, value))
    return found


def more_of(collection: Any) -> dict[str, Any]:
    """Return the attributes of an instance of a subclass of tuple, list or dict, which it has beside its items."""
    if type(collection) in _COLLECTIONS:
        return {}
    more = dict(getattr(collection, "__dict__", ()))
    return more | {"default_factory": collection.default_factory} if isinstance(collection, defaultdict) else more


def parts_of_kind(rule: Attributed, kind: type[T]) -> list[T]:
    """Return the rules of a kind among the attributes of a rule, and in its collections."""
    parts: list[T] = []
    for name, value in (attributes(rule) if rule._slots else vars(rule)).items():
        if isinstance(value, kind):
            parts.append(value)
        elif isinstance(value, _COLLECTIONS) and name != KEPT:
            parts += [leaf for _, leaf in _leaves(name, value) if isinstance(leaf, kind)]
    return parts


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, tuple | list):
        for i, item in enumerate(value):
            yield from _leaves(f"{name}[{i}]", item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(f"{name}[{key!r}]", item)
    else:
        yield name, value


def with_parts(rule: Any, change: Callable[[Any], Any]) -> Any:
    """Return a rule in which the rules that it is made of are changed by a function."""
    new: Any = object.__new__(type(rule))
    for name, value in attributes(rule).items():
        object.__setattr__(new, name, _with_changed(value, change))
    return new


def _with_changed(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, Attributed):
        return change(value)
    if type(value) in (tuple, list):
        return type(value)(_with_changed(item, change) for item in value)
    if type(value) is dict:
        return {name: _with_changed(item, change) for name, item in value.items()}
    return value
