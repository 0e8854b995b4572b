"""The base of the softmax, 2 or e: the result is the same, and libraries differ in which powers are fast."""

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from attention_xp._backend.libraries import is_numpy_namespace
from attention_xp._typing import Array, DType, Namespace

__all__ = ["LOG2_E", "Base", "base_of", "has_vector_powers", "lowest_score"]


class Base(NamedTuple):
    """A base, with its powers, and logarithms to it."""

    power: Callable[..., Array]
    log_e: float  # the factor from natural scores to those in this base
    log_2: float  # the logarithm of 2: a score that is larger by so much has twice the weight


def base_of(xp: Namespace) -> Base:
    """Return the base for a library: 2, unless e is faster or the library has no `exp2`."""
    exp2 = getattr(xp, "exp2", None)  # not in the standard, but everywhere except in its strict reading
    if exp2 is None or (is_numpy_namespace(xp) and not _is_vectorised("exp2", "float32")):
        return Base(xp.exp, 1.0, _LOG_2)
    return Base(exp2, LOG2_E, 1.0)


_LOG_2, LOG2_E = math.log(2.0), math.log2(math.e)


def lowest_score(xp: Namespace, dtype: DType) -> float:
    """Return the lowest score that stays far from overflow when it is multiplied by log2(e).

    Masks write ``finfo.min`` for minus infinity. Where the base is 2, such scores, and a log-sum-exp made of them alone, are
    clipped to this value, forward and backward alike: the power of their difference would be infinite otherwise. It is a
    power of two, so that multiplying by the factor and dividing by it gives it back.
    """
    return -math.ldexp(1.0, math.frexp(float(xp.finfo(dtype).max))[1] - 4)


def has_vector_powers(dtype: DType) -> bool:
    """Whether NumPy computes the powers of a base in vector registers, in a dtype."""
    return _is_vectorised("exp2", str(dtype)) or _is_vectorised("exp", str(dtype))


@cache
def _is_vectorised(function: str, dtype: str) -> bool:
    """Whether a function of NumPy has vector instructions here: `exp2` has on Linux with AVX-512, `exp` with AVX2 as well."""
    from numpy.lib.introspect import opt_func_info  # noqa: PLC0415  # NumPy alone is asked

    loops = opt_func_info(func_name=f"^{function}$", signature=dtype).get(function, {})
    return any("baseline" not in loop["current"] for loop in loops.values())
