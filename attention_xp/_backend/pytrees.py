"""Classes as pytrees of JAX, whether it is imported before them, after them or never."""

import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

__all__ = ["register", "tell"]

_Pair = tuple[Callable[[Any], tuple[Any, Any]], Callable[[Any, Any], Any]]

_WAITING: WeakKeyDictionary[type, _Pair] = WeakKeyDictionary()


def register(kind: type, split: Callable[[Any], tuple[Any, Any]], join: Callable[[Any, Any], Any]) -> None:
    """Tell JAX how a class is split into arrays and a rest, and joined: when it is imported, or see `tell` if it is."""
    _WAITING[kind] = split, join
    if "jax" not in sys.modules and _Arrival not in sys.meta_path:
        sys.meta_path.insert(0, _Arrival)


def tell(kind: type) -> None:
    """Tell JAX of a class, if it is there, before the first instance: until then users may do so in their own way."""
    if kind in _WAITING and "jax" in sys.modules:
        from jax.tree_util import register_pytree_node  # noqa: PLC0415  # imported already

        split, join = _WAITING.pop(kind)
        with suppress(ValueError):  # JAX knows it already
            register_pytree_node(kind, split, join)


class _Arrival:
    """Sees JAX being imported by others, and finds nothing itself."""

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return what the other finders say of JAX, with a loader that tells when it is there."""
        if name != "jax":
            return None
        others = (finder for finder in sys.meta_path if finder is not cls)
        found = (finder.find_spec(name, path, target) for finder in others if hasattr(finder, "find_spec"))
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            cls._follow(spec.loader)
        return spec

    @classmethod
    def _follow(cls, loader: Any) -> None:
        load = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            if cls in sys.meta_path:
                sys.meta_path.remove(cls)
            for kind in list(_WAITING):
                tell(kind)

        loader.exec_module = exec_module
