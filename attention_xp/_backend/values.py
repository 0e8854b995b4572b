"""Reading the values of arrays in Python, where that neither waits for a device nor breaks a trace."""

import math
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

from attention_xp._backend.dtypes import as_dtype, dtype_name
from attention_xp._backend.libraries import (
    is_cupy_namespace,
    is_jax_namespace,
    is_numpy_namespace,
    is_tensor,
    is_torch_namespace,
)
from attention_xp._backend.modes import is_compiling, is_recorded, is_traced
from attention_xp._backend.sharding import explicit_axes, spread_like
from attention_xp._typing import Array, Namespace

__all__ = [
    "FAR",
    "all_above",
    "as_int32",
    "by_value",
    "flags_by_value",
    "host_view",
    "known_integers",
    "on_host",
    "shows_nan",
    "values_on_host",
    "within",
]

FAR = 2**30  # no two positions are further apart; int32 sums of it and a position do not overflow


def on_host(xp: Namespace, array: Array) -> bool:
    """Whether `array` is one of NumPy, in a call with NumPy's namespace, so that its values can be read."""
    return is_numpy_namespace(xp) and type(array).__module__ == "numpy"


def host_view(array: Array) -> Array | None:
    """Return an array as a view of NumPy; ``None`` where it is not in host memory, or a wrapper of a transformation."""
    if type(array).__module__ == "numpy":
        return array
    if not is_tensor(array) or is_traced():
        return None
    torch = sys.modules["torch"]
    is_plain = type(array) is torch.Tensor and array.device.type == "cpu" and array.layout == torch.strided
    return array.detach().numpy() if is_plain and dtype_name(array.dtype) != "bfloat16" else None


def values_on_host(xp: Namespace, integers: Array) -> list[int] | None:
    """Return the values of a small integer array, or ``None`` in a trace.

    On a GPU this waits for them. For JAX it is always ``None``: what depends on values would be compiled anew for each.
    """
    if is_jax_namespace(xp) or is_compiling(xp):
        return None
    try:
        return [int(i) for i in integers]
    except RuntimeError:  # a mapped tensor
        return None


def known_integers(xp: Namespace, integers: Array) -> list[int] | None:
    """Return the values of a small integer array that lie in host memory, also those of JAX; ``None`` in a trace.

    They may decide whether to refuse a call, and on JAX nothing else.
    """
    if is_traced():
        return None
    if is_numpy_namespace(xp):  # asked first: it has the least to do beside
        return integers.tolist()  # type: ignore[no-any-return]
    if is_jax_namespace(xp):
        jax: Any = sys.modules["jax"]
        if isinstance(integers, jax.core.Tracer) or not integers.is_fully_addressable:
            return None
        places = integers.devices()
        return integers.tolist() if all(place.platform == "cpu" for place in places) else None
    if is_torch_namespace(xp):
        return integers.tolist() if integers.device.type == "cpu" and not is_recorded() else None
    if is_cupy_namespace(xp):
        return None
    return integers.tolist() if hasattr(integers, "tolist") else [int(i) for i in integers]


def within(xp: Namespace, numbers: Array, low: int, high: int) -> Array:
    """Return numbers clipped to two bounds, which may be symbolic sizes.

    ``clip`` checks whether its bounds are NaN, which fails for such a size.
    """
    numbers = xp.where(numbers < low, low, numbers)
    return xp.where(numbers > high, high, numbers)


def as_int32(xp: Namespace, integers: Array) -> Array:
    """Return integers as int32; those of wider types beyond all positions, such as "no limit", become ``FAR`` or ``-FAR``."""
    wide = dtype_name(integers.dtype)
    if wide == "uint64":
        integers = as_dtype(xp, integers, xp.int64)
        integers = xp.where(integers < 0, FAR, integers)
    if wide in ("int64", "uint64"):
        integers = within(xp, integers, -FAR, FAR)
    narrow = as_dtype(xp, integers, xp.int32)
    return xp.where(narrow < 0, FAR, narrow) if wide == "uint32" else narrow


def all_above(xp: Namespace, array: Array, bound: float) -> bool:
    """Whether all numbers of an array are known to be above a bound, and none is NaN; False where they are not on the host."""
    if is_traced():  # `torch.jit` would make the answer a constant
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

    Values are looked at for NumPy, and for torch on the CPU. Elsewhere that would stall a GPU or break a graph, so that
    `careful` is always called; also on JAX, whose `cond` cannot be differentiated and mapped together.
    """
    return (quick if _known_on_host(xp, quick_is_right, operands[0]) else careful)(*operands)


def flags_by_value(
    xp: Namespace,
    none_is_right: Callable[..., Array],
    flags: Callable[..., tuple[Array, ...]],
    *operands: Array,
) -> tuple[Array, ...]:
    """Return boolean arrays ``flags(*operands)``, where JAX computes nothing if a condition on these says that all are False.

    Booleans have no derivative, and so a `cond` may choose them. JAX compiles it once for a function of a module. The last
    two axes belong to each other, and devices look at the condition for their part of the others.
    """
    # Over explicit axes, the branches of a `cond` would differ in sharding.
    if not is_jax_namespace(xp) or any(map(explicit_axes, operands)):
        return flags(*operands)
    jax: Any = sys.modules["jax"]
    operands = tuple(map(jax.lax.stop_gradient, operands))

    def chosen(*operands: Array) -> tuple[Array, ...]:
        return jax.lax.cond(none_is_right(*operands), _none_of(flags), flags, *operands)  # type: ignore[no-any-return]

    from attention_xp._backend.shared_out import by_lead  # noqa: PLC0415  # JAX is there

    return by_lead(chosen, operands)  # type: ignore[no-any-return]


@cache
def _none_of(flags: Callable[..., tuple[Array, ...]]) -> Callable[..., tuple[Array, ...]]:
    """Return a function with the same results as `flags`, all of them False."""
    jax: Any = sys.modules["jax"]

    def none(*operands: Array) -> tuple[Array, ...]:
        kinds = jax.eval_shape(flags, *operands)
        return spread_like(tuple(jax.numpy.zeros(kind.shape, bool) for kind in kinds), operands)  # type: ignore[no-any-return]

    return none


def shows_nan(xp: Namespace, array: Array) -> bool:
    """Whether an array is known to hold a NaN, or infinities of both signs: one pass, by its sum."""
    return _known_on_host(xp, lambda: math.isnan(array.sum().item()), array)


def _known_on_host(xp: Namespace, condition: Callable[[], Array], operand: Array) -> bool:
    """Whether a condition holds; False where its value is not on the host."""
    if is_numpy_namespace(xp):
        return bool(condition())
    if not is_torch_namespace(xp) or operand.device.type != "cpu" or is_compiling(xp):
        return False
    try:
        return bool(condition())
    except RuntimeError:  # a mapped or a fake tensor has no value to read
        return False
