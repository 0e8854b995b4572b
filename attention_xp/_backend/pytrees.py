"""Classes as pytrees of JAX, whether JAX is imported before them, after them or never."""

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
    """Register a class with JAX as soon as JAX is imported; if it is already, `tell` does so."""
    _WAITING[kind] = split, join
    if "jax" not in sys.modules and _Arrival not in sys.meta_path:
        sys.meta_path.insert(0, _Arrival)


def tell(kind: type) -> None:
    """Register a class with JAX, if that is imported, before the first instance; until then users may register it."""
    if kind in _WAITING and "jax" in sys.modules and not _is_compiled_by_torch():
        from jax.tree_util import register_pytree_node  # noqa: PLC0415  # imported already

        split, join = _WAITING.pop(kind)
        with suppress(ValueError):  # JAX knows it already
            register_pytree_node(kind, split, join)


def _is_compiled_by_torch() -> bool:
    """Whether torch compiles what calls this: it cannot trace a registration, and the next instance will do."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.compiler.is_compiling())


class _Arrival:
    """A finder that notices the import of JAX; it finds no module itself."""

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return JAX's spec from the other finders, with a loader that registers the waiting classes."""
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
