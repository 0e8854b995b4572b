"""What goes into NumPy's functions and what comes out, by the rules of CuPy."""

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["SCALARS", "computed", "host", "operand", "renamed", "signature_of", "wrapped"]

SCALARS = (bool, int, float, complex, np.generic)


def array_type() -> type:
    """Return the class of the double's arrays."""
    from tests._cupy_double._array import ndarray  # noqa: PLC0415  # which is made with this module

    return ndarray


def operand(x: Any) -> Any:
    """Return what NumPy computes with for an operand: an array of the double, or a number."""
    if isinstance(x, array_type()):
        return x._host
    if isinstance(x, SCALARS):
        return x
    raise TypeError(f"Unsupported type {type(x)}")


def host(x: Any) -> Any:
    """Return an argument as NumPy takes it, arrays of the double in lists included; no array of another library."""
    if isinstance(x, array_type()):
        return x._host
    if isinstance(x, tuple | list):
        return type(x)(map(host, x)) if type(x) in (tuple, list) else x
    if isinstance(x, slice):
        return slice(*map(host, (x.start, x.stop, x.step)))
    if isinstance(x, np.ndarray) or (hasattr(x, "__dlpack__") and not isinstance(x, np.generic)):
        raise TypeError(f"Unsupported type {type(x)}")
    return x


def wrapped(x: Any) -> Any:
    """Return a result as CuPy does: with no axis it is an array all the same."""
    if isinstance(x, np.ndarray | np.generic):
        return array_type()._of(np.asarray(x))
    if isinstance(x, tuple | list):
        parts = list(map(wrapped, x))
        return type(x)(*parts) if hasattr(x, "_fields") else type(x)(parts)
    return x


def computed(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function of NumPy: silently, for a GPU warns of no number."""
    out = kwargs.get("out")
    with np.errstate(all="ignore"):
        found = wrapped(function(*map(host, args), **{name: host(x) for name, x in kwargs.items()}))
    return found if out is None else out


def signature_of(function: Any) -> inspect.Signature | None:
    """Return the signature of something in the wheel; of compiled functions it stands in the documentation alone."""
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        text = re.match(r"[\w.]+\((.*?)\)(?: ->.*)?$", (function.__doc__ or "").partition("\n")[0])
        if text is None:
            return None
        return inspect.Signature(list(_parameters(text[1].split(", "))))


def _parameters(words: list[str]) -> Any:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    for word in words:
        name, is_optional, _ = word.partition("=")
        name = name.split()[-1]
        if name == "*":
            kind = inspect.Parameter.KEYWORD_ONLY
        elif name.startswith("*"):
            yield inspect.Parameter(name.lstrip("*"), inspect.Parameter.VAR_POSITIONAL)
            kind = inspect.Parameter.KEYWORD_ONLY
        else:
            yield inspect.Parameter(name, kind, default=None if is_optional else inspect.Parameter.empty)


def renamed(function: Callable[..., Any], real: Any, signature: inspect.Signature) -> Callable[..., Any]:
    """Give a function the name, the module and the signature of the real one."""
    functools.update_wrapper(function, real, assigned=("__name__", "__doc__"), updated=())
    function.__signature__ = signature  # type: ignore[attr-defined]
    function.__module__ = "cupy"
    function.__dict__.pop("__wrapped__", None)
    return function
