"""Values of arrays, for Python to read where that costs and breaks nothing."""

import math
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

from attention_xp._backend.dtypes import dtype_name
from attention_xp._backend.libraries import is_jax_namespace, is_numpy_namespace, is_tensor, is_torch_namespace
from attention_xp._backend.modes import is_compiling, is_traced
from attention_xp._backend.sharding import explicit_axes, spread_like
from attention_xp._typing import Array, Namespace

__all__ = [
    "FAR",
    "all_above",
    "as_int32",
    "by_value",
    "flags_by_value",
    "host_view",
    "on_host",
    "shows_nan",
    "values_on_host",
    "within",
]

FAR = 2**30  # no two positions are further apart; int32 sums of it and a position do not overflow


def on_host(xp: Namespace, array: Array) -> bool:
    """Whether the values of `array` can be read at once, by a caller who computes with NumPy."""
    return is_numpy_namespace(xp) and type(array).__module__ == "numpy"


def host_view(array: Array) -> Array | None:
    """Return an array as NumPy sees it in the memory of this process; ``None`` where it lies elsewhere or stands for others."""
    if type(array).__module__ == "numpy":
        return array
    if not is_tensor(array) or is_traced():
        return None
    torch = sys.modules["torch"]
    is_plain = type(array) is torch.Tensor and array.device.type == "cpu" and array.layout == torch.strided
    return array.detach().numpy() if is_plain and dtype_name(array.dtype) != "bfloat16" else None


def values_on_host(xp: Namespace, integers: Array) -> list[int] | None:
    """Return the values of a small integer array, or ``None`` where a trace hides them.

    On a GPU this waits for them. JAX always says ``None``: what depends on values would be compiled
    anew for each.
    """
    if is_jax_namespace(xp) or is_compiling(xp):
        return None
    try:
        return [int(i) for i in integers]
    except RuntimeError:  # a mapped tensor
        return None


def within(xp: Namespace, numbers: Array, low: int, high: int) -> Array:
    """Return numbers not below and not above two bounds, which may be sizes that a trace does not know.

    ``clip`` asks its bounds whether they are NaN, which such a size cannot tell.
    """
    numbers = xp.where(numbers < low, low, numbers)
    return xp.where(numbers > high, high, numbers)


def as_int32(xp: Namespace, integers: Array) -> Array:
    """Return integers as int32; what is too large for a position, as "no limit" is often written, stays too large."""
    wide = dtype_name(integers.dtype)
    if wide == "int64":
        integers = within(xp, integers, -FAR, FAR)
    narrow = xp.astype(integers, xp.int32, copy=False)
    return xp.where(narrow < 0, FAR, narrow) if wide == "uint32" else narrow


def all_above(xp: Namespace, array: Array, bound: float) -> bool:
    """Whether it can be seen at once that all numbers of an array are above a bound, and none is NaN."""
    if is_traced():  # `torch.jit` would write the answer down
        return False
    return 0 in array.shape or _known_on_host(xp, lambda: xp.min(array) > bound, array)


def by_value(
    xp: Namespace,
    quick_is_right: Callable[[], Array],
    quick: Callable[..., Any],
    careful: Callable[..., Any],
    *operands: Array,
) -> Any:
    """Return ``quick(*operands)`` where the values allow it, else ``careful(*operands)``.

    This is the one place where array values steer the work: a host `if` on NumPy and on torch's CPU.
    Elsewhere asking would stall a GPU or break a graph, so the careful way is always taken; also on
    JAX, whose `cond` cannot be differentiated and mapped at once.
    """
    return (quick if _known_on_host(xp, quick_is_right, operands[0]) else careful)(*operands)


def flags_by_value(
    xp: Namespace, none_is_right: Callable[[], Array], flags: Callable[..., tuple[Array, ...]], *operands: Array
) -> tuple[Array, ...]:
    """Return boolean arrays ``flags(*operands)``, where JAX computes nothing if a condition says that all are False.

    Booleans have no derivative, and so a `cond` may choose them. JAX compiles it once for a function of a module.
    """
    if not is_jax_namespace(xp) or any(map(explicit_axes, operands)):  # a `cond` takes no two ways of sharing out
        return flags(*operands)
    jax: Any = sys.modules["jax"]
    operands = tuple(map(jax.lax.stop_gradient, operands))
    return jax.lax.cond(none_is_right(), _none_of(flags), flags, *operands)  # type: ignore[no-any-return]


@cache
def _none_of(flags: Callable[..., tuple[Array, ...]]) -> Callable[..., tuple[Array, ...]]:
    """Return the function that gives False for all that `flags` gives."""
    jax: Any = sys.modules["jax"]

    def none(*operands: Array) -> tuple[Array, ...]:
        kinds = jax.eval_shape(flags, *operands)
        return spread_like(tuple(jax.numpy.zeros(kind.shape, bool) for kind in kinds), operands)  # type: ignore[no-any-return]

    return none


def shows_nan(xp: Namespace, array: Array) -> bool:
    """Whether a NaN, or infinities of both signs, can be seen at once in an array: one pass, nothing kept."""
    return _known_on_host(xp, lambda: math.isnan(array.sum().item()), array)


def _known_on_host(xp: Namespace, condition: Callable[[], Array], operand: Array) -> bool:
    """Whether a condition holds and can be read without a detour."""
    if is_numpy_namespace(xp):
        return bool(condition())
    if not is_torch_namespace(xp) or operand.device.type != "cpu" or is_compiling(xp):
        return False
    try:
        return bool(condition())
    except RuntimeError:  # a mapped or a fake tensor has no value to read
        return False
