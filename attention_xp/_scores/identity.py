"""The identity of a rule, by which plans and programs are kept: the names, types and values of its attributes.

The equality of Python does not do: ``1``, ``True`` and ``1.0`` are equal, and classes of the user may define it as they
like.
"""

from collections.abc import Iterator
from typing import Any

from attention_xp._scores.attributes import KEPT, Attributed, attributes, more_of

__all__ = ["Same", "identity", "is_hashable", "of_class"]


def identity(thing: Any) -> Any:
    """Return a hashable value that is equal for equal things only.

    Numbers, text, collections and rules are compared by type and value; arrays, and objects that are not hashable, are
    equal to themselves alone; other objects are compared by type and by their own equality.
    """
    kind = type(thing)
    if thing is None or kind is int or kind is str:
        return thing
    if kind is bool:
        return kind, thing
    if kind is float:
        return kind, thing.hex()  # 0.0 and -0.0 differ, and NaN equals itself
    if isinstance(thing, Attributed):
        return _of_rule(thing)
    if isinstance(thing, tuple | list):
        return kind, *map(identity, thing), *_more(thing, kind)
    return _of_object(thing, kind)


def _more(collection: Any, kind: type) -> Iterator[Any]:
    """Yield the identities of the attributes of an instance of a subclass of a collection."""
    yield from () if kind in (tuple, list, dict) else map(identity, more_of(collection).items())


def _of_rule(rule: Attributed) -> tuple[Any, ...]:
    kind = type(rule)
    given = attributes(rule) if rule._slots else vars(rule)
    parts: list[Any] = [kind]
    for name in sorted(given) if len(given) > 1 else given:
        if name != KEPT:
            parts += name, identity(given[name])
    return tuple(parts) if rule._is_ours else (*parts, *of_class(kind))


def of_class(kind: type[Attributed]) -> Iterator[Any]:
    """Yield the attributes of a class of the user and its bases, which may be changed; those of our classes never are."""
    for base in () if kind._is_ours else kind.__mro__:
        if not getattr(base, "_is_ours", base is object):
            yield from (
                (name, _held_by_class(value)) for name, value in vars(base).items() if not name.startswith("__")
            )


def _held_by_class(value: Any) -> Any:
    """Return the identity of an attribute of a class; a rule is compared as an object, for it may refer to the class."""
    if isinstance(value, Attributed):
        return Same(value)
    if isinstance(value, tuple | list):
        return type(value), *map(_held_by_class, value)
    if isinstance(value, dict):
        return dict, *((identity(name), _held_by_class(item)) for name, item in value.items())
    return identity(value)


def _of_object(thing: Any, kind: type) -> Any:
    if hasattr(thing, "shape"):
        return Same(thing)
    if isinstance(thing, dict):
        return kind, *((identity(name), identity(value)) for name, value in thing.items()), *_more(thing, kind)
    if isinstance(thing, set | frozenset):
        return kind, frozenset(map(identity, thing))
    if isinstance(thing, complex):
        return kind, identity(thing.real), identity(thing.imag)
    if hasattr(kind, "__dataclass_fields__"):
        names = (name for name in kind.__dataclass_fields__ if hasattr(thing, name))
        return kind, *((name, identity(getattr(thing, name))) for name in names)
    return (kind, thing) if is_hashable(thing) else Same(thing)


def is_hashable(thing: Any) -> bool:
    """Whether something can be a key of a dict."""
    try:
        hash(thing)
    except TypeError:
        return False
    return True


class Same:
    """Stands for an object that is equal to itself alone."""

    __slots__ = ("thing",)

    def __init__(self, thing: Any) -> None:
        self.thing = thing  # held, so that no other object takes its place in memory

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.thing is other.thing

    def __hash__(self) -> int:
        return id(self.thing)
