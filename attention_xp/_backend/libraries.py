"""The library and the device of arrays."""

import sys
from typing import Any

import array_api_compat as compat

from attention_xp._typing import Array, Device, DType, Namespace

__all__ = [
    "array_namespace",
    "check_layouts",
    "common_namespace",
    "creation_namespace",
    "cuda_device",
    "cumulative_sum",
    "described",
    "device",
    "is_array",
    "is_cupy_namespace",
    "is_jax_namespace",
    "is_numpy",
    "is_numpy_namespace",
    "is_tensor",
    "is_torch_namespace",
    "library_name",
    "padded",
    "same_device",
    "to_array_of",
]

_LIBRARIES = {
    "array_api_compat.numpy": "numpy",
    "array_api_compat.torch": "torch",
    "array_api_compat.cupy": "cupy",
    "array_api_strict": "strict",
    "array_api_compat.dask.array": "dask",
    "jax.numpy": "jax",
}


def library_name(xp: Namespace) -> str:
    """Return the short name of the library behind a namespace."""
    name: str = xp.__name__
    return _LIBRARIES.get(name, name)


# array_api_compat answers some questions from caches, of which torch's compiler warns the user. For tensors of torch these
# are therefore answered here, without a cache.


def is_tensor(thing: Any) -> bool:
    """Whether something is a tensor of torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(thing, torch.Tensor)


def is_array(thing: Any) -> bool:
    """Whether something is an array of NumPy, torch, JAX or CuPy."""
    return is_tensor(thing) or compat.is_numpy_array(thing) or compat.is_jax_array(thing) or compat.is_cupy_array(thing)


def is_numpy_namespace(xp: Namespace) -> bool:
    """Whether a namespace is that of NumPy."""
    return library_name(xp) == "numpy"


def is_torch_namespace(xp: Namespace) -> bool:
    """Whether a namespace is that of torch."""
    return library_name(xp) == "torch"


def is_jax_namespace(xp: Namespace) -> bool:
    """Whether a namespace is that of JAX."""
    return library_name(xp) == "jax"


def is_cupy_namespace(xp: Namespace) -> bool:
    """Whether a namespace is that of CuPy."""
    return library_name(xp) == "cupy"


def array_namespace(*arrays: Array) -> Namespace:
    """Return the one namespace of some arrays."""
    if not all(map(is_tensor, arrays)):
        return compat.array_namespace(*arrays)
    import array_api_compat.torch as xp  # noqa: PLC0415  # imports torch

    return xp


def device(array: Array) -> Device:
    """Return the device of an array; ``None`` for one that JAX traces."""
    return array.device if is_tensor(array) else compat.device(array)


def padded(xp: Namespace, array: Array, widths: list[tuple[int, int]]) -> Array:
    """Return an array with so many zeros before and after, along each axis."""
    if is_torch_namespace(xp):
        flat = [n for pair in reversed(widths) for n in pair]
        return sys.modules["torch"].nn.functional.pad(array, flat)
    import array_api_extra as xpx  # noqa: PLC0415  # takes time

    return xpx.pad(array, widths, xp=xp)


def cumulative_sum(
    xp: Namespace, array: Array, *, axis: int, dtype: DType | None = None, include_initial: bool = False
) -> Array:
    """Return cumulative sums along an axis, with `include_initial` after a first 0."""
    if not is_torch_namespace(xp):
        return xp.cumulative_sum(array, axis=axis, dtype=dtype, include_initial=include_initial)
    sums = sys.modules["torch"].cumsum(array, axis, dtype=dtype)
    if not include_initial:
        return sums
    along = axis % sums.ndim
    return padded(xp, sums, [(int(i == along), 0) for i in range(sums.ndim)])


def common_namespace(**arrays: Array) -> Namespace:
    """Return the one namespace of all given arrays."""
    for name, a in arrays.items():  # the standard's own question ignores None and plain numbers
        if not hasattr(a, "dtype"):
            raise TypeError(f"{name} must be an array, got {_kind(a)}{to_array_of(name, a)}")
    first, *others = arrays.values()
    try:
        # Arrays of one type belong to one library; asking for each takes a microsecond.
        xp = array_namespace(first, *[a for a in others if type(a) is not type(first)])
    except TypeError:
        _refuse_dask(arrays)
        kinds = ", ".join(f"{name} {_kind(a)}" for name, a in arrays.items())
        hint = "; make the cache with xp=, such as xp=torch" if any("cache." in name for name in arrays) else ""
        raise TypeError(f"all arrays must belong to one array library, got {kinds}{hint}") from None
    if library_name(xp) == "numpy":
        _reject_numpy_subclasses(arrays)
    elif library_name(xp) == "torch":
        check_layouts(**arrays)
    elif library_name(xp) == "dask":
        _refuse_dask(arrays)
    return xp


def to_array_of(name: str, given: Any) -> str:
    """Return what an error adds about numbers and lists: how they become an array of the library that the caller uses."""
    if not isinstance(given, list | tuple | int | float):
        return ""
    return (
        f": np.asarray({name}), torch.as_tensor({name}) or jnp.asarray({name}) makes one, of the library of the others"
    )


def _kind(a: Any) -> str:
    return type(a).__qualname__ if type(a).__module__ == "builtins" else f"{type(a).__module__}.{type(a).__qualname__}"


def _reject_numpy_subclasses(arrays: dict[str, Array]) -> None:
    # Masked arrays would silently lose their mask, and `*` of matrices is another product.
    np = sys.modules["numpy"]
    for name, a in arrays.items():
        if type(a) is not np.ndarray and isinstance(a, np.ma.MaskedArray | np.matrix):
            raise TypeError(f"{name} must be a plain array, got numpy {type(a).__name__}: {_plain(np, name, a)}")


def _plain(np: Any, name: str, a: Any) -> str:
    if isinstance(a, np.matrix):
        return f"np.asarray({name}) is one"
    if a.dtype.kind == "f":
        return f"{name}.filled(np.nan) is one; what is missing is then excluded by mask="
    return f"{name}.filled({'False' if a.dtype.kind == 'b' else ''}) is one"


def _refuse_dask(arrays: dict[str, Array]) -> None:
    # Its blocks are computed where they lie, by a graph of calls, and not by operations on the whole.
    for name, a in arrays.items():
        if compat.is_dask_array(a):
            raise TypeError(
                f"{name} is a dask array: attention on these is attention_xp.distributed.dask_attention, and other "
                f"functions are for their blocks, {name}.map_blocks(...)"
            )


def check_layouts(**arrays: Array) -> None:
    """Refuse tensors of torch that are not dense."""
    strided = sys.modules["torch"].strided
    for name, a in arrays.items():
        if a.is_nested:
            raise TypeError(
                f"{name} must be a dense tensor, got a nested one: expected its sequences packed, (T, H, D), in "
                "varlen_attention, as values() and offsets() of a jagged tensor have them"
            )
        if a.layout != strided:
            raise TypeError(f"{name} must be a dense tensor, got {a.layout}: expected {name}.to_dense()")


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


def is_numpy(array: Array) -> bool:
    """Whether an array is one of NumPy; unlike `array_namespace`, this question can be compiled."""
    return type(array).__module__ == "numpy"


def same_device(xp: Namespace, a: Array, b: Array) -> bool:
    """Whether two arrays of `xp` are on one device; JAX places its arrays itself."""
    return is_numpy_namespace(xp) or is_jax_namespace(xp) or bool(a.device == b.device)


def described(name: str, given: Any) -> str:
    """Return how an error names what was given in place of a plain Python value: its type, or the remedy inside a trace."""
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(given, jax.core.Tracer):
        return f"a value that JAX traces: give it to jax.jit as static, static_argnames={name!r}"
    return type(given).__name__


def cuda_device(array: Array) -> Device | None:
    """Return the CUDA device of an array of JAX, in a trace the default one, ``None`` where there is none."""
    jax = sys.modules["jax"]
    place = device(array)
    if not hasattr(place, "platform"):
        place = jax.config.jax_default_device or jax.local_devices()[0]
    if isinstance(place, str):  # the default may be the name of a platform
        place = jax.local_devices(backend=place)[0]
    is_cuda = place.platform == "gpu" and "cuda" in place.client.platform_version
    return place if is_cuda else None
