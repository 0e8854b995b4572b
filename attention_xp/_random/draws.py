"""Reproducible randomness: seeds, and one draw per position from a counter-based generator."""

import math
import os
import sys
from collections.abc import Callable
from numbers import Integral
from typing import Any

from array_api_compat import is_jax_array

from attention_xp._backend.dtypes import as_dtype, computation_dtype, dtype_name, is_floating
from attention_xp._backend.libraries import common_namespace, device, library_name
from attention_xp._backend.sizes import is_open
from attention_xp._checks.numbers import check_number
from attention_xp._public_types import ArrayT
from attention_xp._random.threefry import threefry
from attention_xp._typing import Array, Device, DType, Namespace

__all__ = [
    "check_rate",
    "check_rng",
    "dropout",
    "normal",
    "random_bits",
    "seed_words",
    "uniform",
]


def dropout(x: ArrayT, rate: float, *, rng: Any = None) -> ArrayT:
    r"""Set a random share of the entries to zero and scale the others up.

    .. math:: y_i = x_i \, m_i / (1 - \mathrm{rate}), \qquad P(m_i = 0) = \mathrm{rate}

    for each entry :math:`i`, which are numbered in row-major order: a seed drops by this number alone.

    Parameters
    ----------
    x : array
        Floating array of any shape ``(...)``.
    rate : float
        Probability of dropping an entry, ``0 <= rate < 1``.
    rng : int, random generator or JAX key, optional
        A seed below ``2**64`` (the same entries are dropped on every backend), or a generator of the
        library of `x`. Default: fresh entropy; required with JAX.

    Returns
    -------
    array
        Shape, dtype, library and device of `x`; its mean is that of `x` in expectation.

    Raises
    ------
    TypeError
        If `x` is no floating array, or `rng` belongs to another library.
    ValueError
        If `rate` or the seed is out of range, or `rng` is missing with JAX.

    References
    ----------
    Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov, "Dropout: a simple way to prevent neural
    networks from overfitting", JMLR 15, 2014. Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2,
    3", SC 2011: the generator, Threefry-2x32.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp import dropout
    >>> dropout(np.ones(8), 0.5, rng=2).tolist()
    [2.0, 2.0, 0.0, 2.0, 0.0, 0.0, 2.0, 0.0]
    """
    xp = common_namespace(x=x)
    if not is_floating(xp, x.dtype):
        raise TypeError(f"x must be a floating array, got {dtype_name(x.dtype)}")
    rate = check_rate(rate, name="rate")
    check_rng(rng, xp)
    if rate == 0.0:
        return xp.astype(x, x.dtype, copy=True)
    key = seed_words(rng, x, xp=xp)
    keep = xp.reshape(_keep(random_bits(key, math.prod(x.shape), xp=xp, device=device(x)), rate), x.shape)
    return xp.where(keep, x * (1.0 / (1.0 - rate)), xp.zeros_like(x))  # type: ignore[operator]  # of any array


def check_rate(given: Any, *, name: str) -> float:
    """Return a dropout rate as a float in ``[0, 1)``."""
    rate: float = check_number(name, given)
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"{name} must satisfy 0 <= {name} < 1, got {given}")
    return rate


def check_rng(rng: Any, xp: Namespace) -> None:
    """Refuse what is no source of randomness for arrays of `xp`."""
    if rng is None:
        return
    if isinstance(rng, int | Integral) and rng is not True and rng is not False:
        if not 0 <= int(rng) < 2**64:
            raise ValueError(f"rng must satisfy 0 <= seed < 2**64, got {rng}")
        return
    library = _generator_library(rng)
    if library is None and is_jax_array(rng):
        raise TypeError(
            "rng must be an int seed or a JAX key, got an array of numbers: make a key of it, jax.random.key(seed), which "
            "may be traced"
        )
    if library is None:
        raise TypeError(
            "rng must be an int seed, a random generator of the library of the input or a JAX key, "
            f"got {type(rng).__module__}.{type(rng).__qualname__}"
        )
    name = library_name(xp)
    if library != ("numpy" if name == "strict" else name):
        raise TypeError(f"rng is a generator of {library} but the arrays are of {name}: expected one library")


def _generator_library(rng: Any) -> str | None:
    """Return the library whose generator `rng` is, without importing any."""
    kinds: dict[str, Callable[[Any], bool]] = {
        "numpy": lambda np: isinstance(rng, np.random.Generator),
        "cupy": lambda cp: isinstance(rng, cp.random.Generator),
        "torch": lambda torch: isinstance(rng, torch.Generator),
        "jax": lambda jax: isinstance(rng, jax.Array) and _is_jax_key(jax, rng),
    }
    return next((name for name, test in kinds.items() if name in sys.modules and test(sys.modules[name])), None)


def _is_jax_key(jax: Any, rng: Any) -> bool:
    typed = jax.dtypes.issubdtype(rng.dtype, jax.dtypes.prng_key)
    return bool(typed and rng.ndim == 0) or bool(rng.dtype == "uint32" and rng.shape in {(2,), (4,)})


def seed_words(rng: Any, like: Array, *, xp: Namespace) -> tuple[Any, Any]:
    """Return the two 32-bit words of a seed; a generator is advanced to draw them.

    They are plain ints where the seed is known to Python, and int32 arrays without axes where a generator on a device,
    or a traced key, holds it.
    """
    library = library_name(xp)
    rng = int(rng) if isinstance(rng, Integral) else rng
    if library == "jax" and rng is None:
        raise ValueError("rng is required with JAX arrays: pass a key such as jax.random.key(0), or an int seed")
    if library == "torch" and not isinstance(rng, int):
        words = _torch_words(rng, device(like))
    elif library == "jax" and not isinstance(rng, int):
        words = _jax_words(rng)
    elif library == "cupy" and not isinstance(rng, int | None):
        words = rng.integers(0, 2**32, size=2, dtype="uint32").view("int32")
    else:
        seed = _host_seed(rng)
        return _signed(seed), _signed(seed >> 32)
    return words[0, ...], words[1, ...]


def _host_seed(rng: Any) -> int:
    if rng is None:
        return int.from_bytes(os.urandom(8), "little")
    return rng if isinstance(rng, int) else int(rng.integers(0, 2**64, dtype="uint64"))


def _torch_words(rng: Any, device: Device) -> Array:
    torch = sys.modules["torch"]
    if rng is not None and rng.device.type != device.type:
        raise ValueError(f"rng is on {rng.device} but the arrays are on {device}: expected one device")
    return torch.randint(-(2**31), 2**31, (2,), generator=rng, dtype=torch.int32, device=device)


def _jax_words(rng: Any) -> Array:
    jax = sys.modules["jax"]
    return jax.lax.bitcast_convert_type(jax.random.bits(rng, (2,), "uint32"), "int32")


def _signed(word: int) -> int:
    """Return the low 32 bits of an int as a signed number."""
    return (word + 2**31) % 2**32 - 2**31


def random_bits(key: tuple[Any, Any], size: int, *, xp: Namespace, device: Device) -> Array:
    """Return `size` uniform int32 words, numbered by their flat index: two of each block of the generator."""
    blocks = (size + 1) // 2
    if is_open(blocks) or blocks <= 2**31:
        low = xp.arange(blocks, dtype=xp.int32, device=device)
        high = xp.zeros_like(low)
    else:
        index = xp.arange(blocks, dtype=xp.int64, device=device)
        low = xp.astype(((index + 2**31) & (2**32 - 1)) - 2**31, xp.int32)
        high = xp.astype(index >> 32, xp.int32)
    return xp.reshape(xp.stack(threefry(key, (low, high)), axis=-1), (2 * blocks,))[:size]


def _keep(bits: Array, rate: float) -> Array:
    return bits >= min(round(rate * 2**32) - 2**31, 2**31 - 1)


def uniform(rng: Any, shape: tuple[int, ...], *, xp: Namespace, dtype: DType, device: Device) -> Array:
    """Draw from the uniform distribution on ``[0, 1)``, 24 bits each."""
    like = xp.zeros((), dtype=dtype, device=device)
    return as_dtype(xp, _uniform(rng, shape, like, xp=xp), like.dtype)


def normal(rng: Any, shape: tuple[int, ...], *, xp: Namespace, dtype: DType, device: Device) -> Array:
    """Draw from the standard normal distribution (Box and Muller, 1958)."""
    like = xp.zeros((), dtype=dtype, device=device)
    pair = _uniform(rng, (2, *shape), like, xp=xp)
    radius = xp.sqrt(-2.0 * xp.log1p(-pair[0, ...]))
    return as_dtype(xp, radius * xp.cos(2.0 * math.pi * pair[1, ...]), like.dtype)


def _uniform(rng: Any, shape: tuple[int, ...], like: Array, *, xp: Namespace) -> Array:
    """Draw in at least float32."""
    bits = random_bits(seed_words(rng, like, xp=xp), math.prod(shape), xp=xp, device=device(like))
    wide = computation_dtype(xp, like.dtype)
    return xp.reshape(xp.astype((bits >> 8) & 0xFFFFFF, wide) * 2.0**-24, shape)
