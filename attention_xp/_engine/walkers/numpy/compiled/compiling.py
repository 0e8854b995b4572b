"""How functions are compiled by numba: without the global lock, and kept on the disk."""

import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from numba import njit

from attention_xp._engine.walkers.numpy.compiled.powers import CONTRACTED

__all__ = ["compiled", "inlined"]

_F = TypeVar("_F", bound=Callable[..., Any])


_OPTIONS = {"nogil": True, "error_model": "numpy"}


@cache
def _warn_of_cache() -> None:
    warnings.warn(
        "numba finds no folder that it can write to, so that every process compiles anew; NUMBA_CACHE_DIR names one",
        RuntimeWarning,
        stacklevel=2,
    )


def compiled(*more: str) -> Callable[[_F], _F]:
    """Compile a function on its first call, or read it from the disk, where an earlier process left it."""

    def decorate(function: _F) -> _F:
        options = _OPTIONS | {"fastmath": {*CONTRACTED, *more}}
        try:
            return _kept(njit(cache=True, **options)(function))  # type: ignore[no-any-return]
        except RuntimeError:
            _warn_of_cache()
            return njit(**options)(function)  # type: ignore[no-any-return]

    return decorate


def _kept(function: Any) -> Any:
    """Let what is kept of a function serve as long as no module here changes, for it holds code of others.

    By itself, numba looks at the module of the function alone.
    """
    file = getattr(getattr(function, "_cache", None), "_cache_file", None)  # there is none where compiling is disabled
    if file is not None:
        file._source_stamp = _sources()  # numba has no other way
    return function


@cache
def _sources() -> tuple[Any, ...]:
    """Return what tells one state of the modules here from another."""
    states = ((path.name, path.stat()) for path in Path(__file__).parent.glob("*.py"))
    return tuple(sorted((name, state.st_mtime, state.st_size) for name, state in states))


def inlined(function: _F) -> _F:
    """Compile a function as a part of those that call it: passing a few arrays takes as long as a hundred products."""
    return njit(forceinline=True, fastmath=CONTRACTED, **_OPTIONS)(function)  # type: ignore[no-any-return]
