"""Which array library some arrays belong to, and where they live."""

import sys
from typing import Any

from array_api_compat import array_namespace, device, is_jax_namespace, is_numpy_namespace

from attention_xp._typing import Array, Device, Namespace

__all__ = [
    "common_namespace",
    "creation_namespace",
    "cuda_device",
    "described",
    "device",
    "library_name",
    "same_device",
]

_LIBRARIES = {
    "array_api_compat.numpy": "numpy",
    "array_api_compat.torch": "torch",
    "array_api_compat.cupy": "cupy",
    "array_api_strict": "strict",
    "jax.numpy": "jax",
}


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


def same_device(xp: Namespace, a: Array, b: Array) -> bool:
    """Whether two arrays of `xp` live together; JAX places its arrays itself."""
    return is_numpy_namespace(xp) or is_jax_namespace(xp) or bool(a.device == b.device)


def described(name: str, given: Any) -> str:
    """Return how a complaint calls what was given for a plain Python value: by its type, and the way out of a trace."""
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
