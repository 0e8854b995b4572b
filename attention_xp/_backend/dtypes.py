"""Names and kinds of dtypes, for all libraries."""

from attention_xp._backend.libraries import library_name
from attention_xp._typing import Array, DType, Namespace

__all__ = [
    "NARROW",
    "as_dtype",
    "computation_dtype",
    "dtype_name",
    "floating_dtype",
    "is_alike",
    "is_boolean",
    "is_floating",
    "is_integer",
    "named_dtype",
]

NARROW = frozenset({"bfloat16", "float16"})  # NumPy lacks the one, and converts the other a number at a time
_FLOATING = NARROW | {"float32", "float64"}


def dtype_name(dtype: DType) -> str:
    """Return ``"float32"`` for any library's spelling of that dtype."""
    name = getattr(dtype, "name", None) or getattr(dtype, "__name__", None) or str(dtype)
    return str(name).rpartition(".")[2]


def is_alike(dtype: DType, other: DType) -> bool:
    """Whether two dtypes of one library are equal, apart from NumPy's byte order."""
    return bool(dtype == other) or dtype_name(dtype) == dtype_name(other)


def named_dtype(
    xp: Namespace, dtype: DType | str | None, argument: str = "dtype", names: frozenset[str] = _FLOATING | {"bool"}
) -> DType | None:
    """Return the dtype of `xp` that a name such as ``"float32"`` stands for; ``None`` is the default.

    Only dtypes of some names are let through: floating and boolean ones.
    """
    if dtype is None:
        return None
    name = dtype if isinstance(dtype, str) else dtype_name(dtype)
    if not isinstance(dtype, str) and not name.isidentifier():  # as a number or an array is told
        raise TypeError(f"{argument} must be a dtype or the name of one, got {type(dtype).__name__}")
    if name not in names or not hasattr(xp, name):
        known = ", ".join(sorted(n for n in names if hasattr(xp, n)))
        raise ValueError(f"{argument} {name!r} cannot be used with {library_name(xp)}: expected one of {known}")
    return getattr(xp, name)


def floating_dtype(xp: Namespace, dtype: DType | str | None, argument: str = "dtype") -> DType | None:
    """Like `named_dtype`, for floating dtypes alone."""
    return named_dtype(xp, dtype, argument, _FLOATING)


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


def as_dtype(xp: Namespace, array: Array, dtype: DType) -> Array:
    """Return an array in a dtype: itself where it has that dtype.

    Asked here, because ``astype(..., copy=False)`` takes a microsecond to find that there is nothing to do, several times
    in every call.
    """
    return array if array.dtype == dtype else xp.astype(array, dtype)


def computation_dtype(xp: Namespace, dtype: DType) -> DType:
    """Return float64 for float64, float32 for everything narrower."""
    if dtype == xp.float32:  # NumPy takes long to tell a name
        return xp.float32
    return xp.float64 if dtype_name(dtype) == "float64" else xp.float32  # by name, which is that of both byte orders
