"""What adapters share at their border: errors that name arguments as the caller wrote them, and kinds of arguments."""

import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import wraps
from operator import index
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from attention_xp._backend.libraries import described, is_tensor
from attention_xp._checks.arrays import fits, shapes
from attention_xp._checks.numbers import check_position

__all__ = ["as_flag", "as_index", "check_broadcast", "check_tensors", "converted", "named_as"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


def named_as(theirs: Mapping[str, str]) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Let errors of an adapter name the arguments of the original, which `theirs` tells of each of our names.

    The functions that an adapter calls raise errors in their own terms. Texts that are not ours, of a library or of a
    function of the caller's, stay as they are; so do all while torch compiles, which may not resume inside ``try``.
    """
    words = "|".join(map(re.escape, sorted(theirs, key=len, reverse=True)))
    pattern = re.compile(rf"(?<![\w.\['])(?<!JAX )({words})(?!\w)")

    def decorate(adapter: Callable[_P, _R]) -> Callable[_P, _R]:
        @wraps(adapter)
        def translating(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            torch = sys.modules.get("torch")
            if torch is not None and torch.compiler.is_compiling():
                return adapter(*args, **kwargs)
            try:
                return adapter(*args, **kwargs)
            except (TypeError, ValueError, NotImplementedError) as error:
                if _raised_here(error.__traceback__):
                    error.args = (pattern.sub(lambda found: theirs[found[0]], str(error)),)
                raise

        return translating

    return decorate


def _raised_here(traceback: TracebackType | None) -> bool:
    """Whether the function that raised is one of this package."""
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is not None and str(traceback.tb_frame.f_globals.get("__name__")).startswith("attention_xp.")


def converted(convert: Callable[[Any], Any], **given: Any) -> tuple[Any, ...]:
    """Return the arrays that a framework makes of arguments, none of which may be complex."""
    found = []
    for name, a in given.items():
        if a is None:
            raise TypeError(f"{name} must be an array, got None")
        try:
            array = convert(a)
            if "complex" in str(getattr(array, "dtype", "")):
                raise TypeError("complex numbers are not computed with")
            found.append(array)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{name} must be an array, got {described(name, a)}: {error}") from None
    return tuple(found)


def check_tensors(**given: Any) -> None:
    """Refuse what is no tensor of torch."""
    for name, a in given.items():
        if not is_tensor(a):
            raise TypeError(f"{name} must be a tensor, got {type(a).__name__}")


def check_broadcast(letters: str, sizes: tuple[int, ...], **given: Any) -> None:
    """Refuse arrays that do not broadcast to the scores, ``None`` aside, in the letters of the original."""
    for name, a in given.items():
        if a is not None and not fits(tuple(a.shape), sizes):
            raise ValueError(
                f"{name} does not broadcast to the scores: expected {name} {letters} = {sizes}, {shapes(**{name: a})}"
            )


def as_index(name: str, given: Any) -> int:
    """Return a position, which an array without axes may hold."""
    try:
        position = index(given)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {described(name, given)}") from None
    return check_position(name, position)


def as_flag(name: str, given: Any) -> bool:
    """Return a flag of an original that asks for its truth alone: a bool, an int, None, or an array of one."""
    if given is None or isinstance(given, int) or hasattr(given, "dtype"):
        with suppress(TypeError, ValueError, RuntimeError):
            return bool(given)
    raise TypeError(f"{name} must be a bool, got {described(name, given)}")
