"""Cosines and sines of rotary position embeddings, computed once and used by many calls."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, overload

from attention_xp._backend.creation import place_of
from attention_xp._backend.dtypes import as_dtype, computation_dtype, floating_dtype
from attention_xp._backend.libraries import common_namespace, device as device_of
from attention_xp._backend.shapes import filled_up
from attention_xp._checks.arrays import check_floating, check_placement, shapes
from attention_xp._checks.numbers import check_count
from attention_xp._public_types import Array as PublicArray, ArrayT, Generic, HeldT
from attention_xp._rotary.scaling import RotaryScaling
from attention_xp._rotary.spectrum import check_positions, spectrum
from attention_xp._typing import Array, Device, DType, Namespace

__all__ = ["RotaryCache", "check_cache", "check_rotary_dim", "looked_up", "rotary_cache"]


class RotaryCache(NamedTuple, Generic[HeldT]):
    """Cosines and sines of the angles, ``(..., S, rotary_dim // 2)`` each; being a named tuple, a pytree to JAX.

    Row ``p`` of a table without leading axes is position ``p``.
    """

    cos: HeldT
    sin: HeldT


@overload
def rotary_cache(
    positions: int,
    rotary_dim: int,
    *,
    base: float = 10000.0,
    scaling: RotaryScaling | None = None,
    sections: Sequence[int] | None = None,
    axial: bool = False,
    like: ArrayT,
) -> RotaryCache[ArrayT]: ...
@overload
def rotary_cache(
    positions: int | PublicArray,
    rotary_dim: int,
    *,
    base: float = 10000.0,
    scaling: RotaryScaling | None = None,
    sections: Sequence[int] | None = None,
    axial: bool = False,
    xp: Namespace | None = None,
    dtype: DType | str | None = None,
    device: Device | None = None,
    like: PublicArray | None = None,
) -> RotaryCache: ...
def rotary_cache(
    positions: Any,
    rotary_dim: int,
    *,
    base: float = 10000.0,
    scaling: RotaryScaling | None = None,
    sections: Sequence[int] | None = None,
    axial: bool = False,
    xp: Namespace | None = None,
    dtype: DType | str | None = None,
    device: Device | None = None,
    like: PublicArray | None = None,
) -> RotaryCache:
    r"""Compute the cosines and sines that `rotary_embedding` needs, to be handed to it as ``cache``.

    .. math::

        \cos(p\,\theta_i), \quad \sin(p\,\theta_i), \qquad \theta_i = b^{-2i/R}, \quad 0 \le i < R/2

    with :math:`R` for `rotary_dim`, :math:`b` for `base`; a scaling changes the frequencies :math:`\theta_i`.

    Parameters
    ----------
    positions : int or array
        A length ``S``, for the positions 0 to ``S - 1``, or an integer array ``(..., S)`` of positions below
        ``2**31`` in magnitude, with a leading axis more where there are `sections`.
    rotary_dim : int
        Number of features that are rotated; even.
    base : float, default: 10000.0
        Base of the frequencies.
    scaling : scaling, optional
        Changes the frequencies for longer sequences; see `rotary_embedding`.
    sections : sequence of int, optional
        How many pairs follow each axis of `positions`; see `rotary_embedding`.
    axial : bool, default: False
        Whether every section has a spectrum of its own; see `rotary_embedding`.
    xp : module, optional
        The array library, such as ``cupy``, ``torch`` or ``jax.numpy``, where `positions` is a length.
        Default: NumPy.
    dtype : dtype or str, optional
        A floating dtype of the library or its name. Default: float32. Angles are computed in float64 for float64
        and in float32 for all others.
    device : device, optional
        Where to place the arrays, where `positions` is a length. Default: the default device of `xp`.
    like : array, optional
        An array whose library and device to take, in place of `xp` and `device`, where `positions` is a length; the
        tables are float64 where it is, else float32, unless `dtype` says otherwise.

    Returns
    -------
    RotaryCache
        `cos` and `sin`, each ``(S, rotary_dim // 2)`` or ``(..., S, rotary_dim // 2)``.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If `rotary_dim` is odd, an option does not fit it, or `like` comes with `xp` or `device`.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp import rotary_cache, rotary_embedding
    >>> cache = rotary_cache(4096, 64)
    >>> query = np.ones((2, 8, 1, 64), dtype=np.float32)
    >>> rotary_embedding(query, np.asarray([[100], [7]]), cache=cache).shape
    (2, 8, 1, 64)
    """
    rotary_dim = check_rotary_dim(rotary_dim)
    chosen = spectrum(rotary_dim, base, scaling, sections, axial)
    if getattr(positions, "ndim", 0) > 0:
        if not (xp is device is like is None):
            raise ValueError(
                "xp and device are those of positions where positions is an array: leave them and like out"
            )
        xp = common_namespace(positions=positions)
        check_positions(xp, positions, chosen.sections)
        dtype = floating_dtype(xp, "float32" if dtype is None else dtype)
        tables = chosen.given(xp, positions, computation_dtype(xp, dtype))
    else:
        length = check_count("positions", positions, low=0)
        if chosen.sections is not None:
            raise ValueError(f"sections need positions (axes, ..., S) as an array, got positions {length}")
        xp, wanted, device = place_of(xp, "float32" if dtype is like is None else dtype, device, like)
        dtype = computation_dtype(xp, wanted) if dtype is None else wanted
        tables = chosen.implied(xp, length, computation_dtype(xp, dtype), device)
    return RotaryCache(*(as_dtype(xp, table, dtype) for table in tables))


def check_rotary_dim(rotary_dim: Any) -> int:
    """Return an even number of features."""
    features = check_count("rotary_dim", rotary_dim, low=2)
    if features % 2:
        raise ValueError(f"rotary_dim must be even, for features are rotated in pairs, got {features}")
    return features


def check_cache(xp: Namespace, cache: RotaryCache, x: Array) -> None:
    """Check kinds and placement of a cache, and that cosines and sines have one shape."""
    arrays = {"cache.cos": cache.cos, "cache.sin": cache.sin}
    check_floating(xp, **arrays)
    check_placement(xp, x=x, **arrays)
    cos, sin = (tuple(a.shape) for a in arrays.values())
    if len(cos) < 2 or cos != sin or cos[-1] == 0:
        raise ValueError(f"cache must hold cos and sin (..., S, rotary_dim // 2) of one shape, {shapes(**arrays)}")


def looked_up(xp: Namespace, table: Array, columns: Array) -> Array:
    """Return the rows of a table ``(L, R / 2)`` at positions ``(..., S, 1)`` or ``(..., S, R / 2)``.

    Where the table has none it is NaN: libraries would wrap such a position around, raise or make NaN, each its own way.
    """
    length, pairs = table.shape
    exists = (columns >= 0) & (columns < length)
    shape, columns = (*columns.shape[:-1], pairs), xp.where(exists, columns, 0)
    if columns.shape[-1] == 1:
        rows = xp.take(table, xp.reshape(columns, (-1,)), axis=0)
    else:
        pair = xp.arange(pairs, dtype=columns.dtype, device=device_of(columns))
        rows = xp.take(
            xp.reshape(table, (-1,)), xp.reshape(columns * pairs + filled_up(xp, pair, columns.ndim), (-1,)), axis=0
        )
    return xp.where(exists, xp.reshape(rows, shape), math.nan)
