"""The base of the powers that the softmax is made of: any number does, and libraries differ in which they raise fast."""

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from attention_xp._backend.libraries import is_numpy_namespace
from attention_xp._typing import Array, Namespace

__all__ = ["Base", "base_of"]


class Base(NamedTuple):
    """A base, with its powers and its logarithms."""

    power: Callable[..., Array]
    log: Callable[..., Array]
    log_e: float  # the factor from natural scores to those in this base
    log_2: float  # the difference of scores of which one weighs twice the other


def base_of(xp: Namespace) -> Base:
    """Return the base in which a library computes: 2, unless that is the slower one or the library lacks it."""
    exp2 = getattr(xp, "exp2", None)  # not in the standard, but everywhere except in its strict reading
    if exp2 is None or (is_numpy_namespace(xp) and not _has_vector_exp2()):
        return Base(xp.exp, xp.log, 1.0, _LOG_2)
    return Base(exp2, xp.log2, _LOG2_E, 1.0)


_LOG_2, _LOG2_E = math.log(2.0), math.log2(math.e)


@cache
def _has_vector_exp2() -> bool:
    """Whether NumPy raises 2 by vector instructions: on Linux with AVX-512; e it raises by older ones as well."""
    from numpy.lib.introspect import opt_func_info  # noqa: PLC0415  # NumPy alone is asked

    loops = opt_func_info(func_name="^exp2$", signature="float32").get("exp2", {})
    return any("baseline" not in loop["current"] for loop in loops.values())
