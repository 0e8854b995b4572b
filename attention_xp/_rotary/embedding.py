"""Rotary position embeddings: pairs of features turn by an angle that grows with the position."""

from collections.abc import Sequence
from typing import Any

from attention_xp._backend.dtypes import as_dtype, computation_dtype
from attention_xp._backend.libraries import common_namespace, device as device_of
from attention_xp._backend.shapes import filled_up
from attention_xp._checks.arrays import check_floating, check_placement, fits, shapes
from attention_xp._checks.numbers import check_flag
from attention_xp._public_types import Array, ArrayT
from attention_xp._rotary.cache import RotaryCache, check_cache, check_rotary_dim, looked_up
from attention_xp._rotary.scaling import RotaryScaling
from attention_xp._rotary.spectrum import Spectrum, check_positions, spectrum
from attention_xp._typing import Namespace

__all__ = ["rotary_embedding"]


def rotary_embedding(
    x: ArrayT,
    positions: Array | None = None,
    *,
    base: float = 10000.0,
    rotary_dim: int | None = None,
    interleaved: bool = False,
    scaling: RotaryScaling | None = None,
    sections: Sequence[int] | None = None,
    axial: bool = False,
    cache: RotaryCache[ArrayT] | None = None,
) -> ArrayT:
    r"""Rotate pairs of features by angles proportional to the position (RoPE).

    .. math::

        \begin{pmatrix} y_a \\ y_b \end{pmatrix} =
        \begin{pmatrix} \cos p\,\theta_i & -\sin p\,\theta_i \\ \sin p\,\theta_i & \cos p\,\theta_i \end{pmatrix}
        \begin{pmatrix} x_a \\ x_b \end{pmatrix}, \qquad \theta_i = b^{-2i/R}, \quad 0 \le i < R/2

    for the position :math:`p` and the pair :math:`(a, b) = (i, i + R/2)`, or :math:`(2i, 2i + 1)` with
    `interleaved`. After it, the product of a query and a key depends on the difference of their positions alone.

    Parameters
    ----------
    x : array
        ``(S, D)``, ``(B, S, D)`` or ``(..., H, S, D)``: queries or keys.
    positions : array, optional
        Integer array ``(S,)``, or of the batch shape and ``S``, which are broadcast over the heads; with `sections`
        one leading axis more. Values are below ``2**31`` in magnitude and may be negative. Default: 0 to ``S - 1``.
    base : float, default: 10000.0
        ``b``.
    rotary_dim : int, optional
        ``R``, even: the first ``R`` features are rotated, the others handed through. Default: ``D``.
    interleaved : bool, default: False
        Whether neighbouring features are paired, as in GPT-J, or those half of ``R`` apart, as in GPT-NeoX and Llama.
    scaling : scaling, optional
        Changes the frequencies for sequences longer than those of the training: `LinearScaling`, `NTKScaling`,
        `DynamicNTKScaling`, `YarnScaling`, `Llama3Scaling` or `LongRopeScaling`.
    sections : sequence of int, optional
        How many pairs follow each leading axis of `positions`, ``R // 2`` in all: section ``j`` follows axis
        ``j % axes``. ``(16, 24, 24)`` with positions ``(3, B, S)`` of time, height and width is the multimodal
        embedding of Qwen2-VL; short sections one after the other interleave the axes.
    axial : bool, default: False
        Whether every section has a spectrum of its own, from 1 downwards, instead of its part of a common one.
    cache : RotaryCache, optional
        Cosines and sines from `rotary_cache` in place of `base`, `scaling` and `axial`. Row ``p`` belongs to position
        ``p``: without `positions` the first ``S`` rows are used, and there may be leading axes of the batch shape;
        with `positions` their rows of a table ``(L, R // 2)``, and NaN for a position below 0 or from ``L`` on.

    Returns
    -------
    array
        Same shape and dtype as `x`. 16-bit input is rotated in float32.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If `rotary_dim` is odd or exceeds the width, shapes do not fit, or ``cache`` comes with options that it replaces.

    See Also
    --------
    rotary_cache : computes cosines and sines once for many calls.
    axial_rotary_embedding : positions in an image.
    permute_rotary_weights : turns projections from one pairing to the other.

    Notes
    -----
    Angles are computed in float32 for input up to 32 bits, and in float64 for float64. Positions and frequencies are
    split so that their product keeps its digits at distant positions, too.

    `DynamicNTKScaling` and `LongRopeScaling` look at the length of the sequence. It is ``S`` where positions are
    implied, and one more than the largest of all given positions, which is compared inside the array library. The
    frequencies of `DynamicNTKScaling` are then arrays, and cannot be split beforehand: in float32, angles of distant
    positions are as coarse as the product is. A table from `rotary_cache` for a length has no such limit.

    The inverse rotation is the one with the sines reversed, ``RotaryCache(cache.cos, -cache.sin)``, or at negative
    positions. The same applied to the gradient of the output gives the gradient of `x`.

    References
    ----------
    Su et al., "RoFormer: enhanced transformer with rotary position embedding", 2021.
    Wang et al., "Qwen2-VL: enhancing vision-language model's perception of the world at any resolution", 2024.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp import rotary_embedding
    >>> x = np.tile(np.asarray([1.0, 0.0]), (3, 1))
    >>> rotary_embedding(x, base=100.0).round(2)
    array([[ 1.  ,  0.  ],
           [ 0.54,  0.84],
           [-0.42,  0.91]])
    """
    named = {"x": x} if positions is None else {"x": x, "positions": positions}
    if cache is not None:
        _check_alone(cache, base, scaling, axial)
        named |= {"cache.cos": cache.cos, "cache.sin": cache.sin}
    xp = common_namespace(**named)
    check_floating(xp, x=x)
    if x.ndim < 2:
        raise ValueError(f"x needs at least 2 axes: expected x (S, D), (B, S, D) or (..., H, S, D), {shapes(x=x)}")
    interleaved = check_flag("interleaved", interleaved)
    if cache is not None:
        check_cache(xp, cache, x)
    width = _width(x, rotary_dim, cache)
    chosen = spectrum(width, base, scaling, sections, axial)
    if positions is not None:
        check_placement(xp, x=x, positions=positions)
        _check_fit("positions", check_positions(xp, positions, chosen.sections), x)
    elif chosen.sections is not None:
        raise ValueError(f"sections need positions (axes, ..., S), got positions None, sections {chosen.sections}")
    dtype = computation_dtype(xp, x.dtype)
    if cache is not None:
        cos, sin = (as_dtype(xp, t, dtype) for t in _from_cache(xp, x, positions, chosen, cache))
    elif positions is None:
        cos, sin = chosen.implied(xp, x.shape[-2], dtype, device_of(x))
    else:
        cos, sin = chosen.given(xp, positions, dtype)
    return _rotated(xp, x, _over_heads(xp, cos, x), _over_heads(xp, sin, x), interleaved)


def _check_alone(cache: Any, base: Any, scaling: Any, axial: Any) -> None:
    if not isinstance(cache, RotaryCache):
        raise TypeError(f"cache must be a RotaryCache, got {type(cache).__name__}")
    for name, is_default in (("base", base == 10000.0), ("scaling", scaling is None), ("axial", axial is False)):
        if not is_default:
            raise ValueError(f"{name} is part of the cache already: give {name} to rotary_cache, or leave cache out")


def _width(x: Array, rotary_dim: int | None, cache: RotaryCache | None) -> int:
    """Return the checked number of features that are rotated."""
    if cache is not None:
        cached = 2 * cache.cos.shape[-1]
        if rotary_dim not in (None, cached):
            raise ValueError(f"rotary_dim is {rotary_dim} but cache is for {cached}, {shapes(cache=cache.cos)}")
        rotary_dim = cached
    elif rotary_dim is None:
        if x.shape[-1] == 0 or x.shape[-1] % 2:
            raise ValueError(
                f"x has width {x.shape[-1]}, which does not fall into pairs: expected an even D, or an even "
                f"rotary_dim below it, {shapes(x=x)}"
            )
        return int(x.shape[-1])
    rotary_dim = check_rotary_dim(rotary_dim)
    if rotary_dim > x.shape[-1]:
        raise ValueError(f"rotary_dim is {rotary_dim} but x has width {x.shape[-1]}: {shapes(x=x)}")
    return rotary_dim


def _check_fit(name: str, shape: tuple[int, ...], x: Array) -> None:
    """Check that ``(..., S)`` are positions or rows of `x`, with its batch shape or none."""
    batch = tuple(x.shape[: -3 if x.ndim > 3 else -2])
    if shape[-1] != x.shape[-2] or not fits(shape[:-1], batch):
        raise ValueError(
            f"{name} {shape} does not fit x: expected (S,) = {(x.shape[-2],)} or the batch shape and S = "
            f"{(*batch, x.shape[-2])}, {shapes(x=x)}"
        )


def _from_cache(
    xp: Namespace, x: Array, positions: Array | None, chosen: Spectrum, cache: RotaryCache
) -> tuple[Array, Array]:
    """Return the rows of the cache that belong to `x`."""
    if positions is not None:
        if cache.cos.ndim != 2:
            raise ValueError(
                f"positions choose rows of a cache without leading axes: expected cache (L, rotary_dim // 2), "
                f"{shapes(cache=cache.cos, positions=positions)}"
            )
        columns = chosen.columns(xp, positions)
        return looked_up(xp, cache.cos, columns), looked_up(xp, cache.sin, columns)
    rows, length = cache.cos.shape[-2], x.shape[-2]
    if rows < length:
        raise ValueError(f"cache has {rows} rows but x has length {length}: {shapes(cache=cache.cos, x=x)}")
    _check_fit("cache", (*cache.cos.shape[:-2], length), x)
    return cache.cos[..., :length, :], cache.sin[..., :length, :]


def _over_heads(xp: Namespace, table: Array, x: Array) -> Array:
    """Give a table the axes of `x`: with batch axes, one for the heads."""
    table = xp.expand_dims(table, axis=-3) if table.ndim > 2 and x.ndim > 3 else table
    return filled_up(xp, table, x.ndim)


def _rotated(xp: Namespace, x: Array, cos: Array, sin: Array, interleaved: bool) -> Any:
    pairs = cos.shape[-1]
    features = x[..., : 2 * pairs]
    if interleaved:
        a, b = features[..., 0::2], features[..., 1::2]
    else:
        a, b = features[..., :pairs], features[..., pairs:]
    a, b = (as_dtype(xp, part, cos.dtype) for part in (a, b))
    turned = [as_dtype(xp, part, x.dtype) for part in (a * cos - b * sin, b * cos + a * sin)]
    if interleaved:
        turned = [xp.reshape(xp.stack(turned, axis=-1), features.shape)]
    rest = [x[..., 2 * pairs :]] if 2 * pairs < x.shape[-1] else []
    return xp.concat([*turned, *rest], axis=-1)
