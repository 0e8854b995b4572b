"""torch's autocast, which narrows products to 16 bits: whether it is active, and how it is switched off."""

import dataclasses
import sys
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Any

from attention_xp._backend.libraries import is_torch_namespace
from attention_xp._backend.modes import is_compiling
from attention_xp._typing import Array, Namespace

__all__ = ["NOTHING", "may_differ", "narrows", "outside_autocast", "sheltered", "unnarrowed"]

_SHELTERED: ContextVar[bool] = ContextVar("sheltered", default=False)  # whether one of our contexts has switched it off
NOTHING: AbstractContextManager[Any] = nullcontext()


def outside_autocast(xp: Namespace, array: Array) -> AbstractContextManager[Any]:
    """Return a context in which torch narrows no product by itself."""
    if is_torch_namespace(xp) and narrows(array):
        return sys.modules["torch"].autocast(array.device.type, enabled=False)  # type: ignore[no-any-return]
    return NOTHING


def narrows(array: Array) -> bool:
    """Whether torch narrows products of a tensor."""
    kind = array.device.type
    return kind != "meta" and bool(sys.modules["torch"].is_autocast_enabled(kind))


def may_differ(xp: Namespace, a: Array, b: Array) -> bool:
    """Whether dtypes of two arrays may differ: under autocast, which makes one dtype of all but float64."""
    if not is_torch_namespace(xp) or not narrows(a):
        return False
    return bool(max(a.dtype.itemsize, b.dtype.itemsize) <= 4)


def sheltered(problem: Any) -> tuple[Any, AbstractContextManager[Any]]:
    """Return a context without autocast, and the problem with the namespace for it.

    ``backward()`` may be called under autocast as well, and would narrow the products of the gradients.
    """
    xp, context = unnarrowed(problem.xp, problem.query)
    return problem if xp is problem.xp else dataclasses.replace(problem, xp=xp), context


def unnarrowed(xp: Namespace, array: Array) -> tuple[Namespace, AbstractContextManager[Any]]:
    """Return a context in which torch narrows no product, and the namespace for it."""
    if not is_torch_namespace(xp):
        return xp, NOTHING
    if is_compiling(xp):
        return xp, outside_autocast(xp, array)
    if not narrows(array) and not _SHELTERED.get():
        return xp, NOTHING
    from attention_xp._backend.unnarrowed import NAMESPACE  # noqa: PLC0415  # imports torch

    return NAMESPACE, _Shelter(array.device.type)


class _Shelter:
    """A context without autocast, inside which it is known that there is autocast around it."""

    def __init__(self, kind: str) -> None:
        self._inner = sys.modules["torch"].autocast(kind, enabled=False)

    def __enter__(self) -> None:
        self._inner.__enter__()
        self._token = _SHELTERED.set(True)

    def __exit__(self, *error: object) -> None:
        _SHELTERED.reset(self._token)
        self._inner.__exit__(*error)
