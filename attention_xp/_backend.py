"""The one door to questions about array libraries: which one, which dtype, which kind."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from array_api_compat import (
    array_namespace,
    device,
    is_jax_array,
    is_jax_namespace,
    is_numpy_namespace,
    is_torch_namespace,
)

from attention_xp._typing import Array, Device, DType, Namespace

__all__ = [
    "NOTHING",
    "by_value",
    "can_differentiate",
    "common_namespace",
    "computation_dtype",
    "constant",
    "creation_namespace",
    "cuda_device",
    "device",
    "dtype_name",
    "floating_dtype",
    "in_forward_mode",
    "is_boolean",
    "is_compiling",
    "is_floating",
    "is_followed",
    "is_integer",
    "is_mapped",
    "is_traced",
    "is_transformed",
    "library_name",
    "named_dtype",
    "on_host",
    "outside_autocast",
    "pullback",
    "same_device",
    "spread_like",
    "spread_over",
    "values_on_host",
    "varying_axes",
    "within",
]

_LIBRARIES = {
    "array_api_compat.numpy": "numpy",
    "array_api_compat.torch": "torch",
    "array_api_compat.cupy": "cupy",
    "array_api_strict": "strict",
    "jax.numpy": "jax",
}
_FLOATING = frozenset({"bfloat16", "float16", "float32", "float64"})


def common_namespace(**arrays: Array) -> Namespace:
    """Return the one namespace of all given arrays."""
    for name, a in arrays.items():  # the standard's own question passes over None and plain numbers
        if not hasattr(a, "dtype"):
            raise TypeError(f"{name} must be an array, got {_kind(a)}")
    first, *others = arrays.values()
    try:
        # Arrays of one type are of one library: each that is asked costs a microsecond.
        xp = array_namespace(first, *[a for a in others if type(a) is not type(first)])
    except TypeError:
        kinds = ", ".join(f"{name} {_kind(a)}" for name, a in arrays.items())
        raise TypeError(f"all arrays must belong to one array library, got {kinds}") from None
    if library_name(xp) == "numpy":
        _reject_numpy_subclasses(arrays)
    return xp


def _kind(a: Any) -> str:
    return type(a).__qualname__ if type(a).__module__ == "builtins" else f"{type(a).__module__}.{type(a).__qualname__}"


def _reject_numpy_subclasses(arrays: dict[str, Array]) -> None:
    # Masked arrays would lose their mask without a word and matrices mean something else by `*`.
    np = sys.modules["numpy"]
    for name, a in arrays.items():
        if type(a) is not np.ndarray and isinstance(a, np.ma.MaskedArray | np.matrix):
            raise TypeError(f"{name} must be a plain array, got numpy {type(a).__name__}")


def creation_namespace(module: Namespace | None) -> Namespace:
    """Return the standard-conforming namespace of a raw module; ``None`` is NumPy."""
    if module is None:
        import array_api_compat.numpy as xp  # noqa: PLC0415  # loads NumPy only when asked

        return xp
    if not hasattr(module, "empty"):
        raise TypeError(
            f"xp must be an array library such as numpy, cupy, torch, jax.numpy or array_api_strict, got {module!r}"
        )
    return array_namespace(module.empty(0))


def library_name(xp: Namespace) -> str:
    """Return the short name of the library behind a namespace."""
    name: str = xp.__name__
    return _LIBRARIES.get(name, name)


def dtype_name(dtype: DType) -> str:
    """Return ``"float32"`` for any library's spelling of that dtype."""
    name = getattr(dtype, "name", None) or getattr(dtype, "__name__", None) or str(dtype)
    return str(name).rpartition(".")[2]


def named_dtype(xp: Namespace, dtype: DType | str | None) -> DType | None:
    """Return the dtype of `xp` that a name such as ``"float32"`` stands for; ``None`` is the default.

    Only floating and boolean dtypes are let through.
    """
    if dtype is None:
        return None
    name = dtype if isinstance(dtype, str) else dtype_name(dtype)
    if name not in _FLOATING | {"bool"} or not hasattr(xp, name):
        known = ", ".join(sorted(n for n in _FLOATING | {"bool"} if hasattr(xp, n)))
        raise ValueError(f"dtype {name!r} cannot be used with {library_name(xp)}: expected one of {known}")
    return getattr(xp, name)


def floating_dtype(xp: Namespace, dtype: DType | str | None) -> DType | None:
    """Like `named_dtype`, for floating dtypes alone."""
    dtype = named_dtype(xp, dtype)
    if dtype is not None and not is_floating(xp, dtype):
        raise ValueError(f"dtype must be floating, got {dtype_name(dtype)}")
    return dtype


def is_floating(xp: Namespace, dtype: DType) -> bool:
    """Whether `dtype` is one that attention is computed for (16, 32 or 64 bits)."""
    # Names, because the standard's `isdtype` does not know 16-bit types and raises on some of them.
    return dtype == xp.float32 or dtype_name(dtype) in _FLOATING


def is_integer(xp: Namespace, dtype: DType) -> bool:
    """Whether `dtype` is a signed or unsigned integer."""
    return bool(dtype_name(dtype).startswith(("int", "uint")) and xp.isdtype(dtype, "integral"))


def is_boolean(xp: Namespace, dtype: DType) -> bool:
    """Whether `dtype` is boolean."""
    return bool(dtype == xp.bool)


def computation_dtype(xp: Namespace, dtype: DType) -> DType:
    """Return float64 for float64, float32 for everything narrower."""
    return xp.float64 if dtype == xp.float64 else xp.float32


def same_device(xp: Namespace, a: Array, b: Array) -> bool:
    """Whether two arrays of `xp` live together; JAX places its arrays itself."""
    return is_numpy_namespace(xp) or is_jax_namespace(xp) or bool(a.device == b.device)


def outside_autocast(xp: Namespace, array: Array) -> AbstractContextManager[Any]:
    """Return a context in which torch narrows no product by itself."""
    if is_torch_namespace(xp):
        torch, kind = sys.modules["torch"], array.device.type
        if torch.is_autocast_enabled(kind):
            return torch.autocast(kind, enabled=False)  # type: ignore[no-any-return]
    return NOTHING


NOTHING: AbstractContextManager[Any] = nullcontext()


def is_compiling(xp: Namespace) -> bool:
    """Whether torch compiles or exports, so that sizes may be none."""
    return is_torch_namespace(xp) and bool(sys.modules["torch"].compiler.is_compiling())


def in_forward_mode() -> bool:
    """Whether torch may be computing tangents, of which there is no public question for a function at large."""
    torch = sys.modules["torch"]
    return not torch.compiler.is_compiling() and bool(torch.autograd.forward_ad._current_level >= 0)


def is_traced() -> bool:
    """Whether torch is compiling, mapping or differentiating: sizes may be none, and a tensor may stand for others."""
    torch = sys.modules.get("torch")
    return torch is not None and (bool(torch.compiler.is_compiling()) or is_transformed())


def is_followed(xp: Namespace, result: Array) -> bool:
    """Whether torch follows what becomes of a result, so that it must not be written into another array."""
    return is_torch_namespace(xp) and (bool(result.requires_grad) or is_traced())


def on_host(xp: Namespace, array: Array) -> bool:
    """Whether the values of `array` can be read at once, by a caller who computes with NumPy."""
    return is_numpy_namespace(xp) and type(array).__module__ == "numpy"


def values_on_host(xp: Namespace, integers: Array) -> list[int] | None:
    """Return the values of a small integer array, or ``None`` where a trace hides them.

    On a GPU this waits for them. JAX always says ``None``: what depends on values would be compiled
    anew for each.
    """
    if is_jax_namespace(xp) or (is_torch_namespace(xp) and sys.modules["torch"].compiler.is_compiling()):
        return None
    try:
        return [int(i) for i in integers]
    except RuntimeError:  # a mapped tensor
        return None


def constant(xp: Namespace, array: Array) -> Array:
    """Return an array that derivatives take for a constant."""
    if is_jax_namespace(xp):
        return sys.modules["jax"].lax.stop_gradient(array)
    return array.detach() if is_torch_namespace(xp) else array


def is_mapped(*arrays: Array) -> bool:
    """Whether one of some arrays of torch or JAX stands for a batch of arrays inside `vmap`."""
    if is_jax_array(arrays[0]):
        return any(type(a).__name__ == "BatchTracer" for a in arrays)  # there is no public question
    torch = sys.modules["torch"]
    functorch = torch._C._functorch  # nor is there here
    if torch.compiler.is_compiling() or functorch.peek_interpreter_stack() is None:
        return False
    return any(map(functorch.is_batchedtensor, arrays))


def cuda_device(array: Array) -> Device | None:
    """Return the CUDA device of an array of JAX, in a trace the default one, ``None`` where there is none."""
    jax = sys.modules["jax"]
    place = device(array)
    place = place if hasattr(place, "platform") else jax.config.jax_default_device or jax.local_devices()[0]
    is_cuda = place.platform == "gpu" and "cuda" in place.client.platform_version
    return place if is_cuda else None


def within(xp: Namespace, numbers: Array, low: int, high: int) -> Array:
    """Return numbers not below and not above two bounds, which may be sizes that a trace does not know.

    ``clip`` asks its bounds whether they are NaN, which such a size cannot tell.
    """
    numbers = xp.where(numbers < low, low, numbers)
    return xp.where(numbers > high, high, numbers)


def spread_like(arrays: Any, like: Any) -> Any:
    """Return arrays of JAX, nested in any way, that differ between devices wherever one of `like` does.

    Inside `jax.shard_map`, a loop may not make something of that kind out of zeros that are the same on all devices.
    """
    return spread_over(arrays, varying_axes(like))


def spread_over(arrays: Any, axes: frozenset[str]) -> Any:
    """Return arrays of JAX that differ between devices along some axes of a mesh."""
    jax: Any = sys.modules["jax"]

    def spread(array: Array) -> Array:
        missing = tuple(sorted(axes - varying_axes(array)))
        return jax.lax.pcast(array, missing, to="varying") if missing else array

    return jax.tree.map(spread, arrays) if axes else arrays


def varying_axes(arrays: Any) -> frozenset[str]:
    """Return the axes of a mesh along which arrays of JAX differ: none, but inside `jax.shard_map`."""
    jax: Any = sys.modules["jax"]
    if not hasattr(jax, "typeof"):
        return frozenset()
    kinds = [jax.typeof(array) for array in jax.tree.leaves(arrays)]
    kinds = [getattr(kind, "manual_axis_type", kind) for kind in kinds]  # since JAX 0.10
    return frozenset().union(*(getattr(kind, "varying", getattr(kind, "vma", frozenset())) for kind in kinds))


def is_transformed() -> bool:
    """Whether one of the transformations of ``torch.func`` is at work."""
    torch = sys.modules["torch"]
    return not torch.compiler.is_compiling() and bool(torch._C._functorch.peek_interpreter_stack() is not None)


def pullback(
    xp: Namespace, function: Callable[..., Array], *arrays: Array
) -> tuple[Array, Callable[[Array], tuple[Array, ...]]] | None:
    """Return ``function(*arrays)`` and its transposed derivative, or ``None`` where the library has no derivatives."""
    if is_torch_namespace(xp):
        return sys.modules["torch"].func.vjp(function, *arrays)  # type: ignore[no-any-return]
    if is_jax_namespace(xp):
        return sys.modules["jax"].vjp(function, *arrays)  # type: ignore[no-any-return]
    return None


def can_differentiate(xp: Namespace) -> bool:
    """Whether the library has derivatives of its own."""
    return bool(is_torch_namespace(xp) or is_jax_namespace(xp))


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


def _known_on_host(xp: Namespace, condition: Callable[[], Array], operand: Array) -> bool:
    """Whether a condition holds and can be read without a detour."""
    if is_numpy_namespace(xp):
        return bool(condition())
    if not is_torch_namespace(xp) or operand.device.type != "cpu" or sys.modules["torch"].compiler.is_compiling():
        return False
    try:
        return bool(condition())
    except RuntimeError:  # a mapped or a fake tensor has no value to read
        return False
